//! The filters between a connection manager and its router: requests pass them in order, responses
//! in reverse.
//!
//! A filter that has nothing to do for a route costs one comparison: what it does per route was
//! resolved when the table was compiled, and nothing is allocated or awaited.
//!
//! Invariant: a filter that answers a request itself is the last that sees it on its way in.

mod call;
mod cors;
pub(crate) mod ext_authz;
mod fault;
pub(crate) mod jwt;
mod rbac;

use super::exchange::Exchange;
use super::head::ResponseHead;
use super::local;
use super::prepare::upgrade_allowed;
use super::request::{Decision, Routed, find_route};
use super::stream::Downstream;
use crate::outcome::Outcome;
use lateen_proxy_config::HttpFilter;
use lateen_proxy_config::route::RouteTable;
use std::sync::Arc;

/// What filters note about a request, for its response and its log line.
#[derive(Default)]
pub(crate) struct Marks {
    /// A fault delayed it.
    pub delayed: bool,
    /// Counted among the requests with a fault.
    fault: Option<fault::ActiveFault>,
    /// The origin that the answer has to name.
    cors_origin: Option<Box<[u8]>>,
    /// What has been read of the body for a filter.
    pub(super) held: Option<ext_authz::Held>,
    /// Names that were taken out of the head, which trailers may not bring back.
    pub(super) removed: Vec<Box<[u8]>>,
    /// Headers that filters want on the response, by their place.
    response: Vec<(usize, Vec<ext_authz::Change>)>,
    /// Why a filter refused it, where that says more than the outcome.
    pub details: Option<Arc<str>>,
}

/// Whether a request goes on to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    /// On, by the route that it takes now.
    Anew,
    Answered,
}

/// Shows a request to the filters. One without a route is shown to them as well, but no authorizer
/// is asked about it. What a filter finds out may lead to another route.
pub(super) async fn request<'t, D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    table: Option<&'t RouteTable>,
    decision: &mut Decision<'t>,
) -> Flow {
    let service = x.service.clone();
    let mut counted = service.rbac.iter();
    let mut fetched = service.tokens.iter();
    for (place, filter) in service.manager.filters.iter().enumerate() {
        let routed = decision.routed();
        // What waits or answers is boxed: it is rare, and every request would carry its size.
        let flow = match filter {
            HttpFilter::JwtAuthn(filter) => {
                let keys = fetched.next();
                let missing = jwt::missing(x, filter, keys);
                if !missing.is_empty() {
                    Box::pin(jwt::fetch(x, missing)).await;
                }
                match jwt::check(x, filter, keys) {
                    jwt::Verdict::Pass => Flow::Continue,
                    jwt::Verdict::PassAnew => Flow::Anew,
                    jwt::Verdict::Refuse(failure) => {
                        Box::pin(jwt::refuse(x, down, routed, failure)).await;
                        Flow::Answered
                    }
                }
            }
            HttpFilter::Fault(filter) => match fault::choose(x, routed, filter) {
                Some(chosen) => Box::pin(fault::inject(x, down, routed, filter, chosen)).await,
                None => Flow::Continue,
            },
            HttpFilter::Cors => match cors::request(x, routed) {
                Some(answer) => {
                    Box::pin(cors::answer(x, down, answer)).await;
                    Flow::Answered
                }
                None => Flow::Continue,
            },
            // As Envoy, but for a request that may yet find a route: it would go there unasked.
            HttpFilter::ExtAuthz(_)
                if matches!(decision, Decision::Refuse(_))
                    && !service
                        .manager
                        .filters
                        .iter()
                        .skip(place + 1)
                        .any(may_reroute) =>
            {
                Flow::Continue
            }
            HttpFilter::ExtAuthz(filter) => match ext_authz::wanted(x, routed, filter) {
                Some(route) => {
                    Box::pin(ext_authz::check(x, down, routed, (place, filter), route)).await
                }
                None => Flow::Continue,
            },
            HttpFilter::Rbac(filter) => match rbac::refuses(x, routed, filter, counted.next()) {
                Some(refusal) => {
                    Box::pin(rbac::answer(x, down, routed, refusal)).await;
                    Flow::Answered
                }
                None => Flow::Continue,
            },
            HttpFilter::Router(_) => Flow::Continue,
        };
        match flow {
            Flow::Continue => {}
            Flow::Anew => {
                *decision = find_route(x, table);
                // It was looked at for the first route only, if there was one.
                if let Some(routed) = decision.routed().filter(|to| !upgrade_allowed(x, *to)) {
                    let outcome = Outcome::UpgradeNotAllowed;
                    Box::pin(local::refuse_as(x, down, Some(routed), outcome, 403)).await;
                    return Flow::Answered;
                }
            }
            Flow::Answered => return flow,
        }
    }
    Flow::Continue
}

/// Whether a filter may have a request look for its route anew.
fn may_reroute(filter: &HttpFilter) -> bool {
    match filter {
        HttpFilter::JwtAuthn(filter) => filter.providers.iter().any(|one| one.clear_route_cache),
        // Of a request without a route it is not asked.
        HttpFilter::ExtAuthz(_)
        | HttpFilter::Fault(_)
        | HttpFilter::Cors
        | HttpFilter::Rbac(_)
        | HttpFilter::Router(_) => false,
    }
}

/// Shows the response of a routed request to the filters.
pub(super) fn response(x: &Exchange, routed: Routed<'_>, head: &mut ResponseHead) {
    for (place, filter) in x.service.manager.filters.iter().enumerate().rev() {
        match filter {
            HttpFilter::Cors => cors::response(x, routed, head),
            HttpFilter::ExtAuthz(_) => {
                let all = x.marks.iter().flat_map(|marks| &marks.response);
                let own = all.filter(|(of, _)| *of == place);
                own.flat_map(|(_, changes)| changes)
                    .for_each(|change| change.apply(&mut head.headers));
            }
            HttpFilter::JwtAuthn(_)
            | HttpFilter::Fault(_)
            | HttpFilter::Rbac(_)
            | HttpFilter::Router(_) => {}
        }
    }
}
