//! Host names for the DNS server beside a proxy (NDS), as Istio's `pkg/dns/server` makes them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lateen_model::{
    MeshSnapshot, Proxy, Service, ServiceEndpoints, Source, Workload, WorkloadKind,
};
use lateen_proto::nds::{self, NameInfo, NameTable};

use crate::cache::ById;

/// The one resource of its type.
pub const NAME: &str = "NameTable";

/// Everything a name table is made of.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NameTableKey {
    /// Whether hosts without addresses of their own resolve to those the mesh chose, and of which
    /// family: IPv6 or not.
    auto: Option<bool>,
    /// Services that the proxy sees; those without a virtual address with their endpoints.
    services: Vec<(ById<Service>, Option<ById<ServiceEndpoints>>)>,
}

impl NameTableKey {
    pub fn new(snapshot: &MeshSnapshot, proxy: &Proxy) -> Self {
        let scope = snapshot.scope(proxy);
        let services = scope.services().map(|service| {
            let endpoints = service
                .is_headless()
                .then(|| ById(snapshot.endpoints(&service.hostname)));
            (ById(service.clone()), endpoints)
        });
        NameTableKey {
            auto: proxy.dns_capture.then(|| proxy.address.contains(':')),
            services: services.collect(),
        }
    }
}

/// The table. Names without any address are left out: somebody else may know them.
pub fn name_table(key: &NameTableKey) -> NameTable {
    let services = key.services.iter();
    let mut table = BTreeMap::<String, NameInfo>::new();
    for (service, endpoints) in services.clone() {
        let endpoints = endpoints.iter();
        let workloads = endpoints.flat_map(|endpoints| ready_workloads(service, endpoints));
        for (name, info) in workloads.filter_map(|workload| of_workload(service, workload)) {
            // Pods may share a name.
            let named = table.entry(name).or_insert_with(|| NameInfo {
                ips: Vec::new(),
                ..info.clone()
            });
            named.ips.extend(info.ips);
        }
    }
    let named = services.filter_map(|(service, endpoints)| {
        let ips = match endpoints {
            Some(endpoints) => ready_addresses(service, endpoints),
            None => virtual_addresses(service, key.auto),
        };
        if ips.is_empty() {
            return None;
        }
        let info = match service.source {
            Source::Kubernetes => NameInfo {
                ips,
                registry: nds::KUBERNETES.to_string(),
                shortname: service.name.clone(),
                namespace: service.namespace.clone(),
            },
            Source::ServiceEntry => NameInfo {
                ips,
                registry: nds::EXTERNAL.to_string(),
                ..Default::default()
            },
        };
        Some((service, info))
    });
    for (service, info) in named {
        for alias in &service.aliases {
            let mut parts = alias.split('.').map(str::to_string);
            let of_alias = NameInfo {
                ips: info.ips.clone(),
                registry: nds::KUBERNETES.to_string(),
                shortname: parts.next().unwrap_or_default(),
                namespace: parts.next().unwrap_or_default(),
            };
            table.entry(alias.to_string()).or_insert(of_alias);
        }
        table.insert(service.hostname.to_string(), info);
    }
    NameTable {
        table: table.into_iter().collect(),
    }
}

/// Without CIDRs, which no name can resolve to.
fn virtual_addresses(service: &Service, auto: Option<bool>) -> Vec<String> {
    let addresses = match auto {
        Some(is_ipv6) if service.addresses.is_empty() => service.auto_addresses_of(is_ipv6),
        _ => &service.addresses,
    };
    let ips = addresses.iter().filter(|text| is_ip(text));
    ips.cloned().collect()
}

/// `NAME.SERVICE.NAMESPACE.svc.SUFFIX`: one workload of a headless service, as the pods of a
/// StatefulSet are called. A pod says itself which name it has, and below which service.
fn of_workload(service: &Service, workload: &Workload) -> Option<(String, NameInfo)> {
    let name = match (workload.kind, &workload.dns_name) {
        (WorkloadKind::Entry, _) => &workload.name,
        (_, Some((name, below))) if *below == service.name => name,
        (WorkloadKind::Pod | WorkloadKind::Slice, _) => return None,
    };
    let info = NameInfo {
        ips: vec![workload.address.clone()],
        registry: nds::KUBERNETES.to_string(),
        shortname: format!("{name}.{}", service.name),
        namespace: service.namespace.clone(),
    };
    Some((format!("{name}.{}", service.hostname), info))
}

/// As Kubernetes answers for a headless service: the endpoints of its first port that are ready.
fn ready_workloads<'a>(
    service: &Service,
    endpoints: &'a ServiceEndpoints,
) -> impl Iterator<Item = &'a Workload> + use<'a> {
    let port = service.ports.first().map(|port| port.number);
    let all = port.map(|port| endpoints.of_port(port)).unwrap_or_default();
    let ready = all.iter().filter(|endpoint| endpoint.ready);
    let ready = ready.map(|endpoint| &*endpoint.workload);
    ready.filter(|workload| is_ip(&workload.address))
}

fn ready_addresses(service: &Service, endpoints: &ServiceEndpoints) -> Vec<String> {
    let mut ips: Vec<String> = Vec::new();
    for workload in ready_workloads(service, endpoints) {
        if !ips.contains(&workload.address) {
            ips.push(workload.address.clone());
        }
    }
    ips
}

fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}
