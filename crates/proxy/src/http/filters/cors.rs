//! Cross-origin resource sharing (`envoy.filters.http.cors`).
//!
//! A preflight is answered here; to other answers the headers are added that let a browser hand
//! them to the page. A request is never refused: that is the browser's part.

use crate::http::exchange::Exchange;
use crate::http::head::{Method, RequestHead, ResponseHead};
use crate::http::local;
use crate::http::request::Routed;
use crate::http::stream::Downstream;
use crate::outcome::Outcome;
use crate::stats::HttpStat;
use lateen_proxy_config::CorsPolicy;
use lateen_proxy_config::route::RouteAction;

const ORIGIN: &[u8] = b"origin";
const REQUEST_METHOD: &[u8] = b"access-control-request-method";
const REQUEST_HEADERS: &[u8] = b"access-control-request-headers";
const REQUEST_PRIVATE_NETWORK: &[u8] = b"access-control-request-private-network";
const ALLOW_ORIGIN: &[u8] = b"access-control-allow-origin";
const ALLOW_CREDENTIALS: &[u8] = b"access-control-allow-credentials";
const ALLOW_METHODS: &[u8] = b"access-control-allow-methods";
const ALLOW_HEADERS: &[u8] = b"access-control-allow-headers";
const ALLOW_PRIVATE_NETWORK: &[u8] = b"access-control-allow-private-network";
const EXPOSE_HEADERS: &[u8] = b"access-control-expose-headers";
const MAX_AGE: &[u8] = b"access-control-max-age";

/// The policy of a route that sends requests on; other routes have none.
fn policy(routed: Routed<'_>) -> Option<&CorsPolicy> {
    match routed.route.action {
        RouteAction::Forward(_) => routed.route.filters.cors.over(None),
        _ => None,
    }
}

/// Notes the origin of a request; the answer if it is a preflight.
pub(super) fn request(x: &mut Exchange, routed: Option<Routed<'_>>) -> Option<ResponseHead> {
    let policy = policy(routed?)?;
    let on = policy.enabled;
    if on.is_some_and(|share| !share.includes(x.worker.random())) {
        return None;
    }
    let origin = x.request.headers.get_name(ORIGIN)?;
    if origin.is_empty() {
        return None;
    }
    let allowed = policy.allows(origin);
    x.service.stats.inc(match allowed {
        true => HttpStat::CorsOriginValid,
        false => HttpStat::CorsOriginInvalid,
    });
    // The router may change the header before the response comes.
    if allowed {
        let origin = origin.into();
        x.marks.get_or_insert_default().cors_origin = Some(origin);
    }
    if !is_preflight(&x.request) {
        return None;
    }
    if !allowed && policy.forward_unmatched_preflights.unwrap_or(true) {
        return None;
    }
    Some(preflight(x, policy))
}

/// The origin of the request, if it is allowed.
fn origin(x: &Exchange) -> Option<&[u8]> {
    x.marks.as_ref()?.cors_origin.as_deref()
}

fn is_preflight(request: &RequestHead) -> bool {
    let method = request.headers.get_name(REQUEST_METHOD);
    request.method == Method::Options && method.is_some_and(|method| !method.is_empty())
}

/// The answer to a preflight. To an origin that is not allowed it lacks `allow-origin`.
fn preflight(x: &Exchange, policy: &CorsPolicy) -> ResponseHead {
    let mut head = local::head(x, 200, None, 0);
    let asked = |name: &[u8]| x.request.headers.get_name(name).unwrap_or_default();
    allow(x, policy, &mut head);
    if origin(x).is_none() && policy.allow_credentials.unwrap_or(false) {
        head.headers.set_name(ALLOW_CREDENTIALS, b"true");
    }
    for (name, allowed, asked_for) in [
        (ALLOW_METHODS, &policy.allow_methods, REQUEST_METHOD),
        (ALLOW_HEADERS, &policy.allow_headers, REQUEST_HEADERS),
    ] {
        match &**allowed {
            "" => {}
            "*" => {
                head.headers.set_name(name, asked(asked_for));
            }
            allowed => {
                head.headers.set_name(name, allowed.as_bytes());
            }
        }
    }
    if !policy.max_age.is_empty() {
        head.headers.set_name(MAX_AGE, policy.max_age.as_bytes());
    }
    let private = policy.allow_private_network.unwrap_or(false);
    if private && asked(REQUEST_PRIVATE_NETWORK) == b"true" {
        head.headers.set_name(ALLOW_PRIVATE_NETWORK, b"true");
    }
    head
}

/// Sends the answer to a preflight. The route's header operations are not for it, as in Envoy.
pub(super) async fn answer<D: Downstream>(x: &mut Exchange, down: &mut D, head: ResponseHead) {
    x.outcome = Outcome::CorsPreflight;
    local::send(x, down, None, head, b"").await;
}

/// What every answer to an allowed origin says.
pub(super) fn response(x: &Exchange, routed: Routed<'_>, head: &mut ResponseHead) {
    if let Some(policy) = policy(routed) {
        allow(x, policy, head);
    }
}

fn allow(x: &Exchange, policy: &CorsPolicy, head: &mut ResponseHead) {
    let Some(origin) = origin(x) else {
        return;
    };
    head.headers.set_name(ALLOW_ORIGIN, origin);
    if policy.allow_credentials.unwrap_or(false) {
        head.headers.set_name(ALLOW_CREDENTIALS, b"true");
    }
    if !policy.expose_headers.is_empty() {
        let expose = policy.expose_headers.as_bytes();
        head.headers.set_name(EXPOSE_HEADERS, expose);
    }
}
