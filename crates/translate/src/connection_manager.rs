//! The HTTP connection manager and TCP proxy of a listener, with Istio's settings
//! (`pilot/pkg/networking/core/listener_builder.go`; facts 9, 21, 23, 25).

use lateen_model::MeshSettings;

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
    let (details, current) = client_certificate(side);
    hcm::HttpConnectionManager {
        codec_type: part::CodecType::Auto as i32,
        stat_prefix,
        http_filters: filters::chain(),
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
        normalize_path: envoy::bool_value(true),
        path_with_escaped_slashes_action: part::PathWithEscapedSlashesAction::KeepUnchanged as i32,
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
) -> (
    hcm::http_connection_manager::ForwardClientCertDetails,
    Option<hcm::http_connection_manager::SetCurrentClientCertDetails>,
) {
    use hcm::http_connection_manager::{
        ForwardClientCertDetails as Details, SetCurrentClientCertDetails,
    };
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
            Details::SanitizeSet,
            Some(SetCurrentClientCertDetails {
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
fn access_log(mesh: &MeshSettings) -> Vec<accesslog::AccessLog> {
    let Some(path) = &mesh.access_log_file else {
        return Vec::new();
    };
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::TextFormatSource(
            core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(
                    mesh.access_log_format.clone(),
                )),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let config = file_log::FileAccessLog {
        path: path.clone(),
        access_log_format: Some(file_log::file_access_log::AccessLogFormat::LogFormat(
            format,
        )),
    };
    vec![accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_string(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(envoy::any(
            &config,
        ))),
        ..Default::default()
    }]
}
