//! When and how a request is tried again.

use super::HeaderMatcher;
use std::sync::Arc;
use std::time::Duration;

/// One retry policy (`envoy.config.route.v3.RetryPolicy`).
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub on: RetryOn,
    /// Tries after the first.
    pub num_retries: u32,
    /// [`None`]: the route's timeout.
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    /// Do not go to an endpoint that was tried (`envoy.retry_host_predicates.previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// How often another endpoint is picked before one that was tried is taken after all.
    pub host_selection_max_attempts: u32,
    /// After every so many tries, go to a priority that none of them went to
    /// (`envoy.retry_priorities.previous_priorities`); [`None`]: as every request.
    pub other_priorities_every: Option<u32>,
    pub retriable_status_codes: Vec<u16>,
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests with one of these are retried; empty: all.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Default 25 ms.
    pub backoff_base: Duration,
    /// Default ten times the base.
    pub backoff_max: Duration,
}

impl RetryPolicy {
    /// A policy for nothing but `on`, with Envoy's defaults: one retry, back-off from 25 ms to 250 ms.
    pub fn new(on: RetryOn) -> Arc<Self> {
        Arc::new(Self {
            on,
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            avoid_previous_hosts: false,
            host_selection_max_attempts: 1,
            other_priorities_every: None,
            retriable_status_codes: Vec::new(),
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
        })
    }
}

/// A set of retry conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $text:literal;)*) => {
        impl RetryOn {
            $($(#[$doc])* pub const $name: RetryOn = RetryOn(1 << $bit);)*
            /// Name and condition, as in `retry_on` and in `x-envoy-retry-on`.
            pub const NAMES: &'static [(&'static str, RetryOn)] = &[$(($text, RetryOn::$name)),*];
        }
    };
}

conditions! {
    /// Any 5xx answer, or no answer at all.
    STATUS_5XX = 0, "5xx";
    /// 502, 503 or 504.
    GATEWAY_ERROR = 1, "gateway-error";
    /// No answer at all: disconnect, reset, read timeout.
    RESET = 2, "reset";
    /// Reset before the request went out on the wire.
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    CONNECT_FAILURE = 4, "connect-failure";
    /// The answer carries `x-envoy-ratelimited`.
    ENVOY_RATELIMITED = 5, "envoy-ratelimited";
    /// 409.
    RETRIABLE_4XX = 6, "retriable-4xx";
    /// HTTP/2 `REFUSED_STREAM`.
    REFUSED_STREAM = 7, "refused-stream";
    RETRIABLE_STATUS_CODES = 8, "retriable-status-codes";
    RETRIABLE_HEADERS = 9, "retriable-headers";
    HTTP3_POST_CONNECT_FAILURE = 10, "http3-post-connect-failure";
    GRPC_CANCELLED = 11, "cancelled";
    GRPC_DEADLINE_EXCEEDED = 12, "deadline-exceeded";
    GRPC_INTERNAL = 13, "internal";
    GRPC_RESOURCE_EXHAUSTED = 14, "resource-exhausted";
    GRPC_UNAVAILABLE = 15, "unavailable";
}

impl RetryOn {
    /// Parses a comma-separated list; the names nobody knows come back beside the set.
    pub fn parse(list: &str) -> (RetryOn, Vec<&str>) {
        let mut on = RetryOn::default();
        let mut unknown = Vec::new();
        for name in list.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match Self::NAMES.iter().find(|(n, _)| *n == name) {
                Some((_, condition)) => on = on | *condition,
                None => unknown.push(name),
            }
        }
        (on, unknown)
    }

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: RetryOn) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = RetryOn;
    fn bitor(self, other: RetryOn) -> RetryOn {
        RetryOn(self.0 | other.0)
    }
}
