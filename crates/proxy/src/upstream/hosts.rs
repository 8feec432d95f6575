//! Endpoints with their pools, arranged for balancing.
//!
//! Invariant: an endpoint that stays across an update stays the same [`Host`], so its connections
//! and its load are kept; one that goes takes no new requests and closes its idle connections.

use super::ActiveCluster;
use super::balance::Balancer;
use super::connect::ConnKey;
use super::health::{HostHealth, Seen};
use super::outlier;
use super::priority::{self, Arrangement, Group, Level, Priority};
use super::wait::WaitLine;
use crate::http1::client::ClientConn;
use crate::http2::client::Http2Conn;
use crate::stats::{EndpointStat, Page, Scope};
use crate::worker::Shared;
use crate::worker::state::Worker;
use lateen_proxy_config::{Address, Cluster, EndpointSet};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// As in Envoy's API.
const MAX_PRIORITY: usize = 128;

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Host {
    /// Of a Unix domain socket, what stands for it in tables.
    pub address: SocketAddr,
    /// The Unix domain socket that it is.
    pub pipe: Option<Box<Path>>,
    /// For `auto_host_rewrite`.
    pub hostname: Box<str>,
    /// Where it stands among the priorities of the newest endpoints.
    pub priority: Cell<u32>,
    /// Requests on it now, of this worker.
    pub active: Cell<u32>,
    pub connections: Cell<u32>,
    /// No longer part of the cluster.
    pub retired: Cell<bool>,
    /// HTTP/1 connections without a request; the one used last is taken first.
    #[allow(
        clippy::vec_box,
        reason = "a connection moves between here and a request's small future"
    )]
    pub idle: RefCell<Vec<Box<ClientConn>>>,
    pub http2: RefCell<Vec<Rc<Http2Conn>>>,
    /// How many of the connections are tied to something, by what it is.
    pub(super) keyed: RefCell<BTreeMap<Rc<ConnKey>, u32>>,
    /// HTTP/2 connections that are being made, by what they are tied to; others wait for them
    /// rather than make their own.
    pub(super) connecting: RefCell<Vec<Option<Rc<ConnKey>>>>,
    /// Requests that wait for one of the connections.
    pub(super) waiting: WaitLine,
    /// Which of the cluster's transports carries the bytes.
    pub(super) transport: usize,
    /// Why the last TLS handshake failed.
    pub tls_failure: RefCell<Option<Rc<str>>>,
    stats: OnceCell<Arc<Page>>,
    /// Where the cluster has outlier detection.
    health: RefCell<Option<Arc<HostHealth>>>,
}

impl Host {
    pub(crate) fn new(address: SocketAddr, hostname: Box<str>) -> Rc<Host> {
        Host::over(0, &Address::Socket(address), hostname)
    }

    /// One that is reached over this of the cluster's transports.
    fn over(transport: usize, at: &Address, hostname: Box<str>) -> Rc<Host> {
        let address = at.key();
        let pipe = match at {
            Address::Socket(_) => None,
            Address::Pipe(path) => Some(path.as_path().into()),
        };
        Rc::new(Host {
            pipe,
            transport,
            tls_failure: RefCell::default(),
            address,
            hostname,
            priority: Cell::new(0),
            active: Cell::new(0),
            connections: Cell::new(0),
            retired: Cell::new(false),
            idle: RefCell::default(),
            http2: RefCell::default(),
            keyed: RefCell::default(),
            connecting: RefCell::default(),
            waiting: WaitLine::default(),
            stats: OnceCell::new(),
            health: RefCell::default(),
        })
    }

    /// An endpoint for one connection: it is not pooled and not listed.
    pub(crate) fn passing(address: SocketAddr) -> Rc<Host> {
        let host = Host::new(address, Box::default());
        host.retired.set(true);
        let _ = host.stats.set(Arc::new(Page::unlisted::<EndpointStat>()));
        host
    }

    pub(crate) fn stats(&self, cluster: &ActiveCluster) -> &Arc<Page> {
        self.stats.get_or_init(|| {
            let scope = Scope::Endpoint(cluster.config.name.clone(), self.address);
            cluster.shared.stats.page(scope)
        })
    }

    /// Forgets what this worker has counted of it.
    pub(super) fn forget_stats(&self, cluster: &Arc<str>, worker: &Shared) {
        if let Some(page) = self.stats.get() {
            worker.stats.forget_endpoint(cluster, self.address, page);
        }
    }

    /// Tells outlier detection what was seen of this endpoint.
    pub(crate) fn note(&self, cluster: &ActiveCluster, seen: Seen) {
        if let (Some(config), Some(health)) = (&cluster.config.outlier, &*self.health.borrow()) {
            health.note(config, seen);
        }
    }

    /// Takes part in what the process knows of it, if its cluster wants that.
    fn watch(&self, config: &Cluster, worker: &Worker) {
        let detectors = &worker.shared.detectors;
        *self.health.borrow_mut() = match outlier::watches(config) {
            true => detectors.host(&config.name, self.address),
            false => None,
        };
    }

    /// How long it has been part of its cluster; very long where nobody asks.
    pub(super) fn age(&self) -> Duration {
        let health = self.health.borrow();
        health
            .as_ref()
            .map_or(Duration::MAX, |health| health.since.elapsed())
    }

    fn is_ejected(&self) -> bool {
        self.health
            .borrow()
            .as_ref()
            .is_some_and(|health| health.is_ejected())
    }

    /// A stream with this key has ended: whoever waits for room looks again.
    pub(crate) fn has_room(&self, key: &Option<Rc<ConnKey>>) {
        self.waiting.call_one(key);
    }

    /// Connections that requests with this key may use, in use or not.
    pub(super) fn connections_with(&self, key: &Option<Rc<ConnKey>>) -> u32 {
        let keyed = self.keyed.borrow();
        match key {
            Some(key) => keyed.get(key).copied().unwrap_or(0),
            None => self.connections.get().saturating_sub(keyed.values().sum()),
        }
    }

    pub(super) fn count_connection(&self, key: &Option<Rc<ConnKey>>) {
        self.connections.set(self.connections.get() + 1);
        if let Some(key) = key {
            *self.keyed.borrow_mut().entry(key.clone()).or_insert(0) += 1;
        }
    }

    pub(super) fn discount_connection(&self, key: &Option<Rc<ConnKey>>) {
        self.connections
            .set(self.connections.get().saturating_sub(1));
        let Some(key) = key else {
            return;
        };
        let mut keyed = self.keyed.borrow_mut();
        if let Some(count) = keyed.get_mut(key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                keyed.remove(key);
            }
        }
    }

    /// Takes the endpoint out of service: idle connections close now, busy ones when they are done.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.close_idle();
    }

    /// Closes connections that wait for requests; those in use close when they are done.
    fn close_idle(&self) {
        // Dropped outside the borrow: a connection's ticket may wake another task.
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        drop(idle);
        for conn in self.http2.borrow_mut().drain(..) {
            conn.retire();
        }
    }
}

/// The endpoints of a cluster at one moment.
#[derive(Debug)]
pub(crate) struct HostSet {
    all: HashMap<SocketAddr, Rc<Host>>,
    priorities: Vec<Priority>,
}

impl HostSet {
    pub(super) fn new(
        config: &Cluster,
        endpoints: &EndpointSet,
        old: Option<&HostSet>,
        worker: &Worker,
        stats: &Page,
    ) -> HostSet {
        let mut all: HashMap<SocketAddr, Rc<Host>> = HashMap::new();
        let mut levels: Vec<Level> = Vec::new();
        for locality in &endpoints.localities {
            let at = locality.priority as usize;
            // A gap in the priorities would cost memory by its size; the control plane counts from 0.
            if at > MAX_PRIORITY {
                continue;
            }
            if at >= levels.len() {
                levels.resize_with(at + 1, Level::new);
            }
            let mut group = Group {
                locality: locality.locality.clone(),
                weight: locality.weight,
                ..Group::default()
            };
            for endpoint in &locality.endpoints {
                let address = endpoint.address.key();
                // Of endpoints with the same address the first counts, as in Envoy.
                if all.contains_key(&address) {
                    continue;
                }
                let over = config.transport_index(endpoint.metadata.as_deref());
                let host = old.and_then(|old| old.all.get(&address).cloned());
                let host = host.filter(|host| host.transport == over);
                let host = host.unwrap_or_else(|| {
                    Host::over(over, &endpoint.address, endpoint.hostname.clone())
                });
                host.watch(config, worker);
                host.priority.set(locality.priority);
                all.insert(address, host.clone());
                let weight = f64::from(endpoint.weight);
                if endpoint.health.is_healthy() && !host.is_ejected() {
                    group.healthy.push((host.clone(), weight));
                }
                group.all.push((host, weight));
            }
            if let Some(level) = levels.get_mut(at) {
                level.push(group);
            }
        }
        let siblings = worker.clusters.siblings();
        let how = Arrangement {
            siblings: siblings.as_deref(),
            policy: config.lb,
            locality: config.locality_lb,
            panic_threshold: config.panic_threshold,
            overprovisioning: match endpoints.overprovisioning {
                0 => 140,
                percent => percent,
            },
        };
        HostSet {
            all,
            priorities: priority::arrange(levels, how, || worker.random(), |stat| stats.inc(stat)),
        }
    }

    /// The balancer that is to choose for a request with this hash (by chance where it has none).
    fn balancer(&self, hash: u64, worker: &Worker, stats: &Page) -> Option<&Balancer> {
        let priority = priority::choose(&self.priorities, hash)?;
        priority.balancer(|| worker.random(), |stat| stats.inc(stat))
    }

    /// The balancer of the first priority with endpoints that is not among `tried`; that of
    /// [`Self::balancer`] when there is none.
    pub(super) fn balancer_outside(
        &self,
        tried: &[u32],
        hash: u64,
        worker: &Worker,
        stats: &Page,
    ) -> Option<&Balancer> {
        let untried = self
            .priorities
            .iter()
            .zip(0u32..)
            .filter(|(_, number)| !tried.is_empty() && !tried.contains(number))
            .find_map(|(priority, _)| {
                priority.balancer(|| worker.random(), |stat| stats.inc(stat))
            });
        untried.or_else(|| self.balancer(hash, worker, stats))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rc<Host>> {
        self.all.values()
    }

    /// Closes idle connections of endpoints that are ejected.
    pub(super) fn quiet_ejected(&self) {
        let ejected = self.all.values().filter(|host| host.is_ejected());
        ejected.for_each(|host| host.close_idle());
    }

    /// Retires what is not in `new`.
    pub(super) fn retire_missing(&self, new: &HostSet, gone: impl Fn(&Host)) {
        for (address, host) in &self.all {
            match new.all.get(address) {
                Some(same) if Rc::ptr_eq(same, host) => {}
                // The same address, reached in another way.
                Some(_) => host.retire(),
                None => {
                    host.retire();
                    gone(host);
                }
            }
        }
    }
}
