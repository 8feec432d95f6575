//! Ports whose protocol nobody declared, and TCP services without an address to tell them apart.

use lateen_model::{MeshSnapshot, Protocol, Resolution, Service, Source, TargetPort};

use crate::{Finding, Level, Subject};

/// Findings of all Services and ServiceEntries.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    snapshot
        .services()
        .flat_map(|service| of_service(service))
        .collect()
}

/// Findings of one; a ServiceEntry is several services.
pub fn of(snapshot: &MeshSnapshot, wanted: &Subject) -> Vec<Finding> {
    let own =
        |service: &Service| service.name == wanted.name && service.namespace == wanted.namespace;
    let services = snapshot.services().filter(|service| own(service));
    services.flat_map(|service| of_service(service)).collect()
}

fn of_service(service: &Service) -> Vec<Finding> {
    match service.source {
        Source::Kubernetes => undeclared_ports(service).collect(),
        Source::ServiceEntry => addresses_required(service).collect(),
    }
}

fn subject(service: &Service, kind: &'static str) -> Subject {
    Subject {
        kind,
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    }
}

fn undeclared_ports(service: &Service) -> impl Iterator<Item = Finding> {
    let ports = service.ports.iter().enumerate();
    let undeclared = ports.filter(|(_, port)| port.protocol == Protocol::Undeclared);
    undeclared.map(|(index, port)| {
        let target = match &port.target {
            TargetPort::Number(number) => number.to_string(),
            TargetPort::Name(name) => name.clone(),
        };
        Finding {
            code: "IST0118",
            level: Level::Info,
            subject: subject(service, "Service"),
            message: format!(
                "Port name {} (port: {}, targetPort: {target}) doesn't follow the naming convention of Istio port.",
                port.name, port.number
            ),
            path: format!("spec.ports[{index}].name"),
        }
    })
}

/// Services that get an address of their own (everything but resolution NONE and wildcard hosts)
/// can be told apart without one that is written down.
fn addresses_required(service: &Service) -> impl Iterator<Item = Finding> {
    let told_apart = !service.addresses.is_empty()
        || (service.resolution != Resolution::None && !service.hostname.starts_with('*'));
    let ports = service.ports.iter().enumerate();
    let tcp = ports.filter(move |(_, port)| !told_apart && port.protocol == Protocol::Tcp);
    tcp.map(|(index, _)| Finding {
        code: "IST0134",
        level: Level::Warning,
        subject: subject(service, "ServiceEntry"),
        message: "ServiceEntry addresses are required for this protocol.".to_string(),
        path: format!("spec.ports[{index}].protocol"),
    })
}
