//! Servers of Gateways that stand in each other's way, certificates that are not there, and `tls`
//! routes that nobody can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::gateway::{Server, ServerTlsMode, ServerTlsSettings};
use lateen_api::secret::AUTHORITY_SUFFIX;
use lateen_model::servers::{self, Conflict, Rejected, ServerKind};
use lateen_model::{
    Gateway, MESH_GATEWAY, MeshSnapshot, TargetPort, VirtualService, Workload, labels_match,
    resolve_gateway,
};

use crate::{Finding, Level, Subject, not_found};

/// Findings of the servers of all Gateways, and of the `tls` routes of all VirtualServices.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = conflicts(snapshot);
    for gateway in snapshot.gateways() {
        let workloads: Vec<_> = selected(snapshot, gateway).collect();
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            found.extend(credentials(snapshot, gateway, &workloads, index, server));
        }
    }
    for rule in snapshot.virtual_services() {
        found.extend(tls_routes(snapshot, rule));
    }
    found
}

/// Findings of the `tls` routes of one VirtualService.
pub fn tls_routes_of(snapshot: &MeshSnapshot, wanted: &Subject) -> Vec<Finding> {
    let mut rules = snapshot.virtual_services();
    let own = rules
        .find(|rule| rule.origin.name == wanted.name && rule.origin.namespace == wanted.namespace);
    own.map(|rule| tls_routes(snapshot, rule))
        .unwrap_or_default()
}

fn subject(gateway: &Gateway) -> Subject {
    Subject {
        kind: "Gateway",
        namespace: gateway.origin.namespace.clone(),
        name: gateway.origin.name.clone(),
    }
}

fn selected<'a>(
    snapshot: &'a MeshSnapshot,
    gateway: &'a Gateway,
) -> impl Iterator<Item = &'a Arc<Workload>> {
    let selector = &gateway.spec.selector;
    snapshot
        .workloads()
        .filter(move |workload| !selector.is_empty() && labels_match(selector, &workload.labels))
}

/// Servers that a gateway workload leaves out because an older Gateway has their port or hosts.
fn conflicts(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut by_workload: BTreeMap<(&str, &str), &Arc<Workload>> = BTreeMap::new();
    for gateway in snapshot.gateways() {
        for workload in selected(snapshot, gateway) {
            by_workload.insert((&workload.namespace, &workload.name), workload);
        }
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for workload in by_workload.into_values() {
        let gateways = snapshot.gateways_for(&workload.labels);
        let bound = |port| bound_port(snapshot, workload, port);
        for rejected in servers::merge(gateways, "0.0.0.0", bound).rejected {
            let one = &rejected.server;
            if seen.insert((one.gateway.full_name(), one.index)) {
                found.push(conflict(&rejected, workload));
            }
        }
    }
    found
}

fn conflict(rejected: &Rejected<'_>, workload: &Workload) -> Finding {
    let (one, (by, by_index)) = (&rejected.server, rejected.by);
    let why = match &rejected.why {
        Conflict::Protocol => "a port speaks either HTTP, or TCP, or TLS".to_owned(),
        Conflict::Hosts(hosts) => format!("the hosts {} are served already", hosts.join(", ")),
        Conflict::PortName => "two HTTPS servers have the same port name".to_owned(),
    };
    Finding {
        code: "IST0145",
        level: Level::Error,
        subject: subject(one.gateway),
        message: format!(
            "Conflict with gateways {} (workload {}/{}, port {}, hosts {}): {why}. servers[{by_index}] of {} wins, being older or first; this server is left out.",
            by.full_name(),
            workload.namespace,
            workload.name,
            one.port,
            one.server.hosts.join(","),
            by.full_name(),
        ),
        path: format!("spec.servers[{}]", one.index),
    }
}

fn bound_port(snapshot: &MeshSnapshot, workload: &Workload, port: u32) -> u32 {
    let found = snapshot
        .services_of(workload)
        .find_map(|service| service.port(port));
    match found.map(|port| (&port.target, port)) {
        None => port,
        Some((TargetPort::Number(number), _)) => *number,
        Some((TargetPort::Name(name), port)) => {
            workload.ports.get(name).copied().unwrap_or(port.number)
        }
    }
}

/// Credentials that the namespaces of the gateway's workloads do not hold, or that hold no
/// certificate.
fn credentials(
    snapshot: &MeshSnapshot,
    gateway: &Gateway,
    workloads: &[&Arc<Workload>],
    index: usize,
    server: &Server,
) -> Vec<Finding> {
    let Some(tls) = &server.tls else {
        return Vec::new();
    };
    let namespaces: BTreeSet<&str> = workloads.iter().map(|one| one.namespace.as_str()).collect();
    let mut found = Vec::new();
    for (name, field, authority) in names(tls) {
        if name.contains("://") {
            continue;
        }
        let path = format!("spec.servers[{index}].tls.{field}");
        for namespace in &namespaces {
            let plain = snapshot.secret(namespace, name);
            let other = format!("{name}{AUTHORITY_SUFFIX}");
            let of_authority = snapshot.secret(namespace, &other).or(plain);
            let secret = if authority { of_authority } else { plain };
            match secret {
                None => {
                    let mut missing =
                        not_found(&subject(gateway), "credentialName", name, path.clone());
                    missing.message += &format!(
                        "; the gateway reads Secrets of its own namespace, {namespace}. What it was given before keeps serving."
                    );
                    found.push(missing);
                }
                Some(secret) => {
                    let (usable, what) = match authority {
                        true => (secret.authorities.is_some(), "authority (ca.crt or cacert)"),
                        false => (
                            secret.pair.is_some(),
                            "certificate with its key (tls.crt and tls.key, or cert and key)",
                        ),
                    };
                    if !usable {
                        found.push(invalid(gateway, secret, what, path.clone()));
                    }
                }
            }
        }
    }
    found
}

/// What a server's settings name: the name, its field, and whether it is meant for clients.
fn names(tls: &ServerTlsSettings) -> Vec<(&str, &'static str, bool)> {
    let mut names = Vec::new();
    if !tls.credential_name.is_empty() {
        names.push((tls.credential_name.as_str(), "credentialName", false));
    }
    for name in &tls.credential_names {
        names.push((name, "credentialNames", false));
    }
    let verifies = matches!(
        tls.mode,
        Some(ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)
    );
    if verifies {
        match (tls.ca_cert_credential_name.as_str(), names.first().copied()) {
            ("", Some((name, field, _))) => names.push((name, field, true)),
            ("", None) => {}
            (name, _) => names.push((name, "caCertCredentialName", true)),
        }
    }
    names
}

fn invalid(gateway: &Gateway, secret: &lateen_model::Secret, what: &str, path: String) -> Finding {
    Finding {
        code: "IST0161",
        level: Level::Error,
        subject: subject(gateway),
        message: format!(
            "The credential referenced by the Gateway {} in namespace {} is invalid, which can cause the traffic not to work as expected: the Secret {}/{} holds no usable {what}. What the gateway was given before keeps serving.",
            gateway.origin.name,
            gateway.origin.namespace,
            secret.origin.namespace,
            secret.origin.name,
        ),
        path,
    }
}

/// Matches of `tls` routes that no server of their Gateways can choose (IST0130).
fn tls_routes(snapshot: &MeshSnapshot, rule: &VirtualService) -> Vec<Finding> {
    let mut found = Vec::new();
    if rule.spec.tls.is_empty() || rule.is_bound_to(MESH_GATEWAY) {
        return found;
    }
    for (i, route) in rule.spec.tls.iter().enumerate() {
        for (j, item) in route.matches.iter().enumerate() {
            let named = |gateway: &Gateway| {
                let full = gateway.full_name();
                let own = |name: &String| resolve_gateway(name, &rule.origin.namespace) == full;
                rule.is_bound_to(&full)
                    && (item.gateways.is_empty() || item.gateways.iter().any(own))
            };
            let gateways: Vec<_> = snapshot.gateways().filter(|one| named(one)).collect();
            // A Gateway that is not there is a finding of its own.
            if gateways.is_empty() && item.gateways.is_empty() {
                continue;
            }
            let servers = gateways.iter().flat_map(|gateway| &gateway.spec.servers);
            let mut passing = servers
                .filter(|server| ServerKind::of(server) == Some(ServerKind::Passthrough))
                .filter_map(|server| server.port.as_ref())
                .peekable();
            let why = if passing.peek().is_none() {
                "only servers with tls.mode PASSTHROUGH look at tls routes, and its gateways have none"
            } else if item
                .port
                .is_some_and(|port| port != 0 && passing.all(|one| one.number != port))
            {
                "no PASSTHROUGH server of its gateways has this port"
            } else {
                continue;
            };
            found.push(Finding {
                code: "IST0130",
                level: Level::Warning,
                subject: Subject {
                    kind: "VirtualService",
                    namespace: rule.origin.namespace.clone(),
                    name: rule.origin.name.clone(),
                },
                message: format!("VirtualService rule tls[{i}] not used ({why})."),
                path: format!("spec.tls[{i}].match[{j}]"),
            });
        }
    }
    found
}
