//! What the mesh knows of a service and of the endpoints behind it, whatever kind of object it
//! came from (a Kubernetes Service or a ServiceEntry).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::protocol::Protocol;
use crate::proxy::Proxy;
use crate::visibility::Visibility;

/// How the endpoints of a service are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The control plane sends them (EDS).
    Endpoints,
    /// The proxy resolves names: every address is an endpoint.
    Dns,
    /// The proxy resolves a name and uses one address at a time.
    DnsRoundRobin,
    /// The proxy resolves the host that a request names (wildcard hosts).
    ByRequest,
    /// The connection goes where the client was going.
    None,
}

/// Whether a service is part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    Internal,
    External,
}

/// Which kind of object a service came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    Kubernetes,
    ServiceEntry,
}

/// Where a service port leads on a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    Number(u32),
    /// The name of a port of the workload.
    Name(String),
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub number: u32,
    pub name: String,
    pub protocol: Protocol,
    pub target: TargetPort,
}

/// A service, without its endpoints: those change far more often.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Fully qualified, lower case; the key of the registry.
    pub hostname: Arc<str>,
    /// Name of the object.
    pub name: String,
    pub namespace: String,
    pub source: Source,
    pub ports: Vec<ServicePort>,
    /// Virtual addresses or CIDRs.
    pub addresses: Vec<String>,
    /// Virtual addresses the mesh chose because there are no others (SE-06). Only proxies that
    /// resolve names through the mesh meet them: see [`Service::addresses_for`].
    pub auto_addresses: Vec<String>,
    pub resolution: Resolution,
    pub location: Location,
    pub visibility: Visibility,
    /// Other names that it has: hosts of the Services of type ExternalName that lead to it.
    pub aliases: Vec<Arc<str>>,
    /// Labels that select workloads; empty selects none.
    pub selector: BTreeMap<String, String>,
    /// RFC 3339; older objects win.
    pub created: String,
    /// Names to resolve and ports, for [`Resolution::Dns`] and [`Resolution::DnsRoundRobin`], and
    /// for [`Resolution::None`] where nothing else says where a client was going.
    pub dns_targets: Vec<DnsTarget>,
    /// Names that its endpoints may prove themselves with, beside those of their accounts.
    pub subject_alt_names: Vec<String>,
    /// Pods that are not ready, or about to end, are endpoints like the others.
    pub publish_not_ready: bool,
}

/// A name (or address) that a proxy resolves, with the port for each service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsTarget {
    pub address: String,
    /// Service port name to target port where it differs from the service's.
    pub ports: BTreeMap<String, u32>,
    pub weight: u32,
    pub labels: BTreeMap<String, String>,
    pub locality: Locality,
}

impl Service {
    /// The virtual addresses that clients of this proxy connect to.
    pub fn addresses_for(&self, proxy: &Proxy) -> &[String] {
        match proxy.dns_capture && self.addresses.is_empty() {
            true => self.auto_addresses_of(proxy.address.contains(':')),
            false => &self.addresses,
        }
    }

    /// The address the mesh chose, of one family: a client could not connect to the other.
    pub fn auto_addresses_of(&self, is_ipv6: bool) -> &[String] {
        let own = |address: &String| address.contains(':') == is_ipv6;
        let first = self.auto_addresses.iter().position(own);
        first.map_or(&[], |at| std::slice::from_ref(&self.auto_addresses[at]))
    }

    /// A Kubernetes Service without a virtual address: its name stands for its endpoints.
    pub fn is_headless(&self) -> bool {
        self.source == Source::Kubernetes && self.addresses.is_empty()
    }

    /// The port with this number.
    pub fn port(&self, number: u32) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// Where an endpoint runs, for locality-aware balancing. Empty parts are unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub subzone: String,
}

impl Locality {
    /// From `region/zone/subzone`; later parts may be missing (fact 38).
    pub fn parse(text: &str) -> Locality {
        let mut parts = text.splitn(3, '/').map(str::to_string);
        Locality {
            region: parts.next().unwrap_or_default(),
            zone: parts.next().unwrap_or_default(),
            subzone: parts.next().unwrap_or_default(),
        }
    }
}

/// Which kind of object a workload came from. Where both have one of a name, the pod is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkloadKind {
    Pod,
    /// A WorkloadEntry, or an inline endpoint of a ServiceEntry.
    Entry,
    /// An endpoint of an EndpointSlice or Endpoints. Its ports have the names of the Service's.
    Slice,
}

/// A place where workload code runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    pub kind: WorkloadKind,
    pub name: String,
    pub namespace: String,
    pub address: String,
    /// Port name to number.
    pub ports: BTreeMap<String, u32>,
    pub labels: BTreeMap<String, String>,
    pub locality: Locality,
    /// Relative share of traffic; at least 1.
    pub weight: u32,
    pub service_account: String,
    /// False takes it out of balancing without forgetting it.
    pub healthy: bool,
    /// Its name and the Service below which it has that name (`db-0`, `db`), if it has one.
    pub dns_name: Option<(String, String)>,
}

impl Workload {
    /// The workload port behind a port of a service. An EndpointSlice says it for the port's name, or
    /// there is none. A Service over pods names a port of their
    /// containers or gives its number, and a pod without a port of that name has none. All else is
    /// resolved as Istio resolves WorkloadEntry ports: by target name or number, else by the name or
    /// number of the service port itself.
    pub fn port_for(&self, service: &Service, port: &ServicePort) -> Option<u32> {
        if self.kind == WorkloadKind::Slice {
            return self.ports.get(&port.name).copied();
        }
        if self.kind == WorkloadKind::Pod && service.source == Source::Kubernetes {
            return match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => self.ports.get(name).copied(),
            };
        }
        if let Some(number) = self.ports.get(&port.name) {
            return Some(*number);
        }
        Some(match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => self.ports.get(name).copied().unwrap_or(port.number),
        })
    }
}

/// One endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub port: u32,
    /// Whether it gets traffic: its workload is healthy, or the service takes it all the same.
    pub ready: bool,
}

/// The endpoints of one service, by service port number. Immutable; its identity changes exactly
/// when its content does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ServiceEndpoints {
    pub by_port: BTreeMap<u32, Vec<Endpoint>>,
    /// Namespaces and names of the service accounts they run under.
    pub accounts: BTreeSet<(String, String)>,
    /// Whether there are some, and all take mutual TLS.
    pub all_take_mtls: bool,
}

impl ServiceEndpoints {
    /// Endpoints of a service port.
    pub fn of_port(&self, port: u32) -> &[Endpoint] {
        self.by_port
            .get(&port)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

/// Whether `labels` has every pair of `selector`. An empty selector selects everything.
pub fn labels_match(
    selector: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
