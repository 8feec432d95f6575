//! Mutual TLS between workloads of the mesh: the contexts of both sides, with the certificate and
//! the authorities that the proxy's agent serves (`pilot/pkg/security/authn`, `cluster_tls.go`).
//!
//! What Istio's proxies offer by ALPN tells its servers what is inside (`istio-http/1.1`, `istio`).
//! Istio's `istio-peer-exchange` is understood and neither offered nor agreed on: who does has to
//! exchange metadata in front of the bytes, which stock Envoy cannot (Istio's own
//! `PILOT_DISABLE_MX_ALPN` does the same).

use lateen_model::MeshSettings;

use crate::compliance;
use crate::envoy::{self, core, matcher, set_filter_state, tls};

use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::tls_parameters::TlsProtocol as Version;

/// Names of the secrets of a workload, and the cluster of its agent.
const IDENTITY: &str = "default";
const AUTHORITIES: &str = "ROOTCA";
const AGENT: &str = "sds-grpc";

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";

/// Of TLS 1.2 (Istio's `SupportedCiphers`, without those that have no forward secrecy).
const CIPHERS: [&str; 4] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
];

/// What a server agrees on by ALPN; all else is served without, as its first bytes show.
const SERVED: [&str; 2] = ["h2", "http/1.1"];

/// What a client of the mesh offers, by what it sends.
pub const OFFER_TCP: [&str; 1] = ["istio"];
pub const OFFER_HTTP1: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
pub const OFFER_HTTP2: [&str; 3] = ["istio-h2", "istio", "h2"];
/// To a port that takes HTTP of both versions, and anything else.
const OFFER_HTTP: &str = "istio-http/1.1,istio-h2,istio";

/// Where a cluster says what requests offer by ALPN, if they offer other than its connections do.
pub const ALPN_METADATA: &str = "lateen.alpn";
const ALPN_KEY: &str = "http";

/// The transport of a server that takes nothing but mutual TLS of the mesh's trust domains.
pub fn server(mesh: &MeshSettings) -> core::TransportSocket {
    let prefixes = mesh
        .trust_domains()
        .map(|domain| format!("spiffe://{domain}/"));
    let names = prefixes.map(|prefix| uri(matcher::string_matcher::MatchPattern::Prefix(prefix)));
    socket(&downstream(names.collect(), mesh))
}

/// The transport of a gateway's server of mode ISTIO_MUTUAL; no names are any of the mesh's.
pub fn gateway_server(
    names: Vec<tls::SubjectAltNameMatcher>,
    mesh: &MeshSettings,
) -> core::TransportSocket {
    socket(&downstream(names, mesh))
}

fn downstream(
    names: Vec<tls::SubjectAltNameMatcher>,
    mesh: &MeshSettings,
) -> tls::DownstreamTlsContext {
    let settings = &mesh.mesh_tls;
    let least = match settings.only_v1_3 {
        true => Version::TlSv13,
        false => Version::TlSv12,
    };
    let ciphers: Vec<String> = match settings.cipher_suites.is_empty() {
        true => CIPHERS.map(str::to_string).to_vec(),
        false => settings.cipher_suites.clone(),
    };
    tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: SERVED.map(str::to_string).to_vec(),
            ..common(names, least, ciphers, mesh)
        }),
        require_client_certificate: envoy::bool_value(true),
        ..Default::default()
    }
}

/// The transport of a client: asks for `server_name`, and takes no server but one with one of these
/// names (none: any of the mesh's).
pub fn client(
    server_name: &str,
    names: &[String],
    offered: &[&str],
    mesh: &MeshSettings,
) -> core::TransportSocket {
    let exact = |name: &String| {
        let pattern = matcher::string_matcher::MatchPattern::Exact(name.clone());
        match name.contains("://") {
            true => uri(pattern),
            false => san(tls::subject_alt_name_matcher::SanType::Dns, pattern),
        }
    };
    let names = names.iter().map(exact).collect();
    socket(&tls::UpstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: offered.iter().map(|name| (*name).to_string()).collect(),
            ..common(names, Version::TlSv12, Vec::new(), mesh)
        }),
        sni: server_name.to_string(),
        ..Default::default()
    })
}

fn common(
    names: Vec<tls::SubjectAltNameMatcher>,
    least: Version,
    cipher_suites: Vec<String>,
    mesh: &MeshSettings,
) -> tls::CommonTlsContext {
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: names,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(of_agent(AUTHORITIES)),
        ..Default::default()
    };
    let mut common = tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: least as i32,
            tls_maximum_protocol_version: Version::TlSv13 as i32,
            cipher_suites,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![of_agent(IDENTITY)],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..Default::default()
    };
    compliance::enforce(mesh.compliance, &mut common);
    common
}

/// A secret of what is in files, which the proxy's agent serves: an Envoy that reads a file itself
/// never reads it again. What is not there must not keep other servers from serving, so it is waited
/// for with Envoy's own limit.
pub fn of_files(name: &str) -> tls::SdsSecretConfig {
    let mut secret = of_agent(name);
    if let Some(source) = &mut secret.sds_config {
        source.initial_fetch_timeout = None;
    }
    secret
}

/// A secret that the proxy's agent serves.
fn of_agent(name: &str) -> tls::SdsSecretConfig {
    use core::config_source::ConfigSourceSpecifier;
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let agent = core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: AGENT.to_string(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        grpc_services: vec![agent],
        set_node_on_first_message_only: true,
        ..Default::default()
    };
    tls::SdsSecretConfig {
        name: name.to_string(),
        sds_config: Some(core::ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            // Nothing is served or sent before it is there.
            initial_fetch_timeout: Some(envoy::duration(std::time::Duration::ZERO)),
            resource_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
    }
}

fn uri(pattern: matcher::string_matcher::MatchPattern) -> tls::SubjectAltNameMatcher {
    san(tls::subject_alt_name_matcher::SanType::Uri, pattern)
}

fn san(
    kind: tls::subject_alt_name_matcher::SanType,
    pattern: matcher::string_matcher::MatchPattern,
) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(envoy::string_matcher(pattern)),
        ..Default::default()
    }
}

fn socket<M: prost::Message + prost::Name>(context: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: TLS_SOCKET.to_string(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(envoy::any(
            context,
        ))),
    }
}

/// What the metadata of a cluster says about ALPN of requests.
pub fn alpn_metadata() -> core::Metadata {
    envoy::metadata(ALPN_METADATA, &[(ALPN_KEY, OFFER_HTTP.to_string())])
}

/// The HTTP filter that lets requests offer what their cluster's metadata says. It does with stock
/// Envoy what Istio's own `istio.alpn` filter does.
pub fn alpn_filter() -> crate::envoy::hcm::HttpFilter {
    use core::substitution_format_string::Format;
    use set_filter_state::filter_state_value::{Key, Value};
    let format = core::SubstitutionFormatString {
        format: Some(Format::TextFormatSource(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(format!(
                "%CLUSTER_METADATA({ALPN_METADATA}:{ALPN_KEY})%"
            ))),
            ..Default::default()
        })),
        omit_empty_values: true,
        ..Default::default()
    };
    let value = set_filter_state::FilterStateValue {
        key: Some(Key::ObjectKey(
            "envoy.network.application_protocols".to_string(),
        )),
        value: Some(Value::FormatString(format)),
        skip_if_empty: true,
        ..Default::default()
    };
    let config = crate::envoy::http_set_filter_state::Config {
        on_request_headers: vec![value],
        ..Default::default()
    };
    envoy::http_filter("envoy.filters.http.set_filter_state", &config)
}
