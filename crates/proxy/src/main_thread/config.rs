//! The proxy's configuration as it stands: every resource with its generations, version, error,
//! and what it waits for. A plain value; what must happen outside goes through [`Outside`].
//!
//! Invariants ("nothing half-applied"):
//! - A cluster reaches the workers together with its endpoints, or after it waited for them in
//!   vain for [`INIT_FETCH_TIMEOUT`].
//! - A cluster or listener that names secrets waits for them in the same way; without them its
//!   connections fail until they come.
//! - A route table replaces its predecessor when every new cluster that it names is there, and its
//!   virtual hosts are where they come by themselves.
//! - A listener accepts when its route tables and clusters are there; at start, when all clusters
//!   of the first update are.
//! - A resource that is rejected leaves the last good one serving.
//! - A listener whose address was taken begins to serve when it is free, without being sent again.

mod apply;
mod hosts;
mod rebind;
mod refers;
mod secrets;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lateen_proxy_config::{
    Cluster, EndpointSet, Listener, Notice, Secret, SecretRef, route::RouteTable,
};
use lateen_xds::client::Raw;

use crate::worker::WorkerUpdate;

/// How long a resource waits for another before it goes on without it: Envoy's default
/// `config_source.initial_fetch_timeout`.
pub const INIT_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// All resources. Fields are read by admin; only the methods in this module change them.
#[derive(Debug)]
pub struct Config {
    pub clusters: BTreeMap<Arc<str>, Entry<Cluster>>,
    /// By EDS service name.
    pub endpoints: BTreeMap<Arc<str>, Entry<EndpointSet>>,
    pub listeners: BTreeMap<Arc<str>, Entry<Listener>>,
    /// Discovered tables only; inline ones are part of their listener.
    pub routes: BTreeMap<Arc<str>, Entry<RouteTable>>,
    /// Of tables whose virtual hosts come by themselves, what they are put together from.
    hosts: BTreeMap<Arc<str>, hosts::Discovered>,
    /// Discovered secrets.
    pub secrets: BTreeMap<SecretRef, Entry<Secret>>,
    /// What the workers have of each cluster: from EDS, inline, or DNS.
    pub cluster_endpoints: BTreeMap<Arc<str>, Arc<EndpointSet>>,
    /// `system_version_info` of the last update, by type URL.
    pub versions: BTreeMap<String, String>,
    /// Static clusters that may be asked for secrets.
    secret_sources: BTreeSet<Arc<str>>,
    wait: Wait,
}

/// One resource under its name.
#[derive(Debug)]
pub struct Entry<T> {
    pub origin: Origin,
    /// What serves now.
    pub active: Option<Generation<T>>,
    /// What will, once what it needs is there.
    pub warming: Option<Generation<T>>,
    /// The last update was refused; cleared by the next good one.
    pub error: Option<UpdateFailure>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self {
            origin: Origin::Ads,
            active: None,
            warming: None,
            error: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the bootstrap file; discovery neither changes nor removes it.
    Static,
    Ads,
}

/// One accepted version of a resource.
#[derive(Clone, Debug)]
pub struct Generation<T> {
    pub version_info: String,
    /// As received, for `config_dump`.
    pub any: Arc<Raw>,
    pub last_updated: SystemTime,
    pub value: Arc<T>,
    /// Fields that were accepted without effect.
    pub notices: Vec<Notice>,
    since: Instant,
    refers: Arc<refers::Refers>,
}

/// Envoy's `UpdateFailureState`.
#[derive(Clone, Debug)]
pub struct UpdateFailure {
    pub failed: Arc<Raw>,
    pub last_attempt: SystemTime,
    pub details: String,
    pub version_info: String,
}

/// What the configuration causes elsewhere.
pub(super) trait Outside {
    /// Tells the workers. Only a listener can fail.
    fn worker(&mut self, update: WorkerUpdate) -> Result<(), String>;
    fn subscribe(&mut self, type_url: &'static str, name: &str);
    fn unsubscribe(&mut self, type_url: &'static str, name: &str);
    /// Everything of a type that concerns this proxy.
    fn subscribe_all(&mut self, type_url: &'static str);
    /// All under names that begin so was dropped, and would be needed again.
    fn forget(&mut self, type_url: &'static str, prefix: &str);
    /// Begin (or begin anew) to resolve the names of a DNS cluster.
    fn resolve(&mut self, cluster: &Arc<Cluster>);
    fn stop_resolving(&mut self, cluster: &str);
    /// Begin to ask for a secret, wherever it comes from.
    fn follow(&mut self, secret: &SecretRef);
    fn unfollow(&mut self, secret: &SecretRef);
    /// A listener's version was bound, failed to, or was overtaken by a later one.
    fn listener_decided(&mut self, name: &str, version: &str, outcome: Result<(), String>);
}

/// Book-keeping that nobody else reads.
#[derive(Debug, Default)]
struct Wait {
    /// Discovery is used at all.
    discovery: bool,
    first_clusters: bool,
    first_listeners: bool,
    /// Clusters of the first update have warmed; from here on listeners need not wait for all.
    clusters_initialized: bool,
    live: bool,
    /// EDS service name -> clusters that use it.
    eds_users: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The reverse: cluster -> EDS service names.
    eds_of: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The control plane says that these do not exist.
    eds_missing: BTreeSet<Arc<str>>,
    rds_missing: BTreeSet<Arc<str>>,
    /// Secrets asked for, and those of them that do not exist.
    sds_names: BTreeSet<SecretRef>,
    sds_missing: BTreeSet<SecretRef>,
    /// Those that the connection to the control plane needs.
    sds_own: BTreeSet<SecretRef>,
    /// Route tables asked for.
    rds_names: BTreeSet<Arc<str>>,
    /// First resolution of these DNS clusters is over, with or without result.
    resolved: BTreeSet<Arc<str>>,
    warming_clusters: BTreeSet<Arc<str>>,
    warming_routes: BTreeSet<Arc<str>>,
    warming_listeners: BTreeSet<Arc<str>>,
    /// Listeners that were refused because their address is taken.
    unbound: BTreeMap<Arc<str>, rebind::Unbound>,
    /// Gone from discovery, but named by tables that are about to be replaced.
    leaving_clusters: BTreeSet<Arc<str>>,
}

impl Config {
    pub(super) fn new(discovery: bool, secret_sources: BTreeSet<Arc<str>>) -> Self {
        Self {
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            hosts: BTreeMap::new(),
            secrets: BTreeMap::new(),
            cluster_endpoints: BTreeMap::new(),
            versions: BTreeMap::new(),
            secret_sources,
            wait: Wait {
                discovery,
                ..Wait::default()
            },
        }
    }

    /// The first clusters and listeners have arrived and are up.
    pub fn is_live(&self) -> bool {
        self.wait.live
    }

    /// Clusters the control plane has not delivered endpoints for, tables without routes, and so
    /// on: what a person looks for when the proxy does not become ready.
    pub fn waits_for(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.wait.discovery && !self.wait.first_clusters {
            reasons.push("clusters from the control plane".to_owned());
        }
        if self.wait.discovery && !self.wait.first_listeners {
            reasons.push("listeners from the control plane".to_owned());
        }
        reasons.extend(
            self.wait
                .warming_clusters
                .iter()
                .map(|n| format!("endpoints or secrets of cluster {n}")),
        );
        reasons.extend(
            self.wait
                .warming_listeners
                .iter()
                .map(|n| format!("listener {n} to warm")),
        );
        reasons
    }

    /// Every field that was accepted without effect, with the resource it stands in.
    pub fn notices(&self) -> Vec<(Arc<str>, Notice)> {
        fn of<T>(entries: &BTreeMap<Arc<str>, Entry<T>>, all: &mut Vec<(Arc<str>, Notice)>) {
            for (name, entry) in entries {
                let generation = entry.active.as_ref().or(entry.warming.as_ref());
                let notices = generation.into_iter().flat_map(|g| &g.notices);
                all.extend(notices.map(|notice| (name.clone(), notice.clone())));
            }
        }
        let mut all = Vec::new();
        of(&self.clusters, &mut all);
        of(&self.endpoints, &mut all);
        of(&self.listeners, &mut all);
        of(&self.routes, &mut all);
        all
    }

    /// When something that waits will have waited long enough, or is to be tried again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let clusters = self
            .wait
            .warming_clusters
            .iter()
            .filter_map(|n| since(&self.clusters, n));
        let routes = self
            .wait
            .warming_routes
            .iter()
            .filter_map(|n| since(&self.routes, n));
        let listeners = self
            .wait
            .warming_listeners
            .iter()
            .filter_map(|n| since(&self.listeners, n));
        clusters
            .chain(routes)
            .chain(listeners)
            .map(|since| since + INIT_FETCH_TIMEOUT)
            .chain(self.wait.unbound.values().map(|unbound| unbound.next))
            .min()
    }
}

fn since<T>(entries: &BTreeMap<Arc<str>, Entry<T>>, name: &str) -> Option<Instant> {
    Some(entries.get(name)?.warming.as_ref()?.since)
}

#[cfg(test)]
mod tests;
