//! Endpoints with their pools, arranged for balancing.
//!
//! Invariant: an endpoint that stays across an update stays the same [`Host`], so its connections
//! and its load are kept; one that goes takes no new requests and closes its idle connections.

use super::ActiveCluster;
use super::balance::Balancer;
use super::health::{HostHealth, Seen};
use crate::http1::client::ClientConn;
use crate::http2::client::Http2Conn;
use crate::stats::{EndpointStat, Page, Scope};
use crate::worker::state::Worker;
use lateen_proxy_config::{Address, Cluster, EndpointSet, LocalityLb};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Host {
    pub address: SocketAddr,
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
    /// An HTTP/2 connection is being made; others wait for it rather than make their own.
    pub http2_connecting: Cell<bool>,
    pub(super) http2_waiting: super::wait::WaitLine,
    stats: OnceCell<Arc<Page>>,
    /// Where the cluster has outlier detection.
    health: RefCell<Option<Arc<HostHealth>>>,
}

impl Host {
    pub(crate) fn new(address: SocketAddr, hostname: Box<str>) -> Rc<Host> {
        Rc::new(Host {
            address,
            hostname,
            priority: Cell::new(0),
            active: Cell::new(0),
            connections: Cell::new(0),
            retired: Cell::new(false),
            idle: RefCell::default(),
            http2: RefCell::default(),
            http2_connecting: Cell::new(false),
            http2_waiting: super::wait::WaitLine::default(),
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

    /// Tells outlier detection what was seen of this endpoint.
    pub(crate) fn note(&self, cluster: &ActiveCluster, seen: Seen) {
        if let (Some(config), Some(health)) = (&cluster.config.outlier, &*self.health.borrow()) {
            health.note(config, seen);
        }
    }

    fn is_ejected(&self) -> bool {
        self.health
            .borrow()
            .as_ref()
            .is_some_and(|health| health.is_ejected())
    }

    /// A stream or a connection has ended: whoever waits for room looks again.
    pub(crate) fn http2_room(&self) {
        self.http2_waiting.call_one();
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
    /// Per priority: its share of requests in percent, and who gets them.
    priorities: Vec<(u32, Balancer)>,
}

impl HostSet {
    pub(super) fn new(
        config: &Cluster,
        endpoints: &EndpointSet,
        old: Option<&HostSet>,
        worker: &Worker,
    ) -> HostSet {
        let mut all: HashMap<SocketAddr, Rc<Host>> = HashMap::new();
        let mut groups: Vec<Group> = Vec::new();
        for locality in &endpoints.localities {
            let at = locality.priority as usize;
            // A gap in the priorities would cost memory by its size; the control plane counts from 0.
            if at > groups.len() {
                continue;
            }
            if at == groups.len() {
                groups.push(Group::default());
            }
            let weight_sum: f64 = locality.endpoints.iter().map(|e| f64::from(e.weight)).sum();
            let factor = match (config.locality_lb, locality.weight) {
                (LocalityLb::None, _) => 1.0,
                (LocalityLb::Weighted, None) => continue,
                (LocalityLb::Weighted, Some(w)) => f64::from(w) / weight_sum.max(1.0),
            };
            for endpoint in &locality.endpoints {
                // Unix sockets are rejected when the cluster is compiled or never usable here.
                let Address::Socket(address) = endpoint.address else {
                    continue;
                };
                let host = old.and_then(|old| old.all.get(&address).cloned());
                let host = host.unwrap_or_else(|| Host::new(address, endpoint.hostname.clone()));
                *host.health.borrow_mut() = match config.outlier {
                    Some(_) => worker.shared.detectors.host(&config.name, address),
                    None => None,
                };
                host.priority.set(locality.priority);
                if all.insert(address, host.clone()).is_some() {
                    continue;
                }
                let weight = f64::from(endpoint.weight) * factor;
                let healthy = endpoint.health.is_healthy() && !host.is_ejected();
                groups[at].add(host, weight, healthy);
            }
        }
        let over = if endpoints.overprovisioning == 0 {
            140
        } else {
            endpoints.overprovisioning
        };
        let shares = shares(&groups, over);
        let priorities = groups
            .into_iter()
            .zip(shares)
            .map(|(group, share)| {
                let hosts = group.usable(config.panic_threshold);
                (share, Balancer::new(config.lb, hosts, worker.random()))
            })
            .collect();
        HostSet { all, priorities }
    }

    /// The balancer of the priority that a random number falls on.
    pub(super) fn balancer(&self, random: u64) -> Option<&Balancer> {
        let mut left = (random % 100) as u32;
        for (share, balancer) in &self.priorities {
            match left.checked_sub(*share) {
                Some(rest) => left = rest,
                None if balancer.is_empty() => break,
                None => return Some(balancer),
            }
        }
        self.priorities
            .iter()
            .map(|(_, b)| b)
            .find(|b| !b.is_empty())
    }

    /// The balancer of the first priority with endpoints that is not among `tried`; that of
    /// [`Self::balancer`] when there is none.
    pub(super) fn balancer_outside(&self, tried: &[u32], random: u64) -> Option<&Balancer> {
        let untried = |(priority, (_, balancer)): &(usize, &(u32, Balancer))| {
            !tried.contains(&(*priority as u32)) && !balancer.is_empty()
        };
        let found = self.priorities.iter().enumerate().find(untried);
        match found {
            Some((_, (_, balancer))) if !tried.is_empty() => Some(balancer),
            _ => self.balancer(random),
        }
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
    pub(super) fn retire_missing(&self, new: &HostSet, mut gone: impl FnMut(SocketAddr)) {
        for (address, host) in &self.all {
            if !new.all.contains_key(address) {
                host.retire();
                gone(*address);
            }
        }
    }
}

/// The endpoints of one priority.
#[derive(Debug, Default)]
struct Group {
    all: Vec<(Rc<Host>, f64)>,
    healthy: Vec<(Rc<Host>, f64)>,
}

impl Group {
    fn add(&mut self, host: Rc<Host>, weight: f64, healthy: bool) {
        if healthy {
            self.healthy.push((host.clone(), weight));
        }
        self.all.push((host, weight));
    }

    /// The healthy ones; all when so few are healthy that health says little (Envoy's panic).
    fn usable(self, panic_threshold: f64) -> Vec<(Rc<Host>, f64)> {
        let share = self.healthy.len() as f64 * 100.0 / self.all.len().max(1) as f64;
        if share < panic_threshold {
            self.all
        } else {
            self.healthy
        }
    }
}

/// Each priority's share of requests: its healthy part, over-provisioned, and what is left goes to
/// the next (Envoy's priority load). With nothing healthy at all, the first gets everything.
fn shares(groups: &[Group], overprovisioning: u32) -> Vec<u32> {
    let mut left = 100u32;
    let mut shares: Vec<u32> = groups
        .iter()
        .map(|group| {
            let total = group.all.len().max(1) as u64;
            let health =
                (group.healthy.len() as u64 * u64::from(overprovisioning) / total).min(100);
            let share = left.min(health as u32);
            left -= share;
            share
        })
        .collect();
    if left > 0 {
        // Not enough healthy anywhere: scale up what there is.
        let sum: u32 = shares.iter().sum();
        if sum == 0 {
            if let Some(first) = shares.first_mut() {
                *first = 100;
            }
        } else {
            shares
                .iter_mut()
                .for_each(|share| *share = (*share * 100).div_ceil(sum));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(healthy: usize, unhealthy: usize) -> Group {
        let mut group = Group::default();
        for i in 0..healthy + unhealthy {
            let address = SocketAddr::from(([127, 0, 0, 1], 1 + i as u16));
            group.add(Host::new(address, Box::default()), 1.0, i < healthy);
        }
        group
    }

    #[test]
    fn traffic_fails_over_by_the_healthy_share_of_each_priority() {
        for (groups, expect) in [
            (vec![group(4, 0), group(4, 0)], vec![100, 0]),
            (vec![group(3, 1), group(4, 0)], vec![100, 0]),
            (vec![group(1, 1), group(4, 0)], vec![70, 30]),
            (vec![group(0, 4), group(4, 0)], vec![0, 100]),
            (vec![group(0, 4), group(0, 4)], vec![100, 0]),
            (vec![group(1, 3)], vec![100]),
        ] {
            assert_eq!(shares(&groups, 140), expect);
        }
    }

    #[test]
    fn below_the_panic_threshold_all_endpoints_are_used() {
        assert_eq!(group(1, 3).usable(50.0).len(), 4);
        assert_eq!(group(2, 2).usable(50.0).len(), 2);
        assert_eq!(group(0, 2).usable(0.0).len(), 0);
    }
}
