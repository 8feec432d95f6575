//! Outlier detection: which endpoints are taken out of balancing because of how they answer.

use crate::route::HeaderMatcher;
use std::borrow::Cow;
use std::time::Duration;

/// When an endpoint is ejected, and for how long (`envoy.config.cluster.v3.OutlierDetection`).
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// How often ejected endpoints are looked at and rates are compared.
    pub interval: Duration,
    /// An ejection lasts this times the number of ejections in a row.
    pub base_ejection_time: Duration,
    /// The longest ejection, before jitter.
    pub max_ejection_time: Duration,
    /// Up to this much is added by chance.
    pub max_ejection_time_jitter: Duration,
    /// No more than this share of the endpoints is ejected at a time (0..=100).
    pub max_ejection_percent: u32,
    /// The first ejection is allowed whatever share it is.
    pub always_eject_one: bool,
    /// Failures between this proxy and the endpoint are counted apart from bad answers.
    pub split_local_origin: bool,
    pub consecutive_5xx: Consecutive,
    /// Of statuses 502, 503 and 504.
    pub consecutive_gateway: Consecutive,
    /// Only counted with `split_local_origin`.
    pub consecutive_local: Consecutive,
    pub success_rate: SuccessRate,
    pub failure_percentage: FailurePercentage,
}

/// So many failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consecutive {
    /// 0: never.
    pub threshold: u32,
    /// How many of 100 detections eject.
    pub enforcing: u32,
}

/// Endpoints whose success rate is far below the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    pub minimum_hosts: u32,
    /// Endpoints with fewer requests in an interval are left out.
    pub request_volume: u32,
    /// How many standard deviations below the mean are too far.
    pub deviations: f64,
    pub enforcing: u32,
    pub enforcing_local: u32,
}

/// Endpoints that fail more than a share of their requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailurePercentage {
    pub threshold: u32,
    pub minimum_hosts: u32,
    pub request_volume: u32,
    pub enforcing: u32,
    pub enforcing_local: u32,
}

/// Which answers count as errors, in the place of "status 500 and above"
/// (`HttpProtocolOptions.outlier_detection.error_matcher`).
#[derive(Clone, Debug)]
pub enum ErrorMatcher {
    Any(Vec<ErrorMatcher>),
    All(Vec<ErrorMatcher>),
    Not(Box<ErrorMatcher>),
    Always(bool),
    /// All of these; `:status` is the status.
    Headers(Vec<HeaderMatcher>),
}

impl ErrorMatcher {
    /// Whether a response is an error. `header` finds the value of a response header.
    pub fn matches<'a>(&self, status: u16, header: &dyn Fn(&str) -> Option<Cow<'a, [u8]>>) -> bool {
        match self {
            ErrorMatcher::Any(rules) => rules.iter().any(|rule| rule.matches(status, header)),
            ErrorMatcher::All(rules) => rules.iter().all(|rule| rule.matches(status, header)),
            ErrorMatcher::Not(rule) => !rule.matches(status, header),
            ErrorMatcher::Always(always) => *always,
            ErrorMatcher::Headers(matchers) => matchers.iter().all(|matcher| {
                if &*matcher.name != ":status" {
                    return matcher.matches_value(header(&matcher.name).as_deref());
                }
                let digits = [status / 100, status / 10 % 10, status % 10];
                matcher.matches_value(Some(&digits.map(|digit| b'0' + digit as u8)))
            }),
        }
    }
}
