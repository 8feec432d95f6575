//! `OutlierDetection` of a cluster, and which answers its HTTP options call errors.

use super::route_match::header_matchers;
use super::scope::{At, reject, report};
use super::values::{flag, limit, number, positive};
use crate::{
    ConfigError, Consecutive, ErrorMatcher, FailurePercentage, OutlierDetection, SuccessRate,
};
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::common::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::UInt32Value;
use std::time::Duration;

/// outlier_detection.proto: looked at every 10 s, ejected for 30 s times the number of ejections,
/// at most 300 s.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_EJECTION_TIME: Duration = Duration::from_secs(30);
const DEFAULT_MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

pub(crate) fn outlier_detection(
    message: pb::OutlierDetection,
    at: At<'_>,
) -> Result<OutlierDetection, ConfigError> {
    let pb::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        // Only active health checks could make use of it; that there are none is reported there.
        successful_active_health_check_uneject_host: _,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = message;
    reject!(at; monitors);
    report!(at, "endpoints do not say that they are degraded"; detect_degraded_hosts);
    let plain = |value: Option<UInt32Value>, default: u32| value.map_or(default, |v| v.value);
    let percent = |value, default, name| {
        number(value, 0..=100, at.field(name)).map(|percent| percent.unwrap_or(default))
    };
    let base_ejection_time = positive(base_ejection_time, at.field("base_ejection_time"))?
        .unwrap_or(DEFAULT_EJECTION_TIME);
    let max_ejection_time = positive(max_ejection_time, at.field("max_ejection_time"))?
        .unwrap_or(DEFAULT_MAX_EJECTION_TIME.max(base_ejection_time));
    if max_ejection_time < base_ejection_time {
        return Err(at
            .field("max_ejection_time")
            .error("must not be below base_ejection_time"));
    }
    Ok(OutlierDetection {
        interval: positive(interval, at.field("interval"))?.unwrap_or(DEFAULT_INTERVAL),
        base_ejection_time,
        max_ejection_time,
        max_ejection_time_jitter: limit(
            max_ejection_time_jitter,
            None,
            at.field("max_ejection_time_jitter"),
        )?
        .unwrap_or_default(),
        max_ejection_percent: percent(max_ejection_percent, 10, "max_ejection_percent")?,
        always_eject_one: flag(always_eject_one_host, false),
        split_local_origin: split_external_local_origin_errors,
        consecutive_5xx: Consecutive {
            threshold: plain(consecutive_5xx, 5),
            enforcing: percent(enforcing_consecutive_5xx, 100, "enforcing_consecutive_5xx")?,
        },
        consecutive_gateway: Consecutive {
            threshold: plain(consecutive_gateway_failure, 5),
            enforcing: percent(
                enforcing_consecutive_gateway_failure,
                0,
                "enforcing_consecutive_gateway_failure",
            )?,
        },
        consecutive_local: Consecutive {
            threshold: plain(consecutive_local_origin_failure, 5),
            enforcing: percent(
                enforcing_consecutive_local_origin_failure,
                100,
                "enforcing_consecutive_local_origin_failure",
            )?,
        },
        success_rate: SuccessRate {
            minimum_hosts: plain(success_rate_minimum_hosts, 5),
            request_volume: plain(success_rate_request_volume, 100),
            // Thousandths: 1900 are 1.9 standard deviations.
            deviations: f64::from(plain(success_rate_stdev_factor, 1900)) / 1000.0,
            enforcing: percent(enforcing_success_rate, 100, "enforcing_success_rate")?,
            enforcing_local: percent(
                enforcing_local_origin_success_rate,
                100,
                "enforcing_local_origin_success_rate",
            )?,
        },
        failure_percentage: FailurePercentage {
            threshold: percent(
                failure_percentage_threshold,
                85,
                "failure_percentage_threshold",
            )?,
            minimum_hosts: plain(failure_percentage_minimum_hosts, 5),
            request_volume: plain(failure_percentage_request_volume, 50),
            enforcing: percent(
                enforcing_failure_percentage,
                0,
                "enforcing_failure_percentage",
            )?,
            enforcing_local: percent(
                enforcing_failure_percentage_local_origin,
                0,
                "enforcing_failure_percentage_local_origin",
            )?,
        },
    })
}

/// Which answers are errors. Only the head of a response can be asked.
pub(crate) fn error_matcher(
    message: matcher::MatchPredicate,
    at: At<'_>,
) -> Result<ErrorMatcher, ConfigError> {
    use matcher::match_predicate::Rule;
    let set = |set: matcher::match_predicate::MatchSet, name: &str| {
        set.rules
            .into_iter()
            .enumerate()
            .map(|(i, rule)| error_matcher(rule, at.field(name).item("rules", i)))
            .collect::<Result<Vec<_>, _>>()
    };
    let matcher::MatchPredicate { rule } = message;
    Ok(match rule {
        Some(Rule::OrMatch(rules)) => ErrorMatcher::Any(set(rules, "or_match")?),
        Some(Rule::AndMatch(rules)) => ErrorMatcher::All(set(rules, "and_match")?),
        Some(Rule::NotMatch(rule)) => {
            ErrorMatcher::Not(Box::new(error_matcher(*rule, at.field("not_match"))?))
        }
        Some(Rule::AnyMatch(always)) => ErrorMatcher::Always(always),
        Some(Rule::HttpResponseHeadersMatch(rule)) => {
            let at = at.field("http_response_headers_match");
            ErrorMatcher::Headers(header_matchers(rule.headers, "headers", at)?)
        }
        Some(_) => return Err(at.error("only response headers can be asked")),
        None => return Err(at.error("needs a rule")),
    })
}
