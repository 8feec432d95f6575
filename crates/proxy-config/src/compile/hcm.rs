//! `HttpConnectionManager`.

use super::access_log::access_logs;
use super::filters::http_filters;
use super::http_options::{http1_options, http2_options};
use super::route_table::route_table;
use super::scope::{At, reject, report};
use super::values::{any, duration, flag, header_value, known, limit, non_empty, number, required};
use crate::{
    ClientCertDetails, Codec, ConfigError, EscapedSlashes, ForwardClientCert, Http1Options,
    Http2Options, HttpConnectionManager, RouteSource, ServerHeader, StripPort, Timeouts,
    Underscores, Upgrades,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use pb::http_connection_manager as nested;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn http_connection_manager(
    message: pb::HttpConnectionManager,
    at: At<'_>,
) -> Result<HttpConnectionManager, ConfigError> {
    let pb::HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters: filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = message;
    // These decide who a client is taken for, or what a filter behind them sees.
    reject!(at; original_ip_detection_extensions, early_header_mutation_extensions);
    reject!(at; internal_address_config, forward_client_cert_matcher, forward_proto_config);
    reject!(at; path_normalization_options, typed_header_validation_config, local_reply_config);
    report!(at, "no user-agent is added"; add_user_agent);
    report!(at, "spans are not made"; tracing);
    report!(at, "there is no HTTP/3"; http3_protocol_options);
    report!(at, "only the head of a request has a limit of its own"; request_timeout);
    report!(at, "a drain takes as long as the process allows"; drain_timeout);
    report!(at, "a broken request ends its connection"; stream_error_on_invalid_http_message);
    report!(at, "nothing is shed by overload"; append_local_overload);
    report!(at, "connections end at the limit exactly"; http1_safe_max_connection_duration, drain_timeout_jitter);
    report!(at, "the idle timeout also holds while flushing"; stream_flush_timeout);
    report!(at, "a request is logged when it ends"; access_log_flush_interval);
    report!(at, "a request is logged when it ends"; flush_access_log_on_new_request, access_log_options);
    report!(at, "addresses keep their family"; represent_ipv4_remote_address_as_ipv4_mapped_ipv6);
    report!(at, "no proxy-status header is sent"; proxy_status_config);
    report!(at, "the PROXY header is always taken over"; add_proxy_protocol_connection_state);
    request_id(request_id_extension, at.field("request_id_extension"))?;
    let timeouts = RawTimeouts {
        stream_idle_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        delayed_close_timeout,
    };
    let common = common_options(common_http_protocol_options, at)?;
    if common.max_connection_duration.is_some() {
        at.field("common_http_protocol_options")
            .field("max_connection_duration")
            .notice("connections of clients may live for ever");
    }
    header_value(&server_name, at.field("server_name"))?;
    header_value(&via, at.field("via"))?;
    Ok(HttpConnectionManager {
        stat_prefix: non_empty(stat_prefix, at.field("stat_prefix"))?.into(),
        codec: codec(codec_type, at)?,
        routes: route_source(route_specifier, at)?,
        filters: http_filters(filters, at)?,
        server_name: if server_name.is_empty() {
            "envoy".into()
        } else {
            server_name.into()
        },
        server_header: server_header(server_header_transformation, at)?,
        scheme_override: scheme(scheme_header_transformation, at)?,
        timeouts: timeouts.compile(&common, at)?,
        max_requests_per_connection: common.max_requests_per_connection,
        use_remote_address: flag(use_remote_address, false),
        xff_num_trusted_hops,
        skip_xff_append,
        generate_request_id: flag(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        append_x_forwarded_port,
        normalize_path: flag(normalize_path, false),
        merge_slashes,
        escaped_slashes: escaped_slashes(path_with_escaped_slashes_action, at)?,
        strip_port: strip_port(strip_matching_host_port, strip_port_mode, at)?,
        strip_trailing_host_dot,
        upgrades: upgrades(upgrade_configs, at)?,
        http1: http1(http_protocol_options, at)?,
        http2: http2(http2_protocol_options, at)?,
        max_request_headers_bytes: 1024
            * number(
                max_request_headers_kb,
                1..=8192,
                at.field("max_request_headers_kb"),
            )?
            .unwrap_or(60),
        max_headers_count: common.max_headers_count,
        underscores: common.underscores,
        proxy_100_continue,
        forward_client_cert: forward_client_cert(forward_client_cert_details, at)?,
        client_cert_details: client_cert_details(set_current_client_cert_details, at)?,
        via: via.into(),
        access_log: access_logs(access_log, at)?,
    })
}

fn codec(value: i32, at: At<'_>) -> Result<Codec, ConfigError> {
    let at = at.field("codec_type");
    match known(value, at)? {
        nested::CodecType::Auto => Ok(Codec::Auto),
        nested::CodecType::Http1 => Ok(Codec::Http1),
        nested::CodecType::Http2 => Ok(Codec::Http2),
        nested::CodecType::Http3 => Err(at.error("HTTP/3 is not supported yet")),
    }
}

fn route_source(
    specifier: Option<nested::RouteSpecifier>,
    at: At<'_>,
) -> Result<RouteSource, ConfigError> {
    match required(specifier, at.field("route_specifier"))? {
        nested::RouteSpecifier::Rds(pb::Rds {
            config_source,
            route_config_name,
        }) => {
            let at = at.field("rds");
            ads(config_source, at.field("config_source"))?;
            let name = non_empty(route_config_name, at.field("route_config_name"))?;
            Ok(RouteSource::Rds(name.into()))
        }
        nested::RouteSpecifier::RouteConfig(config) => {
            let at = at.field("route_config");
            let table = route_table(config, at)?;
            if table.discovers_hosts() {
                let reason = "only a route configuration from rds can have its virtual hosts so";
                return Err(at.field("vhds").error(reason));
            }
            Ok(RouteSource::Inline(Arc::new(table)))
        }
        nested::RouteSpecifier::ScopedRoutes(_) => Err(at.field("scoped_routes").not_supported()),
    }
}

/// Resources come over the one ADS stream.
pub(crate) fn ads(source: Option<core::ConfigSource>, at: At<'_>) -> Result<(), ConfigError> {
    use core::config_source::ConfigSourceSpecifier;
    let core::ConfigSource {
        authorities,
        initial_fetch_timeout,
        resource_api_version,
        config_source_specifier,
    } = required(source, at)?;
    reject!(at; authorities);
    let wait = duration(initial_fetch_timeout, at.field("initial_fetch_timeout"))?;
    if wait.is_some_and(|w| !w.is_zero()) {
        at.field("initial_fetch_timeout")
            .notice("the resource is waited for without limit");
    }
    match known(resource_api_version, at.field("resource_api_version"))? {
        core::ApiVersion::Auto | core::ApiVersion::V3 => {}
        core::ApiVersion::V2 => {
            return Err(at
                .field("resource_api_version")
                .error("only V3 is supported"));
        }
    }
    match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        _ => Err(at.error("only ads is supported")),
    }
}

struct RawTimeouts {
    stream_idle_timeout: Option<envoy_types::pb::google::protobuf::Duration>,
    request_timeout: Option<envoy_types::pb::google::protobuf::Duration>,
    request_headers_timeout: Option<envoy_types::pb::google::protobuf::Duration>,
    drain_timeout: Option<envoy_types::pb::google::protobuf::Duration>,
    delayed_close_timeout: Option<envoy_types::pb::google::protobuf::Duration>,
}

impl RawTimeouts {
    /// The defaults are those of http_connection_manager.proto.
    fn compile(self, common: &CommonOptions, at: At<'_>) -> Result<Timeouts, ConfigError> {
        let limit_of = |value, default, field: &str| limit(value, default, at.field(field));
        Ok(Timeouts {
            idle: common.idle_timeout,
            stream_idle: limit_of(
                self.stream_idle_timeout,
                Some(Duration::from_secs(300)),
                "stream_idle_timeout",
            )?,
            request: limit_of(self.request_timeout, None, "request_timeout")?,
            request_headers: limit_of(
                self.request_headers_timeout,
                None,
                "request_headers_timeout",
            )?,
            drain: duration(self.drain_timeout, at.field("drain_timeout"))?
                .unwrap_or(Duration::from_secs(5)),
            delayed_close: limit_of(
                self.delayed_close_timeout,
                Some(Duration::from_secs(1)),
                "delayed_close_timeout",
            )?,
            max_connection_duration: common.max_connection_duration,
            max_stream_duration: common.max_stream_duration,
        })
    }
}

/// `core.v3.HttpProtocolOptions`: what both HTTP versions share, downstream and upstream.
pub(crate) struct CommonOptions {
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_headers_count: u32,
    pub max_requests_per_connection: Option<u32>,
    pub max_response_headers_bytes: u32,
    pub underscores: Underscores,
}

pub(crate) fn common_options(
    message: Option<core::HttpProtocolOptions>,
    at: At<'_>,
) -> Result<CommonOptions, ConfigError> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    let at = at.field("common_http_protocol_options");
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = message.unwrap_or_default();
    report!(at, "connections end at the limit exactly"; max_connection_duration_jitter);
    Ok(CommonOptions {
        idle_timeout: limit(
            idle_timeout,
            Some(Duration::from_secs(3600)),
            at.field("idle_timeout"),
        )?,
        max_connection_duration: limit(
            max_connection_duration,
            None,
            at.field("max_connection_duration"),
        )?,
        max_stream_duration: limit(max_stream_duration, None, at.field("max_stream_duration"))?,
        max_headers_count: number(
            max_headers_count,
            1..=u32::MAX,
            at.field("max_headers_count"),
        )?
        .unwrap_or(100),
        max_requests_per_connection: max_requests_per_connection
            .map(|v| v.value)
            .filter(|max| *max > 0),
        max_response_headers_bytes: 1024
            * number(
                max_response_headers_kb,
                1..=8192,
                at.field("max_response_headers_kb"),
            )?
            .unwrap_or(60),
        underscores: match known(
            headers_with_underscores_action,
            at.field("headers_with_underscores_action"),
        )? {
            Action::Allow => Underscores::Allow,
            Action::RejectRequest => Underscores::Reject,
            Action::DropHeader => Underscores::Drop,
        },
    })
}

fn http1(
    message: Option<core::Http1ProtocolOptions>,
    at: At<'_>,
) -> Result<Http1Options, ConfigError> {
    message.map_or(Ok(Http1Options::default()), |m| {
        http1_options(m, at.field("http_protocol_options"))
    })
}

fn http2(
    message: Option<core::Http2ProtocolOptions>,
    at: At<'_>,
) -> Result<Http2Options, ConfigError> {
    message.map_or(Ok(Http2Options::default()), |m| {
        let at = at.field("http2_protocol_options");
        if m.connection_keepalive.is_some() {
            at.field("connection_keepalive")
                .notice("no PINGs are sent to clients");
        }
        http2_options(m, at)
    })
}

fn server_header(value: i32, at: At<'_>) -> Result<ServerHeader, ConfigError> {
    Ok(
        match known(value, at.field("server_header_transformation"))? {
            nested::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            nested::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            nested::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
    )
}

fn scheme(
    message: Option<core::SchemeHeaderTransformation>,
    at: At<'_>,
) -> Result<Option<Box<str>>, ConfigError> {
    use core::scheme_header_transformation::Transformation;
    let at = at.field("scheme_header_transformation");
    let Some(core::SchemeHeaderTransformation {
        match_upstream,
        transformation,
    }) = message
    else {
        return Ok(None);
    };
    reject!(at; match_upstream);
    match transformation {
        None => Ok(None),
        Some(Transformation::SchemeToOverwrite(scheme))
            if scheme == "http" || scheme == "https" =>
        {
            Ok(Some(scheme.into()))
        }
        Some(Transformation::SchemeToOverwrite(_)) => Err(at
            .field("scheme_to_overwrite")
            .error("must be http or https")),
    }
}

fn escaped_slashes(value: i32, at: At<'_>) -> Result<EscapedSlashes, ConfigError> {
    use nested::PathWithEscapedSlashesAction as Action;
    Ok(
        match known(value, at.field("path_with_escaped_slashes_action"))? {
            // Envoy's own default is to keep them, unless its runtime says otherwise.
            Action::ImplementationSpecificDefault | Action::KeepUnchanged => {
                EscapedSlashes::KeepUnchanged
            }
            Action::RejectRequest => EscapedSlashes::Reject,
            Action::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            Action::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
    )
}

fn strip_port(
    matching: bool,
    mode: Option<nested::StripPortMode>,
    at: At<'_>,
) -> Result<StripPort, ConfigError> {
    let any = matches!(mode, Some(nested::StripPortMode::StripAnyHostPort(true)));
    match (matching, any) {
        (true, true) => Err(at
            .field("strip_any_host_port")
            .error("cannot be combined with strip_matching_host_port")),
        (true, false) => Ok(StripPort::Matching),
        (false, true) => Ok(StripPort::Any),
        (false, false) => Ok(StripPort::Keep),
    }
}

fn forward_client_cert(value: i32, at: At<'_>) -> Result<ForwardClientCert, ConfigError> {
    use nested::ForwardClientCertDetails as Details;
    Ok(
        match known(value, at.field("forward_client_cert_details"))? {
            Details::Sanitize => ForwardClientCert::Sanitize,
            Details::ForwardOnly => ForwardClientCert::ForwardOnly,
            Details::AppendForward => ForwardClientCert::AppendForward,
            Details::SanitizeSet => ForwardClientCert::SanitizeSet,
            Details::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
    )
}

fn client_cert_details(
    message: Option<nested::SetCurrentClientCertDetails>,
    at: At<'_>,
) -> Result<ClientCertDetails, ConfigError> {
    let at = at.field("set_current_client_cert_details");
    let nested::SetCurrentClientCertDetails {
        subject,
        cert,
        chain,
        dns,
        uri,
        issuer,
        format,
    } = message.unwrap_or_default();
    reject!(at; issuer, format);
    Ok(ClientCertDetails {
        subject: flag(subject, false),
        cert,
        chain,
        dns,
        uri,
    })
}

fn upgrades(messages: Vec<nested::UpgradeConfig>, at: At<'_>) -> Result<Upgrades, ConfigError> {
    let mut upgrades = Upgrades::default();
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("upgrade_configs", i);
        let nested::UpgradeConfig {
            upgrade_type,
            filters,
            enabled,
        } = message;
        reject!(at; filters);
        let kind = non_empty(upgrade_type, at.field("upgrade_type"))?.to_ascii_lowercase();
        if upgrades.get(&kind).is_some() {
            return Err(at
                .field("upgrade_type")
                .error(format!("'{kind}' is given twice")));
        }
        upgrades.types.push((kind.into(), flag(enabled, true)));
    }
    Ok(upgrades)
}

fn request_id(message: Option<pb::RequestIdExtension>, at: At<'_>) -> Result<(), ConfigError> {
    const UUID: &str = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
    match message.and_then(|m| m.typed_config) {
        None => Ok(()),
        Some(config) if any(&config).0 == UUID => {
            at.notice("request ids are random UUIDs; the trace decision is not packed into them");
            Ok(())
        }
        Some(config) => Err(at.error(format!("'{}' is not supported", any(&config).0))),
    }
}
