//! The endpoints of a cluster, by locality and priority.

use crate::{Address, HostPort, Metadata};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// One endpoint set (`envoy.config.endpoint.v3.ClusterLoadAssignment`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// The EDS name.
    pub cluster: Arc<str>,
    pub localities: Vec<LocalityEndpoints<Endpoint>>,
    /// Percent; 140 means a priority is full while 72 % of its endpoints are healthy.
    pub overprovisioning: u32,
}

impl EndpointSet {
    /// All endpoints, whatever their locality.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.localities.iter().flat_map(|l| &l.endpoints)
    }
}

/// The endpoints of one locality at one priority.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalityEndpoints<E> {
    pub locality: Arc<Locality>,
    /// 0 is used first.
    pub priority: u32,
    /// Share of this locality within its priority; [`None`] counts as no weight.
    pub weight: Option<u32>,
    pub endpoints: Vec<E>,
}

/// Where endpoints are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Box<str>,
    pub zone: Box<str>,
    pub sub_zone: Box<str>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: Address,
    pub health: HealthStatus,
    /// At least 1.
    pub weight: u32,
    /// For `auto_host_rewrite`; empty when unknown.
    pub hostname: Box<str>,
    pub metadata: Option<Arc<Metadata>>,
}

/// Health as the control plane sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

impl HealthStatus {
    /// Whether Envoy's load balancers count it as healthy.
    pub fn is_healthy(self) -> bool {
        matches!(self, HealthStatus::Unknown | HealthStatus::Healthy)
    }
}

/// Endpoints of a DNS cluster before their names are resolved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DnsHosts {
    pub cluster: Arc<str>,
    /// `Endpoint::address` is a placeholder in these; the name is beside it.
    pub localities: Vec<LocalityEndpoints<(HostPort, Endpoint)>>,
    pub overprovisioning: u32,
}

impl DnsHosts {
    /// Every distinct name to resolve.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = self
            .localities
            .iter()
            .flat_map(|l| l.endpoints.iter().map(|(h, _)| h.host.clone()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The endpoint set for the addresses each name resolved to.
    pub fn resolved(&self, addresses_of: impl Fn(&str) -> Vec<IpAddr>) -> EndpointSet {
        let localities = self
            .localities
            .iter()
            .map(|l| LocalityEndpoints {
                locality: l.locality.clone(),
                priority: l.priority,
                weight: l.weight,
                endpoints: l
                    .endpoints
                    .iter()
                    .flat_map(|(name, endpoint)| {
                        addresses_of(&name.host).into_iter().map(|ip| Endpoint {
                            address: Address::Socket(SocketAddr::new(ip, name.port)),
                            ..endpoint.clone()
                        })
                    })
                    .collect(),
            })
            .collect();
        EndpointSet {
            cluster: self.cluster.clone(),
            localities,
            overprovisioning: self.overprovisioning,
        }
    }
}
