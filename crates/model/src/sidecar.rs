//! Which services and rules a proxy knows: what is exported to its namespace, and of that what its
//! Sidecar imports (facts 55, 56).
//!
//! Istio's order for which Sidecar a proxy has: one whose selector picks its labels, else the one
//! of its namespace without a selector, else that of the root namespace; of several the oldest.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api as api;
use lateen_api::sidecar::IstioEgressListener;

use crate::hostname;
use crate::proxy::{Proxy, ProxyKind};
use crate::rules::{MESH_GATEWAY, Origin, VirtualService};
use crate::service::{Service, labels_match};
use crate::settings::{MeshSettings, OutboundPolicy};
use crate::snapshot::MeshSnapshot;

/// A Sidecar whose hosts are resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    pub origin: Origin,
    pub egress: Vec<Egress>,
    pub spec: Arc<api::Sidecar>,
}

/// One egress listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Egress {
    /// Only this port of services; `None` is all of them.
    pub port: Option<u32>,
    pub hosts: Vec<Import>,
}

/// `namespace/host` of an egress listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub of: ImportOf,
    pub host: String,
}

/// The namespaces of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportOf {
    Any,
    /// `.`: that of the proxy, which is not that of a Sidecar of the root namespace.
    Own,
    One(String),
}

impl Sidecar {
    /// Resolves a Sidecar of `origin`.
    pub fn resolve(origin: Origin, spec: Arc<api::Sidecar>) -> Sidecar {
        let mut egress: Vec<Egress> = spec.egress.iter().map(Egress::resolve).collect();
        if egress.is_empty() {
            // Istio: without egress everything that is exported.
            egress.push(Egress {
                port: None,
                hosts: vec![Import {
                    of: ImportOf::Any,
                    host: "*".to_string(),
                }],
            });
        }
        Sidecar {
            origin,
            egress,
            spec,
        }
    }

    /// Whether the rule is for a whole namespace (or, in the root namespace, the mesh).
    pub fn is_default(&self) -> bool {
        self.spec
            .workload_selector
            .as_ref()
            .is_none_or(|selector| selector.labels.is_empty())
    }

    /// Whether the rule picks workloads with these labels.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let selector = self.spec.workload_selector.as_ref();
        selector.is_some_and(|selector| {
            !selector.labels.is_empty() && labels_match(&selector.labels, labels)
        })
    }

    /// What happens to traffic for unknown hosts.
    pub fn outbound_policy(&self, mesh: &MeshSettings) -> OutboundPolicy {
        let policy = self.spec.outbound_traffic_policy.as_ref();
        match policy {
            None => mesh.outbound_policy,
            Some(policy) => OutboundPolicy::of(policy.mode.unwrap_or_default()),
        }
    }
}

impl Egress {
    fn resolve(listener: &IstioEgressListener) -> Egress {
        let everything = |port: &api::sidecar::SidecarPort| {
            port.number == 0 || port.protocol.eq_ignore_ascii_case("HTTP_PROXY")
        };
        Egress {
            port: listener
                .port
                .as_ref()
                .filter(|port| !everything(port))
                .map(|port| port.number),
            hosts: listener
                .hosts
                .iter()
                .filter_map(|host| Import::parse(host))
                .collect(),
        }
    }

    /// Whether the listener is for this port of services.
    pub fn takes(&self, port: u32) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    /// Whether a service is imported into a namespace, whichever its ports.
    fn imports(&self, service: &Service, into: &str) -> bool {
        self.hosts.iter().any(|import| {
            import.is_of(&service.namespace, into)
                && hostname::matches(&import.host, &service.hostname)
        })
    }

    /// Whether a rule is imported into a namespace: one of its hosts is, or covers one that is.
    fn imports_rule(&self, rule: &VirtualService, into: &str) -> bool {
        self.hosts.iter().any(|import| {
            import.is_of(&rule.origin.namespace, into)
                && rule
                    .hosts
                    .iter()
                    .any(|host| hostname::intersection(&import.host, host).is_some())
        })
    }
}

impl Import {
    /// `namespace/host`; `~` imports nothing.
    fn parse(text: &str) -> Option<Import> {
        let (namespace, host) = text.split_once('/')?;
        let of = match namespace {
            "~" => return None,
            "*" => ImportOf::Any,
            "." => ImportOf::Own,
            other => ImportOf::One(other.to_string()),
        };
        Some(Import {
            of,
            host: host.to_ascii_lowercase(),
        })
    }

    fn is_of(&self, namespace: &str, into: &str) -> bool {
        match &self.of {
            ImportOf::Any => true,
            ImportOf::Own => namespace == into,
            ImportOf::One(only) => namespace == only,
        }
    }
}

/// What one proxy sees of a snapshot. Gateways see all that is exported to them.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    snapshot: &'a MeshSnapshot,
    namespace: &'a str,
    sidecar: Option<&'a Arc<Sidecar>>,
}

impl MeshSnapshot {
    /// The Sidecar of a proxy; gateways have none.
    pub fn sidecar_of<'a>(&'a self, proxy: &'a Proxy) -> Option<&'a Arc<Sidecar>> {
        if proxy.kind != ProxyKind::Sidecar {
            return None;
        }
        self.sidecar_for(&proxy.namespace, &proxy.labels)
    }

    /// The Sidecar of a workload with a sidecar.
    pub fn sidecar_for<'a>(
        &'a self,
        namespace: &'a str,
        labels: &BTreeMap<String, String>,
    ) -> Option<&'a Arc<Sidecar>> {
        let own = || self.sidecars_in(namespace);
        own()
            .find(|sidecar| sidecar.selects(labels))
            .or_else(|| own().find(|sidecar| sidecar.is_default()))
            .or_else(|| {
                self.sidecars_in(&self.settings.root_namespace)
                    .find(|sidecar| sidecar.is_default())
            })
    }

    /// What a proxy sees.
    pub fn scope<'a>(&'a self, proxy: &'a Proxy) -> Scope<'a> {
        self.scope_with(&proxy.namespace, self.sidecar_of(proxy))
    }

    /// What somebody in a namespace sees whose Sidecar is this.
    pub fn scope_with<'a>(
        &'a self,
        namespace: &'a str,
        sidecar: Option<&'a Arc<Sidecar>>,
    ) -> Scope<'a> {
        Scope {
            snapshot: self,
            namespace,
            sidecar,
        }
    }
}

impl<'a> Scope<'a> {
    /// What it is a part of.
    pub fn snapshot(&self) -> &'a MeshSnapshot {
        self.snapshot
    }

    /// The Sidecar that makes the scope.
    pub fn sidecar(&self) -> Option<&'a Arc<Sidecar>> {
        self.sidecar
    }

    /// Whether an egress listener of the proxy's Sidecar imports a service, whichever its ports.
    pub fn imports(&self, egress: &Egress, service: &Service) -> bool {
        egress.imports(service, self.namespace)
    }

    /// Whether one imports a rule: one of its hosts is imported, or covers one that is.
    pub fn imports_rule(&self, egress: &Egress, rule: &VirtualService) -> bool {
        egress.imports_rule(rule, self.namespace)
    }

    /// Whether the proxy knows a service. Hosts that imported rules lead to come along.
    pub fn admits(&self, service: &Service) -> bool {
        service.visibility.reaches(self.namespace)
            && self.sidecar.is_none_or(|sidecar| {
                let mut leading = self.snapshot.rules_to(&service.hostname);
                sidecar
                    .egress
                    .iter()
                    .any(|egress| self.imports(egress, service))
                    || leading.any(|rule| self.counts(rule))
            })
    }

    /// Whether the proxy knows this port of a service it knows.
    pub fn admits_port(&self, service: &Service, port: u32) -> bool {
        self.sidecar.is_none_or(|sidecar| {
            let mut importing = sidecar
                .egress
                .iter()
                .filter(|egress| self.imports(egress, service))
                .peekable();
            // One that only a rule leads to has all its ports.
            importing.peek().is_none() || importing.any(|egress| egress.takes(port))
        })
    }

    /// Services the proxy knows, by host.
    pub fn services(&self) -> impl Iterator<Item = &'a Arc<Service>> {
        self.snapshot
            .services()
            .filter(|service| self.admits(service))
    }

    /// One service, if the proxy knows it.
    pub fn service(&self, host: &str) -> Option<&'a Arc<Service>> {
        self.snapshot
            .service(host)
            .filter(|service| self.admits(service))
    }

    /// The VirtualServices for sidecars that count for the proxy, oldest first.
    pub fn rules(&self) -> impl Iterator<Item = &'a Arc<VirtualService>> + use<'a> {
        let scope = *self;
        let all = self.snapshot.virtual_services();
        all.filter(move |rule| scope.counts(rule))
    }

    /// Whether a VirtualService is one for sidecars that counts for the proxy.
    pub fn counts(&self, rule: &VirtualService) -> bool {
        rule.is_bound_to(MESH_GATEWAY)
            && rule.visibility.reaches(self.namespace)
            && self.sidecar.is_none_or(|sidecar| {
                let mut listeners = sidecar.egress.iter();
                listeners.any(|egress| self.imports_rule(egress, rule))
            })
    }

    /// The VirtualService that decides for a host: what [`crate::HostIndex`] of [`Scope::rules`]
    /// answers, without a look at all of them.
    pub fn rule_for(&self, host: &str) -> Option<Arc<VirtualService>> {
        let of = |pattern: &str| {
            let mut rules = self.snapshot.rules_of_host(pattern);
            rules.find(|rule| self.counts(rule)).cloned()
        };
        let any = self.snapshot.wildcard_rules().next().is_some();
        let wildcards = hostname::wildcards_over(host).take_while(|_| any);
        of(host).or_else(|| wildcards.into_iter().find_map(|pattern| of(&pattern)))
    }

    /// What happens to traffic for unknown hosts.
    pub fn outbound_policy(&self) -> OutboundPolicy {
        let mesh = &self.snapshot.settings;
        self.sidecar.map_or(mesh.outbound_policy, |sidecar| {
            sidecar.outbound_policy(mesh)
        })
    }
}
