//! Listeners and route tables that many proxies have, named after ports and addresses of services:
//! which of them a change can touch. Those that only one proxy has (its inbound ports, the servers of
//! a gateway) are few, and looked at whenever anything of the type may differ: [`own_names`].

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_model::{
    Changes, Generator, Interception, MeshSnapshot, Proxy, ProxyKind, Resolution, Service,
    VirtualService,
};

use crate::capture::WILDCARD;
use crate::translator::type_url;
use crate::{gateway, names, route_table, sidecar};

/// Listeners of captured service ports that may differ; `None`: any.
pub fn listeners(
    now: &MeshSnapshot,
    changes: &Changes,
    led_to: &BTreeSet<String>,
) -> Option<BTreeSet<String>> {
    let by_request = |one: &Arc<Service>| one.resolution == Resolution::ByRequest;
    let mut led_there = led_to.iter().filter_map(|host| now.service(host));
    // Every HTTP listener looks names up, or none.
    if changes.sidecars
        || changes.services_then_and(now).any(by_request)
        || led_there.any(by_request)
    {
        return None;
    }
    let mut hosts: BTreeSet<&str> = changes.services.keys().map(|host| &**host).collect();
    hosts.extend(changes.endpoints.keys().map(|host| &**host));
    hosts.extend(led_to.iter().map(String::as_str));
    for (_, pattern, _) in changes.destination_rules.keys() {
        let services = now.services_like(pattern).into_iter();
        hosts.extend(services.map(|service| &*service.hostname));
    }
    // What a listener says of a destination is in the listener of the rule's hosts.
    let of = hosts.iter().filter_map(|host| now.service(host));
    let aliases = of
        .flat_map(|service| &service.aliases)
        .map(|alias| &**alias);
    let names: Vec<&str> = hosts.iter().copied().chain(aliases).collect();
    let leading = names.iter().flat_map(|host| now.rules_to(host));
    let leading = leading.chain(changes.rules_to_services(now));
    let rules: Vec<_> = leading.chain(changes.rules_then_and(now)).collect();
    for rule in rules.into_iter().filter(|rule| rule.is_of_connections()) {
        hosts.extend(hosts_of(now, rule));
    }
    let mut names = BTreeSet::new();
    for host in hosts {
        let before = changes.services.get(host).and_then(Option::as_ref);
        for service in before.into_iter().chain(now.service(host)) {
            add_listeners(now, changes, service, &mut names);
        }
    }
    Some(names)
}

/// Wherever clients of a service may connect to.
fn add_listeners(
    now: &MeshSnapshot,
    changes: &Changes,
    service: &Service,
    names: &mut BTreeSet<String>,
) {
    let virtual_addresses = service.addresses.iter().chain(&service.auto_addresses);
    let mut addresses: BTreeSet<&str> = virtual_addresses
        .map(|address| address.strip_suffix("/32").unwrap_or(address))
        .chain([WILDCARD])
        .collect();
    let (before, now) = (
        changes.endpoints.get(&service.hostname).cloned().flatten(),
        now.endpoints(&service.hostname),
    );
    if service.is_headless() {
        let endpoints = before.iter().chain([&now]);
        let endpoints = endpoints.flat_map(|of| of.by_port.values().flatten());
        addresses.extend(endpoints.map(|one| one.workload.address.as_str()));
    }
    for port in &service.ports {
        let of_port = addresses
            .iter()
            .map(|bind| names::listener(bind, port.number));
        names.extend(of_port);
    }
}

/// Route tables of sidecars that may differ; `None`: any.
pub fn routes(
    now: &MeshSnapshot,
    changes: &Changes,
    led_to: &BTreeSet<String>,
) -> Option<BTreeSet<String>> {
    let hashes = now.rules_hash() || {
        let mut before = changes.destination_rules.values().flatten();
        before.any(|rule| rule.hashes())
    };
    if changes.sidecars || (hashes && !changes.destination_rules.is_empty()) {
        return None;
    }
    let mut hosts: BTreeSet<&str> = changes.services.keys().map(|host| &**host).collect();
    hosts.extend(led_to.iter().map(String::as_str));
    let leading = changes.rules_to_services(now);
    for rule in leading.chain(changes.rules_then_and(now)) {
        hosts.extend(hosts_of(now, rule));
    }
    let unregistered = route_table::UNREGISTERED_PORT.to_string();
    let mut names = BTreeSet::from([names::HTTP_PROXY_ROUTES.to_string(), unregistered]);
    for host in hosts {
        let before = changes.services.get(host).and_then(Option::as_ref);
        let services = before.into_iter().chain(now.service(host));
        for port in services.flat_map(|service| &service.ports) {
            names.insert(port.number.to_string());
            names.insert(format!("{host}:{}", port.number));
        }
    }
    Some(names)
}

/// Services that a rule is about.
fn hosts_of<'a>(now: &'a MeshSnapshot, rule: &'a VirtualService) -> Vec<&'a str> {
    let services = rule.hosts.iter().flat_map(|host| now.services_like(host));
    services.map(|service| &*service.hostname).collect()
}

/// Names of a type that only this proxy has; `None`: they are not known but to itself, so that all
/// that it asks for has to be looked at.
pub fn own_names(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    type_url: &str,
) -> Option<BTreeSet<String>> {
    let proxy = &*snapshot.labelled(proxy);
    match (type_url, proxy.generator, proxy.kind) {
        (type_url::LISTENER | type_url::ROUTE, Generator::Grpc, _) => None,
        (type_url::LISTENER, _, ProxyKind::Sidecar) => Some(own_listeners(snapshot, proxy)),
        (type_url::LISTENER, _, ProxyKind::Gateway) => {
            let ports = gateway::ports(snapshot, proxy).into_iter();
            Some(
                ports
                    .map(|port| names::listener(&port.bind, port.number))
                    .collect(),
            )
        }
        (type_url::ROUTE, _, ProxyKind::Sidecar) => {
            let scope = snapshot.scope(proxy);
            let ports = sidecar::egress_ports(&scope, proxy).into_iter();
            let name =
                |port: sidecar::EgressPort<'_>| names::listener(&port.bind, u32::from(port.number));
            Some(ports.map(name).collect())
        }
        (type_url::ROUTE, _, ProxyKind::Gateway) => {
            Some(gateway::http_servers(snapshot, proxy).into_keys().collect())
        }
        _ => Some(BTreeSet::new()),
    }
}

fn own_listeners(snapshot: &MeshSnapshot, proxy: &Proxy) -> BTreeSet<String> {
    let scope = snapshot.scope(proxy);
    let mut own = BTreeSet::new();
    let local = proxy.http_proxy_port.iter().chain(proxy.outbound.values());
    own.extend(local.map(|port| names::listener(&proxy.bind, u32::from(*port))));
    if proxy.interception == Interception::Redirect {
        own.extend([names::VIRTUAL_OUTBOUND, names::VIRTUAL_INBOUND].map(str::to_string));
    } else {
        let ports = sidecar::inbound_ports(snapshot, proxy, scope.sidecar()).into_iter();
        own.extend(ports.map(|port| names::listener(&port.bind, u32::from(port.number))));
    }
    let ports = sidecar::egress_ports(&scope, proxy).into_iter();
    own.extend(ports.map(|port| names::listener(&port.bind, u32::from(port.number))));
    own
}
