//! HTTP filters of connection managers, and their configuration per route.

use super::ext_authz::{ext_authz, ext_authz_per_route};
use super::fault_and_cors::{cors_policy, fault, fault_filter};
use super::jwt_authn::jwt_authn;
use super::rbac::{http_rbac, rbac_per_route};
use super::request_alpn;
use super::scope::{At, report};
use super::values::{any, decode, flag, non_empty, required};
use crate::{ConfigError, HttpFilter, PerRoute, RouteFilters, RouterFilter};
use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::router::v3 as router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// Filters that only observe; a request and its answer are the same without them.
const OBSERVERS: &[(&str, &str)] = &[
    (
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "gRPC messages are not counted",
    ),
    (
        "stats.PluginConfig",
        "Istio's standard metrics are not made",
    ),
    (
        "io.istio.http.peer_metadata.Config",
        "peer metadata is not exchanged",
    ),
    (
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "ALPN is not overridden, there is no TLS to upstreams",
    ),
    (
        "envoy.extensions.filters.http.istio_stats.v3.PluginConfig",
        "Istio's standard metrics are not made",
    ),
];

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const JWT_AUTHN: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const SET_FILTER_STATE: &str = "envoy.extensions.filters.http.set_filter_state.v3.Config";
const BY_NAME: &str = "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
/// Names under which routes speak of these filters. A route's word is for the filter of that name,
/// so another name is refused rather than guessed.
const FAULT_NAME: &str = "envoy.filters.http.fault";
const JWT_AUTHN_NAME: &str = "envoy.filters.http.jwt_authn";
const CORS_NAME: &str = "envoy.filters.http.cors";
const EXT_AUTHZ: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const EXT_AUTHZ_PER_ROUTE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const EXT_AUTHZ_NAME: &str = "envoy.filters.http.ext_authz";
const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const RBAC_PER_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const RBAC_NAME: &str = "envoy.filters.http.rbac";
const UPSTREAM_CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
/// `xds.type.v3.TypedStruct`: a configuration as JSON, for types a control plane has not compiled in.
/// Only the name of the type is read.
#[derive(Clone, PartialEq, prost::Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
}

const TYPED_STRUCTS: &[&str] = &["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// The filters of a connection manager; the last is the router.
pub(crate) fn http_filters(
    messages: Vec<hcm::HttpFilter>,
    at: At<'_>,
) -> Result<Vec<HttpFilter>, ConfigError> {
    let last = messages.len();
    let mut filters = Vec::new();
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("http_filters", i);
        let filter = http_filter(message, at)?;
        let terminal = matches!(filter, Some(HttpFilter::Router(_)));
        if terminal != (i + 1 == last) {
            return Err(
                at.error("the last filter must be envoy.filters.http.router, and no other may be")
            );
        }
        if let Some(filter) = &filter {
            let same = |other: &HttpFilter| {
                std::mem::discriminant(other) == std::mem::discriminant(filter)
            };
            // One after the other, several may refuse a request.
            let guards = matches!(filter, HttpFilter::Rbac(_) | HttpFilter::ExtAuthz(_));
            if !guards && filters.iter().any(same) {
                return Err(at.error("the same filter stands in this chain twice"));
            }
        }
        filters.extend(filter);
    }
    if filters.is_empty() {
        return Err(at
            .field("http_filters")
            .error("needs envoy.filters.http.router"));
    }
    Ok(filters)
}

fn http_filter(message: hcm::HttpFilter, at: At<'_>) -> Result<Option<HttpFilter>, ConfigError> {
    use hcm::http_filter::ConfigType;
    let hcm::HttpFilter {
        name,
        is_optional,
        disabled,
        config_type,
    } = message;
    let name = non_empty(name, at.field("name"))?;
    let config = match config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(at.field("config_discovery").not_supported());
        }
        None => return Err(at.field("typed_config").error("is required")),
    };
    let at = at.field("typed_config");
    let (kind, bytes, in_struct) = unwrap_struct(&config, at)?;
    if disabled {
        at.notice(format!("the filter '{name}' is disabled"));
        return Ok(None);
    }
    match kind.as_str() {
        ROUTER if !in_struct => Ok(Some(HttpFilter::Router(router_filter(
            decode(bytes, at)?,
            at,
        )?))),
        JWT_AUTHN if !in_struct => {
            named(&name, JWT_AUTHN_NAME, at)?;
            let filter = jwt_authn(decode(bytes, at)?, at)?;
            Ok(Some(HttpFilter::JwtAuthn(Arc::new(filter))))
        }
        CORS if !in_struct => {
            named(&name, CORS_NAME, at)?;
            Ok(Some(HttpFilter::Cors))
        }
        FAULT if !in_struct => {
            named(&name, FAULT_NAME, at)?;
            let filter = fault_filter(decode(bytes, at)?, at)?;
            Ok(Some(HttpFilter::Fault(filter)))
        }
        EXT_AUTHZ if !in_struct => {
            named(&name, EXT_AUTHZ_NAME, at)?;
            let filter = ext_authz(decode(bytes, at)?, at)?;
            Ok(Some(HttpFilter::ExtAuthz(filter.into())))
        }
        RBAC if !in_struct => {
            named(&name, RBAC_NAME, at)?;
            let filter = http_rbac(decode(bytes, at)?, at)?;
            Ok(Some(HttpFilter::Rbac(filter.into())))
        }
        SET_FILTER_STATE if !in_struct => {
            request_alpn::set_filter_state(decode(bytes, at)?, at).map(|()| None)
        }
        BY_NAME if !in_struct => super::by_name::filter(decode(bytes, at)?, at).map(|()| None),
        kind => observer_or_error(&name, kind, is_optional, at).map(|()| None),
    }
}

/// Filters for requests on their way to an upstream: only the codec, which is always there.
pub(crate) fn upstream_filters(
    messages: Vec<hcm::HttpFilter>,
    field: &str,
    at: At<'_>,
) -> Result<(), ConfigError> {
    use hcm::http_filter::ConfigType;
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item(field, i);
        let hcm::HttpFilter {
            name,
            is_optional,
            disabled,
            config_type,
        } = message;
        let kind = match &config_type {
            Some(ConfigType::TypedConfig(config)) => any(config).0,
            _ => "",
        };
        if kind != UPSTREAM_CODEC && !disabled {
            observer_or_error(&name, kind, is_optional, at)?;
        }
    }
    Ok(())
}

fn named(name: &str, expected: &str, at: At<'_>) -> Result<(), ConfigError> {
    if name == expected {
        return Ok(());
    }
    Err(at.error(format!("this filter must be named '{expected}'")))
}

/// Configuration of filters for a table, virtual host or route, over what holds around it.
pub(crate) fn per_filter_config(
    configs: HashMap<String, Any>,
    around: &RouteFilters,
    at: At<'_>,
) -> Result<RouteFilters, ConfigError> {
    let mut configs: Vec<_> = configs.into_iter().collect();
    configs.sort_by(|a, b| a.0.cmp(&b.0));
    let mut filters = around.clone();
    for (name, config) in &configs {
        let at = at.key("typed_per_filter_config", name);
        match any(config) {
            ("envoy.config.route.v3.FilterConfig", bytes) => {
                let FilterConfig {
                    config,
                    is_optional,
                    disabled,
                } = decode(bytes, at)?;
                if disabled {
                    turn_off(name, &mut filters, at);
                } else if let Some(config) = config {
                    one_per_filter_config(name, &config, is_optional, &mut filters, at)?;
                }
            }
            _ => one_per_filter_config(name, config, false, &mut filters, at)?,
        }
    }
    Ok(filters)
}

/// The same for a weighted cluster, where nothing but observers can be configured so far.
pub(crate) fn per_cluster_config(
    configs: HashMap<String, Any>,
    at: At<'_>,
) -> Result<(), ConfigError> {
    let filters = per_filter_config(configs, &RouteFilters::default(), at)?;
    if filters.fault.is_said()
        || filters.cors.is_said()
        || filters.rbac.is_said()
        || filters.ext_authz.is_said()
    {
        return Err(at.field("typed_per_filter_config").not_supported());
    }
    Ok(())
}

fn turn_off(name: &str, filters: &mut RouteFilters, at: At<'_>) {
    match name {
        FAULT_NAME => filters.fault = PerRoute::Off,
        CORS_NAME => filters.cors = PerRoute::Off,
        RBAC_NAME => filters.rbac = PerRoute::Off,
        EXT_AUTHZ_NAME => filters.ext_authz = PerRoute::Off,
        _ => at.notice("no filter is there to disable"),
    }
}

fn one_per_filter_config(
    name: &str,
    config: &Any,
    is_optional: bool,
    filters: &mut RouteFilters,
    at: At<'_>,
) -> Result<(), ConfigError> {
    let (kind, bytes, in_struct) = unwrap_struct(config, at)?;
    match kind.as_str() {
        FAULT if !in_struct => {
            named(name, FAULT_NAME, at)?;
            filters.fault = PerRoute::Use(Arc::new(fault(decode(bytes, at)?, at)?));
            Ok(())
        }
        CORS_POLICY if !in_struct => {
            named(name, CORS_NAME, at)?;
            let mut policy = cors_policy(decode(bytes, at)?, at)?;
            if let PerRoute::Use(wider) = &filters.cors {
                policy = policy.or(wider);
            }
            filters.cors = PerRoute::Use(Arc::new(policy));
            Ok(())
        }
        EXT_AUTHZ_PER_ROUTE if !in_struct => {
            named(name, EXT_AUTHZ_NAME, at)?;
            filters.ext_authz = match ext_authz_per_route(decode(bytes, at)?, at)? {
                Some(route) => PerRoute::Use(Arc::new(route)),
                None => PerRoute::Off,
            };
            Ok(())
        }
        RBAC_PER_ROUTE if !in_struct => {
            named(name, RBAC_NAME, at)?;
            filters.rbac = match rbac_per_route(decode(bytes, at)?, at)? {
                Some(rbac) => PerRoute::Use(Arc::new(rbac)),
                None => PerRoute::Off,
            };
            Ok(())
        }
        kind => observer_or_error(name, kind, is_optional, at),
    }
}

/// Observers are reported. So is a filter that the control plane itself calls optional, unless it
/// guards requests.
fn observer_or_error(
    name: &str,
    kind: &str,
    is_optional: bool,
    at: At<'_>,
) -> Result<(), ConfigError> {
    const GUARDS: &[&str] = &[
        "rbac",
        "jwt",
        "authz",
        "auth",
        "oauth2",
        "csrf",
        "ratelimit",
        "rate_limit",
    ];
    if let Some((_, what)) = OBSERVERS.iter().find(|(observer, _)| *observer == kind) {
        at.notice(what);
        return Ok(());
    }
    if is_optional && !GUARDS.iter().any(|guard| kind.contains(guard)) {
        at.notice(format!(
            "the optional filter '{name}' ({kind}) does nothing"
        ));
        return Ok(());
    }
    Err(at.error(format!("the filter '{name}' ({kind}) is not supported yet")))
}

/// The type of a configuration, looking through `TypedStruct`; whether it was in one.
fn unwrap_struct<'c>(config: &'c Any, at: At<'_>) -> Result<(String, &'c [u8], bool), ConfigError> {
    let (kind, bytes) = any(config);
    if !TYPED_STRUCTS.contains(&kind) {
        return Ok((kind.to_owned(), bytes, false));
    }
    let TypedStruct { type_url } = decode(bytes, at)?;
    Ok((
        type_url.rsplit('/').next().unwrap_or_default().to_owned(),
        bytes,
        true,
    ))
}

fn router_filter(message: router::Router, at: At<'_>) -> Result<RouterFilter, ConfigError> {
    let router::Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = message;
    super::scope::reject!(at; strict_check_headers, upstream_log);
    report!(at, "spans are not made"; start_child_span);
    report!(at, "the expected timeout of the request is not read"; respect_expected_rq_timeout);
    report!(at, "there is no upstream log"; upstream_log_options);
    report!(at, "gRPC failures are counted by HTTP status"; suppress_grpc_request_failure_code_stats);
    if !flag(dynamic_stats, true) {
        at.field("dynamic_stats").notice("statistics stay on");
    }
    if flag(reject_connect_request_early_data, false) {
        return Err(at
            .field("reject_connect_request_early_data")
            .not_supported());
    }
    upstream_filters(upstream_http_filters, "upstream_http_filters", at)?;
    Ok(RouterFilter {
        suppress_envoy_headers,
    })
}

/// A typed extension whose type decides; its name is only for people.
pub(crate) fn extension_type(
    message: Option<envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig>,
    at: At<'_>,
) -> Result<Any, ConfigError> {
    required(
        required(message, at)?.typed_config,
        at.field("typed_config"),
    )
}
