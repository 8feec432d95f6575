//! Resolves the names of STRICT_DNS and LOGICAL_DNS clusters, again and again. One task per
//! cluster, on the main thread; a name that cannot be resolved keeps its last addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_proxy_config::{Cluster, ClusterKind, DnsHosts, EndpointSet};
use rand::Rng;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::upstream::names::{choose, lookup};

/// A cluster's endpoints after a round of resolution; `None`: no name could ever be resolved.
pub(super) struct Resolved {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoints: Option<EndpointSet>,
}

/// The running resolutions.
pub(super) struct Resolver {
    tasks: HashMap<Arc<str>, AbortHandle>,
    results: mpsc::Sender<Resolved>,
}

impl Resolver {
    pub(super) fn new() -> (Self, mpsc::Receiver<Resolved>) {
        let (results, received) = mpsc::channel(64);
        (
            Self {
                tasks: HashMap::new(),
                results,
            },
            received,
        )
    }

    pub(super) fn start(&mut self, cluster: Arc<Cluster>) {
        let name = cluster.name.clone();
        let task = tokio::spawn(resolve_for_ever(cluster, self.results.clone()));
        if let Some(earlier) = self.tasks.insert(name, task.abort_handle()) {
            earlier.abort();
        }
    }

    pub(super) fn stop(&mut self, cluster: &str) {
        if let Some(task) = self.tasks.remove(cluster) {
            task.abort();
        }
    }
}

async fn resolve_for_ever(cluster: Arc<Cluster>, results: mpsc::Sender<Resolved>) {
    let (hosts, family, refresh, first_only) = match &cluster.kind {
        ClusterKind::StrictDns {
            hosts,
            family,
            refresh,
        } => (hosts, *family, *refresh, false),
        ClusterKind::LogicalDns {
            hosts,
            family,
            refresh,
        } => (hosts, *family, *refresh, true),
        _ => return,
    };
    let mut known: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
    loop {
        for name in hosts.names() {
            match lookup(&name).await {
                Ok(found) => {
                    let mut chosen = choose(found, family);
                    if first_only {
                        chosen.truncate(1);
                    }
                    // An empty answer is no reason to drop endpoints that may still serve.
                    if !chosen.is_empty() {
                        known.insert(name, chosen);
                    }
                }
                Err(error) => {
                    tracing::warn!(cluster = %cluster.name, %name, %error, "cannot resolve");
                }
            }
        }
        let endpoints = (!known.is_empty()).then(|| endpoints(hosts, &known));
        if results
            .send(Resolved {
                cluster: cluster.clone(),
                endpoints,
            })
            .await
            .is_err()
        {
            return;
        }
        tokio::time::sleep(jittered(refresh)).await;
    }
}

fn endpoints(hosts: &DnsHosts, known: &HashMap<Arc<str>, Vec<IpAddr>>) -> EndpointSet {
    hosts.resolved(|name| known.get(name).cloned().unwrap_or_default())
}

/// Up to a tenth more, so that proxies that started together do not ask together.
fn jittered(refresh: Duration) -> Duration {
    let refresh = refresh.max(Duration::from_millis(100));
    refresh + refresh.mul_f64(rand::rng().random_range(0.0..0.1))
}
