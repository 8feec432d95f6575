//! Route tables of the outbound HTTP listeners of a sidecar whose traffic is redirected to it.
//!
//! A table named `PORT` has the HTTP services of that port, under all names and virtual addresses
//! that a client may write (fact 16), then what happens to hosts nobody knows (fact 17). A table
//! named `HOST:PORT` is of one service that has a listener of its own: whatever host a request
//! names, it is meant for that service.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use lateen_model::{HostIndex, MeshSnapshot, Protocol, Proxy, Scope, Service};

use crate::route_table::{UNREGISTERED_PORT, mesh_host, service_names};
use crate::virtual_hosts::VirtualHostKey;

/// Services that a proxy sees, in the order in which they get what two of them want.
pub(super) fn oldest_first<'a>(scope: &Scope<'a>) -> Vec<&'a Arc<Service>> {
    let mut services: Vec<_> = scope.services().collect();
    services.sort_by(|a, b| {
        let key = |s: &'a Arc<Service>| (&s.created, &s.name, &s.namespace, &s.hostname);
        key(a).cmp(&key(b))
    });
    services
}

/// Names of all tables of a proxy.
pub fn names(scope: &Scope<'_>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for service in scope.services() {
        for port in &service.ports {
            if port.protocol.is_http_or_undeclared() {
                names.insert(port.number.to_string());
            }
            if port.protocol == Protocol::Undeclared {
                names.insert(format!("{}:{}", service.hostname, port.number));
            }
        }
    }
    names
}

/// The virtual hosts of a table, and whether they take every host. `None`: the table is none of
/// ours.
pub fn table(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    proxy: &Proxy,
    name: &str,
) -> Option<(Vec<VirtualHostKey>, bool)> {
    let Some((host, port)) = name.rsplit_once(':') else {
        let hosts = port_table(snapshot, scope, proxy, name.parse().ok()?);
        return Some((hosts, false));
    };
    let service = scope.service(host)?;
    let port = service.port(port.parse().ok()?)?;
    let rules = HostIndex::new(scope.rules());
    let rule = rules.rule_for(&service.hostname);
    let key = mesh_host(
        snapshot,
        proxy,
        &mut HashSet::new(),
        name.to_string(),
        vec!["*".to_string()],
        rule.filter(|rule| !rule.spec.http.is_empty()).into_iter(),
        Some((service.hostname.to_string(), port.number)),
    );
    Some((key.into_iter().collect(), true))
}

fn port_table(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    proxy: &Proxy,
    number: u32,
) -> Vec<VirtualHostKey> {
    let rules = HostIndex::new(scope.rules());
    let mut taken = HashSet::new();
    let mut keys = Vec::new();
    for service in oldest_first(scope) {
        let Some(port) = service.port(number) else {
            continue;
        };
        if !port.protocol.is_http_or_undeclared() || !scope.admits_port(service, number) {
            continue;
        }
        let mut domains = service_names(service, proxy);
        if service.is_headless() {
            // Names of single workloads: `db-0.db`.
            let wild = domains
                .iter()
                .filter(|name| name.parse::<std::net::IpAddr>().is_err());
            let wild: Vec<String> = wild.map(|name| format!("*.{name}")).collect();
            domains.extend(wild);
        }
        let rule = rules.rule_for(&service.hostname);
        keys.extend(mesh_host(
            snapshot,
            proxy,
            &mut taken,
            format!("{}:{number}", service.hostname),
            domains,
            rule.filter(|rule| !rule.spec.http.is_empty()).into_iter(),
            Some((service.hostname.to_string(), number)),
        ));
    }
    if number == UNREGISTERED_PORT {
        for rule in scope.rules() {
            for host in rule.hosts.iter().filter(|h| snapshot.service(h).is_none()) {
                let name = format!("{host}:{number}");
                let domains = vec![host.clone()];
                let rules = std::iter::once(rule);
                keys.extend(mesh_host(
                    snapshot, proxy, &mut taken, name, domains, rules, None,
                ));
            }
        }
    }
    keys
}
