//! The HTTP connection manager and TCP proxy of a listener, with Istio's settings
//! (`pilot/pkg/networking/core/listener_builder.go`; facts 9, 21, 23, 25).

use lateen_model::{DEFAULT_ACCESS_LOG_FORMAT, LogEncoding, MeshSettings};

use lateen_api::mesh_config::{ForwardClientCertDetails, Normalization};
use prost::Message;

use crate::envoy::{self, accesslog, core, file_log, hcm, route, tcp};
use crate::filters;

/// Which side of which proxy a listener serves; decides header and trust settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    SidecarInbound,
    SidecarOutbound,
    Gateway,
}

/// Where the routes of an HTTP listener come from.
pub enum Routes {
    Rds(String),
    Inline(Box<route::RouteConfiguration>),
}

/// The name that inbound and gateway answers carry in `server` (fact 21).
const SERVER_NAME: &str = "istio-envoy";

/// The HTTP connection manager of one listener.
pub fn http(
    side: Side,
    stat_prefix: String,
    routes: Routes,
    mesh: &MeshSettings,
) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager as part;
    let (details, current) = client_certificate(side, mesh);
    let normalization = mesh.path_normalization;
    hcm::HttpConnectionManager {
        codec_type: part::CodecType::Auto as i32,
        stat_prefix,
        http_filters: filters::chain(side != Side::SidecarInbound),
        server_name: match side {
            Side::SidecarOutbound => String::new(),
            Side::SidecarInbound | Side::Gateway => SERVER_NAME.to_string(),
        },
        // Envoy would cut a quiet stream after 5 minutes; Istio lets it be (fact 9).
        stream_idle_timeout: Some(envoy::duration(std::time::Duration::ZERO)),
        access_log: access_log(mesh),
        use_remote_address: envoy::bool_value(side == Side::Gateway),
        forward_client_cert_details: details as i32,
        set_current_client_cert_details: current,
        upgrade_configs: vec![part::UpgradeConfig {
            upgrade_type: "websocket".to_string(),
            ..Default::default()
        }],
        xff_num_trusted_hops: match side {
            Side::Gateway => mesh.gateway_topology.trusted_proxies,
            Side::SidecarInbound | Side::SidecarOutbound => 0,
        },
        normalize_path: envoy::bool_value(normalization != Normalization::None),
        merge_slashes: matches!(
            normalization,
            Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes
        ),
        path_with_escaped_slashes_action: match normalization {
            Normalization::DecodeAndMergeSlashes => {
                part::PathWithEscapedSlashesAction::UnescapeAndForward as i32
            }
            _ => part::PathWithEscapedSlashesAction::KeepUnchanged as i32,
        },
        route_specifier: Some(match routes {
            Routes::Rds(name) => part::RouteSpecifier::Rds(hcm::Rds {
                config_source: Some(envoy::ads()),
                route_config_name: name,
            }),
            Routes::Inline(table) => part::RouteSpecifier::RouteConfig(*table),
        }),
        ..Default::default()
    }
}

/// What happens to `x-forwarded-client-cert` (fact 21).
fn client_certificate(
    side: Side,
    mesh: &MeshSettings,
) -> (
    hcm::http_connection_manager::ForwardClientCertDetails,
    Option<hcm::http_connection_manager::SetCurrentClientCertDetails>,
) {
    use hcm::http_connection_manager::{
        ForwardClientCertDetails as Details, SetCurrentClientCertDetails,
    };
    let writes = !matches!(
        mesh.gateway_topology.client_certificates,
        Some(
            ForwardClientCertDetails::Sanitize
                | ForwardClientCertDetails::ForwardOnly
                | ForwardClientCertDetails::AlwaysForwardOnly
        )
    );
    match side {
        Side::SidecarOutbound => (Details::Sanitize, None),
        Side::SidecarInbound => (
            Details::AppendForward,
            Some(SetCurrentClientCertDetails {
                subject: envoy::bool_value(true),
                dns: true,
                uri: true,
                ..Default::default()
            }),
        ),
        Side::Gateway => (
            match mesh.gateway_topology.client_certificates {
                None | Some(ForwardClientCertDetails::Undefined) => Details::SanitizeSet,
                Some(ForwardClientCertDetails::SanitizeSet) => Details::SanitizeSet,
                Some(ForwardClientCertDetails::Sanitize) => Details::Sanitize,
                Some(ForwardClientCertDetails::ForwardOnly) => Details::ForwardOnly,
                Some(ForwardClientCertDetails::AppendForward) => Details::AppendForward,
                Some(ForwardClientCertDetails::AlwaysForwardOnly) => Details::AlwaysForwardOnly,
            },
            // Envoy takes this only where the header is written.
            writes.then(|| SetCurrentClientCertDetails {
                subject: envoy::bool_value(true),
                cert: true,
                dns: true,
                uri: true,
                ..Default::default()
            }),
        ),
    }
}

/// The TCP proxy of one listener or filter chain.
pub fn tcp_proxy(
    stat_prefix: String,
    to: tcp::tcp_proxy::ClusterSpecifier,
    mesh: &MeshSettings,
) -> tcp::TcpProxy {
    tcp::TcpProxy {
        stat_prefix,
        access_log: access_log(mesh),
        cluster_specifier: Some(to),
        ..Default::default()
    }
}

/// The file access log, when the mesh asks for one (fact 58: nothing is logged by default).
pub fn access_log(mesh: &MeshSettings) -> Vec<accesslog::AccessLog> {
    let Some(path) = &mesh.access_log_file else {
        return Vec::new();
    };
    vec![accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_string(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(
            file_access_log(path, mesh),
        )),
        ..Default::default()
    }]
}

fn file_access_log(path: &str, mesh: &MeshSettings) -> envoy::Any {
    let given = mesh.access_log_format.as_deref();
    let format = match mesh.access_log_encoding {
        LogEncoding::Text => {
            let line = given.unwrap_or(DEFAULT_ACCESS_LOG_FORMAT);
            core::substitution_format_string::Format::TextFormatSource(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(line.to_string())),
                ..Default::default()
            })
        }
        LogEncoding::Json => {
            let object = given.and_then(|text| serde_json::from_str(text).ok());
            let object = object.unwrap_or_else(lateen_model::default_access_log_json);
            return json_access_log(path, &object);
        }
    };
    let format = core::SubstitutionFormatString {
        format: Some(format),
        ..Default::default()
    };
    envoy::any(&file_log::FileAccessLog {
        path: path.to_string(),
        access_log_format: Some(file_log::file_access_log::AccessLogFormat::LogFormat(
            format,
        )),
    })
}

/// A JSON format is a protobuf map, which would encode in another order each time; so this part is
/// encoded here, in the order of its keys.
fn json_access_log(path: &str, object: &serde_json::Map<String, serde_json::Value>) -> envoy::Any {
    const LOG_FORMAT: u32 = 5;
    const JSON_FORMAT: u32 = 2;
    let mut bytes = file_log::FileAccessLog {
        path: path.to_string(),
        access_log_format: None,
    }
    .encode_to_vec();
    let mut format = Vec::new();
    crate::virtual_hosts::append(JSON_FORMAT, &envoy::encoded_struct(object), &mut format);
    crate::virtual_hosts::append(LOG_FORMAT, &format, &mut bytes);
    envoy::Any {
        value: bytes,
        ..envoy::any(&file_log::FileAccessLog::default())
    }
}
