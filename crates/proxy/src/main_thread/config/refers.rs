//! Which clusters and route tables a listener or a route table names.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_proxy_config::route::{ClusterName, ClusterTarget, RouteAction, RouteTable};
use lateen_proxy_config::{Cluster, Listener, Network, RouteSource, SecretRef, TcpCluster};

/// Names that a resource uses. Clusters named by a request header cannot be known.
#[derive(Debug, Default)]
pub(super) struct Refers {
    pub(super) clusters: BTreeSet<Arc<str>>,
    pub(super) routes: BTreeSet<Arc<str>>,
    pub(super) secrets: BTreeSet<SecretRef>,
}

impl Refers {
    pub(super) fn of_table(table: &RouteTable) -> Self {
        let mut refers = Self::default();
        refers.add_table(table);
        refers
    }

    pub(super) fn of_cluster(cluster: &Cluster) -> Self {
        let secrets = cluster.tls().flat_map(|tls| tls.common.secrets());
        Self {
            secrets: secrets.cloned().collect(),
            ..Self::default()
        }
    }

    pub(super) fn of_listener(listener: &Listener) -> Self {
        let mut refers = Self::default();
        let contexts = crate::tls::contexts(listener);
        let secrets = contexts.flat_map(|tls| tls.common.secrets());
        refers.secrets.extend(secrets.cloned());
        for chain in listener
            .filter_chains
            .iter()
            .chain(&listener.default_filter_chain)
        {
            match &chain.network {
                Network::Http(http) => match &http.routes {
                    RouteSource::Rds(name) => {
                        refers.routes.insert(name.clone());
                    }
                    RouteSource::Inline(table) => refers.add_table(table),
                },
                Network::Tcp(tcp) => match &tcp.cluster {
                    TcpCluster::One(name) => {
                        refers.clusters.insert(name.clone());
                    }
                    TcpCluster::Weighted { clusters, .. } => {
                        refers
                            .clusters
                            .extend(clusters.iter().map(|(name, _)| name.clone()));
                    }
                },
                Network::Close => {}
            }
        }
        refers
    }

    fn add_table(&mut self, table: &RouteTable) {
        let routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
        for route in routes {
            let RouteAction::Forward(forward) = &route.action else {
                continue;
            };
            match &forward.cluster {
                ClusterTarget::One(name) => {
                    self.clusters.insert(name.clone());
                }
                ClusterTarget::Weighted(weighted) => {
                    self.clusters.extend(weighted.clusters.iter().filter_map(
                        |c| match &c.target {
                            ClusterName::Name(name) => Some(name.clone()),
                            ClusterName::Header(_) => None,
                        },
                    ));
                }
                ClusterTarget::Header(_) => {}
            }
        }
    }
}
