//! Circuit-breaker counters, shared by all workers of the process as in Envoy.
//!
//! A worker looks a cluster's counters up once, when it first uses the cluster; a request then
//! only adds to atomics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The counters of all clusters in use, by name.
#[derive(Default)]
pub struct Limits {
    clusters: Mutex<HashMap<Arc<str>, Weak<ClusterLimits>>>,
}

/// Active things of one cluster; index 0 counts default priority, 1 high priority.
#[derive(Debug, Default)]
pub struct ClusterLimits {
    pub connections: AtomicU32,
    pub pending: [AtomicU32; 2],
    pub requests: [AtomicU32; 2],
    pub retries: [AtomicU32; 2],
}

/// A reading of [`ClusterLimits`], default priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterLoad {
    pub connections: u32,
    pub pending: u32,
    pub requests: u32,
    pub retries: u32,
}

impl Limits {
    /// The counters of one cluster.
    pub(crate) fn of(&self, cluster: &Arc<str>) -> Arc<ClusterLimits> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limits) = clusters.get(cluster).and_then(Weak::upgrade) {
            return limits;
        }
        clusters.retain(|_, limits| limits.strong_count() > 0);
        let limits = Arc::new(ClusterLimits::default());
        clusters.insert(cluster.clone(), Arc::downgrade(&limits));
        limits
    }

    pub(crate) fn load(&self, cluster: &str) -> ClusterLoad {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters
            .get(cluster)
            .and_then(Weak::upgrade)
            .map_or_else(ClusterLoad::default, |l| ClusterLoad {
                connections: l.connections.load(Relaxed),
                pending: l.pending[0].load(Relaxed),
                requests: l.requests[0].load(Relaxed),
                retries: l.retries[0].load(Relaxed),
            })
    }
}

/// Takes one unit if that keeps the counter within `max`.
pub(crate) fn take(counter: &AtomicU32, max: u32) -> bool {
    if counter.fetch_add(1, Relaxed) < max {
        return true;
    }
    counter.fetch_sub(1, Relaxed);
    false
}

/// Gives one unit back.
pub(crate) fn give(counter: &AtomicU32) {
    counter.fetch_sub(1, Relaxed);
}
