//! Moves what has all it needs from warming to active: clusters, then routes, then listeners,
//! and only then lets go of clusters that are gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use lateen_proxy_config::{Cluster, ClusterKind, EndpointSet};

use super::apply::eds_name;
use super::rebind::Unbound;
use super::refers::Refers;
use super::{Config, Generation, INIT_FETCH_TIMEOUT, Outside};
use crate::worker::WorkerUpdate;

impl Config {
    /// To be called after every change and when [`Config::next_deadline`] has come.
    pub(in crate::main_thread) fn settle(&mut self, now: Instant, out: &mut dyn Outside) {
        self.settle_clusters(now, out);
        let wait = &mut self.wait;
        wait.clusters_initialized |=
            (wait.first_clusters || !wait.discovery) && wait.warming_clusters.is_empty();
        self.settle_routes(now, out);
        self.settle_listeners(now, out);
        self.rebind(now, out);
        self.settle_leaving(out);
        let wait = &mut self.wait;
        wait.live |= wait.clusters_initialized
            && (wait.first_listeners || !wait.discovery)
            && wait.warming_listeners.is_empty();
    }

    fn settle_clusters(&mut self, now: Instant, out: &mut dyn Outside) {
        let ready: Vec<Arc<str>> = self
            .wait
            .warming_clusters
            .iter()
            .filter(|name| {
                let warming = self
                    .clusters
                    .get(*name)
                    .and_then(|entry| entry.warming.as_ref());
                warming.is_none_or(|warming| {
                    waited(warming, now)
                        || (self.has_endpoints(&warming.value) && self.secrets_up(&warming.refers))
                })
            })
            .cloned()
            .collect();
        for name in ready {
            self.wait.warming_clusters.remove(&name);
            self.promote_cluster(&name, out);
        }
    }

    /// The warming generation goes to the workers, with the endpoints that are known for it.
    fn promote_cluster(&mut self, name: &Arc<str>, out: &mut dyn Outside) {
        let Some(entry) = self.clusters.get_mut(name) else {
            return;
        };
        let Some(warming) = entry.warming.take() else {
            return;
        };
        let cluster = warming.value.clone();
        entry.active = Some(warming);
        // Clusters cannot fail.
        let _ = out.worker(WorkerUpdate::Cluster(cluster.clone()));
        let dns = matches!(
            cluster.kind,
            ClusterKind::StrictDns { .. } | ClusterKind::LogicalDns { .. }
        );
        if !dns {
            out.stop_resolving(name);
        }
        let endpoints = match &cluster.kind {
            ClusterKind::Eds { service_name } => {
                let set = self.endpoints.get(service_name);
                let set = set.and_then(|entry| entry.active.as_ref());
                let missing = self.wait.eds_missing.contains(service_name);
                let none = || EndpointSet {
                    cluster: name.clone(),
                    ..EndpointSet::default()
                };
                set.map(|active| active.value.clone())
                    .or_else(|| missing.then(|| Arc::new(none())))
            }
            ClusterKind::Static(set) => {
                // The workers have them with the cluster itself.
                self.cluster_endpoints.insert(name.clone(), set.clone());
                None
            }
            ClusterKind::StrictDns { .. } | ClusterKind::LogicalDns { .. } => {
                self.cluster_endpoints.get(name).cloned()
            }
            ClusterKind::OriginalDst { .. } | ClusterKind::ByRequest { .. } => None,
        };
        if let Some(endpoints) = endpoints {
            self.give_endpoints(name, endpoints, out);
        }
        self.refresh_eds_users(name, out);
    }

    fn has_endpoints(&self, cluster: &Cluster) -> bool {
        match &cluster.kind {
            ClusterKind::Static(_)
            | ClusterKind::OriginalDst { .. }
            | ClusterKind::ByRequest { .. } => true,
            ClusterKind::StrictDns { .. } | ClusterKind::LogicalDns { .. } => {
                self.wait.resolved.contains(&cluster.name)
            }
            ClusterKind::Eds { .. } => eds_name(cluster).is_some_and(|service| {
                self.wait.eds_missing.contains(service)
                    || self
                        .endpoints
                        .get(service)
                        .is_some_and(|entry| entry.active.is_some())
            }),
        }
    }

    fn settle_routes(&mut self, now: Instant, out: &mut dyn Outside) {
        let ready: Vec<Arc<str>> = self
            .wait
            .warming_routes
            .iter()
            .filter(|name| {
                let warming = self
                    .routes
                    .get(*name)
                    .and_then(|entry| entry.warming.as_ref());
                warming.is_none_or(|warming| {
                    waited(warming, now)
                        || (self.hosts_up(name) && self.clusters_up(&warming.refers))
                })
            })
            .cloned()
            .collect();
        for name in ready {
            self.wait.warming_routes.remove(&name);
            let Some(entry) = self.routes.get_mut(&name) else {
                continue;
            };
            let Some(warming) = entry.warming.take() else {
                continue;
            };
            let _ = out.worker(WorkerUpdate::Routes(warming.value.clone()));
            entry.active = Some(warming);
        }
    }

    /// No cluster that is named waits for its first endpoints. One that is not known at all is
    /// not waited for: what refers to it comes after it, so it does not exist.
    fn clusters_up(&self, refers: &Refers) -> bool {
        let warming = &self.wait.warming_clusters;
        refers
            .clusters
            .iter()
            .filter(|name| warming.contains(*name))
            .all(|name| {
                self.clusters
                    .get(name)
                    .is_none_or(|entry| entry.active.is_some())
            })
    }

    fn settle_listeners(&mut self, now: Instant, out: &mut dyn Outside) {
        let ready: Vec<Arc<str>> = self
            .wait
            .warming_listeners
            .iter()
            .filter(|name| {
                let warming = self
                    .listeners
                    .get(*name)
                    .and_then(|entry| entry.warming.as_ref());
                warming.is_none_or(|warming| {
                    waited(warming, now)
                        || (self.wait.clusters_initialized
                            && self.clusters_up(&warming.refers)
                            && self.routes_up(&warming.refers)
                            && self.secrets_up(&warming.refers))
                })
            })
            .cloned()
            .collect();
        let any = !ready.is_empty();
        for name in ready {
            self.wait.warming_listeners.remove(&name);
            let Some(entry) = self.listeners.get_mut(&name) else {
                continue;
            };
            let Some(warming) = entry.warming.take() else {
                continue;
            };
            let outcome = out.worker(WorkerUpdate::Listener(warming.value.clone()));
            let version = warming.version_info.clone();
            match &outcome {
                Ok(()) => entry.active = Some(warming),
                Err(reason) => {
                    entry.fail(warming.any.clone(), &version, reason);
                    let unbound = Unbound::new(warming, now);
                    self.wait.unbound.insert(name.clone(), unbound);
                }
            }
            out.listener_decided(&name, &version, outcome);
        }
        if any {
            self.refresh_rds(out);
        }
    }

    fn routes_up(&self, refers: &Refers) -> bool {
        refers.routes.iter().all(|name| {
            self.wait.rds_missing.contains(name)
                || self
                    .routes
                    .get(name)
                    .is_some_and(|entry| entry.active.is_some())
        })
    }

    /// Clusters that discovery no longer has go when no table that names them is about to be
    /// replaced; a table that will go on naming them finds them gone, as in Envoy.
    fn settle_leaving(&mut self, out: &mut dyn Outside) {
        if self.wait.leaving_clusters.is_empty() {
            return;
        }
        let routes = self
            .wait
            .warming_routes
            .iter()
            .filter_map(|n| self.routes.get(n));
        let routes = routes
            .filter_map(|entry| entry.active.as_ref())
            .map(|active| &active.refers);
        let listeners = self
            .wait
            .warming_listeners
            .iter()
            .filter_map(|n| self.listeners.get(n));
        let listeners = listeners
            .filter_map(|entry| entry.active.as_ref())
            .map(|active| &active.refers);
        let needed: BTreeSet<Arc<str>> = routes
            .chain(listeners)
            .flat_map(|refers| refers.clusters.iter().cloned())
            .collect();
        let gone: Vec<_> = self
            .wait
            .leaving_clusters
            .difference(&needed)
            .cloned()
            .collect();
        for name in gone {
            self.wait.leaving_clusters.remove(&name);
            let _ = out.worker(WorkerUpdate::RemoveCluster(name.clone()));
            self.forget_cluster(&name, out);
        }
    }
}

fn waited<T>(warming: &Generation<T>, now: Instant) -> bool {
    now >= warming.since + INIT_FETCH_TIMEOUT
}
