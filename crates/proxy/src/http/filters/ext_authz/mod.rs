//! Asking a server who may come in (`envoy.filters.http.ext_authz`, and for connections
//! `envoy.filters.network.ext_authz`).
//!
//! | file | holds |
//! |---|---|
//! | `grpc.rs` | `envoy.service.auth.v3.Authorization/Check` |
//! | `http.rs` | a request like the one in question |
//! | `body.rs` | the body that is read ahead for the server |
//! | `changes.rs` | what an answer changes |
//! | `connection.rs` | the question about a connection |
//!
//! Invariant: a request goes on only after an answer that allows it, or where the configuration says
//! that it may go on without one.

mod body;
mod changes;
pub(crate) mod connection;
mod grpc;
mod http;

use super::{Flow, call};
use crate::http::exchange::Exchange;
use crate::http::local;
use crate::http::request::Routed;
use crate::http::stream::Downstream;
use crate::http::trailers::note_removed;
use crate::outcome::Outcome;
use crate::stats::HttpStat;
use lateen_proxy_config::{AuthzService, ExtAuthz, ExtAuthzRoute, Metadata, PerRoute};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use changes::{Changes, Invalid};

pub(in crate::http) use body::Held;
pub(in crate::http) use changes::Change;

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const FAILURE_ALLOWED: &[u8] = b"x-envoy-auth-failure-mode-allowed";

/// What the server says.
#[derive(Debug)]
enum Decision {
    Allowed(Changes),
    Denied(Denied),
    /// It allows, and asks for what cannot be done.
    Invalid,
    /// There is no answer, or none that says anything.
    Failed,
}

/// A refusal, for the client.
#[derive(Debug)]
struct Denied {
    status: u16,
    headers: Vec<Change>,
    body: Vec<u8>,
    metadata: Option<Metadata>,
}

/// Whether the server is to be asked about a request, and what the route has for it.
pub(super) fn wanted<'r>(
    x: &Exchange,
    routed: Option<Routed<'r>>,
    filter: &ExtAuthz,
) -> Option<Option<&'r ExtAuthzRoute>> {
    let route = match routed.map(|routed| &routed.route.filters.ext_authz) {
        None | Some(PerRoute::Unsaid) => None,
        Some(PerRoute::Use(route)) => Some(&**route),
        Some(PerRoute::Off) => return None,
    };
    let meant = filter.enabled_metadata.as_ref();
    let meant = meant.is_none_or(|matcher| matcher.matches(x.metadata.all()));
    let share = filter
        .enabled
        .is_none_or(|share| share.includes(x.worker.random()));
    if meant && share {
        return Some(route);
    }
    x.service.stats.inc(HttpStat::ExtAuthzDisabled);
    None
}

/// Asks, and does what the answer says. `place` is the filter's among all.
pub(super) async fn check<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    (place, filter): (usize, &ExtAuthz),
    route: Option<&ExtAuthzRoute>,
) -> Flow {
    let without_body = route.is_some_and(|route| route.without_body);
    let wanted = filter
        .body
        .filter(|_| !without_body && !x.request.is_tunnel());
    let mut held = Held::default();
    if let Some(wanted) = wanted {
        // Another filter may have read of it before.
        let before = x.marks.as_mut().and_then(|marks| marks.held.take());
        match body::read(x, down, wanted, before).await {
            Ok(read) => held = read,
            Err(outcome) => return refuse(x, down, routed, outcome, outcome.row().status).await,
        }
    }
    let decision = match &filter.service {
        AuthzService::Grpc {
            authority,
            metadata,
        } => {
            let asked = grpc::question(x, filter, route, &held, (authority, &metadata[..]));
            ask(x, down, filter, asked, grpc::answer).await
        }
        AuthzService::Http(service) => {
            let asked = http::question(x, routed, filter, service, &held);
            ask(x, down, filter, asked, |reply| http::answer(service, reply)).await
        }
    };
    if wanted.is_some() {
        x.marks.get_or_insert_default().held = Some(held);
    }
    match decision {
        None => {
            x.outcome = Outcome::ClientGone;
            down.abort();
            Flow::Answered
        }
        Some(Decision::Allowed(changes)) => {
            x.service.stats.inc(HttpStat::ExtAuthzOk);
            let anew = filter.clear_route_cache && changes.touch_request();
            allow(x, (place, filter), changes);
            match anew {
                true => Flow::Anew,
                false => Flow::Continue,
            }
        }
        // As Envoy with `validate_mutations`: neither half of the answer is taken.
        Some(Decision::Invalid) => {
            x.service.stats.inc(HttpStat::ExtAuthzInvalid);
            refuse(x, down, routed, Outcome::ExtAuthzInvalid, 500).await
        }
        Some(Decision::Denied(denied)) => {
            x.service.stats.inc(HttpStat::ExtAuthzDenied);
            deny(x, down, routed, filter, denied).await
        }
        Some(Decision::Failed) => {
            x.service.stats.inc(HttpStat::ExtAuthzError);
            if filter.failure_mode_allow {
                x.service.stats.inc(HttpStat::ExtAuthzFailureModeAllowed);
                if filter.failure_mode_header {
                    x.request.headers.set_name(FAILURE_ALLOWED, b"true");
                }
                return Flow::Continue;
            }
            refuse(
                x,
                down,
                routed,
                Outcome::ExtAuthzError,
                filter.status_on_error,
            )
            .await
        }
    }
}

/// One question and its answer; [`None`]: the client has left.
async fn ask<D: Downstream>(
    x: &Exchange,
    down: &mut D,
    filter: &ExtAuthz,
    question: call::Question,
    answer: impl FnOnce(call::Reply) -> Decision,
) -> Option<Decision> {
    let calling = call::call(&x.worker, &x.conn, &filter.cluster, question);
    let limited = async {
        match filter.timeout {
            Some(limit) => tokio::time::timeout(limit, calling).await.ok().flatten(),
            None => calling.await,
        }
    };
    let mut limited = pin!(limited);
    let reply = poll_fn(|cx| {
        if let Poll::Ready(reply) = limited.as_mut().poll(cx) {
            return Poll::Ready(Some(reply));
        }
        if down.poll_gone(cx, &x.worker).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    });
    Some(reply.await?.map_or(Decision::Failed, answer))
}

fn allow(x: &mut Exchange, (place, filter): (usize, &ExtAuthz), mut changes: Changes) {
    take_metadata(x, filter, changes.metadata.take());
    changes.apply(&mut x.request);
    note_removed(x, changes.remove.iter().map(String::as_str));
    if !changes.response.is_empty() {
        let marks = x.marks.get_or_insert_default();
        marks.response.push((place, changes.response));
    }
}

fn take_metadata(x: &mut Exchange, filter: &ExtAuthz, metadata: Option<Metadata>) {
    if let Some(metadata) = metadata.filter(|_| filter.takes_metadata) {
        x.metadata.merge(NAMESPACE, metadata);
    }
}

async fn deny<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    filter: &ExtAuthz,
    denied: Denied,
) -> Flow {
    take_metadata(x, filter, denied.metadata);
    let mut body = denied.body;
    if let Some(max) = filter.max_denied_body {
        body.truncate(max);
    }
    x.outcome = Outcome::ExtAuthzDenied;
    let mut head = local::head(x, denied.status, None, body.len());
    let headers = &mut head.headers;
    denied
        .headers
        .iter()
        .for_each(|change| change.apply(headers));
    local::send(x, down, routed, head, &body).await;
    Flow::Answered
}

async fn refuse<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    outcome: Outcome,
    status: u16,
) -> Flow {
    if outcome == Outcome::ClientGone {
        x.outcome = outcome;
        down.abort();
    } else {
        local::refuse_as(x, down, routed, outcome, status).await;
    }
    Flow::Answered
}
