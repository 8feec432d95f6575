//! The clusters a worker knows, and those it uses.

use super::Host;
use super::connect::{HostTransport, same_transports, transports};
use super::hosts::HostSet;
use super::names::{self, KnownNames};
use super::zones::Siblings;
use crate::stats::{Page, Scope};
use crate::worker::limits::ClusterLimits;
use crate::worker::state::Worker;
use lateen_proxy_config::{Cluster, ClusterKind, EndpointSet, LocalityLb};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Endpoints by original destination that are remembered per cluster.
const MAX_NAMED: usize = 1024;

/// All clusters of a worker, by name.
#[derive(Default)]
pub(crate) struct Clusters {
    known: RefCell<HashMap<Arc<str>, Known>>,
    /// Of this proxy, where its bootstrap says which cluster they are.
    siblings: RefCell<Option<Rc<Siblings>>>,
}

struct Known {
    config: Option<Arc<Cluster>>,
    endpoints: Option<Arc<EndpointSet>>,
    active: Option<Rc<ActiveCluster>>,
}

/// A cluster in use. One generation of its configuration; a request keeps the one it began with.
pub(crate) struct ActiveCluster {
    pub config: Arc<Cluster>,
    pub stats: Arc<Page>,
    pub limits: Arc<ClusterLimits>,
    hosts: RefCell<Rc<HostSet>>,
    /// Endpoints that requests named themselves (original destination).
    named: RefCell<HashMap<SocketAddr, Rc<Host>>>,
    /// What the names led to that requests brought.
    names: KnownNames,
    pub(super) shared: Arc<crate::worker::Shared>,
    /// What carries the bytes, by [`Host::transport`].
    pub(super) transports: Vec<HostTransport>,
}

impl fmt::Debug for ActiveCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActiveCluster")
            .field(&self.config.name)
            .finish()
    }
}

impl ActiveCluster {
    /// The endpoints as they are now.
    pub(crate) fn hosts(&self) -> Rc<HostSet> {
        self.hosts.borrow().clone()
    }

    /// What becomes of its endpoints.
    fn arranged(&self, endpoints: &EndpointSet, old: &HostSet, worker: &Worker) -> HostSet {
        HostSet::new(&self.config, endpoints, Some(old), worker, &self.stats)
    }

    /// The endpoint at an address a request named. Bounded: those without connections go first.
    pub(crate) fn host_at(&self, address: SocketAddr) -> Rc<Host> {
        if self.named.borrow().len() >= MAX_NAMED {
            self.forget_unused();
        }
        let mut named = self.named.borrow_mut();
        if named.len() >= MAX_NAMED && !named.contains_key(&address) {
            return Host::passing(address);
        }
        named
            .entry(address)
            .or_insert_with(|| Host::new(address, Box::default()))
            .clone()
    }

    /// The endpoint that an authority leads to. `None`: it leads nowhere.
    pub(crate) async fn host_by_name(&self, authority: &[u8]) -> Option<Rc<Host>> {
        let default_port = match self.config.transport.tls {
            Some(_) => 443,
            None => 80,
        };
        let (name, port) = names::split(authority, default_port)?;
        self.host_at_name(name, port).await
    }

    /// The endpoint that a name and a port lead to.
    pub(crate) async fn host_at_name(&self, name: &str, port: u16) -> Option<Rc<Host>> {
        let ClusterKind::ByRequest { family, refresh } = &self.config.kind else {
            return None;
        };
        let name = name.to_ascii_lowercase();
        let ask = async |name: Box<str>| names::lookup(&name).await;
        let address = self.names.resolve(&name, *family, *refresh, ask).await?;
        Some(self.host_at(SocketAddr::new(address, port)))
    }

    /// Forgets endpoints that requests named, and that nobody is connected or connecting to.
    pub(super) fn forget_unused(&self) {
        self.named.borrow_mut().retain(|_, host| {
            // Each connection keeps its endpoint.
            let used = Rc::strong_count(host) > 1;
            if !used {
                host.forget_stats(&self.config.name, &self.shared);
            }
            used
        });
    }

    /// Closes all idle connections; busy ones close when they are done.
    fn retire(&self) {
        self.pooled_hosts().iter().for_each(|host| host.retire());
    }

    /// All endpoints that may have idle connections.
    pub(super) fn pooled_hosts(&self) -> Vec<Rc<Host>> {
        let mut hosts: Vec<_> = self.hosts().iter().cloned().collect();
        hosts.extend(self.named.borrow().values().cloned());
        hosts
    }
}

impl Clusters {
    /// The cluster, made ready for use; [`None`]: there is none of that name.
    pub(crate) fn get(&self, worker: &Worker, name: &str) -> Option<Rc<ActiveCluster>> {
        let mut known = self.known.borrow_mut();
        let known = known.get_mut(name)?;
        if let Some(active) = &known.active {
            return Some(active.clone());
        }
        let config = known.config.clone()?;
        let active = activate(worker, config, known.endpoints.as_deref(), None);
        known.active = Some(active.clone());
        Some(active)
    }

    /// A new cluster or a new generation. Endpoints keep their pools if the way to talk to them
    /// has not changed.
    pub(crate) fn set(&self, worker: &Worker, config: Arc<Cluster>) {
        let mut all = self.known.borrow_mut();
        let known = all.entry(config.name.clone()).or_insert(Known {
            config: None,
            endpoints: None,
            active: None,
        });
        if let ClusterKind::Static(endpoints) = &config.kind {
            known.endpoints = Some(endpoints.clone());
        }
        if let Some(old) = known.active.take() {
            let keep = old.config.http.protocol == config.http.protocol
                && old.config.http.http2 == config.http.http2
                && old.config.tcp_keepalive == config.tcp_keepalive
                && same_transports(&old.config, &config);
            let hosts = keep.then(|| old.hosts());
            let endpoints = known.endpoints.as_deref();
            let new = activate(worker, config.clone(), endpoints, hosts.as_deref());
            if keep {
                old.hosts().retire_missing(&new.hosts(), |host| {
                    host.forget_stats(&config.name, &worker.shared);
                });
                new.named.swap(&old.named);
            } else {
                old.retire();
            }
            known.active = Some(new);
        }
        known.config = Some(config.clone());
        drop(all);
        if let ClusterKind::Static(endpoints) = &config.kind {
            self.learn_siblings(worker, &config.name, endpoints);
        }
    }

    pub(crate) fn remove(&self, worker: &Worker, name: &Arc<str>) {
        let removed = self.known.borrow_mut().remove(name);
        if let Some(active) = removed.and_then(|known| known.active) {
            active.retire();
        }
        worker.forget_page(&Scope::Cluster(name.clone()));
    }

    pub(crate) fn set_endpoints(
        &self,
        worker: &Worker,
        cluster: &Arc<str>,
        endpoints: Arc<EndpointSet>,
    ) {
        let mut all = self.known.borrow_mut();
        let known = all.entry(cluster.clone()).or_insert(Known {
            config: None,
            endpoints: None,
            active: None,
        });
        if let Some(active) = &known.active {
            let old = active.hosts();
            let new = active.arranged(&endpoints, &old, worker);
            old.retire_missing(&new, |host| host.forget_stats(cluster, &worker.shared));
            *active.hosts.borrow_mut() = Rc::new(new);
        }
        known.endpoints = Some(endpoints.clone());
        drop(all);
        self.learn_siblings(worker, cluster, &endpoints);
    }

    /// Endpoints of the proxy's own service say how it is spread over zones.
    fn learn_siblings(&self, worker: &Worker, cluster: &str, endpoints: &EndpointSet) {
        let home = worker.shared.home.get();
        if let Some(home) = home.filter(|home| *home.cluster == *cluster) {
            let siblings = Siblings::of(endpoints, &home.locality);
            *self.siblings.borrow_mut() = Some(Rc::new(siblings));
            self.rearrange_by_zone(worker);
        }
    }

    /// How the proxies of this proxy's own service are spread, where that is known.
    pub(super) fn siblings(&self) -> Option<Rc<Siblings>> {
        self.siblings.borrow().clone()
    }

    /// Arranges anew what looks at zones.
    fn rearrange_by_zone(&self, worker: &Worker) {
        let all = self.known.borrow();
        for known in all.values() {
            let (Some(active), Some(endpoints)) = (&known.active, &known.endpoints) else {
                continue;
            };
            if matches!(active.config.locality_lb, LocalityLb::Zones(zones) if zones.routed > 0) {
                let new = active.arranged(endpoints, &active.hosts(), worker);
                *active.hosts.borrow_mut() = Rc::new(new);
            }
        }
    }

    /// Arranges a cluster's endpoints anew after some were ejected or taken back.
    pub(crate) fn rearrange(&self, worker: &Worker, cluster: &str) {
        let all = self.known.borrow();
        let Some(known) = all.get(cluster) else {
            return;
        };
        if let (Some(active), Some(endpoints)) = (&known.active, &known.endpoints) {
            let old = active.hosts();
            let new = active.arranged(endpoints, &old, worker);
            new.quiet_ejected();
            *active.hosts.borrow_mut() = Rc::new(new);
        }
    }

    /// Calls `f` with every cluster in use.
    pub(super) fn for_each_active(&self, mut f: impl FnMut(&Rc<ActiveCluster>)) {
        let all: Vec<_> = self
            .known
            .borrow()
            .values()
            .filter_map(|known| known.active.clone())
            .collect();
        all.iter().for_each(&mut f);
    }
}

fn activate(
    worker: &Worker,
    config: Arc<Cluster>,
    endpoints: Option<&EndpointSet>,
    old: Option<&HostSet>,
) -> Rc<ActiveCluster> {
    let none = EndpointSet::default();
    let stats = worker.page(Scope::Cluster(config.name.clone()));
    let hosts = HostSet::new(&config, endpoints.unwrap_or(&none), old, worker, &stats);
    Rc::new(ActiveCluster {
        stats,
        limits: worker.shared.limits.of(&config.name),
        hosts: RefCell::new(Rc::new(hosts)),
        named: RefCell::default(),
        names: KnownNames::default(),
        shared: worker.shared.clone(),
        transports: transports(&config, &worker.shared.tls),
        config,
    })
}
