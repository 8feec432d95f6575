//! Resolves the names of STRICT_DNS and LOGICAL_DNS clusters, again and again. One task per
//! cluster, on the main thread; a name that cannot be resolved keeps its last addresses.
//!
//! The system's resolver blocks a thread for as long as it likes. Clusters together occupy a few
//! threads at most, and none waits for a name beyond a limit; what else the main thread has to look
//! up does not wait behind them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_proxy_config::{Cluster, ClusterKind, DnsHosts, EndpointSet};
use rand::Rng;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::upstream::names::{choose, lookup};

/// Names that are looked up at the same time.
pub(super) const AT_ONCE: usize = 4;
/// How long a name is waited for, from when its lookup begins; Envoy's resolver gives up after as
/// much.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cluster's endpoints after a round of resolution; `None`: no name could ever be resolved.
pub(super) struct Resolved {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoints: Option<EndpointSet>,
}

/// The running resolutions.
pub(super) struct Resolver {
    tasks: HashMap<Arc<str>, AbortHandle>,
    results: mpsc::Sender<Resolved>,
    lookups: Lookups,
}

/// The places of lookups.
#[derive(Clone)]
struct Lookups {
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Resolver {
    pub(super) fn new() -> (Self, mpsc::Receiver<Resolved>) {
        let (results, received) = mpsc::channel(64);
        (
            Self {
                tasks: HashMap::new(),
                results,
                lookups: Lookups {
                    places: Arc::new(Semaphore::new(AT_ONCE)),
                    patience: PATIENCE,
                },
            },
            received,
        )
    }

    pub(super) fn start(&mut self, cluster: Arc<Cluster>) {
        let name = cluster.name.clone();
        let (results, lookups) = (self.results.clone(), self.lookups.clone());
        let task = tokio::spawn(resolve_for_ever(cluster, results, lookups));
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

impl Lookups {
    /// Waits for a place, and then for `looking` as long as patience lasts.
    async fn run<F>(&self, looking: F) -> std::io::Result<Vec<IpAddr>>
    where
        F: Future<Output = std::io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let place = self.places.clone().acquire_owned().await;
        // Nothing stops the system's resolver: its place is taken until it is done.
        let looking = tokio::spawn(async move {
            let found = looking.await;
            drop(place);
            found
        });
        tokio::time::timeout(self.patience, looking).await??
    }
}

async fn resolve_for_ever(
    cluster: Arc<Cluster>,
    results: mpsc::Sender<Resolved>,
    lookups: Lookups,
) {
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
        let mut all = JoinSet::new();
        for name in hosts.names() {
            let lookups = lookups.clone();
            all.spawn(async move {
                let asked = name.clone();
                let found = lookups.run(async move { lookup(&asked).await }).await;
                (name, found)
            });
        }
        while let Some(done) = all.join_next().await {
            let Ok((name, found)) = done else {
                continue;
            };
            match found {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_lookup_that_hangs_is_given_up_and_keeps_its_place_until_it_ends() {
        let lookups = Lookups {
            places: Arc::new(Semaphore::new(2)),
            patience: Duration::from_millis(20),
        };
        let (end, ended) = oneshot::channel::<()>();
        let hanging = lookups.run(async move {
            let _ = ended.await;
            Ok(Vec::new())
        });
        let error = hanging.await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(lookups.places.available_permits(), 1);
        // Others still have theirs.
        let found = lookups.run(async { Ok(vec![[127, 0, 0, 1].into()]) }).await;
        assert_eq!(found.unwrap().len(), 1);
        end.send(()).unwrap();
        while lookups.places.available_permits() < 2 {
            tokio::task::yield_now().await;
        }
    }
}
