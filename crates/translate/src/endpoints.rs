//! Endpoints of one cluster (EDS, or inline for DNS clusters).

use std::collections::BTreeMap;
use std::net::IpAddr;

use lateen_model::{
    DnsTarget, Endpoint, Locality, Service, ServiceEndpoints, ServicePort, Workload, labels_match,
};

use crate::envoy::{self, core, endpoint};

/// Largest weight Envoy takes for one endpoint or locality.
const MAX_WEIGHT: u32 = 128;

/// The endpoints of a service port whose workloads carry `labels` (fact 28: no fallback to others).
pub fn load_assignment(
    cluster: &str,
    endpoints: &ServiceEndpoints,
    port: u32,
    labels: &BTreeMap<String, String>,
) -> endpoint::ClusterLoadAssignment {
    let mut localities: BTreeMap<&Locality, Vec<endpoint::LbEndpoint>> = BTreeMap::new();
    for one in endpoints.of_port(port) {
        // An instance that is not ready is not sent at all (fact 40), nor one that is known by a
        // name: a proxy refuses all endpoints of the cluster for one that is no IP address.
        let reachable = one.workload.address.parse::<IpAddr>().is_ok();
        if one.workload.healthy && reachable && labels_match(labels, &one.workload.labels) {
            localities
                .entry(&one.workload.locality)
                .or_default()
                .push(lb_endpoint(one));
        }
    }
    let endpoints = localities
        .into_iter()
        .map(|(locality, group)| locality_endpoints(locality, group));
    endpoint::ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: endpoints.collect(),
        ..Default::default()
    }
}

/// The names a DNS cluster resolves.
pub fn dns_assignment(
    cluster: &str,
    service: &Service,
    port: &ServicePort,
    labels: &BTreeMap<String, String>,
) -> endpoint::ClusterLoadAssignment {
    let mut localities: BTreeMap<&Locality, Vec<endpoint::LbEndpoint>> = BTreeMap::new();
    for target in service
        .dns_targets
        .iter()
        .filter(|t| labels_match(labels, &t.labels))
    {
        localities
            .entry(&target.locality)
            .or_default()
            .push(dns_endpoint(target, port));
    }
    let endpoints = localities
        .into_iter()
        .map(|(locality, group)| locality_endpoints(locality, group));
    endpoint::ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: endpoints.collect(),
        ..Default::default()
    }
}

/// One fixed address: the application behind a sidecar.
pub fn static_assignment(
    cluster: &str,
    address: &str,
    port: u32,
) -> endpoint::ClusterLoadAssignment {
    let one = endpoint::LbEndpoint {
        host_identifier: Some(host(address, port)),
        ..Default::default()
    };
    endpoint::ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![one],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn locality_endpoints(
    locality: &Locality,
    lb_endpoints: Vec<endpoint::LbEndpoint>,
) -> endpoint::LocalityLbEndpoints {
    let weight = lb_endpoints
        .iter()
        .filter_map(|one| one.load_balancing_weight.map(|w| w.value))
        .fold(0u32, u32::saturating_add);
    endpoint::LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.subzone.clone(),
        }),
        lb_endpoints,
        load_balancing_weight: envoy::u32_value(weight.max(1)),
        ..Default::default()
    }
}

fn lb_endpoint(one: &Endpoint) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        host_identifier: Some(host(&one.workload.address, one.port)),
        load_balancing_weight: envoy::u32_value(one.workload.weight.clamp(1, MAX_WEIGHT)),
        metadata: Some(envoy::metadata(
            "istio",
            &[("workload", identity(&one.workload))],
        )),
        ..Default::default()
    }
}

fn dns_endpoint(target: &DnsTarget, port: &ServicePort) -> endpoint::LbEndpoint {
    let number = target
        .ports
        .get(&port.name)
        .copied()
        .unwrap_or(match port.target {
            lateen_model::TargetPort::Number(number) => number,
            lateen_model::TargetPort::Name(_) => port.number,
        });
    endpoint::LbEndpoint {
        host_identifier: Some(host(&target.address, number)),
        load_balancing_weight: envoy::u32_value(target.weight.clamp(1, MAX_WEIGHT)),
        ..Default::default()
    }
}

fn host(address: &str, port: u32) -> endpoint::lb_endpoint::HostIdentifier {
    endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
        address: Some(envoy::socket_address(address, port)),
        ..Default::default()
    })
}

/// `workload;namespace;canonical name;canonical revision;cluster`, which Istio's metrics read.
fn identity(workload: &Workload) -> String {
    let label = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| workload.labels.get(*key))
            .map(String::as_str)
    };
    let name = label(&[
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ]);
    let revision = label(&[
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);
    format!(
        "{};{};{};{};Kubernetes",
        workload.name,
        workload.namespace,
        name.unwrap_or(&workload.name),
        revision.unwrap_or("latest"),
    )
}
