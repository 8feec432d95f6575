//! The network filters of a chain that may refuse a connection (`envoy.filters.network.rbac`,
//! `envoy.filters.network.ext_authz`).
//!
//! Envoy decides when the client's first byte comes. Nothing that its rules see changes between the
//! connection's begin (the end of its handshake) and then, so here a connection that is refused is
//! closed before anything is opened or sent for it.
//!
//! Invariant: a connection goes on only after every guard has let it pass.

use super::ConnInfo;
use crate::http::filters::ext_authz::connection::{self, Answer};
use crate::http::metadata::DynamicMetadata;
use crate::outcome::Outcome;
use crate::rbac::{self, Counts};
use crate::stats::{AuthzStat, Page, RbacOwner, Scope};
use crate::worker::state::Worker;
use lateen_proxy_config as config;
use lateen_proxy_config::NetworkAuthz;
use lateen_proxy_config::rbac::RbacFilter;
use std::rc::Rc;
use std::sync::Arc;

/// The guards of one filter chain.
pub(super) struct Guards {
    guards: Vec<Guard>,
    /// Whether there is a server to ask, which takes time.
    pub asks: bool,
}

struct Guard {
    config: Arc<config::Guard>,
    counts: Counted,
}

/// What a guard's decisions are counted on.
enum Counted {
    Rbac(Counts),
    Authz(Arc<Page>),
}

/// Why a connection is refused.
pub(super) struct Refusal {
    pub outcome: Outcome,
    pub details: Arc<str>,
}

impl Guards {
    pub fn new(worker: &Rc<Worker>, guards: &[Arc<config::Guard>]) -> Guards {
        let counted = guards.iter().map(|guard| Guard {
            config: guard.clone(),
            counts: match &**guard {
                config::Guard::Rbac(rbac) => {
                    let owner = RbacOwner::Network(rbac.stat_prefix.clone());
                    Counted::Rbac(Counts::new(worker, owner, &rbac.filter))
                }
                config::Guard::ExtAuthz(authz) => {
                    Counted::Authz(worker.page(Scope::Authz(authz.stat_prefix.clone())))
                }
            },
        });
        let asks = |guard: &Arc<config::Guard>| matches!(**guard, config::Guard::ExtAuthz(_));
        Guards {
            guards: counted.collect(),
            asks: guards.iter().any(asks),
        }
    }

    /// What can be said at once; guards that ask are taken to refuse.
    pub fn refuse(&self, conn: &ConnInfo) -> Option<Refusal> {
        let mut notes = DynamicMetadata::default();
        self.guards
            .iter()
            .find_map(|guard| match (&*guard.config, &guard.counts) {
                (config::Guard::Rbac(rbac), Counted::Rbac(counts)) => {
                    by_rules(&rbac.filter, counts, conn, &mut notes)
                }
                _ => Some(unanswered(Outcome::ExtAuthzError)),
            })
    }

    /// The same, and whoever has to be asked is.
    pub async fn ask(&self, worker: &Rc<Worker>, conn: &Rc<ConnInfo>) -> Option<Refusal> {
        let mut notes = DynamicMetadata::default();
        for guard in &self.guards {
            let refusal = match (&*guard.config, &guard.counts) {
                (config::Guard::Rbac(rbac), Counted::Rbac(counts)) => {
                    by_rules(&rbac.filter, counts, conn, &mut notes)
                }
                (config::Guard::ExtAuthz(authz), Counted::Authz(stats)) => {
                    by_server(worker, conn, authz, stats, &mut notes).await
                }
                _ => Some(unanswered(Outcome::ExtAuthzError)),
            };
            if refusal.is_some() {
                return refusal;
            }
        }
        None
    }
}

fn by_rules(
    filter: &RbacFilter,
    counts: &Counts,
    conn: &ConnInfo,
    notes: &mut DynamicMetadata,
) -> Option<Refusal> {
    rbac::refuse(filter, counts, conn, notes).map(|details| Refusal {
        outcome: Outcome::RbacDenied,
        details,
    })
}

/// Asks a server, if it is to be asked about this connection.
async fn by_server(
    worker: &Rc<Worker>,
    conn: &Rc<ConnInfo>,
    authz: &NetworkAuthz,
    stats: &Arc<Page>,
    notes: &mut DynamicMetadata,
) -> Option<Refusal> {
    let meant = authz.enabled_metadata.as_ref();
    if meant.is_some_and(|matcher| !matcher.matches(notes.all())) {
        stats.inc(AuthzStat::Disabled);
        return None;
    }
    stats.inc(AuthzStat::Total);
    stats.inc(AuthzStat::Active);
    let answer = connection::check(worker, conn, authz, notes).await;
    stats.dec(AuthzStat::Active);
    let outcome = match answer {
        Answer::Allowed => {
            stats.inc(AuthzStat::Ok);
            return None;
        }
        Answer::Denied => {
            stats.inc(AuthzStat::Denied);
            Outcome::ExtAuthzDenied
        }
        Answer::Failed => {
            stats.inc(AuthzStat::Error);
            if authz.failure_mode_allow {
                stats.inc(AuthzStat::FailureModeAllowed);
                return None;
            }
            Outcome::ExtAuthzError
        }
    };
    stats.inc(AuthzStat::CxClosed);
    Some(unanswered(outcome))
}

fn unanswered(outcome: Outcome) -> Refusal {
    Refusal {
        outcome,
        details: outcome.row().details.into(),
    }
}
