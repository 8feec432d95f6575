//! Asking a server who may come in (`envoy.filters.http.ext_authz`, and for connections
//! `envoy.filters.network.ext_authz`).
//!
//! | file | holds |
//! |---|---|
//! | `call.rs` | one call to the server, over the cluster's connections |
//! | `grpc.rs` | `envoy.service.auth.v3.Authorization/Check` |
//! | `http.rs` | a request like the one in question |
//! | `body.rs` | the body that is read ahead for the server |
//! | `connection.rs` | the question about a connection |
//!
//! Invariant: a request goes on only after an answer that allows it, or where the configuration says
//! that it may go on without one.

mod body;
mod call;
pub(crate) mod connection;
mod grpc;
mod http;

use super::Flow;
use crate::http::exchange::Exchange;
use crate::http::headers::{HeaderBlock, is_value};
use crate::http::local;
use crate::http::request::Routed;
use crate::http::stream::Downstream;
use crate::outcome::Outcome;
use crate::stats::HttpStat;
use lateen_proxy_config::{AuthzService, ExtAuthz, ExtAuthzRoute, Metadata, PerRoute};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

pub(in crate::http) use body::Held;

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const FAILURE_ALLOWED: &[u8] = b"x-envoy-auth-failure-mode-allowed";

/// What the server says.
#[derive(Debug)]
enum Decision {
    Allowed(Changes),
    Denied(Denied),
    /// There is no answer, or none that says anything.
    Failed,
}

/// What an answer that allows wants changed. Names are in lower case.
#[derive(Debug, Default)]
struct Changes {
    request: Vec<Change>,
    remove: Vec<String>,
    response: Vec<Change>,
    metadata: Option<Metadata>,
}

/// A refusal, for the client.
#[derive(Debug)]
struct Denied {
    status: u16,
    headers: Vec<Change>,
    body: Vec<u8>,
    metadata: Option<Metadata>,
}

/// One header.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) struct Change {
    name: String,
    value: Vec<u8>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Set,
    Add,
    AddIfAbsent,
    AddIfPresent,
    SetIfPresent,
}

impl Change {
    /// Of a header that may stand in a head.
    fn new(name: &str, value: &[u8], how: How) -> Option<Change> {
        let name = name.to_ascii_lowercase();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let fits = !name.is_empty() && name.bytes().all(token) && is_value(value);
        // How the message is framed and where it goes is not for the server to say.
        let framing = matches!(
            name.as_str(),
            "host"
                | "content-length"
                | "transfer-encoding"
                | "connection"
                | "keep-alive"
                | "upgrade"
                | "te"
                | "trailer"
                | "proxy-connection"
        );
        (fits && !framing).then(|| Change {
            name,
            value: value.to_vec(),
            how,
        })
    }

    pub(super) fn apply(&self, headers: &mut HeaderBlock) {
        let name = self.name.as_bytes();
        let there = headers.get_name(name).is_some();
        match (self.how, there) {
            (How::Set, _) | (How::SetIfPresent, true) => {
                headers.set_name(name, &self.value);
            }
            (How::Add, _) | (How::AddIfAbsent, false) | (How::AddIfPresent, true) => {
                headers.push_name(name, &self.value);
            }
            (How::SetIfPresent | How::AddIfPresent, false) | (How::AddIfAbsent, true) => {}
        }
    }
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

/// Asks, and does what the answer says.
pub(super) async fn check<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    filter: &ExtAuthz,
    route: Option<&ExtAuthzRoute>,
) -> Flow {
    let without_body = route.is_some_and(|route| route.without_body);
    let wanted = filter
        .body
        .filter(|_| !without_body && !x.request.is_tunnel());
    let mut held = Held::default();
    if let Some(wanted) = wanted {
        match body::read(x, down, wanted).await {
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
            let asked = http::question(x, filter, service, &held);
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
            allow(x, filter, changes);
            Flow::Continue
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
        if down.body_done() && down.poll_gone(cx, &x.worker).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    });
    Some(reply.await?.map_or(Decision::Failed, answer))
}

fn allow(x: &mut Exchange, filter: &ExtAuthz, changes: Changes) {
    take_metadata(x, filter, changes.metadata);
    let headers = &mut x.request.headers;
    changes
        .request
        .iter()
        .for_each(|change| change.apply(headers));
    // Last, as in Envoy: what the server wants gone is gone.
    for name in &changes.remove {
        headers.remove_name(name.as_bytes());
    }
    if !changes.response.is_empty() {
        x.marks.get_or_insert_default().response = changes.response;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_frame_a_message_are_not_taken_from_the_server() {
        for (name, value, fits) in [
            ("X-User", "a", true),
            ("x-user", "", true),
            ("x-user", "a\r\nb: c", false),
            ("x user", "a", false),
            ("", "a", false),
            (":path", "/", false),
            ("Host", "h", false),
            ("Transfer-Encoding", "chunked", false),
            ("content-length", "1", false),
        ] {
            let change = Change::new(name, value.as_bytes(), How::Set);
            assert_eq!(change.is_some(), fits, "{name}: {value}");
        }
    }
}
