//! Names in VirtualServices that lead nowhere, and rules that fight over a host.

use std::collections::BTreeMap;

use lateen_api::virtual_service::Destination;
use lateen_model::{
    Gateway, MESH_GATEWAY, MeshSnapshot, ServerHost, Service, VirtualService, hostname,
};

use crate::{Finding, Level, Subject, not_found};

/// Findings of all VirtualServices.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for rule in snapshot.virtual_services() {
        names(snapshot, rule, &mut found);
    }
    conflicts(snapshot, |_| true, &mut found);
    found
}

/// Findings of one.
pub fn of(snapshot: &MeshSnapshot, wanted: &Subject) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut rules = snapshot.virtual_services();
    let own = rules
        .find(|rule| rule.origin.name == wanted.name && rule.origin.namespace == wanted.namespace);
    if let Some(rule) = own {
        names(snapshot, rule, &mut found);
        conflicts(
            snapshot,
            |host| rule.hosts.iter().any(|own| own == host),
            &mut found,
        );
    }
    found
}

fn names(snapshot: &MeshSnapshot, rule: &VirtualService, found: &mut Vec<Finding>) {
    gateways(snapshot, rule, found);
    for (destination, path) in destinations(rule) {
        found.extend(destination_finding(snapshot, rule, destination, path));
    }
}

fn subject(rule: &VirtualService) -> Subject {
    Subject {
        kind: "VirtualService",
        namespace: rule.origin.namespace.clone(),
        name: rule.origin.name.clone(),
    }
}

fn gateways(snapshot: &MeshSnapshot, rule: &VirtualService, found: &mut Vec<Finding>) {
    for (index, name) in rule.gateways.iter().enumerate() {
        if name == MESH_GATEWAY {
            continue;
        }
        let path = format!("spec.gateways[{index}]");
        match snapshot.gateways().find(|g| g.full_name() == *name) {
            None => found.push(missing_gateway(snapshot, rule, index, name, path)),
            Some(gateway) => found.extend(host_not_in_gateway(rule, gateway, path)),
        }
    }
}

fn missing_gateway(
    snapshot: &MeshSnapshot,
    rule: &VirtualService,
    index: usize,
    name: &str,
    path: String,
) -> Finding {
    let mut finding = not_found(&subject(rule), "gateway", name, path);
    let written = rule.spec.gateways.get(index);
    let elsewhere = snapshot
        .gateways()
        .find(|gateway| Some(&gateway.origin.name) == written);
    if let Some(gateway) = elsewhere {
        // The usual mistake: a bare name is looked for in the rule's own namespace.
        finding.message += &format!("; did you mean {:?}?", gateway.full_name());
    }
    finding
}

/// A rule whose hosts no server of its gateway serves to the rule's namespace.
fn host_not_in_gateway(rule: &VirtualService, gateway: &Gateway, path: String) -> Option<Finding> {
    let mut hosts = gateway.spec.servers.iter().flat_map(|server| &server.hosts);
    let served = hosts.any(|text| {
        let server = ServerHost::parse(text, &gateway.origin.namespace);
        server.admits(&rule.origin.namespace)
            && rule
                .hosts
                .iter()
                .any(|host| hostname::intersection(server.host, host).is_some())
    });
    (!served).then(|| Finding {
        code: "IST0132",
        level: Level::Warning,
        subject: subject(rule),
        message: format!(
            "one or more host [{}] defined in VirtualService {}/{} not found in Gateway {}.",
            rule.spec.hosts.join(" "),
            rule.origin.namespace,
            rule.origin.name,
            gateway.full_name()
        ),
        path,
    })
}

/// Every destination of a rule, with the path of the field.
fn destinations(rule: &VirtualService) -> Vec<(&Destination, String)> {
    let mut all = Vec::new();
    for (i, route) in rule.spec.http.iter().enumerate() {
        for (j, target) in route.route.iter().enumerate() {
            let path = format!("spec.http[{i}].route[{j}].destination");
            all.extend(target.destination.as_ref().map(|to| (to, path)));
        }
        let path = format!("spec.http[{i}].mirror");
        all.extend(route.mirror.as_ref().map(|to| (to, path)));
        for (j, mirror) in route.mirrors.iter().enumerate() {
            let path = format!("spec.http[{i}].mirrors[{j}].destination");
            all.extend(mirror.destination.as_ref().map(|to| (to, path)));
        }
    }
    let tcp = rule.spec.tcp.iter().map(|route| &route.route);
    let tls = rule.spec.tls.iter().map(|route| &route.route);
    let tcp = tcp.enumerate().map(|(i, route)| ("tcp", i, route));
    let tls = tls.enumerate().map(|(i, route)| ("tls", i, route));
    for (kind, i, route) in tcp.chain(tls) {
        for (j, target) in route.iter().enumerate() {
            let path = format!("spec.{kind}[{i}].route[{j}].destination");
            all.extend(target.destination.as_ref().map(|to| (to, path)));
        }
    }
    all
}

fn destination_finding(
    snapshot: &MeshSnapshot,
    rule: &VirtualService,
    destination: &Destination,
    path: String,
) -> Option<Finding> {
    let subject = subject(rule);
    let host = hostname::resolve(
        &destination.host,
        &rule.origin.namespace,
        &snapshot.settings.domain_suffix,
    );
    let host = snapshot.alias_of(&host).map_or(host, |of| of.to_string());
    let Some(service) = snapshot.service(&host) else {
        return Some(not_found(
            &subject,
            "host",
            &destination.host,
            format!("{path}.host"),
        ));
    };
    if let Some(port) = destination
        .port
        .as_ref()
        .filter(|port| service.port(port.number).is_none())
    {
        let name = format!("{}:{}", destination.host, port.number);
        return Some(not_found(
            &subject,
            "host:port",
            &name,
            format!("{path}.port.number"),
        ));
    }
    if destination.subset.is_empty() {
        if service.ports.len() > 1 && destination.port.is_none() && !rule.is_bound_to(MESH_GATEWAY)
        {
            return Some(Finding {
                code: "IST0112",
                level: Level::Error,
                message: format!(
                    "This VirtualService routes to a service {:?} that exposes multiple ports [{}]. Specifying a port in the destination is required to disambiguate.",
                    destination.host,
                    numbers(service)
                ),
                path: format!("{path}.port"),
                subject,
            });
        }
        return None;
    }
    let defined = snapshot
        .destination_rule(&rule.origin.namespace, service)
        .is_some_and(|rule| rule.subset(&destination.subset).is_some());
    let name = format!("{}+{}", destination.host, destination.subset);
    (!defined).then(|| {
        not_found(
            &subject,
            "host+subset in destinationrule",
            &name,
            format!("{path}.subset"),
        )
    })
}

/// Port numbers as Istio's messages list them.
fn numbers(service: &Service) -> String {
    let numbers = service.ports.iter().map(|port| port.number.to_string());
    numbers.collect::<Vec<_>>().join(" ")
}

/// Timestamps have whole seconds, as in Kubernetes; names decide within one.
fn why_first(rules: &[&VirtualService]) -> &'static str {
    let mut created = rules.iter().map(|rule| &rule.origin.created);
    match (created.next(), created.next()) {
        (Some(first), Some(second)) if first == second => {
            "being the first by name of those created in the same second"
        }
        _ => "being the oldest",
    }
}

/// Two rules for one mesh host: the older wins, the other has no effect there (fact 15).
fn conflicts(snapshot: &MeshSnapshot, wanted: impl Fn(&str) -> bool, found: &mut Vec<Finding>) {
    let mut owners: BTreeMap<&str, Vec<&VirtualService>> = BTreeMap::new();
    for rule in snapshot
        .virtual_services()
        .filter(|rule| rule.is_bound_to(MESH_GATEWAY))
    {
        for host in rule.hosts.iter().filter(|host| wanted(host)) {
            owners.entry(host).or_default().push(rule);
        }
    }
    for (host, rules) in owners.iter().filter(|(_, rules)| rules.len() > 1) {
        let full_name =
            |rule: &VirtualService| format!("{}/{}", rule.origin.namespace, rule.origin.name);
        let names: Vec<String> = rules.iter().map(|rule| full_name(rule)).collect();
        for rule in rules {
            let subject = subject(rule);
            found.push(Finding {
                code: "IST0109",
                level: Level::Error,
                message: format!(
                    "The VirtualServices {} associated with mesh gateway define the same host {host} which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource. {} wins, {}.",
                    names.join(","),
                    names.first().map(String::as_str).unwrap_or_default(),
                    why_first(rules),
                ),
                path: "spec.hosts".to_string(),
                subject,
            });
        }
    }
}
