//! `Secret`: certificates with their keys, and what says which peers are trusted.

use super::scope::{At, reject};
use super::strings::string_matcher;
use super::values::{flag, known, non_empty, required};
use crate::{
    Certificate, ConfigError, DataSource, SanKind, SanMatcher, Secret, SecretKind, Validation,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

pub(crate) fn secret(message: pb::Secret, at: At<'_>) -> Result<Secret, ConfigError> {
    use pb::secret::Type;
    let pb::Secret { name, r#type } = message;
    let name = non_empty(name, at.field("name"))?.into();
    let kind = match required(r#type, at.field("type"))? {
        Type::TlsCertificate(message) => {
            SecretKind::Certificate(Arc::new(certificate(message, at.field("tls_certificate"))?))
        }
        Type::ValidationContext(message) => SecretKind::Validation(Arc::new(validation(
            message,
            false,
            at.field("validation_context"),
        )?)),
        Type::SessionTicketKeys(_) => {
            return Err(at.field("session_ticket_keys").not_supported());
        }
        Type::GenericSecret(_) => return Err(at.field("generic_secret").not_supported()),
    };
    Ok(Secret { name, kind })
}

pub(crate) fn certificate(
    message: pb::TlsCertificate,
    at: At<'_>,
) -> Result<Certificate, ConfigError> {
    let pb::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        // Files are watched without being told where.
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = message;
    reject!(at; pkcs12, private_key_provider, password, signed_certificate_timestamp, tls_params);
    let chain_at = at.field("certificate_chain");
    let key_at = at.field("private_key");
    Ok(Certificate {
        chain: data_source(required(certificate_chain, chain_at)?, chain_at)?,
        key: data_source(required(private_key, key_at)?, key_at)?,
        ocsp_staple: ocsp_staple
            .map(|source| data_source(source, at.field("ocsp_staple")))
            .transpose()?,
    })
}

/// `complete`: nothing will be added by a secret.
pub(crate) fn validation(
    message: pb::CertificateValidationContext,
    complete: bool,
    at: At<'_>,
) -> Result<Validation, ConfigError> {
    use pb::certificate_validation_context::{SystemRootCerts, TrustChainVerification};
    let pb::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = message;
    reject!(at; ca_certificate_provider_instance, custom_validator_config);
    if flag(require_signed_certificate_timestamp, false) {
        return Err(at
            .field("require_signed_certificate_timestamp")
            .not_supported());
    }
    let source = |source: Option<core::DataSource>, field: &str| {
        source
            .map(|source| data_source(source, at.field(field)))
            .transpose()
    };
    let names = sans(match_typed_subject_alt_names, match_subject_alt_names, at)?;
    let validation = Validation {
        trusted_ca: source(trusted_ca, "trusted_ca")?,
        system_roots: system_root_certs.is_some_and(|SystemRootCerts {}| true),
        spki_hashes: hashes(
            &verify_certificate_spki,
            "verify_certificate_spki",
            at,
            base64,
        )?,
        certificate_hashes: hashes(&verify_certificate_hash, "verify_certificate_hash", at, hex)?,
        names,
        crl: source(crl, "crl")?,
        only_leaf_crl: only_verify_leaf_cert_crl,
        allow_expired: allow_expired_certificate,
        accept_untrusted: known::<TrustChainVerification>(
            trust_chain_verification,
            at.field("trust_chain_verification"),
        )? == TrustChainVerification::AcceptUntrusted,
        max_depth: max_verify_depth.map(|v| v.value),
        suppress_ca_list: suppress_client_ca_list,
    };
    let trusts = validation.trusted_ca.is_some() || validation.system_roots;
    if complete && !trusts && !validation.names.is_empty() {
        return Err(
            at.error("names can only be verified of certificates that are: trusted_ca is missing")
        );
    }
    if complete && !trusts && validation.crl.is_some() {
        return Err(at.field("crl").error("needs trusted_ca"));
    }
    Ok(validation)
}

fn sans(
    typed: Vec<pb::SubjectAltNameMatcher>,
    untyped: Vec<envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher>,
    at: At<'_>,
) -> Result<Vec<SanMatcher>, ConfigError> {
    use pb::subject_alt_name_matcher::SanType;
    let mut names = Vec::new();
    for (i, message) in typed.into_iter().enumerate() {
        let at = at.item("match_typed_subject_alt_names", i);
        let pb::SubjectAltNameMatcher {
            san_type,
            matcher,
            oid,
        } = message;
        reject!(at; oid);
        let kind_at = at.field("san_type");
        let kind = match known(san_type, kind_at)? {
            SanType::Dns => SanKind::Dns,
            SanType::Uri => SanKind::Uri,
            SanType::Email => SanKind::Email,
            SanType::IpAddress => SanKind::Ip,
            SanType::OtherName => return Err(kind_at.not_supported()),
            SanType::Unspecified => return Err(kind_at.error("is required")),
        };
        let matcher_at = at.field("matcher");
        let matcher = string_matcher(required(matcher, matcher_at)?, matcher_at)?;
        names.push(SanMatcher { kind, matcher });
    }
    for (i, message) in untyped.into_iter().enumerate() {
        let matcher = string_matcher(message, at.item("match_subject_alt_names", i))?;
        for kind in [SanKind::Dns, SanKind::Uri, SanKind::Email, SanKind::Ip] {
            let matcher = matcher.clone();
            names.push(SanMatcher { kind, matcher });
        }
    }
    Ok(names)
}

fn hashes(
    texts: &[String],
    field: &str,
    at: At<'_>,
    read: impl Fn(&str) -> Option<[u8; 32]>,
) -> Result<Vec<[u8; 32]>, ConfigError> {
    let one = |(i, text): (usize, &String)| {
        read(text).ok_or_else(|| at.item(field, i).error("is not a SHA-256 hash"))
    };
    texts.iter().enumerate().map(one).collect()
}

/// 64 hexadecimal digits, with or without a colon between bytes.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        })
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// 32 bytes in Base64 (44 characters with padding).
fn base64(text: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| -> Option<u32> {
        Some(u32::from(match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    let digits: Vec<u32> = text
        .strip_suffix('=')?
        .bytes()
        .map(digit)
        .collect::<Option<_>>()?;
    if digits.len() != 43 {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let bit = i * 8;
        let word = (digits[bit / 6] << 12)
            | (digits.get(bit / 6 + 1)? << 6)
            | digits.get(bit / 6 + 2).copied().unwrap_or(0);
        *byte = u8::try_from((word >> (10 - bit % 6)) & 0xff).ok()?;
    }
    Some(bytes)
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource::Inline(Arc::new(Zeroizing::new(bytes)))
}

fn data_source(message: core::DataSource, at: At<'_>) -> Result<DataSource, ConfigError> {
    use core::data_source::Specifier;
    let core::DataSource {
        watched_directory: _,
        specifier,
    } = message;
    Ok(match required(specifier, at)? {
        Specifier::Filename(path) => {
            let path = non_empty(path, at.field("filename"))?;
            DataSource::File(Path::new(&path).into())
        }
        Specifier::InlineBytes(bytes) if bytes.is_empty() => {
            return Err(at.field("inline_bytes").error("must not be empty"));
        }
        Specifier::InlineBytes(bytes) => inline(bytes),
        Specifier::InlineString(text) => {
            let text = non_empty(text, at.field("inline_string"))?;
            inline(text.into_bytes())
        }
        Specifier::EnvironmentVariable(name) => {
            DataSource::Environment(non_empty(name, at.field("environment_variable"))?.into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_openssl_and_curl_print_them() {
        let mut expect = [0u8; 32];
        for (i, byte) in expect.iter_mut().enumerate() {
            *byte = u8::try_from(i * 7 % 256).unwrap();
        }
        let plain: String = expect.iter().map(|b| format!("{b:02x}")).collect();
        let colons: Vec<String> = expect.iter().map(|b| format!("{b:02X}")).collect();
        assert_eq!(hex(&plain), Some(expect));
        assert_eq!(hex(&colons.join(":")), Some(expect));
        assert_eq!(hex("00"), None);
        assert_eq!(hex(&plain[1..]), None);
        // base64 of the same bytes.
        assert_eq!(
            base64("AAcOFRwjKjE4P0ZNVFtiaXB3foWMk5qhqK+2vcTL0tk="),
            Some(expect)
        );
        assert_eq!(base64("AAcOFRwjKjE4P0ZNVFtiaXB3foWMk5qhqK+2vcTL0tk"), None);
        assert_eq!(base64("?"), None);
    }
}
