//! TLS towards clients of a gateway: certificates, who may connect, versions and ciphers
//! (`pilot/pkg/networking/core/listener_builder.go`, `pilot/pkg/security/model`).

use std::net::IpAddr;

use lateen_api::gateway::{
    SERVED_CIPHER_SUITES, ServerTlsMode, ServerTlsSettings, TlsCertificate, TlsProtocol,
};
use lateen_api::secret::AUTHORITY_SUFFIX;
use lateen_model::servers::{MergedServer, ServerKind};
use lateen_model::{MeshSettings, TlsSettings};

use crate::envoy::{self, core, listener, matcher, tls};
use crate::{compliance, mesh_tls};

use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::tls_parameters::TlsProtocol as Version;

/// What is offered to clients by ALPN where HTTP is served.
const HTTP: [&str; 2] = ["h2", "http/1.1"];
/// And where bytes are; Istio's gateways also offer what its sidecars ask for.
const TCP: [&str; 3] = ["istio-peer-exchange", "h2", "http/1.1"];

/// The transport socket of a server where TLS ends; `None` when it cannot serve: it needs the
/// mesh's own certificate and the proxy has none.
pub fn downstream(
    server: &MergedServer<'_>,
    (mesh, has_identity): (&MeshSettings, bool),
) -> Option<core::TransportSocket> {
    let settings = server.server.tls.as_ref()?;
    let is_http = server.kind == ServerKind::Https;
    terminating(settings, is_http, (mesh, has_identity))
}

/// Resource names of the Secrets that a server where TLS ends needs.
pub fn secrets(server: &MergedServer<'_>) -> Vec<String> {
    let settings = server.server.tls.as_ref();
    let Some(settings) = settings.filter(|_| server.kind.terminates()) else {
        return Vec::new();
    };
    if settings.mode == Some(ServerTlsMode::IstioMutual) {
        return Vec::new();
    }
    let names = credentials(settings);
    let mut needed: Vec<_> = names.iter().map(|name| resource(name)).collect();
    if settings.mode != Some(ServerTlsMode::Simple) {
        needed.extend(authorities(settings));
    }
    needed
}

/// The same of TLS settings, wherever they stand.
pub fn terminating(
    settings: &ServerTlsSettings,
    is_http: bool,
    (mesh, has_identity): (&MeshSettings, bool),
) -> Option<core::TransportSocket> {
    let verify = match settings.mode? {
        ServerTlsMode::Simple => Verify::NotAsked,
        ServerTlsMode::Mutual => Verify::Required,
        ServerTlsMode::OptionalMutual => Verify::IfGiven,
        ServerTlsMode::IstioMutual => {
            let names = settings.subject_alt_names.iter();
            let names = names.flat_map(|name| subject_alt_name(name)).collect();
            return has_identity.then(|| mesh_tls::gateway_server(names, mesh));
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => return None,
    };
    let offered: &[&str] = match is_http {
        true => &HTTP,
        false => &TCP,
    };
    let mut common = tls::CommonTlsContext {
        tls_params: parameters(settings, &mesh.tls_defaults),
        alpn_protocols: offered.iter().map(|name| (*name).to_string()).collect(),
        validation_context_type: validation(settings, verify, has_identity),
        ..Default::default()
    };
    let names = credentials(settings);
    if !names.is_empty() {
        common.tls_certificate_sds_secret_configs =
            names.iter().map(|name| sds(&resource(name))).collect();
    } else {
        let pairs = file_pairs(settings);
        if has_identity && pairs.iter().all(is_absolute) {
            common.tls_certificate_sds_secret_configs = pairs.iter().map(of_agent).collect();
        } else {
            common.tls_certificates = pairs.iter().map(of_files).collect();
        }
    }
    compliance::enforce(mesh.compliance, &mut common);
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: envoy::bool_value(verify == Verify::Required),
        ..Default::default()
    };
    Some(core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_string(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(envoy::any(
            &context,
        ))),
    })
}

/// Finds out which server a client of TLS asks for before a filter chain is chosen.
pub fn inspector() -> listener::ListenerFilter {
    let inspector =
        envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector::default();
    listener::ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_string(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(
            envoy::any(&inspector),
        )),
        ..Default::default()
    }
}

/// What is asked of a client's certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verify {
    NotAsked,
    IfGiven,
    Required,
}

/// Names of the Secrets that a server's certificates are in.
fn credentials(settings: &ServerTlsSettings) -> Vec<&str> {
    match settings.credential_name.as_str() {
        "" => settings
            .credential_names
            .iter()
            .map(String::as_str)
            .collect(),
        name => vec![name],
    }
}

/// The resource of a credential's name.
fn resource(name: &str) -> String {
    match name.contains("://") {
        true => name.to_string(),
        false => format!("kubernetes://{name}"),
    }
}

fn sds(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.to_string(),
        // With Envoy's own limit on the wait: a Secret that is not there must not keep a gateway's
        // other servers from serving (as in Istio).
        sds_config: Some(core::ConfigSource {
            initial_fetch_timeout: None,
            ..envoy::ads()
        }),
    }
}

fn file(path: &str) -> Option<core::DataSource> {
    (!path.is_empty()).then(|| core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_string())),
        ..Default::default()
    })
}

/// Certificates and keys in files of the proxy's machine.
fn file_pairs(settings: &ServerTlsSettings) -> Vec<TlsCertificate> {
    let only = TlsCertificate {
        server_certificate: settings.server_certificate.clone(),
        private_key: settings.private_key.clone(),
        ..Default::default()
    };
    match settings.tls_certificates.as_slice() {
        [] => vec![only],
        several => several.to_vec(),
    }
}

/// Whether an agent, which may run elsewhere on the machine, finds the same files.
fn is_absolute(pair: &TlsCertificate) -> bool {
    pair.server_certificate.starts_with('/') && pair.private_key.starts_with('/')
}

/// Istio's name for them.
fn of_agent(pair: &TlsCertificate) -> tls::SdsSecretConfig {
    let (chain, key) = (&pair.server_certificate, &pair.private_key);
    mesh_tls::of_files(&format!("file-cert:{chain}~{key}"))
}

fn of_files(pair: &TlsCertificate) -> tls::TlsCertificate {
    tls::TlsCertificate {
        certificate_chain: file(&pair.server_certificate),
        private_key: file(&pair.private_key),
        ..Default::default()
    }
}

fn validation(
    settings: &ServerTlsSettings,
    verify: Verify,
    has_agent: bool,
) -> Option<ValidationContextType> {
    let mut context = tls::CertificateValidationContext {
        match_typed_subject_alt_names: settings
            .subject_alt_names
            .iter()
            .flat_map(|name| subject_alt_name(name))
            .collect(),
        verify_certificate_spki: settings.verify_certificate_spki.clone(),
        verify_certificate_hash: settings.verify_certificate_hash.clone(),
        ..Default::default()
    };
    if verify == Verify::NotAsked {
        let nothing = tls::CertificateValidationContext::default();
        return (context != nothing).then_some(ValidationContextType::ValidationContext(context));
    }
    if settings.insecure_skip_verify == Some(true) {
        use tls::certificate_validation_context::TrustChainVerification;
        context.trust_chain_verification = TrustChainVerification::AcceptUntrusted as i32;
    }
    let of_file = settings
        .tls_certificates
        .first()
        .map_or(&settings.ca_certificates, |pair| &pair.ca_certificates);
    match authorities(settings) {
        Some(name) => Some(combined(context, sds(&name))),
        None => {
            context.crl = file(&settings.ca_crl);
            if has_agent && of_file.starts_with('/') {
                let name = format!("file-root:{of_file}");
                return Some(combined(context, mesh_tls::of_files(&name)));
            }
            context.trusted_ca = file(of_file);
            Some(ValidationContextType::ValidationContext(context))
        }
    }
}

/// The resource of the authorities that clients' certificates are verified with, if a Secret has them.
fn authorities(settings: &ServerTlsSettings) -> Option<String> {
    let of_secret = match settings.ca_cert_credential_name.as_str() {
        "" => credentials(settings).first().copied(),
        name => Some(name),
    };
    of_secret.map(|name| match name.ends_with(AUTHORITY_SUFFIX) {
        true => resource(name),
        false => resource(name) + AUTHORITY_SUFFIX,
    })
}

fn combined(
    context: tls::CertificateValidationContext,
    authorities: tls::SdsSecretConfig,
) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(authorities),
        ..Default::default()
    })
}

/// A name as each kind of subject alternative name that it may be.
fn subject_alt_name(name: &str) -> Vec<tls::SubjectAltNameMatcher> {
    use tls::subject_alt_name_matcher::SanType;
    let kinds = match name.parse::<IpAddr>() {
        Ok(_) => vec![SanType::IpAddress],
        Err(_) if name.contains("://") => vec![SanType::Uri],
        Err(_) if name.contains('@') => vec![SanType::Email],
        Err(_) => vec![SanType::Dns, SanType::Uri],
    };
    let exact = matcher::string_matcher::MatchPattern::Exact(name.to_string());
    let of_kind = |kind| tls::SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(envoy::string_matcher(exact.clone())),
        ..Default::default()
    };
    kinds.into_iter().map(of_kind).collect()
}

/// Versions, ciphers and curves where the server or the mesh sets them; else Envoy's: TLS 1.2 and
/// 1.3.
fn parameters(settings: &ServerTlsSettings, defaults: &TlsSettings) -> Option<tls::TlsParameters> {
    let version = |wanted: Option<TlsProtocol>| match wanted.unwrap_or_default() {
        TlsProtocol::Auto => Version::TlsAuto,
        TlsProtocol::V1_0 => Version::TlSv10,
        TlsProtocol::V1_1 => Version::TlSv11,
        TlsProtocol::V1_2 => Version::TlSv12,
        TlsProtocol::V1_3 => Version::TlSv13,
    };
    let chosen = match settings.cipher_suites.is_empty() {
        true => &defaults.cipher_suites,
        false => &settings.cipher_suites,
    };
    let known = chosen.iter();
    let known = known.filter(|name| SERVED_CIPHER_SUITES.contains(&name.as_str()));
    let made = tls::TlsParameters {
        tls_minimum_protocol_version: version(settings.min_protocol_version) as i32,
        tls_maximum_protocol_version: version(settings.max_protocol_version) as i32,
        cipher_suites: known.cloned().collect(),
        ecdh_curves: defaults.ecdh_curves.clone(),
        ..Default::default()
    };
    (made != tls::TlsParameters::default()).then_some(made)
}
