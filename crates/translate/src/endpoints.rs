//! Endpoints of one cluster (EDS, or inline for DNS clusters).

use std::collections::BTreeMap;
use std::net::IpAddr;

use lateen_model::{
    DnsTarget, Endpoint, Locality, Service, ServiceEndpoints, ServicePort, Workload, labels_match,
};

use crate::auto_mtls;
use crate::envoy::{self, core, endpoint};
use crate::locality::{self, Placement};

/// Largest weight Envoy takes for one endpoint or locality.
const MAX_WEIGHT: u32 = 128;

/// The endpoints of a service port whose workloads carry `labels` (fact 28: no fallback to others).
/// Those at the positions `plain` take no mutual TLS, whatever their workloads say.
pub fn load_assignment(
    cluster: &str,
    endpoints: &ServiceEndpoints,
    port: u32,
    labels: &BTreeMap<String, String>,
    (placement, plain): (&Placement, &[u32]),
) -> endpoint::ClusterLoadAssignment {
    let mut groups = Groups::new(placement);
    for (at, one) in (0..).zip(endpoints.of_port(port)) {
        let workload = &one.workload;
        if is_sent(one) && labels_match(labels, &workload.labels) {
            let mutual = workload.takes_mtls() && !plain.contains(&at);
            let made = lb_endpoint(one, mutual);
            groups.add(&workload.locality, &workload.labels, made);
        }
    }
    groups.finish(cluster)
}

/// An instance that is not ready is not sent at all (fact 40), nor one that is known by a name: a
/// proxy refuses all endpoints of the cluster for one that is no IP address.
fn is_sent(one: &Endpoint) -> bool {
    one.ready && one.workload.address.parse::<IpAddr>().is_ok()
}

/// Endpoints that are counted and not used: all alike, by locality.
pub fn plain_assignment<'a>(
    cluster: &str,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> endpoint::ClusterLoadAssignment {
    let mut groups = Groups::new(&Placement::Anywhere);
    for one in endpoints.filter(|one| is_sent(one)) {
        let made = endpoint::LbEndpoint {
            host_identifier: Some(host(&one.workload.address, one.port)),
            ..Default::default()
        };
        groups.add(&one.workload.locality, &one.workload.labels, made);
    }
    groups.finish(cluster)
}

/// The names a DNS cluster resolves.
pub fn dns_assignment(
    cluster: &str,
    service: &Service,
    port: &ServicePort,
    labels: &BTreeMap<String, String>,
    placement: &Placement,
) -> endpoint::ClusterLoadAssignment {
    let mut groups = Groups::new(placement);
    for target in service
        .dns_targets
        .iter()
        .filter(|t| labels_match(labels, &t.labels))
    {
        groups.add(&target.locality, &target.labels, dns_endpoint(target, port));
    }
    groups.finish(cluster)
}

/// Endpoints by distance from the client and locality.
struct Groups<'a> {
    placement: &'a Placement,
    groups: BTreeMap<(u32, &'a Locality), Vec<endpoint::LbEndpoint>>,
}

impl<'a> Groups<'a> {
    fn new(placement: &'a Placement) -> Groups<'a> {
        Groups {
            placement,
            groups: BTreeMap::new(),
        }
    }

    fn add(
        &mut self,
        locality: &'a Locality,
        labels: &BTreeMap<String, String>,
        one: endpoint::LbEndpoint,
    ) {
        let distance = match self.placement {
            Placement::Failover(failover) => failover.distance_of(locality, labels),
            Placement::Anywhere | Placement::Distribute(_) => 0,
        };
        self.groups
            .entry((distance, locality))
            .or_default()
            .push(one);
    }

    /// Priorities are the distances without their gaps (fact 37).
    fn finish(self, cluster: &str) -> endpoint::ClusterLoadAssignment {
        let mut made: Vec<endpoint::LocalityLbEndpoints> = Vec::new();
        let (mut priority, mut last) = (0, None);
        for ((distance, locality), endpoints) in self.groups {
            if last.is_some_and(|last| last != distance) {
                priority += 1;
            }
            last = Some(distance);
            let mut group = locality_endpoints(locality, endpoints);
            group.priority = priority;
            made.push(group);
        }
        if let Placement::Distribute(to) = self.placement {
            distribute(&mut made, to);
        }
        endpoint::ClusterLoadAssignment {
            cluster_name: cluster.to_string(),
            endpoints: made,
            ..Default::default()
        }
    }
}

/// Each pattern's share goes to the localities it matches, by their own weights; localities that
/// match none get nothing.
fn distribute(localities: &mut Vec<endpoint::LocalityLbEndpoints>, to: &[(String, u32)]) {
    let mut taken = vec![false; localities.len()];
    for (pattern, share) in to {
        let of_pattern: Vec<usize> = (0..localities.len())
            .filter(|at| !taken[*at] && locality::matches(&locality_of(&localities[*at]), pattern))
            .collect();
        let weight = |at: usize| localities[at].load_balancing_weight.map_or(1, |w| w.value);
        let weights: Vec<u32> = of_pattern.iter().map(|at| weight(*at)).collect();
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (at, own) in of_pattern.into_iter().zip(weights) {
            taken[at] = true;
            let part = f64::from(own) * f64::from(*share) / total.max(1.0);
            localities[at].load_balancing_weight = envoy::u32_value(part.ceil() as u32);
        }
    }
    let mut taken = taken.into_iter();
    localities.retain(|_| taken.next() == Some(true));
}

fn locality_of(group: &endpoint::LocalityLbEndpoints) -> Locality {
    let place = group.locality.clone().unwrap_or_default();
    Locality {
        region: place.region,
        zone: place.zone,
        subzone: place.sub_zone,
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

fn lb_endpoint(one: &Endpoint, mutual: bool) -> endpoint::LbEndpoint {
    let mut metadata = envoy::metadata("istio", &[("workload", identity(&one.workload))]);
    if mutual {
        let says = auto_mtls::endpoint_metadata().filter_metadata;
        metadata.filter_metadata.extend(says);
    }
    endpoint::LbEndpoint {
        host_identifier: Some(host(&one.workload.address, one.port)),
        load_balancing_weight: envoy::u32_value(one.workload.weight.clamp(1, MAX_WEIGHT)),
        metadata: Some(metadata),
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
        metadata: lateen_model::takes_mtls(&target.labels).then(auto_mtls::endpoint_metadata),
        ..Default::default()
    }
}

fn host(address: &str, port: u32) -> endpoint::lb_endpoint::HostIdentifier {
    endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
        address: Some(envoy::address(address, port)),
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
