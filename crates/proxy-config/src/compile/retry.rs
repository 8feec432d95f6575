//! `RetryPolicy` of routes and virtual hosts.

use super::route_match::header_matchers;
use super::scope::{At, reject, report};
use super::values::{any, decode, limit, positive};
use crate::ConfigError;
use crate::route::{RetryOn, RetryPolicy};
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use std::time::Duration;

/// Avoids endpoints that were tried for this request.
const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
/// Goes to other priorities after some tries.
const PREVIOUS_PRIORITIES: &str =
    "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";

pub(crate) fn retry_policy(
    message: pb::RetryPolicy,
    at: At<'_>,
) -> Result<RetryPolicy, ConfigError> {
    let pb::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = message;
    reject!(at; retry_options_predicates, refresh_cluster_on_retry);
    report!(at, "a try has per_try_timeout only"; per_try_idle_timeout);
    report!(at, "retries wait as retry_back_off says"; rate_limited_retry_back_off);
    let (on, unknown) = RetryOn::parse(&retry_on);
    if !unknown.is_empty() {
        at.field("retry_on")
            .notice(format!("unknown conditions: {}", unknown.join(", ")));
    }
    let (backoff_base, backoff_max) = back_off(retry_back_off, at.field("retry_back_off"))?;
    Ok(RetryPolicy {
        on,
        num_retries: num_retries.map_or(1, |v| v.value),
        per_try_timeout: limit(per_try_timeout, None, at.field("per_try_timeout"))?,
        per_try_idle_timeout: limit(per_try_idle_timeout, None, at.field("per_try_idle_timeout"))?,
        avoid_previous_hosts: previous_hosts(retry_host_predicate, at)?,
        host_selection_max_attempts: match host_selection_retry_max_attempts {
            0 => 1,
            n => u32::try_from(n).map_err(|_| {
                at.field("host_selection_retry_max_attempts")
                    .error("is out of range")
            })?,
        },
        other_priorities_every: retry_priority
            .map(|priority| previous_priorities(priority, at.field("retry_priority")))
            .transpose()?,
        retriable_status_codes: status_codes(retriable_status_codes, at)?,
        retriable_headers: header_matchers(retriable_headers, "retriable_headers", at)?,
        retriable_request_headers: header_matchers(
            retriable_request_headers,
            "retriable_request_headers",
            at,
        )?,
        backoff_base,
        backoff_max,
    })
}

fn back_off(
    message: Option<pb::retry_policy::RetryBackOff>,
    at: At<'_>,
) -> Result<(Duration, Duration), ConfigError> {
    let Some(pb::retry_policy::RetryBackOff {
        base_interval,
        max_interval,
    }) = message
    else {
        let default = Duration::from_millis(25);
        return Ok((default, default * 10));
    };
    let base = positive(base_interval, at.field("base_interval"))?
        .ok_or_else(|| at.field("base_interval").error("is required"))?;
    let max = positive(max_interval, at.field("max_interval"))?.unwrap_or(base.saturating_mul(10));
    if max < base {
        return Err(at
            .field("max_interval")
            .error("must not be below base_interval"));
    }
    Ok((base, max))
}

fn previous_hosts(
    predicates: Vec<pb::retry_policy::RetryHostPredicate>,
    at: At<'_>,
) -> Result<bool, ConfigError> {
    use pb::retry_policy::retry_host_predicate::ConfigType;
    let mut found = false;
    for (i, predicate) in predicates.into_iter().enumerate() {
        let at = at.item("retry_host_predicate", i);
        let pb::retry_policy::RetryHostPredicate { name, config_type } = predicate;
        match &config_type {
            Some(ConfigType::TypedConfig(config)) if any(config).0 == PREVIOUS_HOSTS => {
                found = true
            }
            // Istio before 1.5 gave the name only.
            None if name == "envoy.retry_host_predicates.previous_hosts" => found = true,
            _ => return Err(at.error(format!("the predicate '{name}' is not supported"))),
        }
    }
    Ok(found)
}

fn previous_priorities(
    message: pb::retry_policy::RetryPriority,
    at: At<'_>,
) -> Result<u32, ConfigError> {
    use pb::retry_policy::retry_priority::ConfigType;
    let pb::retry_policy::RetryPriority { name, config_type } = message;
    let Some(ConfigType::TypedConfig(config)) = &config_type else {
        return Err(at.field("typed_config").error("is required"));
    };
    let (kind, bytes) = any(config);
    let at = at.field("typed_config");
    if kind != PREVIOUS_PRIORITIES {
        return Err(at.error(format!("the retry priority '{name}' is not supported")));
    }
    let PreviousPrioritiesConfig { update_frequency } = decode(bytes, at)?;
    match u32::try_from(update_frequency) {
        Ok(every @ 1..) => Ok(every),
        _ => Err(at.field("update_frequency").error("must be above zero")),
    }
}

fn status_codes(codes: Vec<u32>, at: At<'_>) -> Result<Vec<u16>, ConfigError> {
    let code = |(i, code)| match u16::try_from(code) {
        Ok(code @ 100..600) => Ok(code),
        _ => Err(at
            .item("retriable_status_codes", i)
            .error(format!("{code} is not a status code"))),
    };
    codes.into_iter().enumerate().map(code).collect()
}
