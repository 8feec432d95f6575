//! `DownstreamTlsContext`, `UpstreamTlsContext` and what they share.

use super::scope::{At, reject, report};
use super::secret::{certificate, validation};
use super::secret_source::secret_ref;
use super::values::{flag, known, positive};
use crate::{
    CertificateSource, CipherSuite, CommonTls, ConfigError, Curve, DownstreamTls, SessionTickets,
    TlsVersion, UpstreamTls, ValidationSource,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use std::sync::Arc;

/// Envoy's default `max_session_keys` is 1.
const DEFAULT_SESSION_KEYS: u32 = 1;

pub(crate) fn downstream_tls(
    message: pb::DownstreamTlsContext,
    bytes: &[u8],
    at: At<'_>,
) -> Result<DownstreamTls, ConfigError> {
    use pb::downstream_tls_context::SessionTicketKeysType as Keys;
    let pb::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        // There is no other kind of resumption than by tickets.
        disable_stateful_session_resumption: _,
        session_timeout,
        ocsp_staple_policy,
        // All certificates are always looked at.
        full_scan_certs_on_sni_mismatch: _,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = message;
    reject!(at; ocsp_staple_policy);
    let tickets = match session_ticket_keys_type {
        Some(Keys::DisableStatelessSessionResumption(true)) => SessionTickets::Disabled,
        None | Some(Keys::DisableStatelessSessionResumption(false)) => SessionTickets::Own,
        Some(Keys::SessionTicketKeys(_)) => {
            at.field("session_ticket_keys")
                .notice("sessions are resumed with keys of this process only");
            SessionTickets::Own
        }
        Some(Keys::SessionTicketKeysSdsSecretConfig(_)) => {
            at.field("session_ticket_keys_sds_secret_config")
                .notice("sessions are resumed with keys of this process only");
            SessionTickets::Own
        }
    };
    let common = common(common_tls_context, at.field("common_tls_context"))?;
    if common.certificates.is_empty() {
        return Err(at.field("common_tls_context").error(
            "a server needs a certificate: tls_certificates or tls_certificate_sds_secret_configs",
        ));
    }
    Ok(DownstreamTls {
        key: bytes.into(),
        common,
        prefer_client_ciphers,
        require_client_certificate: flag(require_client_certificate, false),
        require_sni: flag(require_sni, false),
        tickets,
        session_timeout: positive(session_timeout, at.field("session_timeout"))?,
    })
}

pub(crate) fn upstream_tls(
    message: pb::UpstreamTlsContext,
    bytes: &[u8],
    at: At<'_>,
) -> Result<UpstreamTls, ConfigError> {
    let pb::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        // There is no RSA key exchange.
        enforce_rsa_key_usage: _,
    } = message;
    report!(at, "there is no renegotiation"; allow_renegotiation);
    if sni.len() > 255 {
        return Err(at.field("sni").error("is longer than 255 bytes"));
    }
    let common = common(common_tls_context, at.field("common_tls_context"))?;
    if common.certificates.len() > 1 {
        return Err(at
            .field("common_tls_context")
            .error("a client has at most one certificate"));
    }
    Ok(UpstreamTls {
        key: bytes.into(),
        common,
        http_alpn: Vec::new(),
        sni: (!sni.is_empty()).then(|| sni.to_ascii_lowercase().into()),
        auto_host_sni,
        auto_sni_san_validation,
        max_session_keys: max_session_keys.map_or(DEFAULT_SESSION_KEYS, |v| v.value) as usize,
    })
}

fn common(message: Option<pb::CommonTlsContext>, at: At<'_>) -> Result<CommonTls, ConfigError> {
    let pb::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = message.unwrap_or_default();
    reject!(at; tls_certificate_provider_instance, custom_tls_certificate_selector);
    reject!(at; tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance);
    reject!(at; custom_handshaker, key_log);
    let mut certificates = Vec::new();
    for (i, message) in tls_certificates.into_iter().enumerate() {
        let given = certificate(message, at.item("tls_certificates", i))?;
        certificates.push(CertificateSource::Given(Arc::new(given)));
    }
    for (i, message) in tls_certificate_sds_secret_configs.into_iter().enumerate() {
        let secret = secret_ref(message, at.item("tls_certificate_sds_secret_configs", i))?;
        certificates.push(CertificateSource::Secret(secret));
    }
    let mut common = CommonTls {
        min_version: TlsVersion::V12,
        max_version: TlsVersion::V13,
        cipher_suites: Vec::new(),
        curves: Vec::new(),
        alpn: alpn_protocols.into_iter().map(Into::into).collect(),
        certificates,
        validation: validation_source(validation_context_type, at)?,
    };
    for (i, protocol) in common.alpn.iter().enumerate() {
        if protocol.is_empty() || protocol.len() > 255 {
            return Err(at
                .item("alpn_protocols", i)
                .error("must have 1 to 255 bytes"));
        }
    }
    if let Some(params) = tls_params {
        parameters(params, &mut common, at.field("tls_params"))?;
    }
    Ok(common)
}

fn validation_source(
    message: Option<pb::common_tls_context::ValidationContextType>,
    at: At<'_>,
) -> Result<ValidationSource, ConfigError> {
    use pb::common_tls_context::{
        CombinedCertificateValidationContext, ValidationContextType as T,
    };
    Ok(match message {
        None => ValidationSource::None,
        Some(T::ValidationContext(context)) => ValidationSource::Given(Arc::new(validation(
            context,
            true,
            at.field("validation_context"),
        )?)),
        Some(T::ValidationContextSdsSecretConfig(secret)) => ValidationSource::Secret(secret_ref(
            secret,
            at.field("validation_context_sds_secret_config"),
        )?),
        Some(T::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            let CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            } = combined;
            reject!(at; validation_context_certificate_provider);
            reject!(at; validation_context_certificate_provider_instance);
            let default = validation(
                default_validation_context.unwrap_or_default(),
                false,
                at.field("default_validation_context"),
            )?;
            let secret_at = at.field("validation_context_sds_secret_config");
            let secret = super::values::required(validation_context_sds_secret_config, secret_at)?;
            ValidationSource::Combined(Arc::new(default), secret_ref(secret, secret_at)?)
        }
        Some(T::ValidationContextCertificateProvider(_)) => {
            return Err(at
                .field("validation_context_certificate_provider")
                .not_supported());
        }
        Some(T::ValidationContextCertificateProviderInstance(_)) => {
            return Err(at
                .field("validation_context_certificate_provider_instance")
                .not_supported());
        }
    })
}

fn parameters(
    message: pb::TlsParameters,
    common: &mut CommonTls,
    at: At<'_>,
) -> Result<(), ConfigError> {
    use pb::tls_parameters::TlsProtocol;
    let pb::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = message;
    reject!(at; signature_algorithms, compliance_policies);
    let min_at = at.field("tls_minimum_protocol_version");
    common.min_version = match known(tls_minimum_protocol_version, min_at)? {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => TlsVersion::V12,
        TlsProtocol::TlSv13 => TlsVersion::V13,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            min_at.notice("TLS before 1.2 is not spoken");
            TlsVersion::V12
        }
    };
    let max_at = at.field("tls_maximum_protocol_version");
    common.max_version = match known(tls_maximum_protocol_version, max_at)? {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => TlsVersion::V13,
        TlsProtocol::TlSv12 => TlsVersion::V12,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            return Err(max_at.error("TLS before 1.2 is not supported"));
        }
    };
    if common.min_version > common.max_version {
        return Err(min_at.error("is above tls_maximum_protocol_version"));
    }
    common.cipher_suites = suites(&cipher_suites, at)?;
    common.curves = curves(&ecdh_curves, at)?;
    Ok(())
}

/// Cipher suites by the names of OpenSSL or IANA; `[A|B]` are as good as each other.
fn suites(names: &[String], at: At<'_>) -> Result<Vec<Vec<CipherSuite>>, ConfigError> {
    let mut groups: Vec<Vec<CipherSuite>> = Vec::new();
    for (i, entry) in names.iter().enumerate() {
        let at = at.item("cipher_suites", i);
        let mut suites = Vec::new();
        for name in entry.trim_matches(['[', ']']).split('|') {
            match suite(name) {
                Some(Some(suite)) => {
                    if !groups.iter().chain([&suites]).any(|group| group.contains(&suite)) {
                        suites.push(suite);
                    }
                }
                Some(None) => at.notice(format_args!(
                    "'{name}' is not offered: it has no forward secrecy or no authenticated encryption"
                )),
                None => return Err(at.error(format!("'{name}' is not a cipher suite"))),
            }
        }
        if !suites.is_empty() {
            groups.push(suites);
        }
    }
    if groups.is_empty() && !names.is_empty() {
        return Err(at
            .field("cipher_suites")
            .error("none of these is supported; use ECDHE with AES-GCM or ChaCha20-Poly1305"));
    }
    Ok(groups)
}

/// [`None`]: no such suite; `Some(None)`: known, not supported.
fn suite(name: &str) -> Option<Option<CipherSuite>> {
    use CipherSuite as S;
    Some(Some(match name {
        "ECDHE-ECDSA-AES128-GCM-SHA256" | "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => {
            S::EcdheEcdsaAes128Gcm
        }
        "ECDHE-ECDSA-AES256-GCM-SHA384" | "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => {
            S::EcdheEcdsaAes256Gcm
        }
        "ECDHE-ECDSA-CHACHA20-POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            S::EcdheEcdsaChaCha20
        }
        "ECDHE-RSA-AES128-GCM-SHA256" | "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => {
            S::EcdheRsaAes128Gcm
        }
        "ECDHE-RSA-AES256-GCM-SHA384" | "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => {
            S::EcdheRsaAes256Gcm
        }
        "ECDHE-RSA-CHACHA20-POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            S::EcdheRsaChaCha20
        }
        "ECDHE-ECDSA-AES128-SHA"
        | "ECDHE-ECDSA-AES256-SHA"
        | "ECDHE-RSA-AES128-SHA"
        | "ECDHE-RSA-AES256-SHA"
        | "ECDHE-ECDSA-AES128-SHA256"
        | "ECDHE-RSA-AES128-SHA256"
        | "AES128-GCM-SHA256"
        | "AES256-GCM-SHA384"
        | "AES128-SHA"
        | "AES256-SHA"
        | "AES128-SHA256"
        | "DES-CBC3-SHA"
        | "PSK-AES128-CBC-SHA"
        | "PSK-AES256-CBC-SHA" => return Some(None),
        _ => return None,
    }))
}

fn curves(names: &[String], at: At<'_>) -> Result<Vec<Curve>, ConfigError> {
    let mut curves = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let at = at.item("ecdh_curves", i);
        curves.push(match name.as_str() {
            "X25519" | "x25519" => Curve::X25519,
            "P-256" | "prime256v1" => Curve::P256,
            "P-384" | "secp384r1" => Curve::P384,
            "X25519MLKEM768" => Curve::X25519MlKem768,
            "P-521" | "secp521r1" | "P-224" | "secp224r1" | "X25519Kyber768Draft00" => {
                at.notice(format_args!("'{name}' is not offered"));
                continue;
            }
            _ => return Err(at.error(format!("'{name}' is not a curve"))),
        });
    }
    if curves.is_empty() && !names.is_empty() {
        return Err(at
            .field("ecdh_curves")
            .error("none of these is supported; use X25519, P-256, P-384 or X25519MLKEM768"));
    }
    Ok(curves)
}
