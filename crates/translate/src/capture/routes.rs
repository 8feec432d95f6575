//! Route tables of the outbound HTTP listeners of a sidecar whose traffic is redirected to it.
//!
//! A table named `PORT` has the HTTP services of that port, under all names and virtual addresses
//! that a client may write (fact 16), then what happens to hosts nobody knows (fact 17). A table
//! named `HOST:PORT` is of one service that has a listener of its own: whatever host a request
//! names, it is meant for that service.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_model::{Protocol, Scope, Service};

use crate::port_table::{PortTable, Viewer};
use crate::route_table::mesh_key;
use crate::virtual_hosts::VirtualHostKey;

/// Services that a proxy sees, in the order in which they get what two of them want.
pub(crate) fn oldest_first<'a>(scope: &Scope<'a>) -> Vec<&'a Arc<Service>> {
    let mut services: Vec<_> = scope.services().collect();
    services.sort_by(|a, b| age(a).cmp(&age(b)));
    services
}

/// What services are sorted by; no two have the same.
pub(crate) fn age(service: &Service) -> (&str, &str, &str, &str) {
    (
        &service.created,
        &service.name,
        &service.namespace,
        &service.hostname,
    )
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

/// The virtual hosts of a table.
pub enum Hosts {
    /// Of one service that takes every host.
    Every(Box<VirtualHostKey>),
    /// Of all services of a port.
    Of(Vec<VirtualHostKey>),
}

/// The virtual hosts of a table. `None`: the table is none of ours.
pub fn table(viewer: &Viewer<'_>, name: &str) -> Option<Hosts> {
    let Some((host, port)) = name.rsplit_once(':') else {
        let hosts = PortTable::Captured(name.parse().ok()?).hosts(viewer);
        return Some(Hosts::Of(hosts));
    };
    let service = viewer.scope.service(host)?;
    let port = service.port(port.parse().ok()?)?;
    let rule = viewer.scope.rule_for(&service.hostname);
    let key = mesh_key(
        viewer,
        name.to_string(),
        vec!["*".to_string()],
        rule.as_ref().filter(|rule| !rule.spec.http.is_empty()),
        Some((service.hostname.to_string(), port.number)),
    );
    Some(Hosts::Every(Box::new(key)))
}
