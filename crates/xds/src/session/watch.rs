//! What one client watches of one type, what it holds, and which responses it still owes an
//! answer. Knows neither how a response is put on the wire nor when one is due.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use envoy_types::pb::google::rpc;

use super::held::{Holdings, Known};
use crate::status::Detail;
use crate::{Nack, Names, Resource, Stamp, TypeStatus, nack};

#[derive(Default)]
pub(super) struct Watch {
    pub(super) wildcard: bool,
    /// State of the world only: an empty list stands for "everything" until the client has once
    /// sent a name.
    pub(super) ever_named: bool,
    /// Where something was sent, the name is the memory of the resource itself.
    pub(super) names: BTreeSet<Known>,
    pub(super) held: Holdings,
    /// Unanswered, oldest first.
    pub(super) outstanding: VecDeque<Sent>,
    /// Held by the client, gone from the snapshot, not yet told.
    pub(super) pending_removals: BTreeSet<String>,
    /// Resources of a refused response that may be good: to be sent again, group by group, one
    /// group at a time. Groups only get smaller, so this ends.
    pub(super) retry: VecDeque<BTreeSet<String>>,
    /// Removals of a refused response, which the client may not have carried out.
    pub(super) retold: Vec<String>,
    /// Changes not sent because too many responses have no answer.
    pub(super) held_back: Option<Names>,
    pub(super) sent: Option<Stamp>,
    acked: Option<Stamp>,
    nack: Option<Nack>,
}

/// One response on its way.
pub(super) struct Sent {
    pub(super) stamp: Stamp,
    pub(super) at: Instant,
    /// Each, and whether it differed from what the client had.
    resources: Vec<(Known, bool)>,
    removed: Vec<String>,
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
        for (name, version) in versions {
            self.held.adopt(&name, &version);
        }
    }

    /// Forgets what is no longer watched.
    pub(super) fn prune(&mut self) {
        if !self.wildcard {
            let names = &self.names;
            self.held.retain(|name| names.contains(name));
            self.pending_removals
                .retain(|name| names.contains(name.as_str()));
        }
        self.clear_nack();
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
            let held = self.held.has(resource) && !self.held.is_refused(resource.name());
            let known = Known::of(resource);
            if self.names.contains(&known) {
                self.names.replace(known.clone());
            }
            listed.push((known, !held));
            self.held.send(resource, keep);
        }
        for name in removed {
            self.held.remove(name);
            self.pending_removals.remove(name);
        }
        self.sent = Some(stamp.clone());
        self.outstanding.push_back(Sent {
            stamp,
            at,
            resources: listed,
            removed: removed.to_vec(),
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
                for (what, _) in &sent.resources {
                    self.held.accept(what);
                }
                self.acked = Some(stamp);
                self.clear_nack();
                Answer::Ack
            }
            Some(error) => {
                self.reject(&sent, error);
                // One that had nothing else cannot have been refused for something else.
                if !sent.resources.is_empty() {
                    self.retold.extend(sent.removed);
                }
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

    /// The resources that the rejection names are refused and the others apply ("per-resource NACK
    /// semantics", envoy#32880, gRFC A46). Not every client keeps to that: Envoy refuses a whole
    /// response, and names nothing, when one resource in it cannot be decoded, and it stops at the
    /// first bad one of types that are asked for by name. So what was not named is tried again:
    /// without those that were, or in halves, until the bad one is alone.
    fn reject(&mut self, sent: &Sent, error: &rpc::Status) {
        let names = sent.resources.iter().map(|(what, _)| what.name());
        let (reasons, exact) = nack::read(error, names);
        let mut unsure = BTreeSet::new();
        for (what, changed) in &sent.resources {
            if let Some(reason) = reasons.get(what.name()) {
                self.held.refuse(what, reason);
            } else if exact || !changed || (!reasons.is_empty() && self.wildcard) {
                self.held.accept(what);
            } else {
                self.held.refuse(what, &nack::text(error));
                unsure.insert(what.name().to_owned());
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

    /// The last rejection is over when nothing that it refused is still wanted.
    fn clear_nack(&mut self) {
        let answered_since = match (&self.nack, &self.acked) {
            (Some(nack), Some(acked)) => acked.at >= nack.at,
            _ => false,
        };
        if answered_since && !self.held.any_refused() {
            self.nack = None;
        }
    }

    pub(super) fn status(&self, detail: Detail) -> TypeStatus {
        TypeStatus {
            wildcard: self.wildcard,
            subscribed: self.names.len(),
            sent: self.sent.clone(),
            acked: self.acked.clone(),
            nack: self.nack.clone(),
            outstanding: self.outstanding.len(),
            held_back: self.held_back.is_some(),
            resources: match detail {
                Detail::Types => BTreeMap::new(),
                Detail::Resources => self.held.statuses().collect(),
            },
        }
    }
}
