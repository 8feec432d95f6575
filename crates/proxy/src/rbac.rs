//! Authorization of connections (`envoy.filters.network.rbac`), and what it shares with that of
//! requests.

use crate::http::metadata::DynamicMetadata;
use crate::listener::ConnInfo;
use crate::stats::{Page, RbacOwner, RbacShadowStat, RbacStat, Scope};
use crate::worker::state::Worker;
use lateen_proxy_config::rbac::{Identity, RbacFilter, Subject, Verdict};
use serde_json::Value;
use std::rc::Rc;
use std::sync::Arc;

/// What one filter's decisions are counted on.
pub(crate) struct Counts {
    rules: Arc<Page>,
    shadow: Arc<Page>,
}

impl Counts {
    pub(crate) fn new(worker: &Rc<Worker>, owner: RbacOwner, filter: &RbacFilter) -> Counts {
        let rules = Scope::Rbac(owner.clone(), filter.rules_prefix.clone());
        let shadow = Scope::RbacShadow(owner, filter.shadow_prefix.clone());
        Counts {
            rules: worker.page(rules),
            shadow: worker.page(shadow),
        }
    }

    pub(crate) fn decided(&self, allowed: bool) {
        self.rules.inc(match allowed {
            true => RbacStat::Allowed,
            false => RbacStat::Denied,
        });
    }

    pub(crate) fn would(&self, allowed: bool) {
        self.shadow.inc(match allowed {
            true => RbacShadowStat::Allowed,
            false => RbacShadowStat::Denied,
        });
    }
}

/// What rules see of a connection.
pub(crate) fn subject<R>(conn: &ConnInfo) -> Subject<'_, R> {
    Subject {
        request: None,
        local: conn.local,
        peer: conn.peer.ip(),
        direct_peer: conn.direct_peer().ip(),
        remote: conn.peer.ip(),
        server_name: conn.server_name(),
        identity: conn.tls().map(|tls| match tls.certificate.as_deref() {
            Some(certificate) => Identity {
                uris: &certificate.about.uris,
                dns: &certificate.about.dns,
                subject: &certificate.about.subject,
            },
            None => Identity::default(),
        }),
        metadata: None,
        has_route: false,
        route_metadata: None,
    }
}

/// What the rules of one filter say about a connection: why it is refused, if it is. What was found
/// is noted for the guards that follow.
pub(crate) fn refuse(
    filter: &RbacFilter,
    counts: &Counts,
    conn: &ConnInfo,
    notes: &mut DynamicMetadata,
) -> Option<Arc<str>> {
    use crate::http::head::RequestHead;
    const NAMESPACE: &str = "envoy.filters.network.rbac";
    if let Some(shadow) = &filter.shadow {
        let subject: Subject<'_, RequestHead> = Subject {
            metadata: notes.all(),
            ..subject(conn)
        };
        let verdict = shadow.decide(&subject);
        counts.would(verdict.allowed);
        note(notes, NAMESPACE, &filter.shadow_prefix, "shadow_", verdict);
    }
    let rules = filter.rules.as_ref()?;
    let subject: Subject<'_, RequestHead> = Subject {
        metadata: notes.all(),
        ..subject(conn)
    };
    let verdict = rules.decide(&subject);
    counts.decided(verdict.allowed);
    if verdict.allowed {
        return None;
    }
    let by = verdict.policy.map(|policy| policy.details.clone());
    Some(by.unwrap_or_else(|| crate::outcome::Outcome::RbacDenied.row().details.into()))
}

/// Leaves a verdict for filters that follow, and for logs.
pub(crate) fn note(
    notes: &mut DynamicMetadata,
    namespace: &str,
    prefix: &str,
    kind: &str,
    verdict: Verdict<'_>,
) {
    if let Some(policy) = verdict.policy {
        let name = Value::String(policy.name.to_string());
        notes.set(
            namespace,
            &format!("{prefix}{kind}effective_policy_id"),
            name,
        );
    }
    let result = if verdict.allowed { "allowed" } else { "denied" };
    let key = format!("{prefix}{kind}engine_result");
    notes.set(namespace, &key, Value::from(result));
}
