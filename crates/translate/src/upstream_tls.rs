//! TLS towards endpoints, as a DestinationRule asks for it (SIMPLE and MUTUAL), and the PROXY header
//! in front of it.
//!
//! Rules are Istio's `cluster_tls.go`: without `sni` the server name is the request's host, without
//! names of its own the certificate must be for that host, and certificates given as files are
//! those of the proxy's file system. Mutual TLS inside the mesh is the matter of `auto_mtls.rs`.

use std::net::IpAddr;

use lateen_api::destination_rule::{ClientTlsMode, ClientTlsSettings, ProxyProtocolVersion};
use lateen_model::{MeshSettings, ProxyKind, Service};

use crate::compliance;
use crate::envoy::{self, cluster, core, matcher, proxy_protocol, raw_buffer, tls};
use crate::policy::Policy;

/// Where the certificate authorities of the system are in the images and distributions that
/// proxies run in (Debian, Ubuntu, Alpine, Istio's own).
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const RAW_SOCKET: &str = "envoy.transport_sockets.raw_buffer";
const PROXY_SOCKET: &str = "envoy.transport_sockets.upstream_proxy_protocol";

/// How connections of a cluster are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transport {
    tls: Option<ClientTlsSettings>,
    proxy_protocol: Option<ProxyProtocolVersion>,
}

/// Resource names of the Secrets that a gateway needs for a cluster.
pub fn secrets(policy: &Policy) -> Vec<String> {
    let credential = policy
        .tls
        .as_ref()
        .filter(|tls| !tls.credential_name.is_empty());
    let Some(tls) = credential else {
        return Vec::new();
    };
    let (own, authorities) = (certificate_of(tls), authorities_of(tls));
    let checks = tls.insecure_skip_verify != Some(true);
    match tls.mode.unwrap_or_default() {
        ClientTlsMode::Simple if checks => vec![authorities],
        ClientTlsMode::Mutual if checks => vec![own, authorities],
        ClientTlsMode::Mutual => vec![own],
        _ => Vec::new(),
    }
}

fn certificate_of(settings: &ClientTlsSettings) -> String {
    format!("kubernetes://{}", settings.credential_name)
}

fn authorities_of(settings: &ClientTlsSettings) -> String {
    format!("kubernetes://{}-cacert", settings.credential_name)
}

impl Transport {
    /// What holds for a proxy. A Secret is for gateways: sidecars may not read it, and send to the
    /// egress gateway without (as Istio's do, `buildUpstreamClusterTLSContext`).
    pub fn of(policy: &Policy, proxy: ProxyKind, service: &Service) -> Transport {
        let tls = policy.tls.as_ref().filter(|tls| {
            let mode = tls.mode.unwrap_or_default();
            matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
                && (tls.credential_name.is_empty() || proxy == ProxyKind::Gateway)
        });
        // Names that a ServiceEntry gives count where the rule gives none (SE-05).
        let named = |tls: &ClientTlsSettings| {
            let mut tls = tls.clone();
            if tls.subject_alt_names.is_empty() {
                tls.subject_alt_names.clone_from(&service.subject_alt_names);
            }
            tls
        };
        Transport {
            tls: tls.map(named),
            proxy_protocol: policy
                .proxy_protocol
                .as_ref()
                .map(|p| p.version.unwrap_or_default()),
        }
    }

    /// Sets the transport socket of a cluster that speaks HTTP/2 or not.
    pub fn apply(&self, made: &mut cluster::Cluster, http2: bool, mesh: &MeshSettings) {
        let secure = self.tls.as_ref().map(|tls| core::TransportSocket {
            name: TLS_SOCKET.to_string(),
            config_type: typed(&context(tls, http2, mesh)),
        });
        made.transport_socket = match self.proxy_protocol {
            None => secure,
            Some(version) => Some(behind_proxy_header(version, secure)),
        };
    }

    /// What the HTTP options of the cluster have to say about names.
    pub fn http_options(&self) -> Option<core::UpstreamHttpProtocolOptions> {
        let tls = self.tls.as_ref()?;
        let auto_sni = tls.sni.is_empty();
        let unchecked = tls.insecure_skip_verify == Some(true);
        let options = core::UpstreamHttpProtocolOptions {
            auto_sni,
            auto_san_validation: auto_sni && tls.subject_alt_names.is_empty() && !unchecked,
            ..Default::default()
        };
        auto_sni.then_some(options)
    }
}

fn typed<M: prost::Message + prost::Name>(
    message: &M,
) -> Option<core::transport_socket::ConfigType> {
    Some(core::transport_socket::ConfigType::TypedConfig(envoy::any(
        message,
    )))
}

fn behind_proxy_header(
    version: ProxyProtocolVersion,
    inner: Option<core::TransportSocket>,
) -> core::TransportSocket {
    let plain = || core::TransportSocket {
        name: RAW_SOCKET.to_string(),
        config_type: typed(&raw_buffer::RawBuffer {}),
    };
    let config = proxy_protocol::ProxyProtocolUpstreamTransport {
        config: Some(core::ProxyProtocolConfig {
            version: match version {
                ProxyProtocolVersion::V1 => core::proxy_protocol_config::Version::V1 as i32,
                ProxyProtocolVersion::V2 => core::proxy_protocol_config::Version::V2 as i32,
            },
            ..Default::default()
        }),
        transport_socket: Some(inner.unwrap_or_else(plain)),
        ..Default::default()
    };
    core::TransportSocket {
        name: PROXY_SOCKET.to_string(),
        config_type: typed(&config),
    }
}

fn context(
    settings: &ClientTlsSettings,
    http2: bool,
    mesh: &MeshSettings,
) -> tls::UpstreamTlsContext {
    use tls::common_tls_context::ValidationContextType;
    let mutual = settings.mode == Some(ClientTlsMode::Mutual);
    let secret = settings.credential_name.as_str();
    let mut common = tls::CommonTlsContext {
        // Istio's minimum is TLS 1.2 (`defaultUpstreamCommonTLSContext`).
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv12 as i32,
            tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
            cipher_suites: mesh.tls_defaults.cipher_suites.clone(),
            ecdh_curves: mesh.tls_defaults.ecdh_curves.clone(),
            ..Default::default()
        }),
        ..Default::default()
    };
    if http2 {
        common.alpn_protocols = vec!["h2".to_string()];
    }
    match (mutual, secret.is_empty()) {
        (false, _) => {}
        (true, false) => common
            .tls_certificate_sds_secret_configs
            .push(secret_config(certificate_of(settings))),
        (true, true) => common.tls_certificates.push(tls::TlsCertificate {
            certificate_chain: Some(file(&settings.client_certificate)),
            private_key: Some(file(&settings.private_key)),
            ..Default::default()
        }),
    }
    if settings.insecure_skip_verify != Some(true) {
        let mut validation = tls::CertificateValidationContext {
            match_typed_subject_alt_names: names(&settings.subject_alt_names),
            crl: (!settings.ca_crl.is_empty()).then(|| file(&settings.ca_crl)),
            ..Default::default()
        };
        common.validation_context_type = Some(if secret.is_empty() {
            let roots = match settings.ca_certificates.as_str() {
                "" => SYSTEM_ROOTS,
                path => path,
            };
            validation.trusted_ca = Some(file(roots));
            ValidationContextType::ValidationContext(validation)
        } else {
            ValidationContextType::CombinedValidationContext(
                tls::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    validation_context_sds_secret_config: Some(secret_config(authorities_of(
                        settings,
                    ))),
                    ..Default::default()
                },
            )
        });
    }
    compliance::enforce(mesh.compliance, &mut common);
    tls::UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: settings.sni.clone(),
        ..Default::default()
    }
}

fn file(path: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_string())),
        ..Default::default()
    }
}

fn secret_config(name: String) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name,
        sds_config: Some(envoy::ads()),
    }
}

/// A name of a certificate is exactly one of these. What kind of name is meant shows in its form:
/// Istio compares with names of every kind.
fn names(names: &[String]) -> Vec<tls::SubjectAltNameMatcher> {
    use tls::subject_alt_name_matcher::SanType;
    let one = |name: &String| {
        let san_type = if name.contains("://") {
            SanType::Uri
        } else if name.parse::<IpAddr>().is_ok() {
            SanType::IpAddress
        } else {
            SanType::Dns
        };
        tls::SubjectAltNameMatcher {
            san_type: san_type as i32,
            matcher: Some(envoy::string_matcher(
                matcher::string_matcher::MatchPattern::Exact(name.clone()),
            )),
            ..Default::default()
        }
    };
    names.iter().map(one).collect()
}
