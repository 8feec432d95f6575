//! Where clients are told to speak with or without mutual TLS and servers take only the other.

use lateen_api::destination_rule::{ClientTlsMode, ClientTlsSettings, TrafficPolicy};
use lateen_model::{DestinationRule, MeshSnapshot, MtlsMode, Service, ServicePort, TargetPort};

use crate::{Finding, Level, Subject};

/// What DestinationRules and PeerAuthentications say against each other (IST0113).
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let rules = snapshot.destination_rules();
    rules.flat_map(|rule| conflicts(snapshot, rule)).collect()
}

/// The same of one rule.
pub fn of(snapshot: &MeshSnapshot, subject: &Subject) -> Vec<Finding> {
    let its = |rule: &DestinationRule| {
        let mut origins = rule.origins.iter();
        origins.any(|o| o.name == subject.name && o.namespace == subject.namespace)
    };
    let rules = snapshot.destination_rules().filter(|rule| its(rule));
    rules.flat_map(|rule| conflicts(snapshot, rule)).collect()
}

fn conflicts(snapshot: &MeshSnapshot, rule: &DestinationRule) -> Vec<Finding> {
    let (Some(policy), Some(origin)) = (&rule.traffic_policy, rule.origins.first()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for service in snapshot.services_like(&rule.host) {
        let ports = service.ports.iter();
        let conflict = ports
            .filter_map(|port| Some((port, tls(policy, port.number)?)))
            .find_map(|(port, (tls, path))| {
                let mutual = tls.mode == Some(ClientTlsMode::IstioMutual);
                let taken = refused(snapshot, service, port, tls)?;
                Some((mutual, taken, path))
            });
        let Some((mutual, taken, path)) = conflict else {
            continue;
        };
        found.push(Finding {
            code: "IST0113",
            level: Level::Error,
            subject: Subject {
                kind: "DestinationRule",
                namespace: origin.namespace.clone(),
                name: origin.name.clone(),
            },
            message: format!(
                "A DestinationRule and Policy are in conflict with regards to mTLS for host {}. \
                 The DestinationRule \"{}/{}\" specifies that mTLS must be {mutual} but the \
                 PeerAuthentication of its workloads specifies {taken}.",
                service.hostname, origin.namespace, origin.name
            ),
            path,
        });
    }
    found
}

/// What holds for a port, and where it stands.
fn tls(policy: &TrafficPolicy, port: u32) -> Option<(&ClientTlsSettings, String)> {
    let mut own = policy.port_level_settings.iter().enumerate();
    let own = own.find(|(_, one)| one.port.as_ref().is_some_and(|p| p.number == port));
    match own {
        Some((index, one)) => {
            let path = format!("spec.trafficPolicy.portLevelSettings[{index}].tls");
            Some((one.tls.as_ref()?, path))
        }
        None => Some((policy.tls.as_ref()?, "spec.trafficPolicy.tls".to_string())),
    }
}

/// The mode of the first endpoint that refuses such connections.
fn refused(
    snapshot: &MeshSnapshot,
    service: &Service,
    port: &ServicePort,
    tls: &ClientTlsSettings,
) -> Option<&'static str> {
    let target = match port.target {
        TargetPort::Number(number) => Some(number),
        TargetPort::Name(_) => None,
    };
    let endpoints = snapshot.endpoints(&service.hostname);
    let mut modes = endpoints.of_port(port.number).iter().map(|one| {
        let rules = snapshot.mtls_in(&one.workload.namespace);
        let mtls = rules.of_workload(&one.workload.labels);
        mtls.of_port(std::iter::once(one.port).chain(target))
    });
    modes.find_map(|mode| match (tls.mode.unwrap_or_default(), mode) {
        (ClientTlsMode::Disable, MtlsMode::Strict) => Some("STRICT"),
        (ClientTlsMode::IstioMutual, MtlsMode::Disable) => Some("DISABLE"),
        _ => None,
    })
}
