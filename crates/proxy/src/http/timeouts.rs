//! How long a request may take, and what is said about it to the upstream.
//!
//! Two ways to limit exist, as in Envoy (`FilterUtility::finalTimeout`,
//! `ActiveStream::refreshDurationTimeout`): the route's timeout runs from the end of the request and
//! ends with the response; a stream duration runs from the request's first byte. A route has one or
//! the other. Both may follow `grpc-timeout`.

use super::exchange::Exchange;
use super::headers::{HeaderBlock, Known};
use super::request::Routed;
use lateen_proxy_config::route::{Forward, GrpcTimeout};
use std::time::Duration;

/// The limits of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// From the end of the request on.
    pub route: Option<Duration>,
    /// From the beginning of the request on.
    pub stream: Option<Duration>,
    /// What the upstream is told that it has.
    pub expected: Option<Duration>,
}

/// Decides the limits of a request, and rewrites its `grpc-timeout` where the route has a say in it.
pub(super) fn decide(x: &mut Exchange, routed: Routed<'_>, to: &Forward) -> Limits {
    let said = match x.request.is_grpc() {
        true => grpc_timeout(&x.request.headers),
        false => None,
    };
    if let Some(duration) = &to.max_stream_duration {
        let stream = match (duration.grpc, said) {
            (Some(grpc), Some(said)) => {
                let capped = grpc.max.map_or(said, |max| said.min(max));
                let left = capped.saturating_sub(grpc.offset);
                set_grpc_timeout(&mut x.request.headers, left);
                Some(left)
            }
            _ => duration
                .max
                .unwrap_or(x.service.manager.timeouts.max_stream_duration),
        };
        return Limits {
            stream,
            ..Limits::default()
        };
    }
    let grpc = to.grpc_timeout.filter(|_| x.request.is_grpc());
    let route = match grpc {
        Some(grpc) => capped(said, grpc),
        None => to.timeout,
    };
    let retry = routed.route.retry.as_deref();
    let per_try = retry.and_then(|policy| policy.per_try_timeout);
    let expected = match (per_try, route) {
        (Some(per_try), Some(route)) => Some(per_try.min(route)),
        (per_try, route) => per_try.or(route),
    };
    if let (Some(_), Some(expected)) = (grpc, expected) {
        set_grpc_timeout(&mut x.request.headers, expected);
    }
    Limits {
        route,
        stream: x.service.manager.timeouts.max_stream_duration,
        expected,
    }
}

/// What a gRPC request says about its time, within what the route allows; nothing said is no limit.
fn capped(said: Option<Duration>, grpc: GrpcTimeout) -> Option<Duration> {
    // An offset that would leave nothing is not taken off: nothing would mean no limit.
    let said = said.filter(|said| !said.is_zero());
    let said = said.map(|said| match grpc.offset < said {
        true => said - grpc.offset,
        false => said,
    });
    match (said, grpc.max) {
        (Some(said), Some(max)) => Some(said.min(max)),
        (said, max) => said.or(max),
    }
}

/// `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(headers: &HeaderBlock) -> Option<Duration> {
    let text = std::str::from_utf8(headers.get(Known::GrpcTimeout)?).ok()?;
    let unit = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(unit)?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let n: u64 = digits.parse().ok().filter(|_| plain)?;
    // Milliseconds, rounded up.
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_millis(n.div_ceil(1_000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}

fn set_grpc_timeout(headers: &mut HeaderBlock, timeout: Duration) {
    let millis = timeout.as_millis();
    let text = match millis {
        0..100_000_000 => format!("{millis}m"),
        // More than a day: whole seconds, as many as eight digits hold.
        _ => format!("{}S", timeout.as_secs().min(99_999_999)),
    };
    headers.set(Known::GrpcTimeout, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        let ms = |n| Some(Duration::from_millis(n));
        for (text, expect) in [
            ("1H", ms(3_600_000)),
            ("2M", ms(120_000)),
            ("3S", ms(3_000)),
            ("4m", ms(4)),
            ("5u", ms(1)),
            ("2000000n", ms(2)),
            ("0m", ms(0)),
            ("99999999m", ms(99_999_999)),
            ("100000000m", None),
            ("m", None),
            ("", None),
            ("+1m", None),
            ("1", None),
            ("1x", None),
            ("1é", None),
        ] {
            let mut headers = HeaderBlock::default();
            headers.push(Known::GrpcTimeout, text.as_bytes());
            assert_eq!(grpc_timeout(&headers), expect, "{text}");
        }
    }

    #[test]
    fn what_a_grpc_request_says_is_capped_and_shortened() {
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        for (said, max, offset, expect) in [
            (0, 0, 0, 0),
            (5, 0, 0, 5),
            (5, 3, 0, 3),
            (0, 3, 0, 3),
            (5, 0, 2, 3),
            (5, 0, 5, 5),
            (5, 4, 2, 3),
        ] {
            let grpc = GrpcTimeout {
                max: seconds(max),
                offset: Duration::from_secs(offset),
            };
            let found = capped(seconds(said), grpc);
            assert_eq!(found, seconds(expect), "{said} {max} {offset}");
        }
    }
}
