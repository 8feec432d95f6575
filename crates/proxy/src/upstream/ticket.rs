//! Guards that count while they live, so that no way out of a request forgets to count down.

use super::connect::ConnKey;
use super::{ActiveCluster, Host};
use crate::stats::{ClusterStat, EndpointStat};
use crate::worker::limits::{give, take};
use lateen_proxy_config::Priority;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

/// One upstream connection.
#[derive(Debug)]
pub(crate) struct ConnTicket {
    cluster: Rc<ActiveCluster>,
    host: Rc<Host>,
    /// Which requests the connection may serve.
    key: Option<Rc<ConnKey>>,
    /// Whether requests of its endpoint can use it one after the other.
    pooled: bool,
    /// The peer closed while a request was on the connection.
    pub lost_with_request: bool,
}

impl ConnTicket {
    /// Takes a place among the cluster's connections; [`None`]: the circuit breaker is open. The
    /// first connection to an endpoint that a request with this key could use is always allowed, as
    /// in Envoy: otherwise a worker could wait for ever for connections that idle in another worker.
    pub(crate) fn take(
        cluster: &Rc<ActiveCluster>,
        host: &Rc<Host>,
        key: &Option<Rc<ConnKey>>,
    ) -> Option<ConnTicket> {
        if !has_place(cluster) {
            if host.connections_with(key) > 0 {
                return None;
            }
            cluster.limits.connections.fetch_add(1, Relaxed);
        }
        host.count_connection(key);
        Some(ConnTicket::new(cluster, host, key.clone(), true))
    }

    /// The same for a connection that serves one client alone and is in no pool: the limit holds
    /// without exception.
    pub(crate) fn take_strictly(
        cluster: &Rc<ActiveCluster>,
        host: &Rc<Host>,
    ) -> Option<ConnTicket> {
        has_place(cluster).then(|| ConnTicket::new(cluster, host, None, false))
    }

    fn new(
        cluster: &Rc<ActiveCluster>,
        host: &Rc<Host>,
        key: Option<Rc<ConnKey>>,
        pooled: bool,
    ) -> ConnTicket {
        cluster.stats.inc(ClusterStat::UpstreamCxTotal);
        cluster.stats.inc(ClusterStat::UpstreamCxActive);
        host.stats(cluster).inc(EndpointStat::CxTotal);
        host.stats(cluster).inc(EndpointStat::CxActive);
        ConnTicket {
            cluster: cluster.clone(),
            host: host.clone(),
            key,
            pooled,
            lost_with_request: false,
        }
    }

    /// Which requests the connection may serve.
    pub(crate) fn key(&self) -> &Option<Rc<ConnKey>> {
        &self.key
    }

    pub(crate) fn host(&self) -> &Rc<Host> {
        &self.host
    }
}

/// Takes a place among the cluster's connections if there is one.
fn has_place(cluster: &ActiveCluster) -> bool {
    let max = cluster.config.thresholds(Priority::Default).max_connections;
    let taken = take(&cluster.limits.connections, max);
    if !taken {
        cluster.stats.inc(ClusterStat::UpstreamCxOverflow);
    }
    taken
}

impl Drop for ConnTicket {
    fn drop(&mut self) {
        let (cluster, host) = (&self.cluster, &self.host);
        give(&cluster.limits.connections);
        if self.pooled {
            host.discount_connection(&self.key);
        }
        cluster.stats.dec(ClusterStat::UpstreamCxActive);
        cluster.stats.inc(ClusterStat::UpstreamCxDestroy);
        if self.lost_with_request {
            cluster
                .stats
                .inc(ClusterStat::UpstreamCxDestroyRemoteWithActiveRq);
        }
        host.stats(cluster).dec(EndpointStat::CxActive);
        host.waiting.call_one(&self.key);
    }
}

/// One request on an endpoint.
#[derive(Debug)]
pub(crate) struct RequestTicket {
    cluster: Rc<ActiveCluster>,
    host: Rc<Host>,
    priority: Priority,
}

impl RequestTicket {
    /// Takes a place among the cluster's requests; [`None`]: the circuit breaker is open.
    pub(crate) fn take(
        cluster: &Rc<ActiveCluster>,
        host: &Rc<Host>,
        priority: Priority,
    ) -> Option<RequestTicket> {
        let max = cluster.config.thresholds(priority).max_requests;
        if !take(&cluster.limits.requests[priority as usize], max) {
            return None;
        }
        host.active.set(host.active.get() + 1);
        cluster.stats.inc(ClusterStat::UpstreamRqTotal);
        cluster.stats.inc(ClusterStat::UpstreamRqActive);
        host.stats(cluster).inc(EndpointStat::RqTotal);
        host.stats(cluster).inc(EndpointStat::RqActive);
        Some(RequestTicket {
            cluster: cluster.clone(),
            host: host.clone(),
            priority,
        })
    }
}

impl Drop for RequestTicket {
    fn drop(&mut self) {
        give(&self.cluster.limits.requests[self.priority as usize]);
        self.host
            .active
            .set(self.host.active.get().saturating_sub(1));
        self.cluster.stats.dec(ClusterStat::UpstreamRqActive);
        self.host.stats(&self.cluster).dec(EndpointStat::RqActive);
    }
}

/// One request that waits for a connection.
pub(super) struct PendingTicket {
    cluster: Rc<ActiveCluster>,
    priority: Priority,
}

impl PendingTicket {
    pub(super) fn take(cluster: &Rc<ActiveCluster>, priority: Priority) -> Option<PendingTicket> {
        let max = cluster.config.thresholds(priority).max_pending_requests;
        if !take(&cluster.limits.pending[priority as usize], max) {
            return None;
        }
        cluster.stats.inc(ClusterStat::UpstreamRqPendingTotal);
        cluster.stats.inc(ClusterStat::UpstreamRqPendingActive);
        Some(PendingTicket {
            cluster: cluster.clone(),
            priority,
        })
    }
}

impl Drop for PendingTicket {
    fn drop(&mut self) {
        give(&self.cluster.limits.pending[self.priority as usize]);
        self.cluster.stats.dec(ClusterStat::UpstreamRqPendingActive);
    }
}

/// One retry in progress.
pub(crate) struct RetryTicket {
    cluster: Rc<ActiveCluster>,
    priority: Priority,
}

impl RetryTicket {
    /// Takes a place among the cluster's retries: at most `max_retries`, or the retry budget's
    /// share of the active requests where there is one.
    pub(crate) fn take(cluster: &Rc<ActiveCluster>, priority: Priority) -> Option<RetryTicket> {
        let thresholds = cluster.config.thresholds(priority);
        let at = priority as usize;
        let max = match thresholds.retry_budget {
            None => thresholds.max_retries,
            Some(budget) => {
                let active = cluster.limits.requests[at].load(Relaxed);
                ((f64::from(active) * budget.percent / 100.0) as u32).max(budget.min_concurrency)
            }
        };
        if !take(&cluster.limits.retries[at], max) {
            cluster.stats.inc(ClusterStat::UpstreamRqRetryOverflow);
            return None;
        }
        cluster.stats.inc(ClusterStat::UpstreamRqRetry);
        Some(RetryTicket {
            cluster: cluster.clone(),
            priority,
        })
    }
}

impl Drop for RetryTicket {
    fn drop(&mut self) {
        give(&self.cluster.limits.retries[self.priority as usize]);
    }
}
