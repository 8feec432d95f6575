//! Whether and when a request is tried again.
//!
//! Two kinds of second tries exist. One is the route's retry policy. The other needs no policy: a
//! connection from the pool that turns out to have been closed by its peer before it took the
//! request is replaced once, if sending again cannot do harm.

use super::head::{RequestHead, ResponseHead};
use super::headers::Known;
use crate::outcome::Outcome;
use crate::upstream::Host;
use lateen_proxy_config::route::{RetryOn, RetryPolicy};
use std::net::SocketAddr;
use std::time::Duration;

/// How a try failed before a response began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub outcome: Outcome,
    /// Any byte of the request may have reached the upstream.
    pub sent: bool,
    /// Any byte of a response came.
    pub response_begun: bool,
    /// The connection had served another request before.
    pub reused: bool,
}

impl Failure {
    /// Nothing was sent.
    pub(super) fn early(outcome: Outcome) -> Failure {
        Failure {
            outcome,
            sent: false,
            response_begun: false,
            reused: false,
        }
    }
}

/// The first tries of a request; of later ones nobody asks.
#[derive(Default)]
struct Tried {
    places: [Option<(SocketAddr, u32)>; 16],
    len: usize,
}

/// The retries of one request.
pub(super) struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    left: u32,
    done: u32,
    replaced: bool,
    /// Address and priority of each try. Boxed whole, since every waiting connection has the room.
    tried: Option<Box<Tried>>,
}

impl<'a> Retries<'a> {
    pub(super) fn new(policy: Option<&'a RetryPolicy>, request: &RequestHead) -> Retries<'a> {
        let policy = policy.filter(|policy| {
            let wanted = &policy.retriable_request_headers;
            wanted.is_empty() || wanted.iter().any(|matcher| matcher.matches(request))
        });
        let left = policy.map_or(0, |policy| policy.num_retries);
        Retries {
            policy,
            left,
            done: 0,
            replaced: false,
            tried: None,
        }
    }

    /// Whether a failure may lead to another try, so that the body must be kept.
    pub(super) fn armed(&self) -> bool {
        self.left > 0
    }

    pub(super) fn per_try_timeout(&self) -> Option<Duration> {
        self.policy?.per_try_timeout
    }

    /// How often another endpoint is drawn to avoid one that was tried.
    pub(super) fn reselections(&self) -> u32 {
        self.policy
            .filter(|policy| policy.avoid_previous_hosts && self.done > 0)
            .map_or(0, |policy| policy.host_selection_max_attempts)
    }

    pub(super) fn was_tried(&self, host: SocketAddr) -> bool {
        self.tried().any(|(tried, _)| *tried == host)
    }

    pub(super) fn note(&mut self, host: &Host) {
        let asked = |policy: &RetryPolicy| {
            policy.avoid_previous_hosts || policy.other_priorities_every.is_some()
        };
        if self.policy.is_some_and(asked) {
            let tried = self.tried.get_or_insert_default();
            if let Some(free) = tried.places.get_mut(tried.len) {
                *free = Some((host.address, host.priority.get()));
                tried.len += 1;
            }
        }
    }

    fn tried(&self) -> impl Iterator<Item = &(SocketAddr, u32)> {
        self.tried
            .iter()
            .flat_map(|tried| tried.places.iter().flatten())
    }

    /// Priorities that the next try is not to go to. They are looked at anew after every so many
    /// tries (Envoy, `PreviousPrioritiesRetryPriority`).
    pub(super) fn other_priorities(&self) -> Vec<u32> {
        let every = self.policy.and_then(|policy| policy.other_priorities_every);
        let Some(every) = every.and_then(|every| usize::try_from(every).ok()) else {
            return Vec::new();
        };
        let looked_at = self.tried().count() / every * every;
        let tried = self.tried().take(looked_at);
        tried.map(|(_, priority)| *priority).collect()
    }

    /// Whether a dead connection from the pool is to be replaced. At most once per request.
    pub(super) fn replaces(&mut self, failure: &Failure, request: &RequestHead) -> bool {
        let dead = matches!(
            failure.outcome,
            Outcome::UpstreamClosedBeforeResponse | Outcome::UpstreamReset
        ) && failure.reused
            && !failure.response_begun;
        let harmless = !failure.sent || request.method.is_idempotent();
        if !dead || !harmless || self.replaced {
            return false;
        }
        self.replaced = true;
        true
    }

    /// Whether the policy wants another try after a failure.
    pub(super) fn wants_after(&self, failure: &Failure) -> bool {
        let Some(policy) = self.policy else {
            return false;
        };
        let on = |condition| policy.on.contains(condition);
        match failure.outcome {
            Outcome::Overflow | Outcome::NoHealthyUpstream | Outcome::RouteTimeout => false,
            outcome if !outcome.before_response() => false,
            _ if on(RetryOn::STATUS_5XX) || on(RetryOn::GATEWAY_ERROR) || on(RetryOn::RESET) => {
                true
            }
            _ if on(RetryOn::RESET_BEFORE_REQUEST) && !failure.sent => true,
            Outcome::UpstreamRefusedStream => on(RetryOn::REFUSED_STREAM),
            Outcome::ConnectRefused
            | Outcome::ConnectFailure
            | Outcome::ConnectTimeout
            | Outcome::TlsFailure => on(RetryOn::CONNECT_FAILURE),
            _ => false,
        }
    }

    /// Whether the policy wants another try instead of this response.
    pub(super) fn wants_instead_of(&self, head: &ResponseHead) -> bool {
        let Some(policy) = self.policy else {
            return false;
        };
        let on = |condition| policy.on.contains(condition);
        if head.headers.has(Known::EnvoyRatelimited) {
            return on(RetryOn::ENVOY_RATELIMITED);
        }
        match head.status {
            500..=599 if on(RetryOn::STATUS_5XX) => return true,
            502..=504 if on(RetryOn::GATEWAY_ERROR) => return true,
            409 if on(RetryOn::RETRIABLE_4XX) => return true,
            _ => {}
        }
        if on(RetryOn::RETRIABLE_STATUS_CODES)
            && policy.retriable_status_codes.contains(&head.status)
        {
            return true;
        }
        let header = |name: &str| head.headers.joined(name.as_bytes());
        if on(RetryOn::RETRIABLE_HEADERS)
            && policy
                .retriable_headers
                .iter()
                .any(|m| m.matches_value(header(&m.name).as_deref()))
        {
            return true;
        }
        match head.headers.get(Known::GrpcStatus) {
            Some(b"1") => on(RetryOn::GRPC_CANCELLED),
            Some(b"4") => on(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some(b"8") => on(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some(b"13") => on(RetryOn::GRPC_INTERNAL),
            Some(b"14") => on(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    /// Uses one retry up; false: none is left.
    pub(super) fn spend(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.done += 1;
        true
    }

    /// How long to wait before the next try: a random time below the base, then twice as much with
    /// every retry, as Envoy does it (`JitteredExponentialBackOffStrategy`; the router's
    /// documentation says something else).
    pub(super) fn backoff(&self, random: u64) -> Duration {
        let Some(policy) = self.policy else {
            return Duration::ZERO;
        };
        let base = policy.backoff_base.as_micros() as u64;
        let max = policy.backoff_max.as_micros() as u64;
        let factor = 1u64 << self.done.saturating_sub(1).min(20);
        let ceiling = base.saturating_mul(factor).min(max).max(1);
        Duration::from_micros(random % ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Method;
    use crate::http::headers::HeaderBlock;
    use std::sync::Arc;

    fn policy(on: &str) -> Arc<RetryPolicy> {
        RetryPolicy::new(RetryOn::parse(on).0)
    }

    fn request(method: Method) -> RequestHead {
        RequestHead {
            method,
            ..RequestHead::new(HeaderBlock::default())
        }
    }

    #[test]
    fn conditions_on_failures() {
        for (on, outcome, sent, expect) in [
            ("connect-failure", Outcome::ConnectFailure, false, true),
            ("connect-failure", Outcome::ConnectTimeout, false, true),
            ("connect-failure", Outcome::ConnectRefused, false, true),
            ("connect-failure", Outcome::UpstreamReset, true, false),
            ("refused-stream", Outcome::UpstreamRefusedStream, true, true),
            ("5xx", Outcome::UpstreamClosedBeforeResponse, true, true),
            ("gateway-error", Outcome::PerTryTimeout, true, true),
            ("reset", Outcome::UpstreamReset, true, true),
            ("reset-before-request", Outcome::UpstreamReset, true, false),
            ("reset-before-request", Outcome::ConnectFailure, false, true),
            ("5xx", Outcome::Overflow, false, false),
            ("5xx", Outcome::RouteTimeout, true, false),
            ("5xx", Outcome::NoHealthyUpstream, false, false),
            ("unavailable", Outcome::UpstreamReset, true, false),
        ] {
            let policy = policy(on);
            let retries = Retries::new(Some(&policy), &request(Method::Get));
            let failure = Failure {
                outcome,
                sent,
                response_begun: false,
                reused: false,
            };
            assert_eq!(retries.wants_after(&failure), expect, "{on} {outcome:?}");
        }
    }

    #[test]
    fn conditions_on_responses() {
        for (on, status, header, expect) in [
            ("5xx", 500, None, true),
            ("5xx", 499, None, false),
            ("gateway-error", 503, None, true),
            ("gateway-error", 500, None, false),
            ("retriable-4xx", 409, None, true),
            ("retriable-4xx", 404, None, false),
            ("retriable-status-codes", 418, None, true),
            ("unavailable", 200, Some(("grpc-status", "14")), true),
            ("cancelled", 200, Some(("grpc-status", "14")), false),
            ("5xx", 503, Some(("x-envoy-ratelimited", "true")), false),
            (
                "envoy-ratelimited",
                429,
                Some(("x-envoy-ratelimited", "true")),
                true,
            ),
            ("connect-failure,refused-stream", 503, None, false),
        ] {
            let mut policy = policy(on);
            Arc::make_mut(&mut policy).retriable_status_codes = vec![418];
            let retries = Retries::new(Some(&policy), &request(Method::Get));
            let mut headers = HeaderBlock::default();
            if let Some((name, value)) = header {
                headers.push_name(name.as_bytes(), value.as_bytes());
            }
            let head = ResponseHead::new(status, headers);
            assert_eq!(
                retries.wants_instead_of(&head),
                expect,
                "{on} {status} {header:?}"
            );
        }
    }

    #[test]
    fn a_dead_pooled_connection_is_replaced_once_and_only_when_that_is_harmless() {
        let failure = |sent, response_begun, reused| Failure {
            outcome: Outcome::UpstreamClosedBeforeResponse,
            sent,
            response_begun,
            reused,
        };
        for (method, failure, expect) in [
            (Method::Get, failure(true, false, true), true),
            (Method::Post, failure(true, false, true), false),
            (Method::Post, failure(false, false, true), true),
            (Method::Get, failure(true, true, true), false),
            (Method::Get, failure(true, false, false), false),
        ] {
            let mut retries = Retries::new(None, &request(method));
            assert_eq!(retries.replaces(&failure, &request(method)), expect);
            assert!(!retries.replaces(&failure, &request(method)));
        }
    }

    #[test]
    fn backoff_grows_and_has_a_ceiling() {
        let policy = policy("5xx");
        let mut retries = Retries::new(Some(&policy), &request(Method::Get));
        retries.left = 10;
        let mut ceilings = Vec::new();
        for _ in 0..5 {
            assert!(retries.spend());
            // The largest random number below any power of two shows the ceiling nearly.
            let largest = (0..5000).map(|r| retries.backoff(r * 97)).max().unwrap();
            ceilings.push(largest.as_millis());
        }
        assert_eq!(ceilings, [24, 49, 99, 199, 249]);
    }
}
