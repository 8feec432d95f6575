//! The mesh at one moment: an immutable value with the indexes that translation reads.
//!
//! Invariant: a part that did not change between two snapshots keeps its identity (the same
//! `Arc`), so everything derived from it can be found again by identity.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lateen_api::{MeshConfig, Object, Spec};

use crate::auto_allocate::Allocation;
use crate::delegate;
use crate::hostname;
use crate::proxy::Proxy;
use crate::registry::{self, Registered};
use crate::rules::{
    Client, DestinationRule, DestinationRules, Gateway, MESH_GATEWAY, Origin, VirtualService,
};
use crate::secret::Secret;
use crate::service::{Service, ServiceEndpoints, Workload, labels_match};
use crate::settings::MeshSettings;
use crate::sidecar::Sidecar;

/// Namespace and name of an object.
pub type NamespacedName = (String, String);

/// The mesh at one moment.
#[derive(Clone, Debug, Default)]
pub struct MeshSnapshot {
    /// Revision of the store it was made from.
    pub revision: u64,
    pub settings: Arc<MeshSettings>,
    services: BTreeMap<Arc<str>, Arc<Service>>,
    endpoints: HashMap<Arc<str>, Arc<ServiceEndpoints>>,
    workloads: BTreeMap<NamespacedName, Arc<Workload>>,
    /// Oldest first.
    virtual_services: Vec<Arc<VirtualService>>,
    destination_rules: DestinationRules,
    /// Oldest first.
    gateways: Vec<Arc<Gateway>>,
    /// Oldest first.
    sidecars: Vec<Arc<Sidecar>>,
    secrets: BTreeMap<NamespacedName, Arc<Secret>>,
    namespaces: BTreeSet<String>,
}

impl MeshSnapshot {
    /// Makes a snapshot of all objects; `settings` are those that no object changes. `previous`
    /// lends the identity of what stayed the same.
    pub fn build<'a>(
        objects: impl IntoIterator<Item = &'a Object>,
        revision: u64,
        settings: Arc<MeshSettings>,
        previous: Option<&MeshSnapshot>,
    ) -> MeshSnapshot {
        let objects: Vec<&Object> = objects.into_iter().collect();
        let mut settings = configured(&objects, settings);
        if let Some(previous) = previous {
            keep(&mut settings, Some(&previous.settings));
        }
        let parts = Parts::sort(objects, &settings);
        let mut snapshot = MeshSnapshot {
            revision,
            settings,
            namespaces: parts.namespaces,
            ..Default::default()
        };
        snapshot.workloads = parts
            .workloads
            .into_iter()
            .map(|((ns, name), w)| ((ns, name), Arc::new(w)))
            .collect();
        if let Some(previous) = previous {
            for (key, workload) in &mut snapshot.workloads {
                keep(workload, previous.workloads.get(key));
            }
        }
        snapshot.register(parts.services, previous);
        let rules = delegate::merge(parts.virtual_services, &snapshot.settings.domain_suffix);
        snapshot.virtual_services = rules.into_iter().map(Arc::new).collect();
        snapshot.gateways = parts.gateways.into_iter().map(Arc::new).collect();
        snapshot.sidecars = parts.sidecars.into_iter().map(Arc::new).collect();
        snapshot.destination_rules = parts.destination_rules;
        snapshot.secrets = secrets(parts.secrets, previous);
        if let Some(previous) = previous {
            snapshot.keep_rule_identities(previous);
        }
        snapshot
    }

    /// Enters services, oldest first: a host that is taken stays with its first owner.
    fn register(&mut self, mut services: Vec<Registered>, previous: Option<&MeshSnapshot>) {
        services.sort_by(|a, b| {
            let key = |r: &Registered| {
                (
                    r.service.created.clone(),
                    r.service.name.clone(),
                    r.service.namespace.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let mut by_namespace: HashMap<&str, Vec<Arc<Workload>>> = HashMap::new();
        for ((namespace, _), workload) in &self.workloads {
            by_namespace
                .entry(namespace)
                .or_default()
                .push(workload.clone());
        }
        let none = Vec::new();
        for registered in services {
            let host = registered.service.hostname.clone();
            if self.services.contains_key(&host) {
                continue;
            }
            let nearby = by_namespace
                .get(registered.service.namespace.as_str())
                .unwrap_or(&none);
            let mut endpoints = Arc::new(registry::endpoints(&registered, nearby));
            let mut service = Arc::new(registered.service);
            if let Some(previous) = previous {
                keep(&mut endpoints, previous.endpoints.get(&host));
                keep(&mut service, previous.services.get(&host));
            }
            self.endpoints.insert(service.hostname.clone(), endpoints);
            self.services.insert(service.hostname.clone(), service);
        }
    }

    fn keep_rule_identities(&mut self, previous: &MeshSnapshot) {
        let old: HashMap<_, _> = previous
            .virtual_services
            .iter()
            .map(|v| (&v.origin, v))
            .collect();
        for rule in &mut self.virtual_services {
            let before = old.get(&rule.origin).copied();
            keep(rule, before);
        }
        let old: HashMap<_, _> = previous.gateways.iter().map(|g| (&g.origin, g)).collect();
        for gateway in &mut self.gateways {
            let before = old.get(&gateway.origin).copied();
            keep(gateway, before);
        }
        let old: HashMap<_, _> = previous.sidecars.iter().map(|s| (&s.origin, s)).collect();
        for sidecar in &mut self.sidecars {
            let before = old.get(&sidecar.origin).copied();
            keep(sidecar, before);
        }
        self.destination_rules
            .keep_identities(&previous.destination_rules);
    }

    /// Every service, by host name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Services that `namespace` sees.
    pub fn visible_services<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services
            .values()
            .filter(move |service| service.visibility.reaches(namespace))
    }

    /// The service of a fully qualified host.
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(host)
    }

    /// The addresses the mesh gave to the hosts of a ServiceEntry: host and address.
    pub fn auto_addresses<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        hosts: impl Iterator<Item = &'a str>,
    ) -> Vec<(String, String)> {
        let services = hosts.filter_map(|host| self.services.get(host.to_lowercase().as_str()));
        services
            .filter(|service| service.namespace == namespace && service.name == name)
            .flat_map(|service| {
                let addresses = service.auto_addresses.iter();
                addresses.map(|address| (service.hostname.to_string(), address.clone()))
            })
            .collect()
    }

    /// Endpoints of a service; empty when it is unknown.
    pub fn endpoints(&self, host: &str) -> Arc<ServiceEndpoints> {
        self.endpoints.get(host).cloned().unwrap_or_default()
    }

    /// Every workload.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// One workload.
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads
            .get(&(namespace.to_string(), name.to_string()))
    }

    /// Services that select a workload, by host name.
    pub fn services_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services.values().filter(move |service| {
            service.namespace == workload.namespace
                && !service.selector.is_empty()
                && labels_match(&service.selector, &workload.labels)
        })
    }

    /// Every VirtualService, oldest first.
    pub fn virtual_services(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.virtual_services.iter()
    }

    /// VirtualServices for sidecars that `namespace` sees, oldest first.
    pub fn mesh_virtual_services<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        self.virtual_services.iter().filter(move |rule| {
            rule.visibility.reaches(namespace) && rule.is_bound_to(MESH_GATEWAY)
        })
    }

    /// Gateways whose selector picks a proxy with these labels, oldest first.
    pub fn gateways_for<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Gateway>> {
        self.gateways
            .iter()
            .filter(move |gateway| labels_match(&gateway.spec.selector, labels))
    }

    /// Every Gateway, oldest first.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.gateways.iter()
    }

    /// Every Sidecar, oldest first.
    pub fn sidecars(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.sidecars.iter()
    }

    /// The Sidecars of a namespace, oldest first.
    pub fn sidecars_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Sidecar>> {
        self.sidecars
            .iter()
            .filter(move |sidecar| sidecar.origin.namespace == namespace)
    }

    /// Every merged DestinationRule.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.destination_rules.iter()
    }

    /// The DestinationRule a client in `namespace` uses for a service.
    pub fn destination_rule(
        &self,
        namespace: &str,
        service: &Service,
    ) -> Option<&Arc<DestinationRule>> {
        let client = Client {
            namespace,
            labels: None,
        };
        self.pick_rule(client, service)
    }

    /// The DestinationRule that a proxy uses for a service.
    pub fn destination_rule_for(
        &self,
        proxy: &Proxy,
        service: &Service,
    ) -> Option<&Arc<DestinationRule>> {
        let client = Client {
            namespace: &proxy.namespace,
            labels: Some(&proxy.labels),
        };
        self.pick_rule(client, service)
    }

    fn pick_rule(&self, client: Client<'_>, service: &Service) -> Option<&Arc<DestinationRule>> {
        self.destination_rules.pick(
            client,
            &service.hostname,
            &service.namespace,
            &self.settings.root_namespace,
        )
    }

    /// A Secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(&(namespace.to_string(), name.to_string()))
    }

    /// Whether a namespace object exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// What differs from an older snapshot.
    pub fn changes_since(&self, old: &MeshSnapshot) -> Changes {
        let rules_changed = !same_list(&self.virtual_services, &old.virtual_services)
            || !same_list(&self.gateways, &old.gateways)
            || !same_list(&self.sidecars, &old.sidecars)
            || !same_iter(self.destination_rules.iter(), old.destination_rules.iter())
            || !same_iter(self.secrets.values(), old.secrets.values());
        let services_changed = !same_iter(self.services.values(), old.services.values());
        let mut endpoints = BTreeSet::new();
        for (host, now) in &self.endpoints {
            if !old
                .endpoints
                .get(host)
                .is_some_and(|before| Arc::ptr_eq(before, now))
            {
                endpoints.insert(host.clone());
            }
        }
        // Inbound listeners read a workload's labels and ports, so a workload that came, went or
        // changed there is more than a change of endpoints.
        let shape = |w: &Workload| {
            (
                w.labels.clone(),
                w.ports.clone(),
                w.namespace.clone(),
                w.name.clone(),
            )
        };
        let workloads_changed = self.workloads.len() != old.workloads.len()
            || self
                .workloads
                .iter()
                .any(|(key, now)| match old.workloads.get(key) {
                    Some(before) => !Arc::ptr_eq(before, now) && shape(before) != shape(now),
                    None => true,
                });
        if self.settings != old.settings || rules_changed || services_changed || workloads_changed {
            return Changes::All;
        }
        Changes::Endpoints(endpoints)
    }
}

/// What differs between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    All,
    /// Only the endpoints of these hosts; empty when nothing differs.
    Endpoints(BTreeSet<Arc<str>>),
}

/// The settings with what IstioOperators and the mesh's ConfigMap say.
fn configured(objects: &[&Object], base: Arc<MeshSettings>) -> Arc<MeshSettings> {
    let mut operators: Vec<_> = Vec::new();
    let mut config_map = None;
    for object in objects {
        match &object.spec {
            Spec::IstioOperator(operator) => operators.push((registry::origin(object), operator)),
            Spec::ConfigMap(map)
                if object.meta.name == MESH_CONFIG_MAP
                    && object.meta.namespace == base.root_namespace =>
            {
                config_map = map.data.get("mesh");
            }
            _ => {}
        }
    }
    operators.sort_by(|a, b| a.0.cmp(&b.0));
    let operators = operators
        .iter()
        .filter_map(|(_, operator)| operator.mesh_config.clone());
    let configs: Vec<MeshConfig> = operators
        .chain(config_map.and_then(|text| MeshConfig::read(text)))
        .collect();
    if configs.is_empty() {
        return base;
    }
    let mut settings = (*base).clone();
    for config in &configs {
        settings.configure(config);
    }
    Arc::new(settings)
}

/// Name of the ConfigMap that holds the mesh's settings.
const MESH_CONFIG_MAP: &str = "istio";

/// Objects sorted by what they mean.
struct Parts {
    services: Vec<Registered>,
    workloads: BTreeMap<NamespacedName, Workload>,
    virtual_services: Vec<VirtualService>,
    destination_rules: DestinationRules,
    gateways: Vec<Gateway>,
    sidecars: Vec<Sidecar>,
    secrets: Vec<(Origin, Arc<lateen_api::Secret>)>,
    namespaces: BTreeSet<String>,
}

impl Parts {
    fn sort<'a>(objects: impl IntoIterator<Item = &'a Object>, settings: &MeshSettings) -> Parts {
        let mut parts = Parts {
            services: Vec::new(),
            workloads: BTreeMap::new(),
            virtual_services: Vec::new(),
            destination_rules: DestinationRules::default(),
            gateways: Vec::new(),
            sidecars: Vec::new(),
            secrets: Vec::new(),
            namespaces: BTreeSet::new(),
        };
        let mut destination_rules = Vec::new();
        let mut allocation = Allocation::default();
        for object in objects {
            let origin = registry::origin(object);
            match &object.spec {
                Spec::Service(spec) => parts
                    .services
                    .push(registry::kubernetes_service(&origin, spec, settings)),
                Spec::ServiceEntry(spec) => {
                    allocation.note(&origin, object, spec);
                    let entries = registry::service_entry(&origin, spec, settings);
                    parts.services.extend(entries);
                }
                Spec::WorkloadEntry(spec) => {
                    let workload = registry::workload_entry(&origin, object, spec);
                    parts
                        .workloads
                        .insert((origin.namespace, origin.name), workload);
                }
                Spec::VirtualService(spec) => {
                    parts.virtual_services.push(VirtualService::resolve(
                        origin,
                        spec.clone(),
                        settings,
                    ));
                }
                Spec::DestinationRule(spec) => destination_rules.push((origin, spec.clone())),
                Spec::Gateway(spec) => parts.gateways.push(Gateway {
                    origin,
                    spec: spec.clone(),
                }),
                Spec::Secret(spec) => parts.secrets.push((origin, spec.clone())),
                Spec::Namespace(_) => {
                    parts.namespaces.insert(origin.name);
                }
                // The settings are read from these, see `configured`.
                Spec::ConfigMap(_) | Spec::IstioOperator(_) => {}
                Spec::Sidecar(spec) => {
                    parts.sidecars.push(Sidecar::resolve(origin, spec.clone()));
                }
            }
        }
        registry::give_addresses(&mut parts.services, allocation);
        parts
            .virtual_services
            .sort_by(|a, b| a.origin.cmp(&b.origin));
        parts.gateways.sort_by(|a, b| a.origin.cmp(&b.origin));
        parts.sidecars.sort_by(|a, b| a.origin.cmp(&b.origin));
        destination_rules.sort_by(|a, b| a.0.cmp(&b.0));
        parts.destination_rules = DestinationRules::merge(destination_rules.into_iter(), settings);
        parts
    }
}

/// Reads Secrets; one that is the same object as before is not read again.
fn secrets(
    objects: Vec<(Origin, Arc<lateen_api::Secret>)>,
    previous: Option<&MeshSnapshot>,
) -> BTreeMap<NamespacedName, Arc<Secret>> {
    let read = objects.into_iter().map(|(origin, spec)| {
        let key = (origin.namespace.clone(), origin.name.clone());
        let old = previous.and_then(|previous| previous.secrets.get(&key));
        let secret = match old.filter(|old| old.is_of(&origin, &spec)) {
            Some(old) => old.clone(),
            None => {
                let mut secret = Arc::new(Secret::read(origin, spec));
                keep(&mut secret, old);
                secret
            }
        };
        (key, secret)
    });
    read.collect()
}

/// Takes over the old identity when the value is equal.
fn keep<T: PartialEq>(value: &mut Arc<T>, old: Option<&Arc<T>>) {
    if let Some(old) = old.filter(|old| *old == value) {
        *value = old.clone();
    }
}

fn same_list<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    same_iter(a.iter(), b.iter())
}

fn same_iter<'a, T: 'a>(
    mut a: impl Iterator<Item = &'a Arc<T>>,
    mut b: impl Iterator<Item = &'a Arc<T>>,
) -> bool {
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(x), Some(y)) if Arc::ptr_eq(x, y) => {}
            _ => return false,
        }
    }
}

/// The first VirtualService, oldest first, that decides for each host of `rules`: exact hosts beat
/// wildcards, longer wildcards beat shorter ones, and of two for one host the older wins
/// (facts 15 and 16).
pub struct HostIndex<'a> {
    exact: HashMap<&'a str, &'a Arc<VirtualService>>,
    /// Most specific first.
    wildcards: Vec<(&'a str, &'a Arc<VirtualService>)>,
}

impl<'a> HostIndex<'a> {
    /// Indexes rules given oldest first.
    pub fn new(rules: impl Iterator<Item = &'a Arc<VirtualService>>) -> HostIndex<'a> {
        let mut exact = HashMap::new();
        let mut wildcards: Vec<(&str, &Arc<VirtualService>)> = Vec::new();
        for rule in rules {
            for host in &rule.hosts {
                if !host.starts_with('*') {
                    exact.entry(host.as_str()).or_insert(rule);
                } else if !wildcards.iter().any(|(taken, _)| taken == host) {
                    wildcards.push((host, rule));
                }
            }
        }
        wildcards.sort_by_key(|(host, _)| hostname::specificity(host));
        HostIndex { exact, wildcards }
    }

    /// The rule for a service host.
    pub fn rule_for(&self, host: &str) -> Option<&'a Arc<VirtualService>> {
        self.exact.get(host).copied().or_else(|| {
            self.wildcards
                .iter()
                .find(|(pattern, _)| hostname::matches(pattern, host))
                .map(|(_, rule)| *rule)
        })
    }
}
