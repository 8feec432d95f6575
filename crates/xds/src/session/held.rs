//! Which resources of one type a client holds, in which version, and what it said of them.
//!
//! There is an entry for each resource and each client, a thousand services known to a hundred
//! proxies make half a million. So an entry is one pointer to what all who were sent the same
//! share, and what is not the rule (in flight, refused, kept for repetition) stands beside.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::resource::Label;
use crate::{Resource, ResourceState, ResourceStatus};

/// A label, found by its name.
#[derive(Clone)]
pub(super) struct Known(Arc<Label>);

impl Known {
    /// A name of which no resource is known.
    pub(super) fn named(name: &str) -> Self {
        Self(Arc::new(Label::new(name, "")))
    }

    pub(super) fn of(resource: &Resource) -> Self {
        Self(resource.label.clone())
    }

    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn version(&self) -> &str {
        &self.0.version
    }
}

impl Borrow<str> for Known {
    fn borrow(&self) -> &str {
        self.name()
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.name() == other.name()
    }
}

impl Eq for Known {}

impl PartialOrd for Known {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Known {
    fn cmp(&self, other: &Self) -> Ordering {
        match Arc::ptr_eq(&self.0, &other.0) {
            true => Ordering::Equal,
            false => self.name().cmp(other.name()),
        }
    }
}

#[derive(Default)]
pub(super) struct Holdings {
    /// What was sent last of each.
    sent: BTreeSet<Known>,
    /// Of those that were not accepted as they were sent last.
    unsettled: BTreeMap<Known, Unsettled>,
    /// Of those that a later response must repeat (state of the world, clusters).
    kept: BTreeMap<Known, Arc<Resource>>,
}

#[derive(Default)]
struct Unsettled {
    acked: Option<Known>,
    rejected: Option<Box<str>>,
}

impl Holdings {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.sent.contains(name)
    }

    /// Names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.sent.iter().map(Known::name)
    }

    /// Names that begin so, in order.
    pub(super) fn names_from(&self, prefix: &str) -> Vec<&str> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let names = self.sent.range::<str, _>(from).map(Known::name);
        names.take_while(|name| name.starts_with(prefix)).collect()
    }

    /// Whether this version of the resource was sent last.
    pub(super) fn has(&self, resource: &Resource) -> bool {
        let sent = self.sent.get(resource.name());
        sent.is_some_and(|sent| sent.version() == resource.version())
    }

    /// Whether the client has taken any version of it.
    pub(super) fn has_accepted(&self, name: &str) -> bool {
        match self.unsettled.get(name) {
            Some(unsettled) => unsettled.acked.is_some(),
            None => self.contains(name),
        }
    }

    pub(super) fn is_refused(&self, name: &str) -> bool {
        let unsettled = self.unsettled.get(name);
        unsettled.is_some_and(|unsettled| unsettled.rejected.is_some())
    }

    pub(super) fn any_refused(&self) -> bool {
        self.unsettled.values().any(|one| one.rejected.is_some())
    }

    /// What a later response must repeat.
    pub(super) fn kept(&self, name: &str) -> Option<&Arc<Resource>> {
        self.kept.get(name)
    }

    /// The client says that it has this.
    pub(super) fn adopt(&mut self, name: &str, version: &str) {
        let known = Known(Arc::new(Label::new(name, version)));
        self.sent.replace(known);
    }

    /// A resource leaves now. `keep`: it may have to be repeated.
    pub(super) fn send(&mut self, resource: &Arc<Resource>, keep: bool) {
        let known = Known::of(resource);
        let acked = match self.unsettled.remove(&known) {
            Some(unsettled) => unsettled.acked,
            None => self.sent.get(&known).cloned(),
        };
        if acked.as_ref().map(Known::version) != Some(known.version()) {
            let rejected = None;
            let unsettled = Unsettled { acked, rejected };
            self.unsettled.insert(known.clone(), unsettled);
        }
        if keep {
            self.kept.insert(known.clone(), resource.clone());
        }
        self.sent.replace(known);
    }

    pub(super) fn accept(&mut self, what: &Known) {
        let Some(sent) = self.sent.get(what) else {
            return;
        };
        if sent.version() == what.version() {
            self.unsettled.remove(what);
            return;
        }
        let unsettled = self.unsettled.entry(sent.clone()).or_default();
        unsettled.acked = Some(what.clone());
    }

    /// Counts only of what was sent last.
    pub(super) fn refuse(&mut self, what: &Known, reason: &str) {
        let Some(sent) = self.sent.get(what) else {
            return;
        };
        if sent.version() != what.version() {
            return;
        }
        let acked = match self.unsettled.remove(what) {
            Some(unsettled) => unsettled.acked,
            None => Some(sent.clone()),
        };
        let rejected = Some(reason.into());
        let unsettled = Unsettled { acked, rejected };
        self.unsettled.insert(what.clone(), unsettled);
    }

    /// Whether it was held.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.unsettled.remove(name);
        self.kept.remove(name);
        self.sent.remove(name)
    }

    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.sent.retain(|known| wanted(known.name()));
        self.unsettled.retain(|known, _| wanted(known.name()));
        self.kept.retain(|known, _| wanted(known.name()));
    }

    /// Each with its state, by name.
    pub(super) fn statuses(&self) -> impl Iterator<Item = (String, ResourceStatus)> {
        let status = |known: &Known| (known.name().to_owned(), self.status(known));
        self.sent.iter().map(status)
    }

    fn status(&self, sent: &Known) -> ResourceStatus {
        let unsettled = self.unsettled.get(sent);
        let acked = match unsettled {
            Some(unsettled) => unsettled.acked.as_ref(),
            None => Some(sent),
        };
        let rejected = unsettled.and_then(|one| one.rejected.as_ref());
        let state = match (rejected, acked) {
            (Some(reason), _) => ResourceState::Rejected(reason.to_string()),
            (None, Some(acked)) if acked.version() == sent.version() => ResourceState::Acked,
            _ => ResourceState::Sent,
        };
        ResourceStatus {
            sent: sent.version().to_owned(),
            acked: acked.map(|acked| acked.version().to_owned()),
            state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_url;

    fn resource(name: &str, content: &str) -> Arc<Resource> {
        let bytes = content.as_bytes().to_vec();
        Arc::new(Resource::from_bytes(name, type_url::CLUSTER, bytes))
    }

    #[test]
    fn what_was_accepted_before_counts_until_the_next_is_answered() {
        let mut held = Holdings::default();
        let (old, new) = (resource("a", "1"), resource("a", "2"));
        held.send(&old, false);
        assert!(held.has(&old) && !held.has_accepted("a"));
        held.accept(&Known::of(&old));
        assert!(held.has_accepted("a"));
        held.send(&new, false);
        let acked = |held: &Holdings| held.statuses().next().map(|(_, status)| status.acked);
        assert_eq!(acked(&held), Some(Some(old.version().to_owned())));
        held.refuse(&Known::of(&new), "no");
        assert!(held.is_refused("a") && held.any_refused());
        assert_eq!(acked(&held), Some(Some(old.version().to_owned())));
        // A late word about another version than the last changes nothing of the refusal.
        held.refuse(&Known::of(&old), "not that");
        held.accept(&Known::of(&old));
        assert!(held.is_refused("a"));
        held.accept(&Known::of(&new));
        assert!(!held.any_refused() && held.unsettled.is_empty());
    }

    #[test]
    fn names_are_found_by_how_they_begin_and_go_with_all_that_is_known_of_them() {
        let mut held = Holdings::default();
        for name in ["t/a", "t/b", "u/a"] {
            held.send(&resource(name, "1"), true);
        }
        assert_eq!(held.names_from("t/"), ["t/a", "t/b"]);
        assert!(held.remove("t/a") && !held.remove("t/a"));
        held.retain(|name| name != "u/a");
        assert_eq!(held.names().collect::<Vec<_>>(), ["t/b"]);
        assert_eq!((held.unsettled.len(), held.kept.len()), (1, 1));
    }
}
