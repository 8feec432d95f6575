//! Objects to services and workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api as api;
use lateen_api::Object;

use crate::hostname;
use crate::protocol::Protocol;
use crate::rules::Origin;
use crate::service::{
    DnsTarget, Endpoint, Locality, Location, Resolution, Service, ServiceEndpoints, ServicePort,
    Source, TargetPort, Workload, WorkloadKind, labels_match,
};
use crate::settings::MeshSettings;
use crate::slices::Slice;
use crate::visibility::Visibility;

/// Name, namespace and age of an object. An object without a namespace counts as of `default`.
pub fn origin(object: &Object) -> Origin {
    let namespace = match object.meta.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    Origin {
        created: object
            .meta
            .creation_timestamp
            .map(|t| format!("{:020}", t.unix_timestamp()))
            .unwrap_or_default(),
        name: object.meta.name.clone(),
        namespace: namespace.to_string(),
    }
}

/// A service that a Kubernetes Service or ServiceEntry stands for, with the endpoints that are
/// written in the object itself.
#[derive(Debug)]
pub struct Registered {
    pub service: Service,
    pub inline: Vec<Arc<Workload>>,
}

/// The host of a Service of type ExternalName, and the one that it is another name of.
pub fn alias(
    origin: &Origin,
    spec: &api::Service,
    mesh: &MeshSettings,
) -> Option<(Arc<str>, Arc<str>)> {
    let is_alias = spec.service_type == Some(api::kubernetes::ServiceType::ExternalName);
    let target = spec
        .external_name
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let host = hostname::resolve(&origin.name, &origin.namespace, &mesh.domain_suffix);
    is_alias.then(|| (Arc::from(host), Arc::from(target)))
}

/// A Kubernetes Service, which is no alias.
pub fn kubernetes_service(origin: &Origin, spec: &api::Service, mesh: &MeshSettings) -> Registered {
    let hostname = hostname::resolve(&origin.name, &origin.namespace, &mesh.domain_suffix);
    let ports = spec.ports.iter().map(|port| ServicePort {
        number: port.port,
        name: port.name.clone(),
        protocol: Protocol::of_service_port(
            Some(port.app_protocol.as_str()).filter(|text| !text.is_empty()),
            &port.name,
            if port.protocol == Some(api::kubernetes::TransportProtocol::Udp) {
                "UDP"
            } else {
                "TCP"
            },
            port.port,
        ),
        target: match &port.target_port {
            None => TargetPort::Number(port.port),
            Some(api::IntOrString::Int(number)) => {
                TargetPort::Number(u32::try_from(*number).unwrap_or(port.port))
            }
            Some(api::IntOrString::String(name)) => TargetPort::Name(name.clone()),
        },
    });
    let addresses = std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips);
    let mut addresses: Vec<String> = addresses
        .filter(|ip| !ip.is_empty() && *ip != "None")
        .cloned()
        .collect();
    addresses.dedup();
    Registered {
        service: Service {
            hostname: Arc::from(hostname),
            name: origin.name.clone(),
            namespace: origin.namespace.clone(),
            source: Source::Kubernetes,
            ports: ports.collect(),
            addresses,
            auto_addresses: Vec::new(),
            aliases: Vec::new(),
            resolution: Resolution::Endpoints,
            location: Location::Internal,
            visibility: Visibility::with_default(&[], &mesh.service_export_to, &origin.namespace),
            selector: spec.selector.clone(),
            created: origin.created.clone(),
            dns_targets: Vec::new(),
            subject_alt_names: Vec::new(),
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        },
        inline: Vec::new(),
    }
}

/// The services of a ServiceEntry, one for each of its hosts.
pub fn service_entry(
    origin: &Origin,
    spec: &api::ServiceEntry,
    mesh: &MeshSettings,
) -> Vec<Registered> {
    use api::service_entry::{Location as ApiLocation, Resolution as ApiResolution};
    let resolution = match spec.resolution.unwrap_or_default() {
        ApiResolution::None => Resolution::None,
        ApiResolution::DynamicDns => Resolution::ByRequest,
        ApiResolution::Static => Resolution::Endpoints,
        ApiResolution::Dns => Resolution::Dns,
        ApiResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
    };
    let ports = spec.ports.iter().map(|port| ServicePort {
        number: port.number,
        name: port.name.clone(),
        protocol: Protocol::parse(&port.protocol).unwrap_or(Protocol::Tcp),
        target: TargetPort::Number(port.target_port.unwrap_or(port.number)),
    });
    let ports: Vec<ServicePort> = ports.collect();
    let inline: Vec<Arc<Workload>> = match resolution {
        Resolution::Endpoints | Resolution::None => inline_workloads(origin, spec),
        _ => Vec::new(),
    };
    let entries = spec.hosts.iter().map(|host| Registered {
        service: Service {
            hostname: Arc::from(host.to_ascii_lowercase()),
            name: origin.name.clone(),
            namespace: origin.namespace.clone(),
            source: Source::ServiceEntry,
            ports: ports.clone(),
            addresses: spec.addresses.clone(),
            auto_addresses: Vec::new(),
            aliases: Vec::new(),
            resolution,
            location: match spec.location.unwrap_or_default() {
                ApiLocation::MeshExternal => Location::External,
                ApiLocation::MeshInternal => Location::Internal,
            },
            visibility: Visibility::with_default(
                &spec.export_to,
                &mesh.service_export_to,
                &origin.namespace,
            ),
            selector: spec
                .workload_selector
                .as_ref()
                .map(|s| s.labels.clone())
                .unwrap_or_default(),
            created: origin.created.clone(),
            dns_targets: dns_targets(host, spec, resolution),
            subject_alt_names: spec.subject_alt_names.clone(),
            publish_not_ready: false,
        },
        inline: inline.clone(),
    });
    entries.collect()
}

fn inline_workloads(origin: &Origin, spec: &api::ServiceEntry) -> Vec<Arc<Workload>> {
    let named = spec.endpoints.iter().enumerate();
    named
        .map(|(index, entry)| {
            let name = format!("{}-{index}", origin.name);
            Arc::new(workload(
                &name,
                &origin.namespace,
                &BTreeMap::new(),
                entry,
                true,
            ))
        })
        .collect()
}

/// What a DNS service resolves: its endpoints, or its own host when it has none.
fn dns_targets(host: &str, spec: &api::ServiceEntry, resolution: Resolution) -> Vec<DnsTarget> {
    let by_name = match resolution {
        Resolution::Dns | Resolution::DnsRoundRobin => true,
        // A host that a client names has an address of its own.
        Resolution::None => spec.endpoints.is_empty() && !host.starts_with('*'),
        Resolution::Endpoints | Resolution::ByRequest => false,
    };
    if !by_name {
        return Vec::new();
    }
    if spec.endpoints.is_empty() {
        return vec![DnsTarget {
            address: host.to_ascii_lowercase(),
            ports: BTreeMap::new(),
            weight: 1,
            labels: BTreeMap::new(),
            locality: Locality::default(),
        }];
    }
    let targets = spec.endpoints.iter().map(|entry| DnsTarget {
        address: entry.address.clone(),
        ports: entry.ports.clone(),
        weight: entry.weight.unwrap_or(1).max(1),
        labels: entry.labels.clone(),
        locality: Locality::parse(&entry.locality),
    });
    targets.collect()
}

/// The workload of a WorkloadEntry object.
pub fn workload_entry(origin: &Origin, object: &Object, spec: &api::WorkloadEntry) -> Workload {
    workload(
        &origin.name,
        &origin.namespace,
        &object.meta.labels,
        spec,
        is_healthy(object),
    )
}

fn workload(
    name: &str,
    namespace: &str,
    object_labels: &BTreeMap<String, String>,
    entry: &api::WorkloadEntry,
    healthy: bool,
) -> Workload {
    // Labels of the object count as well as those of the entry, which win (as in Istio).
    let mut labels = object_labels.clone();
    labels.extend(entry.labels.clone());
    Workload {
        kind: WorkloadKind::Entry,
        name: name.to_string(),
        namespace: namespace.to_string(),
        address: entry.address.clone(),
        ports: entry.ports.clone(),
        labels,
        locality: Locality::parse(&entry.locality),
        weight: entry.weight.unwrap_or(1).max(1),
        service_account: entry.service_account.clone(),
        healthy,
        dns_name: None,
    }
}

/// A WorkloadEntry is out of service when its condition `Healthy` is `False`.
fn is_healthy(object: &Object) -> bool {
    let conditions = object
        .status
        .as_ref()
        .and_then(|status| status.get("conditions"))
        .and_then(|c| c.as_array());
    !conditions.into_iter().flatten().any(|condition| {
        condition.get("type").and_then(|t| t.as_str()) == Some("Healthy")
            && condition.get("status").and_then(|s| s.as_str()) == Some("False")
    })
}

/// The workload of a Pod; `None` when it has run to its end.
pub fn pod(origin: &Origin, object: &Object, spec: &api::Pod) -> Option<Workload> {
    let status = api::PodStatus::of(object.status.as_ref());
    if status.is_finished() {
        return None;
    }
    let labels = &object.meta.labels;
    let named = |of: &'_ api::pod::ContainerPort| {
        let is_tcp = of.protocol.unwrap_or_default() == api::kubernetes::TransportProtocol::Tcp;
        is_tcp && !of.name.is_empty()
    };
    let mut ports = BTreeMap::new();
    for port in spec.running().flat_map(|one| &one.ports) {
        if named(port) {
            // Of several with a name the first counts, as in Kubernetes.
            ports
                .entry(port.name.clone())
                .or_insert(port.container_port);
        }
    }
    let dns_name = (!spec.spec.hostname.is_empty() && !spec.spec.subdomain.is_empty())
        .then(|| (spec.spec.hostname.clone(), spec.spec.subdomain.clone()));
    Some(Workload {
        kind: WorkloadKind::Pod,
        name: origin.name.clone(),
        namespace: origin.namespace.clone(),
        address: status.address().to_string(),
        ports,
        labels: labels.clone(),
        locality: Locality::parse(&pod_locality(labels)),
        weight: 1,
        service_account: spec.service_account().to_string(),
        healthy: status.is_ready() && object.meta.deletion_timestamp.is_none(),
        dns_name,
    })
}

/// `region/zone/subzone` as a label of the pod says it: values of labels have no `/`, so that people
/// write `.` (Istio's `GetLocalityLabel`).
fn pod_locality(labels: &BTreeMap<String, String>) -> String {
    let mut given = ["topology.istio.io/locality", "istio-locality"].into_iter();
    let given = given.find_map(|label| labels.get(label));
    given.map_or_else(String::new, |text| match text.contains('/') {
        true => text.clone(),
        false => text.replace('.', "/"),
    })
}

/// The endpoints of a service: those written in its object, the workloads of its namespace that its
/// selector picks (a Service and a ServiceEntry alike), and those that slices give it.
pub fn endpoints(
    registered: &Registered,
    workloads_of_namespace: &[Arc<Workload>],
    slices: &[Arc<Slice>],
) -> ServiceEndpoints {
    let service = &registered.service;
    if matches!(
        service.resolution,
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::ByRequest
    ) {
        return ServiceEndpoints::default();
    }
    let selected = workloads_of_namespace.iter().filter(|workload| {
        !service.selector.is_empty()
            && labels_match(&service.selector, &workload.labels)
            // A pod that runs nowhere yet.
            && !workload.address.is_empty()
    });
    // Several slices, or one and a pod, may have the same place: then the first counts, and of slices
    // the one that is ready.
    let sliced = |ready: bool| {
        let all = slices.iter().flat_map(|slice| slice.endpoints_for(service));
        all.filter(move |workload| workload.healthy == ready)
    };
    let all = registered.inline.iter().chain(selected);
    let all = all.chain(sliced(true)).chain(sliced(false));
    let all: Vec<&Arc<Workload>> = all.collect();
    let by_port = service.ports.iter().map(|port| {
        let mut places = BTreeSet::new();
        let endpoints = all.iter().filter_map(|workload| {
            let published = service.publish_not_ready && workload.kind == WorkloadKind::Pod;
            let number = workload.port_for(service, port)?;
            let again = !places.insert((&*workload.address, number));
            (!again || workload.kind != WorkloadKind::Slice).then(|| Endpoint {
                workload: (*workload).clone(),
                port: number,
                ready: workload.healthy || published,
            })
        });
        (port.number, endpoints.collect())
    });
    let accounts = all.iter().filter(|one| !one.service_account.is_empty());
    ServiceEndpoints {
        by_port: by_port.collect(),
        accounts: accounts
            .map(|one| (one.namespace.clone(), one.service_account.clone()))
            .collect(),
        all_take_mtls: !all.is_empty() && all.iter().all(|one| one.takes_mtls()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_runs_where_its_label_says() {
        let check = |label: &str, value: &str, expect: [&str; 3]| {
            let labels = BTreeMap::from([(label.to_string(), value.to_string())]);
            let got = Locality::parse(&pod_locality(&labels));
            assert_eq!([&*got.region, &*got.zone, &*got.subzone], expect, "{value}");
        };
        check("istio-locality", "eu.eu-1.a", ["eu", "eu-1", "a"]);
        check("topology.istio.io/locality", "eu.eu-1", ["eu", "eu-1", ""]);
        check("topology.istio.io/locality", "a.b/c", ["a.b", "c", ""]);
        check("locality", "eu", ["", "", ""]);
    }
}
