//! Who may do what (`envoy.filters.http.rbac`).
//!
//! Deciding neither waits nor allocates; a refusal, and what rules without effect would have said,
//! are noted.

use crate::http::exchange::Exchange;
use crate::http::head::RequestHead;
use crate::http::local;
use crate::http::request::Routed;
use crate::http::stream::Downstream;
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::rbac::{Counts, note};
use lateen_proxy_config::rbac::{RbacAction, RbacFilter, Subject};
use serde_json::Value;
use std::sync::Arc;

const NAMESPACE: &str = "envoy.filters.http.rbac";

/// Refused, by a policy or for want of one.
pub(super) struct Refusal(Option<Arc<str>>);

/// Whether the request is refused.
pub(super) fn refuses(
    x: &mut Exchange,
    routed: Option<Routed<'_>>,
    filter: &RbacFilter,
    counts: Option<&Counts>,
) -> Option<Refusal> {
    let filter = match routed {
        Some(routed) => routed.route.filters.rbac.over(Some(filter))?,
        None => filter,
    };
    if let Some(shadow) = &filter.shadow {
        let verdict = shadow.decide(&subject(x, routed));
        if let Some(counts) = counts {
            counts.would(verdict.allowed);
        }
        note(
            &mut x.metadata,
            NAMESPACE,
            &filter.shadow_prefix,
            "shadow_",
            verdict,
        );
    }
    let rules = filter.rules.as_ref()?;
    let verdict = rules.decide(&subject(x, routed));
    if let Some(counts) = counts {
        counts.decided(verdict.allowed);
    }
    if rules.action == RbacAction::Log {
        let matched = Value::Bool(verdict.policy.is_some());
        x.metadata.set("envoy.common", "access_log_hint", matched);
    }
    if verdict.allowed {
        return None;
    }
    note(
        &mut x.metadata,
        NAMESPACE,
        &filter.rules_prefix,
        "enforced_",
        verdict,
    );
    Some(Refusal(verdict.policy.map(|policy| policy.details.clone())))
}

fn subject<'a>(x: &'a Exchange, routed: Option<Routed<'a>>) -> Subject<'a, RequestHead> {
    let conn: &ConnInfo = &x.conn;
    Subject {
        request: Some(&x.request),
        remote: x.remote.unwrap_or_else(|| conn.peer.ip()),
        metadata: x.metadata.all(),
        has_route: routed.is_some(),
        route_metadata: routed.and_then(|routed| routed.route.metadata.as_deref()),
        ..crate::rbac::subject(conn)
    }
}

pub(super) async fn answer<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    Refusal(details): Refusal,
) {
    x.marks.get_or_insert_default().details = details;
    let outcome = Outcome::RbacDenied;
    local::refuse_as(x, down, routed, outcome, outcome.row().status).await;
}
