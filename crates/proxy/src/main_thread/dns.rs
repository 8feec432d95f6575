//! Resolves the names of STRICT_DNS and LOGICAL_DNS clusters, again and again. One task per
//! cluster, on the main thread; a name that cannot be resolved keeps its last addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_proxy_config::{Cluster, ClusterKind, DnsFamily, DnsHosts, EndpointSet};
use rand::Rng;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

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

/// An address in place of a name needs nobody to ask.
async fn lookup(name: &str) -> std::io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    Ok(tokio::net::lookup_host((name, 0))
        .await?
        .map(|address| address.ip())
        .collect())
}

fn endpoints(hosts: &DnsHosts, known: &HashMap<Arc<str>, Vec<IpAddr>>) -> EndpointSet {
    hosts.resolved(|name| known.get(name).cloned().unwrap_or_default())
}

/// The addresses of the wanted families, in a stable order, each once.
fn choose(mut found: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    found.sort_unstable();
    found.dedup();
    let (four, six): (Vec<_>, Vec<_>) = found.iter().copied().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => four,
        DnsFamily::V6Only => six,
        DnsFamily::V4Preferred if four.is_empty() => six,
        DnsFamily::V4Preferred => four,
        DnsFamily::Auto if six.is_empty() => four,
        DnsFamily::Auto => six,
        DnsFamily::All => found,
    }
}

/// Up to a tenth more, so that proxies that started together do not ask together.
fn jittered(refresh: Duration) -> Duration {
    let refresh = refresh.max(Duration::from_millis(100));
    refresh + refresh.mul_f64(rand::rng().random_range(0.0..0.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_decides_which_addresses_count() {
        let found = ["::1", "127.0.0.2", "127.0.0.1", "127.0.0.1"];
        let check = |family, found: &[&str], expect: &[&str]| {
            let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
            assert_eq!(choose(parse(found), family), parse(expect), "{family:?}");
        };
        check(DnsFamily::V4Only, &found, &["127.0.0.1", "127.0.0.2"]);
        check(DnsFamily::V6Only, &found, &["::1"]);
        check(DnsFamily::V4Preferred, &found, &["127.0.0.1", "127.0.0.2"]);
        check(DnsFamily::V4Preferred, &["::1"], &["::1"]);
        check(DnsFamily::Auto, &found, &["::1"]);
        check(DnsFamily::Auto, &["127.0.0.1"], &["127.0.0.1"]);
        check(DnsFamily::All, &found, &["127.0.0.1", "127.0.0.2", "::1"]);
    }
}
