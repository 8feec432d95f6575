//! `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`, and its namesake for connections. What would make it ask less, or take an
//! answer for more than it says, is refused rather than left out.

use super::headers::template;
use super::rbac::metadata_matcher;
use super::route_match::runtime_fractional_percent;
use super::scope::{At, reject, report};
use super::strings::string_matcher;
use super::values::{duration, header_name, header_value, non_empty, required};
use crate::route::{StringMatcher, StringTest};
use crate::{
    AuthzBody, AuthzService, ConfigError, ExtAuthz, ExtAuthzRoute, HttpAuthz, NetworkAuthz,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as network;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use std::time::Duration;

/// Envoy's limit for an answer over gRPC where none is said (`GrpcAuthzTimeout`).
const GRPC_TIMEOUT: Duration = Duration::from_millis(200);
/// A body is held in memory as long as the server thinks.
const MAX_BODY: u32 = 16 * 1024 * 1024;

pub(crate) fn ext_authz(message: pb::ExtAuthz, at: At<'_>) -> Result<ExtAuthz, ConfigError> {
    let pb::ExtAuthz {
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        validate_mutations,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
        shadow_mode,
        emit_client_span,
        services,
    } = message;
    reject!(at; validate_mutations, typed_metadata_context_namespaces,
        route_metadata_context_namespaces, route_typed_metadata_context_namespaces,
        deny_at_disable, bootstrap_metadata_labels_key, encode_raw_headers,
        decoder_header_mutation_rules, shadow_mode);
    report!(at, "answers are counted without a prefix"; stat_prefix);
    report!(at, "answers of the server are not counted by status"; charge_cluster_response_stats);
    report!(at, "there is no filter state"; filter_metadata, emit_filter_state_stats);
    report!(at, "no more than 1,000 headers are taken"; enforce_response_header_limits);
    report!(at, "spans are not made"; emit_client_span);
    version(transport_api_version, at)?;
    let mut allowed = allowed_headers
        .map(|list| patterns(Some(list), at.field("allowed_headers")))
        .transpose()?;
    let (service, cluster, timeout) = match required(services, at.field("services"))? {
        pb::ext_authz::Services::GrpcService(service) => {
            let grpc = grpc_service(service, at.field("grpc_service"))?;
            let service = AuthzService::Grpc {
                authority: grpc.authority,
                metadata: grpc.headers,
            };
            (service, grpc.cluster, grpc.timeout)
        }
        pb::ext_authz::Services::HttpService(service) => {
            let (service, cluster, timeout, of_service) =
                http_service(service, at.field("http_service"))?;
            allowed = allowed.or(of_service);
            (AuthzService::Http(service), cluster, Some(timeout))
        }
    };
    Ok(ExtAuthz {
        service,
        cluster: cluster.into(),
        timeout,
        failure_mode_allow,
        failure_mode_header: failure_mode_allow_header_add,
        status_on_error: status(status_on_error, at.field("status_on_error"))?,
        body: with_request_body
            .map(|body| request_body(body, at.field("with_request_body")))
            .transpose()?,
        enabled: filter_enabled
            .map(|share| runtime_fractional_percent(share, at.field("filter_enabled")))
            .transpose()?,
        enabled_metadata: filter_enabled_metadata
            .map(|m| metadata_matcher(m, at.field("filter_enabled_metadata")))
            .transpose()?,
        metadata_namespaces: metadata_context_namespaces
            .into_iter()
            .map(Into::into)
            .collect(),
        peer_certificate: include_peer_certificate,
        tls_session: include_tls_session,
        allowed_headers: allowed,
        disallowed_headers: patterns(disallowed_headers, at.field("disallowed_headers"))?,
        clear_route_cache,
        takes_metadata: enable_dynamic_metadata_ingestion.is_none_or(|on| on.value),
        max_denied_body: match max_denied_response_body_bytes {
            0 => None,
            max => usize::try_from(max).ok(),
        },
    })
}

/// What a route says; [`None`]: nobody is asked there.
pub(crate) fn ext_authz_per_route(
    message: pb::ExtAuthzPerRoute,
    at: At<'_>,
) -> Result<Option<ExtAuthzRoute>, ConfigError> {
    use pb::ext_authz_per_route::Override;
    let pb::ExtAuthzPerRoute { r#override } = message;
    let settings = match required(r#override, at.field("override"))? {
        Override::Disabled(true) => return Ok(None),
        Override::Disabled(false) => return Err(at.field("disabled").error("must be true")),
        Override::CheckSettings(settings) => settings,
    };
    let at = at.field("check_settings");
    let pb::CheckSettings {
        context_extensions,
        disable_request_body_buffering,
        with_request_body,
        emit_client_span,
        service_override,
    } = settings;
    reject!(at; with_request_body, service_override);
    report!(at, "spans are not made"; emit_client_span);
    let mut context: Vec<(Box<str>, Box<str>)> = context_extensions
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    context.sort();
    Ok(Some(ExtAuthzRoute {
        context,
        without_body: disable_request_body_buffering,
    }))
}

fn status(message: Option<HttpStatus>, at: At<'_>) -> Result<u16, ConfigError> {
    let Some(HttpStatus { code }) = message else {
        return Ok(403);
    };
    match u16::try_from(code) {
        Ok(status @ 200..600) => Ok(status),
        // To refuse the listener would leave the one in force that asks nobody.
        _ => {
            at.field("code")
                .notice(format!("{code} does not end a request; 403 is answered"));
            Ok(403)
        }
    }
}

fn request_body(message: pb::BufferSettings, at: At<'_>) -> Result<AuthzBody, ConfigError> {
    let pb::BufferSettings {
        max_request_bytes,
        allow_partial_message,
        pack_as_bytes,
    } = message;
    let at = at.field("max_request_bytes");
    if max_request_bytes == 0 {
        return Err(at.error("must be greater than 0"));
    }
    if max_request_bytes > MAX_BODY {
        at.notice(format!("no more than {MAX_BODY} are read ahead"));
    }
    Ok(AuthzBody {
        max_bytes: usize::try_from(max_request_bytes.min(MAX_BODY)).unwrap_or(usize::MAX),
        allow_partial: allow_partial_message,
        as_bytes: pack_as_bytes,
    })
}

/// Header names in any case.
fn patterns(
    list: Option<ListStringMatcher>,
    at: At<'_>,
) -> Result<Vec<StringMatcher>, ConfigError> {
    let patterns = list.map(|ListStringMatcher { patterns }| patterns);
    let items = patterns.unwrap_or_default().into_iter().enumerate();
    items
        .map(|(i, pattern)| {
            let mut matcher = string_matcher(pattern, at.item("patterns", i))?;
            // Names come in lower case.
            if let StringTest::Exact(name) = &mut matcher.test {
                name.make_ascii_lowercase();
            }
            Ok(matcher)
        })
        .collect()
}

/// The filter for connections.
pub(crate) fn network_ext_authz(
    message: network::ExtAuthz,
    at: At<'_>,
) -> Result<NetworkAuthz, ConfigError> {
    let network::ExtAuthz {
        stat_prefix,
        grpc_service: service,
        failure_mode_allow,
        include_peer_certificate,
        transport_api_version,
        filter_enabled_metadata,
        bootstrap_metadata_labels_key,
        include_tls_session,
        send_tls_alert_on_denial,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        shadow_mode,
    } = message;
    reject!(at; bootstrap_metadata_labels_key, typed_metadata_context_namespaces, shadow_mode);
    report!(at, "a connection that is denied is closed without an alert"; send_tls_alert_on_denial);
    version(transport_api_version, at)?;
    let service_at = at.field("grpc_service");
    let grpc = grpc_service(required(service, service_at)?, service_at)?;
    Ok(NetworkAuthz {
        stat_prefix: non_empty(stat_prefix, at.field("stat_prefix"))?.into(),
        authority: grpc.authority,
        call_headers: grpc.headers,
        cluster: grpc.cluster.into(),
        timeout: grpc.timeout,
        failure_mode_allow,
        enabled_metadata: filter_enabled_metadata
            .map(|m| metadata_matcher(m, at.field("filter_enabled_metadata")))
            .transpose()?,
        metadata_namespaces: metadata_context_namespaces
            .into_iter()
            .map(Into::into)
            .collect(),
        peer_certificate: include_peer_certificate,
        tls_session: include_tls_session,
    })
}

fn version(transport_api_version: i32, at: At<'_>) -> Result<(), ConfigError> {
    match transport_api_version {
        0 | 2 => Ok(()),
        _ => Err(at
            .field("transport_api_version")
            .error("only V3 is supported")),
    }
}

struct Grpc {
    authority: Box<str>,
    headers: Headers,
    cluster: String,
    /// [`None`]: without limit.
    timeout: Option<Duration>,
}

fn grpc_service(message: core::GrpcService, at: At<'_>) -> Result<Grpc, ConfigError> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let core::GrpcService {
        timeout,
        initial_metadata,
        retry_policy,
        target_specifier,
    } = message;
    report!(at, "the server is not asked again"; retry_policy);
    let TargetSpecifier::EnvoyGrpc(grpc) = required(target_specifier, at.field("envoy_grpc"))?
    else {
        return Err(at.field("google_grpc").not_supported());
    };
    let timeout = duration(timeout, at.field("timeout"))?.unwrap_or(GRPC_TIMEOUT);
    let headers = header_values(initial_metadata, "initial_metadata", at, plain)?;
    let at = at.field("envoy_grpc");
    let EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length,
        skip_envoy_headers,
    } = grpc;
    report!(at, "the server is not asked again"; retry_policy);
    report!(at, "an answer has at most 1 MiB"; max_receive_message_length);
    report!(at, "no x-envoy headers are sent"; skip_envoy_headers);
    let cluster = non_empty(cluster_name, at.field("cluster_name"))?;
    header_value(&authority, at.field("authority"))?;
    let authority = match authority.is_empty() {
        true => cluster.clone(),
        false => authority,
    };
    Ok(Grpc {
        authority: authority.into(),
        headers,
        cluster,
        // Zero is no limit.
        timeout: Some(timeout).filter(|t| !t.is_zero()),
    })
}

type Http = (HttpAuthz, String, Duration, Option<Vec<StringMatcher>>);

fn http_service(message: pb::HttpService, at: At<'_>) -> Result<Http, ConfigError> {
    let pb::HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = message;
    report!(at, "the server is not asked again"; retry_policy);
    for (field, path) in [
        ("path_prefix", &path_prefix),
        ("path_override", &path_override),
    ] {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(at.field(field).error("must begin with '/'"));
        }
        header_value(path, at.field(field))?;
    }
    let uri_at = at.field("server_uri");
    let core::HttpUri {
        uri: _of_no_use_beside_the_cluster,
        timeout,
        http_upstream_type,
    } = required(server_uri, uri_at)?;
    let core::http_uri::HttpUpstreamType::Cluster(cluster) =
        required(http_upstream_type, uri_at.field("cluster"))?;
    let timeout_at = uri_at.field("timeout");
    let timeout = required(duration(timeout, timeout_at)?, timeout_at)?;
    let pb::AuthorizationRequest {
        allowed_headers,
        headers_to_add,
    } = authorization_request.unwrap_or_default();
    let request_at = at.field("authorization_request");
    let pb::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = authorization_response.unwrap_or_default();
    let at = at.field("authorization_response");
    reject!(at; dynamic_metadata_from_headers);
    let allowed = allowed_headers
        .map(|list| patterns(Some(list), request_at.field("allowed_headers")))
        .transpose()?;
    let service = HttpAuthz {
        path_prefix: path_prefix.into(),
        path_override: path_override.into(),
        headers_to_add: header_values(headers_to_add, "headers_to_add", request_at, template)?,
        to_upstream: patterns(
            allowed_upstream_headers,
            at.field("allowed_upstream_headers"),
        )?,
        to_upstream_appended: patterns(
            allowed_upstream_headers_to_append,
            at.field("allowed_upstream_headers_to_append"),
        )?,
        to_client: patterns(
            allowed_client_headers_on_success,
            at.field("allowed_client_headers_on_success"),
        )?,
        to_client_denied: patterns(allowed_client_headers, at.field("allowed_client_headers"))?,
    };
    let cluster = non_empty(cluster, uri_at.field("cluster"))?;
    Ok((service, cluster, timeout, allowed))
}

/// Names and values of headers.
type Headers<V = Box<str>> = Vec<(Box<str>, V)>;

fn header_values<V>(
    messages: Vec<core::HeaderValue>,
    field: &str,
    at: At<'_>,
    read: impl Fn(&str, At<'_>) -> Result<V, ConfigError>,
) -> Result<Headers<V>, ConfigError> {
    let items = messages.into_iter().enumerate();
    items
        .map(|(i, message)| {
            let at = at.item(field, i);
            let core::HeaderValue {
                key,
                value,
                raw_value,
            } = message;
            reject!(at; raw_value);
            header_value(&value, at.field("value"))?;
            let value = read(&value, at.field("value"))?;
            Ok((header_name(&key, at.field("key"))?, value))
        })
        .collect()
}

/// A value without a format; one that looks like a format is not sent as it is.
fn plain(value: &str, at: At<'_>) -> Result<Box<str>, ConfigError> {
    match value.contains('%') {
        true => Err(at.error("formats are not supported here")),
        false => Ok(value.into()),
    }
}
