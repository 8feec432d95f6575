//! What the control plane hands to the server when something changed: a snapshot and a bound on
//! what may differ from the one before. Not the difference itself; that is found per proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// More changed names of one type than this are treated as "all of the type": looking at each
/// costs more than generating the type, and a connection that lags must not collect names for ever.
const MOST_NAMES: usize = 4096;

/// One push: from now on `snapshot` is the truth.
#[derive(Debug)]
pub struct Push<S> {
    /// Shown to people (`version_info`, proxy-status); for instance the store revision.
    pub version: String,
    pub snapshot: Arc<S>,
    /// What may have changed since the previous push. Too much costs work, too little is a bug. All
    /// streams share it, except those that lag.
    pub changed: Arc<Changed>,
    /// When the change that caused this push arrived; start of `pilot_proxy_convergence_time`.
    pub since: Instant,
}

impl<S> Push<S> {
    pub fn new(version: impl Into<String>, snapshot: Arc<S>, changed: Changed) -> Self {
        Self {
            version: version.into(),
            snapshot,
            changed: Arc::new(changed),
            since: Instant::now(),
        }
    }
}

impl<S> Clone for Push<S> {
    fn clone(&self) -> Self {
        Self {
            version: self.version.clone(),
            snapshot: self.snapshot.clone(),
            changed: self.changed.clone(),
            since: self.since,
        }
    }
}

/// What may have changed. Types that are not mentioned did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    All,
    /// By type URL.
    Types(BTreeMap<String, Names>),
}

/// Which resources of a type may have changed, come or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    All,
    Some(BTreeSet<String>),
}

impl Changed {
    pub fn none() -> Self {
        Self::Types(BTreeMap::new())
    }

    /// One type, the given names.
    pub fn names<N: Into<String>>(type_url: &str, names: impl IntoIterator<Item = N>) -> Self {
        let mut changed = Self::none();
        changed.add(
            type_url,
            Names::Some(names.into_iter().map(Into::into).collect()),
        );
        changed
    }

    /// Adds names of a type.
    pub fn add(&mut self, type_url: &str, names: Names) {
        let Self::Types(types) = self else { return };
        match types.get_mut(type_url) {
            Some(present) => present.merge(names),
            None => {
                types.insert(type_url.to_owned(), names.bounded());
            }
        }
    }

    /// Joins a later change into this one: a connection that lags sends both at once.
    pub fn merge(&mut self, later: Self) {
        match later {
            Self::All => *self = Self::All,
            Self::Types(types) => {
                for (type_url, names) in types {
                    self.add(&type_url, names);
                }
            }
        }
    }

    /// `None`: nothing of this type changed.
    pub fn of(&self, type_url: &str) -> Option<&Names> {
        match self {
            Self::All => Some(&Names::All),
            Self::Types(types) => types.get(type_url),
        }
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::Types(types) if types.is_empty())
    }
}

impl Names {
    pub fn merge(&mut self, later: Self) {
        match (&mut *self, later) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Some(present), Self::Some(more)) => {
                present.extend(more);
                *self = Self::Some(std::mem::take(present)).bounded();
            }
        }
    }

    fn bounded(self) -> Self {
        match self {
            Self::Some(names) if names.len() > MOST_NAMES => Self::All,
            names => names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_url::{CLUSTER, ENDPOINT};

    #[test]
    fn merging_keeps_every_name_of_every_type() {
        let mut changed = Changed::names(ENDPOINT, ["a"]);
        changed.merge(Changed::names(ENDPOINT, ["b"]));
        changed.merge(Changed::names(CLUSTER, ["c"]));
        assert_eq!(
            changed.of(ENDPOINT),
            Some(&Names::Some(["a".into(), "b".into()].into()))
        );
        assert_eq!(changed.of(CLUSTER), Some(&Names::Some(["c".into()].into())));
        changed.merge(Changed::All);
        assert_eq!(changed, Changed::All);
    }

    #[test]
    fn too_many_names_become_all() {
        let mut changed = Changed::names(ENDPOINT, (0..MOST_NAMES).map(|i| i.to_string()));
        assert!(matches!(changed.of(ENDPOINT), Some(Names::Some(_))));
        changed.merge(Changed::names(ENDPOINT, ["one more"]));
        assert_eq!(changed.of(ENDPOINT), Some(&Names::All));
        let at_once = Changed::names(ENDPOINT, (0..=MOST_NAMES).map(|i| i.to_string()));
        assert_eq!(at_once.of(ENDPOINT), Some(&Names::All));
    }
}
