//! Outlier detection: ejects endpoints that fail, and takes them back after a while.
//!
//! State is of the process, as in Envoy: workers count failures in [`HostHealth`] and report
//! thresholds that are reached; all decisions are made here, on the main thread, which then tells
//! the workers to arrange the endpoints of that cluster anew.
//!
//! Invariant: the lock is taken by the main thread and by a worker that arranges endpoints, never
//! by a request.

use super::health::{Failures, HostHealth, Reports};
use lateen_proxy_config::{Cluster, ClusterKind, EndpointSet, OutlierDetection};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// The detectors of all clusters whose endpoints are watched.
pub(crate) struct Detectors {
    inner: Mutex<Inner>,
    reports: Reports,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<Arc<HostHealth>>>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// Of every cluster: outlier detection may be switched on when they are there.
    endpoints: HashMap<Arc<str>, Arc<EndpointSet>>,
    clusters: HashMap<Arc<str>, Detector>,
}

/// Whether the process keeps state of the cluster's endpoints: for outlier detection, and for slow
/// start, which has to know since when they are there.
pub(super) fn watches(cluster: &Cluster) -> bool {
    cluster.outlier.is_some() || cluster.lb.slow_start().is_some()
}

/// One cluster.
struct Detector {
    /// [`None`]: nobody is ejected.
    config: Option<Arc<OutlierDetection>>,
    hosts: HashMap<SocketAddr, Monitor>,
    due: Option<Instant>,
    counts: Counts,
}

/// One endpoint as the main thread sees it.
struct Monitor {
    health: Arc<HostHealth>,
    ejected: Option<Instant>,
    returned: Option<Instant>,
    /// Ejections in a row, which the next one is multiplied by.
    backoff: u32,
    jitter: Duration,
    success_rate: Option<f64>,
    local_success_rate: Option<f64>,
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    Consecutive5xx,
    ConsecutiveGateway,
    SuccessRate,
    FailurePercentage,
    ConsecutiveLocalOrigin,
    LocalSuccessRate,
    LocalFailurePercentage,
}

impl Ejection {
    /// In the order of their names below.
    const NAMES: [&'static str; 7] = [
        "consecutive_5xx",
        "consecutive_gateway_failure",
        "success_rate",
        "failure_percentage",
        "consecutive_local_origin_failure",
        "local_origin_success_rate",
        "local_origin_failure_percentage",
    ];

    fn of(failures: Failures) -> Ejection {
        match failures {
            Failures::Status5xx => Ejection::Consecutive5xx,
            Failures::Gateway => Ejection::ConsecutiveGateway,
            Failures::LocalOrigin => Ejection::ConsecutiveLocalOrigin,
        }
    }

    fn enforcing(self, config: &OutlierDetection) -> u32 {
        match self {
            Ejection::Consecutive5xx => config.consecutive_5xx.enforcing,
            Ejection::ConsecutiveGateway => config.consecutive_gateway.enforcing,
            Ejection::SuccessRate => config.success_rate.enforcing,
            Ejection::FailurePercentage => config.failure_percentage.enforcing,
            Ejection::ConsecutiveLocalOrigin => config.consecutive_local.enforcing,
            Ejection::LocalSuccessRate => config.success_rate.enforcing_local,
            Ejection::LocalFailurePercentage => config.failure_percentage.enforcing_local,
        }
    }
}

/// `outlier_detection.*` of a cluster.
#[derive(Clone, Debug, Default)]
struct Counts {
    detected: [u64; 7],
    enforced: [u64; 7],
    overflow: u64,
    /// Of two kinds only, as in Envoy, which calls it deprecated and still has it.
    total: u64,
}

/// What `/clusters` and `/stats` show of a cluster's detector.
#[derive(Clone, Debug, Default)]
pub struct OutlierStatus {
    /// Counters by name, without `outlier_detection.`.
    pub counters: Vec<(String, u64)>,
    pub active: u64,
    pub ejected: BTreeSet<SocketAddr>,
    /// Success rate and success rate of connecting in the last interval, percent.
    pub rates: HashMap<SocketAddr, (Option<f64>, Option<f64>)>,
}

impl Default for Detectors {
    fn default() -> Self {
        let (reports, inbox) = mpsc::unbounded_channel();
        Detectors {
            inner: Mutex::default(),
            reports,
            inbox: tokio::sync::Mutex::new(inbox),
            changed: Notify::new(),
        }
    }
}

impl Detectors {
    /// To be called before workers get a cluster.
    pub(crate) fn set_cluster(&self, cluster: &Cluster) {
        let mut inner = self.lock();
        if let ClusterKind::Static(endpoints) = &cluster.kind {
            inner
                .endpoints
                .insert(cluster.name.clone(), endpoints.clone());
        }
        if !watches(cluster) {
            inner.clusters.remove(&cluster.name);
            return;
        }
        let endpoints = inner.endpoints.get(&cluster.name).cloned();
        match inner.clusters.get_mut(&cluster.name) {
            Some(detector) => detector.set_config(cluster.outlier.clone()),
            None => {
                let mut detector = Detector {
                    due: cluster
                        .outlier
                        .as_ref()
                        .map(|c| Instant::now() + c.interval),
                    config: cluster.outlier.clone(),
                    hosts: HashMap::new(),
                    counts: Counts::default(),
                };
                if let Some(endpoints) = endpoints {
                    detector.set_endpoints(&cluster.name, &endpoints, &self.reports);
                }
                inner.clusters.insert(cluster.name.clone(), detector);
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// To be called before workers get endpoints.
    pub(crate) fn set_endpoints(&self, cluster: &Arc<str>, endpoints: &Arc<EndpointSet>) {
        let mut inner = self.lock();
        inner.endpoints.insert(cluster.clone(), endpoints.clone());
        if let Some(detector) = inner.clusters.get_mut(cluster) {
            detector.set_endpoints(cluster, endpoints, &self.reports);
        }
    }

    pub(crate) fn remove_cluster(&self, cluster: &str) {
        let mut inner = self.lock();
        inner.endpoints.remove(cluster);
        inner.clusters.remove(cluster);
    }

    /// The shared state of an endpoint; [`None`]: nobody watches its cluster.
    pub(crate) fn host(&self, cluster: &str, address: SocketAddr) -> Option<Arc<HostHealth>> {
        let inner = self.lock();
        let host = inner.clusters.get(cluster)?.hosts.get(&address)?;
        Some(host.health.clone())
    }

    pub(crate) fn status(&self, cluster: &str) -> Option<OutlierStatus> {
        let inner = self.lock();
        let detector = inner.clusters.get(cluster)?;
        detector.config.is_some().then(|| detector.status())
    }

    /// Waits until endpoints of some clusters were ejected or taken back; the names of these.
    pub(crate) async fn changes(&self) -> BTreeSet<Arc<str>> {
        let mut inbox = self.inbox.lock().await;
        loop {
            let due = self.lock().clusters.values().filter_map(|d| d.due).min();
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                Some(health) = inbox.recv() => self.detected(&health),
                () = wait => self.tick(Instant::now()),
                () = self.changed.notified() => BTreeSet::new(),
            };
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    fn detected(&self, health: &Arc<HostHealth>) -> BTreeSet<Arc<str>> {
        let mut inner = self.lock();
        let detector = inner.clusters.get_mut(&health.cluster);
        let changed = detector.is_some_and(|detector| detector.detected(health, Instant::now()));
        changed
            .then(|| health.cluster.clone())
            .into_iter()
            .collect()
    }

    fn tick(&self, now: Instant) -> BTreeSet<Arc<str>> {
        let mut inner = self.lock();
        let due = inner
            .clusters
            .iter_mut()
            .filter(|(_, d)| d.due.is_some_and(|due| due <= now));
        due.filter_map(|(name, detector)| detector.tick(now).then(|| name.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Detector {
    fn set_config(&mut self, config: Option<Arc<OutlierDetection>>) {
        match &config {
            None => {
                self.due = None;
                for host in self.hosts.values_mut() {
                    host.ejected = None;
                    host.health.set_ejected(false);
                }
            }
            Some(config) => {
                self.due = self.due.or_else(|| Some(Instant::now() + config.interval));
            }
        }
        self.config = config;
    }

    fn set_endpoints(&mut self, cluster: &Arc<str>, endpoints: &EndpointSet, reports: &Reports) {
        let mut before = std::mem::take(&mut self.hosts);
        for address in endpoints.endpoints().map(|e| e.address.key()) {
            let monitor = before.remove(&address).unwrap_or_else(|| Monitor {
                health: HostHealth::new(cluster.clone(), address, reports.clone()),
                ejected: None,
                returned: None,
                backoff: 0,
                jitter: Duration::ZERO,
                success_rate: None,
                local_success_rate: None,
            });
            self.hosts.insert(address, monitor);
        }
    }

    /// A worker has seen so many failures in a row; whether that changed anything.
    fn detected(&mut self, health: &Arc<HostHealth>, now: Instant) -> bool {
        let known = self.hosts.get(&health.address);
        if !known.is_some_and(|host| Arc::ptr_eq(&host.health, health)) {
            return false;
        }
        let mut changed = false;
        for failures in health.take_reported() {
            if health.is_ejected() {
                break;
            }
            changed |= self.eject(health.address, Ejection::of(failures), now);
            health.reset(failures);
        }
        changed
    }

    /// Ejects an endpoint if the share of ejected ones allows it (Envoy, `DetectorImpl::ejectHost`).
    fn eject(&mut self, address: SocketAddr, why: Ejection, now: Instant) -> bool {
        self.counts.detected[why as usize] += 1;
        let active = self.hosts.values().filter(|h| h.ejected.is_some()).count();
        let share = 100.0 * (active + 1) as f64 / self.hosts.len().max(1) as f64;
        let Some(config) = self.config.clone() else {
            return false;
        };
        let first = config.always_eject_one && active == 0;
        if share > f64::from(config.max_ejection_percent) && !first {
            self.counts.overflow += 1;
            return false;
        }
        if matches!(why, Ejection::Consecutive5xx | Ejection::SuccessRate) {
            self.counts.total += 1;
        }
        if rand::random_range(0..100) >= why.enforcing(&config) {
            return false;
        }
        let Some(host) = self.hosts.get_mut(&address) else {
            return false;
        };
        self.counts.enforced[why as usize] += 1;
        host.ejected = Some(now);
        host.health.set_ejected(true);
        let jitter = config.max_ejection_time_jitter.as_millis() as u64;
        host.jitter = Duration::from_millis(rand::random_range(0..=jitter));
        if config.base_ejection_time * host.backoff
            < config.max_ejection_time + config.base_ejection_time
        {
            host.backoff += 1;
        }
        true
    }

    /// The end of an interval: takes endpoints back whose time has come, compares rates.
    fn tick(&mut self, now: Instant) -> bool {
        let Some(config) = self.config.clone() else {
            return false;
        };
        self.due = Some(now + config.interval);
        let mut changed = false;
        for host in self.hosts.values_mut() {
            changed |= host.take_back(&config, now);
        }
        let external = |host: &HostHealth| host.external.take();
        changed |= self.compare_rates(
            external,
            (Ejection::SuccessRate, Ejection::FailurePercentage),
            |host| &mut host.success_rate,
            &config,
            now,
        );
        let local = |host: &HostHealth| host.local.take();
        changed |= self.compare_rates(
            local,
            (Ejection::LocalSuccessRate, Ejection::LocalFailurePercentage),
            |host| &mut host.local_success_rate,
            &config,
            now,
        );
        for host in self.hosts.values_mut().filter(|h| h.ejected.is_none()) {
            let long_back = host
                .returned
                .is_some_and(|at| now.duration_since(at) >= config.interval);
            if long_back {
                host.backoff = host.backoff.saturating_sub(1);
            }
        }
        changed
    }

    /// Envoy, `DetectorImpl::processSuccessRateEjections`.
    fn compare_rates(
        &mut self,
        take: impl Fn(&HostHealth) -> Option<(f64, u32)>,
        (rate_kind, share_kind): (Ejection, Ejection),
        shown: impl Fn(&mut Monitor) -> &mut Option<f64>,
        config: &OutlierDetection,
        now: Instant,
    ) -> bool {
        let (rates, shares) = (&config.success_rate, &config.failure_percentage);
        let enough = self.hosts.len() >= rates.minimum_hosts.min(shares.minimum_hosts) as usize;
        let (mut by_rate, mut by_share) = (Vec::new(), Vec::new());
        for (address, host) in &mut self.hosts {
            let read = take(&host.health).filter(|_| enough && host.ejected.is_none());
            *shown(host) = None;
            let Some((rate, volume)) = read else { continue };
            if volume >= rates.request_volume.min(shares.request_volume) {
                *shown(host) = Some(rate);
            }
            if volume >= rates.request_volume {
                by_rate.push((*address, rate));
            }
            if volume >= shares.request_volume {
                by_share.push((*address, rate));
            }
        }
        let mut changed = false;
        if !by_rate.is_empty() && by_rate.len() >= rates.minimum_hosts as usize {
            let least = lowest_success_rate(&by_rate, rates.deviations);
            for (address, _) in by_rate.iter().filter(|(_, rate)| *rate < least) {
                changed |= self.eject(*address, rate_kind, now);
            }
        }
        if !by_share.is_empty() && by_share.len() >= shares.minimum_hosts as usize {
            let most = f64::from(shares.threshold);
            for (address, _) in by_share.iter().filter(|(_, rate)| 100.0 - rate >= most) {
                let ejected = self.hosts.get(address).is_some_and(|h| h.ejected.is_some());
                changed |= !ejected && self.eject(*address, share_kind, now);
            }
        }
        changed
    }

    fn status(&self) -> OutlierStatus {
        let mut status = OutlierStatus::default();
        let counts = &self.counts;
        let mut counter = |name: String, value| status.counters.push((name, value));
        for (at, name) in Ejection::NAMES.iter().enumerate() {
            counter(format!("ejections_detected_{name}"), counts.detected[at]);
            counter(format!("ejections_enforced_{name}"), counts.enforced[at]);
        }
        counter(
            "ejections_enforced_total".into(),
            counts.enforced.iter().sum(),
        );
        counter("ejections_overflow".into(), counts.overflow);
        counter("ejections_total".into(), counts.total);
        for (address, host) in &self.hosts {
            if host.ejected.is_some() {
                status.ejected.insert(*address);
            }
            let rates = (host.success_rate, host.local_success_rate);
            status.rates.insert(*address, rates);
        }
        status.active = status.ejected.len() as u64;
        status
    }
}

impl Monitor {
    /// Takes the endpoint back if its time has come.
    fn take_back(&mut self, config: &OutlierDetection, now: Instant) -> bool {
        let Some(ejected) = self.ejected else {
            return false;
        };
        let time = (config.base_ejection_time * self.backoff).min(config.max_ejection_time);
        if time + self.jitter > now.duration_since(ejected) {
            return false;
        }
        self.ejected = None;
        self.returned = Some(now);
        self.health.set_ejected(false);
        true
    }
}

/// So many standard deviations below the mean.
fn lowest_success_rate(rates: &[(SocketAddr, f64)], deviations: f64) -> f64 {
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates
        .iter()
        .map(|(_, rate)| (rate - mean).powi(2))
        .sum::<f64>()
        / count;
    mean - deviations * variance.sqrt()
}

#[cfg(test)]
mod tests;
