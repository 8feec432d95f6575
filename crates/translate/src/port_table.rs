//! Route tables of sidecars that have a virtual host for each port of a service, and for each host of
//! a rule that no service stands behind: made whole, or for one host that changed.

use std::collections::HashSet;
use std::sync::Arc;

use lateen_model::{HostIndex, MeshSnapshot, Proxy, Scope, Service, ServicePort, VirtualService};

use crate::capture;
use crate::route_table::{UNREGISTERED_PORT, mesh_key, service_names};
use crate::virtual_hosts::VirtualHostKey;

/// Which ports a table is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PortTable {
    /// All, and the port in the name of a host counts: of an explicit proxy.
    All,
    /// This one, whatever a client writes: of captured connections.
    Captured(u32),
}

/// Who looks at the mesh.
pub struct Viewer<'a> {
    pub snapshot: &'a MeshSnapshot,
    pub scope: &'a Scope<'a>,
    pub proxy: &'a Proxy,
}

/// The domains of one table. Envoy refuses a table in which a domain stands twice; the first keeps it.
#[derive(Default)]
pub struct Claims {
    taken: HashSet<String>,
}

impl Claims {
    /// The virtual host with the domains that nobody has; `None` when that is none.
    pub fn admit(&mut self, mut key: VirtualHostKey) -> Option<VirtualHostKey> {
        key.domains
            .retain(|domain| self.taken.insert(domain.clone()));
        (!key.domains.is_empty()).then_some(key)
    }
}

impl PortTable {
    /// All virtual hosts.
    pub fn hosts(self, viewer: &Viewer<'_>) -> Vec<VirtualHostKey> {
        let scope = viewer.scope;
        let rules = HostIndex::new(scope.rules());
        let mut claims = Claims::default();
        let mut keys = Vec::new();
        let services = match self {
            PortTable::All => scope.services().collect(),
            PortTable::Captured(_) => capture::routes::oldest_first(scope),
        };
        for service in services {
            let made = self.of_service(viewer, service, rules.rule_for(&service.hostname));
            keys.extend(made.into_iter().filter_map(|key| claims.admit(key)));
        }
        if self.has_unregistered() {
            let mut ruled = HashSet::new();
            for rule in scope.rules() {
                let hosts = rule.hosts.iter().filter(|host| ruled.insert(host.as_str()));
                let alone = hosts.filter(|host| viewer.snapshot.service(host).is_none());
                keys.extend(
                    alone.filter_map(|host| claims.admit(self.of_rule(viewer, rule, host))),
                );
            }
        }
        keys
    }

    /// The virtual hosts of one host, which is no wildcard, before anybody else's domains are looked
    /// at.
    pub fn hosts_of(self, viewer: &Viewer<'_>, host: &str) -> Vec<VirtualHostKey> {
        let (snapshot, scope) = (viewer.snapshot, viewer.scope);
        if snapshot.service(host).is_some() {
            let Some(service) = scope.service(host) else {
                return Vec::new();
            };
            let rule = scope.rule_for(host);
            return self.of_service(viewer, service, rule.as_ref());
        }
        let mut rules = snapshot.rules_of_host(host);
        let rule = rules.find(|rule| scope.counts(rule));
        let rule = rule.filter(|_| self.has_unregistered());
        rule.map(|rule| self.of_rule(viewer, rule, host))
            .into_iter()
            .collect()
    }

    fn has_unregistered(self) -> bool {
        matches!(
            self,
            PortTable::All | PortTable::Captured(UNREGISTERED_PORT)
        )
    }

    fn of_service(
        self,
        viewer: &Viewer<'_>,
        service: &Service,
        rule: Option<&Arc<VirtualService>>,
    ) -> Vec<VirtualHostKey> {
        let is_served = |port: &&ServicePort| {
            let is_of_table = match self {
                PortTable::All => true,
                PortTable::Captured(number) => port.number == number,
            };
            is_of_table
                && port.protocol.is_http_or_undeclared()
                && viewer.scope.admits_port(service, port.number)
        };
        let rule = rule.filter(|rule| !rule.spec.http.is_empty());
        let host = &service.hostname;
        let ports = service.ports.iter().filter(is_served);
        let made = ports.map(|port| {
            let domains = match self {
                PortTable::All => domains_by_port(service, port.number, viewer.proxy),
                PortTable::Captured(_) => captured_domains(service, viewer.proxy),
            };
            let name = format!("{host}:{}", port.number);
            let of = Some((host.to_string(), port.number));
            mesh_key(viewer, name, domains, rule, of)
        });
        made.collect()
    }

    fn of_rule(
        self,
        viewer: &Viewer<'_>,
        rule: &Arc<VirtualService>,
        host: &str,
    ) -> VirtualHostKey {
        let mut domains = vec![host.to_string()];
        if self == PortTable::All && host != "*" {
            domains.push(format!("{host}:{UNREGISTERED_PORT}"));
        }
        let name = format!("{host}:{UNREGISTERED_PORT}");
        mesh_key(viewer, name, domains, Some(rule), None)
    }
}

/// Domains of a service port where the port counts. The plain names stand for port 80, since that is
/// what a client means who says none.
fn domains_by_port(service: &Service, port: u32, proxy: &Proxy) -> Vec<String> {
    let mut domains = Vec::new();
    for host in service_names(service, proxy) {
        if port == 80 {
            domains.push(host.clone());
        }
        domains.push(format!("{host}:{port}"));
    }
    domains
}

fn captured_domains(service: &Service, proxy: &Proxy) -> Vec<String> {
    let mut domains = service_names(service, proxy);
    if service.is_headless() {
        // Names of single workloads: `db-0.db`.
        let wild = domains
            .iter()
            .filter(|name| name.parse::<std::net::IpAddr>().is_err());
        let wild: Vec<String> = wild.map(|name| format!("*.{name}")).collect();
        domains.extend(wild);
    }
    domains
}

/// Whether anybody but `host` may want this domain in some table of a proxy. May be wrong in saying
/// yes: of services that the proxy does not see, of names it would not use.
pub fn is_claimed(snapshot: &MeshSnapshot, proxy: &Proxy, domain: &str, host: &str) -> bool {
    let bare = domain.rsplit_once(':').map(|(name, _)| name);
    let end = domain.strip_prefix("*.");
    let mut names = std::iter::once(domain).chain(bare).chain(end);
    let suffix = domain_suffix(proxy);
    let namespace = &proxy.namespace;
    names.any(|name| {
        let aliased = |of: &str| snapshot.alias_of(of).is_some_and(|to| **to != *host);
        let another = |of: &str| (of != host && snapshot.service(of).is_some()) || aliased(of);
        let ruled = || name != host && snapshot.rules_of_host(name).next().is_some();
        another(name)
            || another(&format!("{name}.{suffix}"))
            || another(&format!("{name}.svc.{suffix}"))
            || another(&format!("{name}.{namespace}.svc.{suffix}"))
            || snapshot.hosts_at(name).any(|at| **at != *host)
            || ruled()
    })
}

/// What the names of services end with after `svc`, for a proxy.
pub fn domain_suffix(proxy: &Proxy) -> &str {
    let suffix = proxy.dns_domain.split_once('.');
    let suffix = suffix.map_or("", |(_, suffix)| suffix);
    suffix.strip_prefix("svc.").unwrap_or("cluster.local")
}
