//! `HTTPFault` and `CorsPolicy`: the filters in front of the router that routes configure.

use super::route_match::{fraction, header_matchers, runtime_fractional_percent};
use super::scope::{At, reject, report};
use super::strings::string_matcher;
use super::values::{duration, header_value, required};
use crate::route::{Fraction, StringMatcher};
use crate::{AbortStatus, ConfigError, CorsPolicy, Fault, FaultAbort, FaultFilter, Origins};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors_pb;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use std::time::Duration;

/// The filter in a chain; without a configuration it injects only what routes ask for.
pub(crate) fn fault_filter(message: pb::HttpFault, at: At<'_>) -> Result<FaultFilter, ConfigError> {
    let fault = match message == pb::HttpFault::default() {
        true => None,
        false => Some(fault(message, at)?.into()),
    };
    Ok(FaultFilter {
        fault,
        ..FaultFilter::default()
    })
}

pub(crate) fn fault(message: pb::HttpFault, at: At<'_>) -> Result<Fault, ConfigError> {
    let pb::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        disable_downstream_cluster_stats,
        filter_metadata,
    } = message;
    // Without these more requests would get a fault than are meant.
    reject!(at; response_rate_limit, upstream_cluster, downstream_nodes);
    report!(at, "there is no runtime; the configured values hold"; delay_percent_runtime,
        abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime,
        max_active_faults_runtime, response_rate_limit_percent_runtime, abort_grpc_status_runtime);
    report!(at, "faults are not counted by downstream cluster"; disable_downstream_cluster_stats);
    report!(at, "no dynamic metadata is made"; filter_metadata);
    Ok(Fault {
        delay: delay
            .map(|d| fixed_delay(d, at.field("delay")))
            .transpose()?,
        abort: abort
            .map(|a| fault_abort(a, at.field("abort")))
            .transpose()?,
        headers: header_matchers(headers, "headers", at)?,
        max_active: max_active_faults.map(|max| max.value),
    })
}

/// No percentage is no request at all.
fn share(message: Option<FractionalPercent>, at: At<'_>) -> Result<Fraction, ConfigError> {
    match message {
        Some(message) => fraction(message, at.field("percentage")),
        None => Ok(Fraction {
            numerator: 0,
            denominator: 100,
        }),
    }
}

fn fixed_delay(
    message: common::FaultDelay,
    at: At<'_>,
) -> Result<(Fraction, Duration), ConfigError> {
    use common::fault_delay::FaultDelaySecifier as Specifier;
    let common::FaultDelay {
        percentage,
        fault_delay_secifier,
    } = message;
    let at_delay = at.field("fixed_delay");
    let delay = match required(fault_delay_secifier, at_delay)? {
        Specifier::FixedDelay(delay) => required(duration(Some(delay), at_delay)?, at_delay)?,
        Specifier::HeaderDelay(_) => return Err(at.field("header_delay").not_supported()),
    };
    Ok((share(percentage, at)?, delay))
}

fn fault_abort(message: pb::FaultAbort, at: At<'_>) -> Result<(Fraction, FaultAbort), ConfigError> {
    use pb::fault_abort::ErrorType;
    let pb::FaultAbort {
        percentage,
        response_body,
        error_type,
    } = message;
    let status = match required(error_type, at)? {
        ErrorType::HttpStatus(status) => match u16::try_from(status) {
            Ok(status @ 200..600) => AbortStatus::Http(status),
            _ => {
                let at = at.field("http_status");
                return Err(at.error(format!("{status} is not between 200 and 599")));
            }
        },
        ErrorType::GrpcStatus(status) => AbortStatus::Grpc(status),
        ErrorType::HeaderAbort(_) => return Err(at.field("header_abort").not_supported()),
    };
    let body = (!response_body.is_empty()).then(|| response_body.into());
    Ok((share(percentage, at)?, FaultAbort { status, body }))
}

pub(crate) fn cors_policy(
    message: cors_pb::CorsPolicy,
    at: At<'_>,
) -> Result<CorsPolicy, ConfigError> {
    let cors_pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = message;
    report!(at, "origins are not counted without effect"; shadow_enabled);
    let text = |value: String, field: &str| {
        header_value(&value, at.field(field)).map(|()| value.into_boxed_str())
    };
    let origins = allow_origin_string_match
        .into_iter()
        .enumerate()
        .map(|(i, m)| string_matcher(m, at.item("allow_origin_string_match", i)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(CorsPolicy {
        enabled: filter_enabled
            .map(|share| runtime_fractional_percent(share, at.field("filter_enabled")))
            .transpose()?,
        origins: allowed_origins(origins),
        allow_methods: text(allow_methods, "allow_methods")?,
        allow_headers: text(allow_headers, "allow_headers")?,
        expose_headers: text(expose_headers, "expose_headers")?,
        max_age: text(max_age, "max_age")?,
        allow_credentials: allow_credentials.map(|on| on.value),
        allow_private_network: allow_private_network_access.map(|on| on.value),
        forward_unmatched_preflights: forward_not_matching_preflights.map(|on| on.value),
    })
}

/// A matcher that takes the text `*` takes every origin (Envoy, `CorsFilter::isOriginAllowed`).
fn allowed_origins(origins: Vec<StringMatcher>) -> Option<Origins> {
    let any = |origin: &StringMatcher| origin.matches(b"*");
    if origins.is_empty() {
        None
    } else if origins.iter().any(any) {
        Some(Origins::Any)
    } else {
        Some(Origins::Matching(origins))
    }
}
