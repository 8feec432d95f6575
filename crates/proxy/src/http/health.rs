//! What outlier detection is told of a request (Envoy, `Router::Filter`).

use super::exchange::Exchange;
use super::head::{RequestHead, ResponseHead};
use super::headers::{HeaderBlock, Known};
use crate::outcome::Outcome;
use crate::upstream::health::Seen;
use crate::upstream::{ActiveCluster, Host};

/// A try ended before it had a response.
pub(super) fn failed(cluster: &ActiveCluster, host: &Host, outcome: Outcome) {
    if let Some(seen) = fault(outcome) {
        host.note(cluster, seen);
    }
}

/// What of a failed try is the endpoint's fault. A client that left, or that sent what is no body,
/// must not get an endpoint ejected.
fn fault(outcome: Outcome) -> Option<Seen> {
    match outcome {
        Outcome::RouteTimeout | Outcome::PerTryTimeout => Some(Seen::LocalTimeout),
        Outcome::Overflow => None,
        outcome => outcome.before_response().then_some(Seen::LocalFailure),
    }
}

/// A response head has come. That of a gRPC call says nothing until its trailers are there, unless
/// it brings the status itself.
pub(super) fn answered(
    cluster: &ActiveCluster,
    host: &Host,
    request: &RequestHead,
    head: &ResponseHead,
) {
    if cluster.config.outlier.is_none() {
        return;
    }
    let mut status = head.status;
    if let Some(matcher) = &cluster.config.http.error_matcher {
        let header = |name: &str| head.headers.joined(name.as_bytes());
        // What the matcher calls an error is one whatever its status, and the other way round.
        status = match (matcher.matches(status, &header), status) {
            (true, 500..) => status,
            (true, _) => 500,
            (false, 500..) => 200,
            (false, _) => status,
        };
    } else if is_grpc(request) && status == 200 {
        match grpc_status(&head.headers) {
            Some(grpc) => status = http_status(grpc),
            None => return,
        }
    }
    host.note(cluster, Seen::Answer(status));
}

/// The response has been passed on, or broke off.
pub(super) fn ended(
    cluster: &ActiveCluster,
    host: &Host,
    x: &Exchange,
    ended: Result<(), Outcome>,
) {
    match ended {
        Err(Outcome::UpstreamClosedMidResponse | Outcome::UpstreamBrokenMidResponse) => {
            host.note(cluster, Seen::LocalFailure)
        }
        Err(Outcome::TimeoutMidResponse) => host.note(cluster, Seen::LocalTimeout),
        Err(_) => {}
        Ok(()) => {
            let has_matcher = cluster.config.http.error_matcher.is_some();
            if cluster.config.outlier.is_none() || has_matcher || !is_grpc(&x.request) {
                return;
            }
            if let Some(grpc) = x.trailers.as_deref().and_then(grpc_status) {
                host.note(cluster, Seen::Answer(http_status(grpc)));
            }
        }
    }
}

fn is_grpc(request: &RequestHead) -> bool {
    let kind = request.headers.get(Known::ContentType).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

fn grpc_status(headers: &HeaderBlock) -> Option<u16> {
    let value = headers.get(Known::GrpcStatus)?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The HTTP status that stands for a gRPC status (Envoy, `Grpc::Utility::grpcToHttpStatus`).
fn http_status(grpc: u16) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_endpoints_fault_counts_against_it() {
        for (outcome, expect) in [
            (Outcome::ConnectRefused, Some(Seen::LocalFailure)),
            (Outcome::UpstreamReset, Some(Seen::LocalFailure)),
            (Outcome::UpstreamProtocolError, Some(Seen::LocalFailure)),
            (Outcome::PerTryTimeout, Some(Seen::LocalTimeout)),
            (Outcome::RouteTimeout, Some(Seen::LocalTimeout)),
            (Outcome::Overflow, None),
            (Outcome::ClientGone, None),
            (Outcome::BadRequest, None),
            (Outcome::StreamIdle, None),
            (Outcome::StreamTooLong, None),
        ] {
            assert_eq!(fault(outcome), expect, "{outcome:?}");
        }
    }
}
