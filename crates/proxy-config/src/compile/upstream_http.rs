//! How a cluster speaks HTTP: `HttpProtocolOptions` of the upstream extension, or the older fields of
//! the cluster itself.

use super::filters::upstream_filters;
use super::hcm::{CommonOptions, common_options};
use super::http_options::{http1_options, http2_options};
use super::outlier::error_matcher;
use super::scope::{At, reject, report};
use super::values::{any, decode, header_name, known, required};
use crate::{ConfigError, Http1Options, Http2Options, HttpProtocol, UpstreamHttp};
use envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as pb;
use envoy_types::pb::google::protobuf::{Any, UInt32Value};
use std::collections::HashMap;
use std::sync::Arc;

const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP: &str = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions";

/// The cluster's own fields, deprecated in favour of the extension.
pub(crate) struct DeprecatedOptions {
    pub common_http_protocol_options: Option<core::HttpProtocolOptions>,
    pub http_protocol_options: Option<core::Http1ProtocolOptions>,
    pub http2_protocol_options: Option<core::Http2ProtocolOptions>,
    pub max_requests_per_connection: Option<UInt32Value>,
    pub protocol_selection: i32,
    pub upstream_http_protocol_options: Option<core::UpstreamHttpProtocolOptions>,
}

pub(crate) fn upstream_http(
    extensions: HashMap<String, Any>,
    deprecated: DeprecatedOptions,
    at: At<'_>,
) -> Result<UpstreamHttp, ConfigError> {
    let mut http = None;
    let mut extensions: Vec<_> = extensions.into_iter().collect();
    extensions.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, options) in &extensions {
        let at = at.key("typed_extension_protocol_options", name);
        match any(options) {
            (HTTP, bytes) => {
                let mut options: pb::HttpProtocolOptions = decode(bytes, at)?;
                let names = options.upstream_http_protocol_options.take();
                let mut made = from_extension(options, at)?;
                server_names(names, &mut made, at)?;
                http = Some(made);
            }
            (TCP, _) => at.notice("idle TCP connections close with the downstream connection"),
            (kind, _) => return Err(at.error(format!("'{kind}' is not supported"))),
        }
    }
    let mut http = match http {
        Some(http) => http,
        None => {
            let mut made = from_cluster(&deprecated, at)?;
            server_names(deprecated.upstream_http_protocol_options, &mut made, at)?;
            made
        }
    };
    // The cluster's own limit holds when the extension gives none.
    http.max_requests_per_connection = http.max_requests_per_connection.or(deprecated
        .max_requests_per_connection
        .map(|v| v.value)
        .filter(|max| *max > 0));
    Ok(http)
}

fn from_cluster(options: &DeprecatedOptions, at: At<'_>) -> Result<UpstreamHttp, ConfigError> {
    let common = common_options(options.common_http_protocol_options, at)?;
    let selection = known(options.protocol_selection, at.field("protocol_selection"))?;
    let protocol = match (selection, &options.http2_protocol_options) {
        (ClusterProtocolSelection::UseDownstreamProtocol, _) => HttpProtocol::UseDownstream,
        (ClusterProtocolSelection::UseConfiguredProtocol, Some(_)) => HttpProtocol::Http2,
        (ClusterProtocolSelection::UseConfiguredProtocol, None) => HttpProtocol::Http1,
    };
    let http1 = options.http_protocol_options.clone();
    let http2 = options.http2_protocol_options.clone();
    combine(protocol, (http1, http2), &common, at)
}

fn from_extension(
    message: pb::HttpProtocolOptions,
    at: At<'_>,
) -> Result<UpstreamHttp, ConfigError> {
    let pb::HttpProtocolOptions {
        common_http_protocol_options,
        // Taken out before.
        upstream_http_protocol_options: _,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = message;
    reject!(at; header_validation_config, retry_policy);
    report!(at, "requests are not mirrored"; request_mirror_policies);
    report!(at, "hash policies of routes count"; hash_policy);
    upstream_filters(http_filters, "http_filters", at)?;
    let error_matcher = outlier_detection
        .and_then(|outlier| outlier.error_matcher)
        .map(|m| error_matcher(m, at.field("outlier_detection").field("error_matcher")))
        .transpose()?
        .map(Arc::new);
    let common = common_options(common_http_protocol_options, at)?;
    let http = protocol_options(upstream_protocol_options, &common, at)?;
    Ok(UpstreamHttp {
        error_matcher,
        ..http
    })
}

fn protocol_options(
    message: Option<pb::http_protocol_options::UpstreamProtocolOptions>,
    common: &CommonOptions,
    at: At<'_>,
) -> Result<UpstreamHttp, ConfigError> {
    use pb::http_protocol_options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let protocol_at = at.field("upstream_protocol_options");
    match required(message, protocol_at)? {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config }) => {
            let at = at.field("explicit_http_config");
            match required(protocol_config, at)? {
                ProtocolConfig::HttpProtocolOptions(http1) => {
                    combine(HttpProtocol::Http1, (Some(http1), None), common, at)
                }
                ProtocolConfig::Http2ProtocolOptions(http2) => {
                    combine(HttpProtocol::Http2, (None, Some(http2)), common, at)
                }
                ProtocolConfig::Http3ProtocolOptions(_) => Err(at
                    .field("http3_protocol_options")
                    .error("HTTP/3 is not supported yet")),
            }
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(config) => {
            let at = at.field("use_downstream_protocol_config");
            let UseDownstreamHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
            } = config;
            report!(at, "there is no HTTP/3"; http3_protocol_options);
            let options = (http_protocol_options, http2_protocol_options);
            combine(HttpProtocol::UseDownstream, options, common, at)
        }
        UpstreamProtocolOptions::AutoConfig(config) => {
            let at = at.field("auto_config");
            let AutoHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
                alternate_protocols_cache_options,
            } = config;
            report!(at, "there is no HTTP/3"; http3_protocol_options, alternate_protocols_cache_options);
            let options = (http_protocol_options, http2_protocol_options);
            combine(HttpProtocol::Auto, options, common, at)
        }
    }
}

/// What a TLS connection is to ask for, and to insist on, by the request it is made for.
fn server_names(
    message: Option<core::UpstreamHttpProtocolOptions>,
    http: &mut UpstreamHttp,
    at: At<'_>,
) -> Result<(), ConfigError> {
    let core::UpstreamHttpProtocolOptions {
        auto_sni,
        auto_san_validation,
        override_auto_sni_header,
    } = message.unwrap_or_default();
    http.auto_sni = auto_sni;
    http.auto_san_validation = auto_san_validation;
    http.sni_header = match override_auto_sni_header.as_str() {
        "" => None,
        name => Some(header_name(
            name,
            at.field("upstream_http_protocol_options")
                .field("override_auto_sni_header"),
        )?),
    };
    Ok(())
}

type Versions = (
    Option<core::Http1ProtocolOptions>,
    Option<core::Http2ProtocolOptions>,
);

fn combine(
    protocol: HttpProtocol,
    (http1, http2): Versions,
    common: &CommonOptions,
    at: At<'_>,
) -> Result<UpstreamHttp, ConfigError> {
    let http1 = match http1 {
        Some(options) => http1_options(options, at.field("http_protocol_options"))?,
        None => Http1Options::default(),
    };
    let http2 = match http2 {
        Some(options) => http2_options(options, at.field("http2_protocol_options"))?,
        None => Http2Options::default(),
    };
    Ok(UpstreamHttp {
        protocol,
        http1,
        http2,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_requests_per_connection: common.max_requests_per_connection,
        max_headers_count: common.max_headers_count,
        max_response_headers_bytes: common.max_response_headers_bytes,
        max_stream_duration: common.max_stream_duration,
        error_matcher: None,
        auto_sni: false,
        auto_san_validation: false,
        sni_header: None,
    })
}
