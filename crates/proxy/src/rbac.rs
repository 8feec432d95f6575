//! Authorization of connections (`envoy.filters.network.rbac`), and what it shares with that of
//! requests.
//!
//! Envoy decides when the first byte comes. Nothing that its rules see changes between the
//! connection's begin (the end of its handshake) and then, so here a connection that is refused is
//! closed before anything is opened or sent for it.

use crate::listener::ConnInfo;
use crate::stats::{Page, RbacOwner, RbacShadowStat, RbacStat, Scope};
use crate::worker::state::Worker;
use lateen_proxy_config::rbac::{Identity, NetworkRbac, RbacFilter, Subject};
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

/// The guards of one filter chain.
#[derive(Default)]
pub(crate) struct Guards(Vec<(Arc<NetworkRbac>, Counts)>);

impl Guards {
    pub(crate) fn new(worker: &Rc<Worker>, guards: &[Arc<NetworkRbac>]) -> Guards {
        let counted = guards.iter().map(|guard| {
            let owner = RbacOwner::Network(guard.stat_prefix.clone());
            (guard.clone(), Counts::new(worker, owner, &guard.filter))
        });
        Guards(counted.collect())
    }

    /// Why the connection is refused, if it is.
    pub(crate) fn refuse(&self, conn: &ConnInfo) -> Option<Arc<str>> {
        self.0
            .iter()
            .find_map(|(guard, counts)| refuse(&guard.filter, counts, conn))
    }
}

fn refuse(filter: &RbacFilter, counts: &Counts, conn: &ConnInfo) -> Option<Arc<str>> {
    use crate::http::head::RequestHead;
    let subject: Subject<'_, RequestHead> = subject(conn);
    if let Some(shadow) = &filter.shadow {
        counts.would(shadow.decide(&subject).allowed);
    }
    let verdict = filter.rules.as_ref()?.decide(&subject);
    counts.decided(verdict.allowed);
    if verdict.allowed {
        return None;
    }
    let by = verdict.policy.map(|policy| policy.details.clone());
    Some(by.unwrap_or_else(|| crate::outcome::Outcome::RbacDenied.row().details.into()))
}
