//! What one client watches of one type, what it holds, and which responses it still owes an
//! answer. Knows neither how a response is put on the wire nor when one is due.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use envoy_types::pb::google::rpc;

use crate::{Nack, Names, Resource, ResourceState, ResourceStatus, Stamp, TypeStatus, nack};

#[derive(Default)]
pub(super) struct Watch {
    pub(super) wildcard: bool,
    /// State of the world only: an empty list stands for "everything" until the client has once
    /// sent a name.
    pub(super) ever_named: bool,
    /// Where something was sent, the name is the memory of the resource itself.
    pub(super) names: BTreeSet<Arc<str>>,
    pub(super) held: BTreeMap<Arc<str>, Held>,
    /// Unanswered, oldest first.
    pub(super) outstanding: VecDeque<Sent>,
    /// Held by the client, gone from the snapshot, not yet told.
    pub(super) pending_removals: BTreeSet<String>,
    /// Resources of a refused response that may be good: to be sent again, group by group, one
    /// group at a time. Groups only get smaller, so this ends.
    pub(super) retry: VecDeque<BTreeSet<String>>,
    /// Changes not sent because too many responses have no answer.
    pub(super) held_back: Option<Names>,
    pub(super) sent: Option<Stamp>,
    acked: Option<Stamp>,
    nack: Option<Nack>,
}

/// One resource at the client. There is one for each name and client, so it is kept small.
pub(super) struct Held {
    pub(super) sent: Arc<str>,
    acked: Option<Arc<str>>,
    rejected: Option<Box<str>>,
    /// Kept only where a later response must repeat it (state of the world, clusters).
    pub(super) resource: Option<Arc<Resource>>,
}

/// One response on its way.
pub(super) struct Sent {
    pub(super) stamp: Stamp,
    pub(super) at: Instant,
    /// Name, version, and whether it differed from what the client had.
    pub(super) resources: Vec<(Arc<str>, Arc<str>, bool)>,
}

/// What an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    None,
    Ack,
    Nack,
    /// The nonce is of no response that waits for an answer.
    Expired,
}

impl Watch {
    /// Whether the client is to know of this name.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// On reconnect the client says what it has.
    pub(super) fn adopt(&mut self, versions: impl IntoIterator<Item = (String, String)>) {
        self.held
            .extend(versions.into_iter().map(|(name, version)| {
                let version: Arc<str> = version.into();
                let acked = Some(version.clone());
                (
                    name.into(),
                    Held {
                        sent: version,
                        acked,
                        rejected: None,
                        resource: None,
                    },
                )
            }));
    }

    /// Forgets what is no longer watched.
    pub(super) fn prune(&mut self) {
        if !self.wildcard {
            let names = &self.names;
            self.held.retain(|name, _| names.contains(name));
            self.pending_removals
                .retain(|name| names.contains(name.as_str()));
        }
        self.clear_nack();
    }

    pub(super) fn holds(&self, resource: &Resource) -> bool {
        self.held
            .get(&resource.name)
            .is_some_and(|held| held.sent == resource.version)
    }

    fn is_refused(&self, name: &str) -> bool {
        self.held
            .get(name)
            .is_some_and(|held| held.rejected.is_some())
    }

    /// Notes a response that leaves now. `keep`: keep the resources for later repetition.
    pub(super) fn record(
        &mut self,
        stamp: Stamp,
        at: Instant,
        resources: &[Arc<Resource>],
        removed: &[String],
        keep: bool,
    ) {
        let mut listed = Vec::with_capacity(resources.len());
        for resource in resources {
            let changed = !self.holds(resource) || self.is_refused(&resource.name);
            listed.push((resource.name.clone(), resource.version.clone(), changed));
            let kept = keep.then(|| resource.clone());
            match self.held.get_mut(&resource.name) {
                Some(held) => {
                    held.sent = resource.version.clone();
                    held.rejected = None;
                    held.resource = kept;
                }
                None => {
                    if self.names.contains(&resource.name) {
                        self.names.replace(resource.name.clone());
                    }
                    let sent = resource.version.clone();
                    let held = Held {
                        sent,
                        acked: None,
                        rejected: None,
                        resource: kept,
                    };
                    self.held.insert(resource.name.clone(), held);
                }
            }
        }
        for name in removed {
            self.held.remove(name.as_str());
            self.pending_removals.remove(name);
        }
        self.sent = Some(stamp.clone());
        self.outstanding.push_back(Sent {
            stamp,
            at,
            resources: listed,
        });
    }

    /// Takes the client's answer to a response.
    pub(super) fn answer(&mut self, nonce: &str, error: Option<&rpc::Status>) -> Answer {
        let Some(index) = self
            .outstanding
            .iter()
            .position(|sent| sent.stamp.nonce == nonce)
        else {
            return Answer::Expired;
        };
        // Answers come in order: what is older than this one will never be answered.
        let Some(sent) = self.outstanding.drain(..=index).next_back() else {
            return Answer::Expired;
        };
        let stamp = Stamp {
            at: SystemTime::now(),
            ..sent.stamp.clone()
        };
        match error {
            None => {
                for (name, version, _) in &sent.resources {
                    self.accept(name, version);
                }
                self.acked = Some(stamp);
                self.clear_nack();
                Answer::Ack
            }
            Some(error) => {
                self.reject(&sent, error);
                self.nack = Some(Nack {
                    version: stamp.version,
                    nonce: stamp.nonce,
                    code: error.code,
                    message: nack::text(error),
                    at: stamp.at,
                });
                Answer::Nack
            }
        }
    }

    fn accept(&mut self, name: &str, version: &Arc<str>) {
        if let Some(held) = self.held.get_mut(name) {
            held.acked = Some(version.clone());
            if held.sent == *version {
                held.rejected = None;
            }
        }
    }

    /// The resources that the rejection names are refused and the others apply ("per-resource NACK
    /// semantics", envoy#32880, gRFC A46). Not every client keeps to that: Envoy refuses a whole
    /// response, and names nothing, when one resource in it cannot be decoded, and it stops at the
    /// first bad one of types that are asked for by name. So what was not named is tried again:
    /// without those that were, or in halves, until the bad one is alone.
    fn reject(&mut self, sent: &Sent, error: &rpc::Status) {
        let names = sent.resources.iter().map(|(name, ..)| &**name);
        let (reasons, exact) = nack::read(error, names);
        let mut unsure = BTreeSet::new();
        for (name, version, changed) in &sent.resources {
            if let Some(reason) = reasons.get(&**name) {
                self.refuse(name, version, reason);
            } else if exact || !changed || (!reasons.is_empty() && self.wildcard) {
                self.accept(name, version);
            } else {
                self.refuse(name, version, &nack::text(error));
                unsure.insert(name.to_string());
            }
        }
        if !reasons.is_empty() {
            self.retry.extend((!unsure.is_empty()).then_some(unsure));
        } else if unsure.len() > 1 {
            let mut names: Vec<String> = unsure.into_iter().collect();
            let half = names.split_off(names.len() / 2);
            self.retry
                .extend([names.into_iter().collect(), half.into_iter().collect()]);
        }
    }

    fn refuse(&mut self, name: &str, version: &str, reason: &str) {
        if let Some(held) = self.held.get_mut(name)
            && *held.sent == *version
        {
            held.rejected = Some(reason.into());
        }
    }

    /// The last rejection is over when nothing that it refused is still wanted.
    fn clear_nack(&mut self) {
        let answered_since = match (&self.nack, &self.acked) {
            (Some(nack), Some(acked)) => acked.at >= nack.at,
            _ => false,
        };
        if answered_since && self.held.values().all(|held| held.rejected.is_none()) {
            self.nack = None;
        }
    }

    pub(super) fn status(&self) -> TypeStatus {
        TypeStatus {
            wildcard: self.wildcard,
            subscribed: self.names.len(),
            sent: self.sent.clone(),
            acked: self.acked.clone(),
            nack: self.nack.clone(),
            outstanding: self.outstanding.len(),
            held_back: self.held_back.is_some(),
            resources: self
                .held
                .iter()
                .map(|(name, held)| (name.to_string(), held.status()))
                .collect(),
        }
    }
}

impl Held {
    fn status(&self) -> ResourceStatus {
        let state = match (&self.rejected, &self.acked) {
            (Some(reason), _) => ResourceState::Rejected(reason.to_string()),
            (None, Some(acked)) if *acked == self.sent => ResourceState::Acked,
            _ => ResourceState::Sent,
        };
        ResourceStatus {
            sent: self.sent.to_string(),
            acked: self.acked.as_deref().map(str::to_owned),
            state,
        }
    }
}
