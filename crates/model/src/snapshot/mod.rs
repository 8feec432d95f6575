//! The mesh at one moment: an immutable value with the indexes that translation reads.
//!
//! Its parts are persistent maps: the next snapshot shares all but what changed, so an update costs
//! in proportion to the change ([`update`]).
//!
//! Invariant: a part that did not change between two snapshots keeps its identity (the same
//! `Arc`), so everything derived from it can be found again by identity.

mod changes;
mod index;
mod settings;
mod settle;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::Kind;
use rpds::RedBlackTreeMapSync;

pub use changes::Changes;
pub use update::ObjectChange;

use crate::authorization::AuthorizationPolicy;
use crate::auto_allocate::{Addresses, Allocation};
use crate::hostname;
use crate::peer_authentication::PeerAuthentication;
use crate::proxy::Proxy;
use crate::registry::Registered;
use crate::request_authentication::{KeySets, RequestAuthentication};
use crate::roles::Roles;
use crate::rules::{
    Client, DestinationRule, DestinationRules, Gateway, MESH_GATEWAY, Origin, VirtualService,
};
use crate::secret::Secret;
use crate::service::{Service, ServiceEndpoints, Source, Workload, WorkloadKind, labels_match};
use crate::settings::MeshSettings;
use crate::sidecar::Sidecar;
use crate::slices::Slice;

/// Namespace and name of an object.
pub type NamespacedName = (String, String);
/// Namespace and a name within it.
type Key = (String, String);
/// Namespace, name, and the kind of the object: a pod and a WorkloadEntry may have the same name.
type WorkloadKey = (String, String, WorkloadKind);
/// Namespace, label, value, and what has it.
type LabelIndex<T> = RedBlackTreeMapSync<(String, String, String, T), ()>;
/// Namespace and name of a Service, kind and name of an object.
type SliceKey = (String, String, Kind, String);
/// A host and what claims it, oldest first.
type Claim = (Arc<str>, Origin, Source);
/// Addresses given out, by object and host.
type Allocated = BTreeMap<(Origin, String), Addresses>;

/// A chain of more aliases is none.
const MAX_ALIASES: usize = 16;

/// The mesh at one moment.
#[derive(Clone, Debug, Default)]
pub struct MeshSnapshot {
    /// Revision of the store it was made from.
    pub revision: u64,
    /// Another one for each snapshot.
    pub identity: Arc<Identity>,
    /// Another one for each snapshot in which anything differs that route tables are made from.
    pub routing: Arc<Identity>,
    pub settings: Arc<MeshSettings>,
    services: RedBlackTreeMapSync<Arc<str>, Arc<Service>>,
    endpoints: RedBlackTreeMapSync<Arc<str>, Arc<ServiceEndpoints>>,
    workloads: RedBlackTreeMapSync<WorkloadKey, Arc<Workload>>,
    /// Oldest first.
    virtual_services: RedBlackTreeMapSync<Origin, Arc<VirtualService>>,
    destination_rules: DestinationRules,
    /// Oldest first.
    gateways: RedBlackTreeMapSync<Origin, Arc<Gateway>>,
    /// Oldest first.
    sidecars: RedBlackTreeMapSync<Origin, Arc<Sidecar>>,
    /// By namespace, oldest first.
    pub(crate) authorization_policies:
        RedBlackTreeMapSync<(String, Origin), Arc<AuthorizationPolicy>>,
    secrets: RedBlackTreeMapSync<NamespacedName, Arc<Secret>>,
    /// By namespace, oldest first.
    peer_authentications: RedBlackTreeMapSync<(String, Origin), Arc<PeerAuthentication>>,
    namespaces: RedBlackTreeMapSync<String, ()>,
    pub(crate) roles: Roles,
    /// By namespace, oldest first.
    pub(crate) request_authentications:
        RedBlackTreeMapSync<(String, Origin), Arc<RequestAuthentication>>,
    /// Keys that were fetched for them.
    pub(crate) key_sets: Arc<KeySets>,

    /// What claims each host, oldest first: the first is its service.
    registered: RedBlackTreeMapSync<Claim, Arc<Registered>>,
    /// Aliases by the host that each is another name of, and the other way round.
    aliases: RedBlackTreeMapSync<(Arc<str>, Arc<str>), ()>,
    alias_of: RedBlackTreeMapSync<Arc<str>, Arc<str>>,
    /// What gives a Service endpoints: its namespace and name, and the kind and name of the object.
    slices: RedBlackTreeMapSync<SliceKey, Arc<Slice>>,
    /// Services by the first label of their selector.
    selecting: LabelIndex<Arc<str>>,
    /// Workloads by each of their labels.
    labelled: LabelIndex<(String, WorkloadKind)>,
    /// VirtualServices as they are written: their delegates are not in them yet.
    written: RedBlackTreeMapSync<Origin, Arc<VirtualService>>,
    /// VirtualServices that others leave rules to.
    delegates: RedBlackTreeMapSync<NamespacedName, Arc<VirtualService>>,
    /// Who names a delegate.
    delegating: RedBlackTreeMapSync<(NamespacedName, Origin), ()>,
    /// VirtualServices by each of their hosts, oldest first.
    rules_by_host: RedBlackTreeMapSync<(String, Origin), Arc<VirtualService>>,
    /// VirtualServices by each host that they send to.
    rules_by_destination: RedBlackTreeMapSync<(String, Origin), Arc<VirtualService>>,
    /// VirtualServices by each Gateway they are bound to, and `mesh`, oldest first.
    rules_by_gateway: RedBlackTreeMapSync<(String, Origin), Arc<VirtualService>>,
    /// VirtualServices that have anything to say of connections, oldest first.
    connection_rules: RedBlackTreeMapSync<Origin, Arc<VirtualService>>,
    /// Services without an address by each address of their endpoints.
    headless: RedBlackTreeMapSync<(String, Arc<str>), ()>,
    /// Services by each of their virtual addresses.
    addressed: RedBlackTreeMapSync<(String, Arc<str>), ()>,
    /// How many services are resolved by what a request asks for.
    by_request: usize,
    /// How many VirtualServices depend on the labels of the client.
    labelled_rules: usize,
    /// What each ServiceEntry wants in addresses, and what was given.
    allocations: RedBlackTreeMapSync<Origin, Arc<Allocation>>,
    allocated: Arc<Allocated>,
}

/// A thing of which each is another.
#[derive(Debug, Default)]
pub struct Identity(
    // Not of size zero: allocations of no size share an address.
    #[allow(dead_code, reason = "its address is what counts")] u8,
);

impl MeshSnapshot {
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

    /// The host of a service that a host is another name of (`ENABLE_EXTERNAL_NAME_ALIAS`): the end
    /// of a chain of Services of type ExternalName.
    pub fn alias_of(&self, host: &str) -> Option<&Arc<str>> {
        let mut found = self.alias_of.get(host)?;
        // As long as any chain that is no circle.
        for _ in 0..MAX_ALIASES {
            match self.alias_of.get(found) {
                Some(next) => found = next,
                None => return Some(found),
            }
        }
        None
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

    /// One workload; of a pod and a WorkloadEntry with the name the pod.
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads_named(namespace, name).next()
    }

    /// The workload that a proxy stands beside: of its name, and of two of them the one that has
    /// its address.
    pub fn workload_of(&self, proxy: &Proxy) -> Option<&Arc<Workload>> {
        let named = || self.workloads_named(&proxy.namespace, &proxy.name);
        let mut own = named().filter(|one| one.address == proxy.address);
        own.next().or_else(|| named().next())
    }

    fn workloads_named(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let kinds = [WorkloadKind::Pod, WorkloadKind::Entry];
        let (namespace, name) = (namespace.to_string(), name.to_string());
        kinds.into_iter().filter_map(move |kind| {
            let key = (namespace.clone(), name.clone(), kind);
            self.workloads.get(&key)
        })
    }

    /// Services that select a workload, by host name.
    pub fn services_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let candidates = workload.labels.iter().flat_map(|(label, value)| {
            labels_of(&self.selecting, &workload.namespace, label, value)
        });
        let services = candidates.filter_map(|host| self.services.get(host));
        let mut selecting: Vec<_> = services
            .filter(|service| labels_match(&service.selector, &workload.labels))
            .collect();
        selecting.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        selecting.into_iter()
    }

    /// Every VirtualService, oldest first.
    pub fn virtual_services(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.virtual_services.values()
    }

    /// The VirtualService of an object.
    pub fn virtual_service(&self, origin: &Origin) -> Option<&Arc<VirtualService>> {
        self.virtual_services.get(origin)
    }

    /// VirtualServices for sidecars that `namespace` sees, oldest first.
    pub fn mesh_virtual_services<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        self.virtual_services.values().filter(move |rule| {
            rule.visibility.reaches(namespace) && rule.is_bound_to(MESH_GATEWAY)
        })
    }

    /// VirtualServices with exactly this host, oldest first.
    pub fn rules_of_host<'a>(
        &'a self,
        host: &'a str,
    ) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        self.rules_by_host
            .range((host.to_string(), Origin::least())..)
            .take_while(move |((of, _), _)| of == host)
            .map(|(_, rule)| rule)
    }

    /// VirtualServices that send anything to this host.
    pub fn rules_to<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        self.rules_by_destination
            .range((host.to_string(), Origin::least())..)
            .take_while(move |((to, _), _)| to == host)
            .map(|(_, rule)| rule)
    }

    /// VirtualServices that are bound to a Gateway (`namespace/name`), oldest first.
    pub fn rules_bound_to<'a>(
        &'a self,
        gateway: &'a str,
    ) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        self.rules_by_gateway
            .range((gateway.to_string(), Origin::least())..)
            .take_while(move |((to, _), _)| to == gateway)
            .map(|(_, rule)| rule)
    }

    /// VirtualServices with routes for connections (`tcp`, `tls`), oldest first.
    pub fn connection_rules(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.connection_rules.values()
    }

    /// Hosts of the services without a virtual address that have an endpoint at this one.
    pub fn headless_at<'a>(&'a self, address: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        self.headless
            .range((address.to_string(), Arc::least())..)
            .take_while(move |((of, _), ())| of == address)
            .map(|((_, host), ())| host)
    }

    /// Hosts of the services with this virtual address.
    pub fn hosts_at<'a>(&'a self, address: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        self.addressed
            .range((address.to_string(), Arc::least())..)
            .take_while(move |((of, _), ())| of == address)
            .map(|((_, host), ())| host)
    }

    /// Whether any service is resolved by what a request asks for.
    pub fn has_services_by_request(&self) -> bool {
        self.by_request > 0
    }

    /// VirtualServices with a wildcard host, with that host; of one host the oldest first.
    pub fn wildcard_rules(&self) -> impl Iterator<Item = (&str, &Arc<VirtualService>)> {
        let from = ("*".to_string(), Origin::least());
        self.rules_by_host
            .range(from..)
            .take_while(|((host, _), _)| host.starts_with('*'))
            .map(|((host, _), rule)| (host.as_str(), rule))
    }

    /// Whether any rule depends on the labels of the client.
    pub fn rules_ask_for_labels(&self) -> bool {
        self.labelled_rules > 0 || self.destination_rules.select_clients()
    }

    /// Whether any DestinationRule places requests by a hash of them.
    pub fn rules_hash(&self) -> bool {
        self.destination_rules.hash()
    }

    /// Gateways whose selector picks a proxy with these labels, oldest first.
    pub fn gateways_for<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Gateway>> {
        self.gateways
            .values()
            .filter(move |gateway| labels_match(&gateway.spec.selector, labels))
    }

    /// Every Gateway, oldest first.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.gateways.values()
    }

    /// Every Sidecar, oldest first.
    pub fn sidecars(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.sidecars.values()
    }

    /// The Sidecars of a namespace, oldest first.
    pub fn sidecars_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Sidecar>> {
        self.sidecars
            .values()
            .filter(move |sidecar| sidecar.origin.namespace == namespace)
    }

    /// Every PeerAuthentication, by namespace.
    pub fn peer_authentications(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.peer_authentications.values()
    }

    /// The PeerAuthentications of a namespace, oldest first.
    pub fn peer_authentications_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<PeerAuthentication>> {
        self.peer_authentications
            .range((namespace.to_string(), Origin::least())..)
            .take_while(move |((of, _), _)| of == namespace)
            .map(|(_, rule)| rule)
    }

    /// Every merged DestinationRule.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.destination_rules.iter()
    }

    /// The DestinationRules of any namespace that cover a host.
    pub fn destination_rules_for<'a>(
        &'a self,
        host: &'a str,
    ) -> impl Iterator<Item = &'a Arc<DestinationRule>> {
        self.destination_rules.covering(host)
    }

    /// The DestinationRule that any client in `namespace` uses for a service.
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

    /// Services that a pattern (exact or `*.suffix`) covers.
    pub fn services_like<'a>(&'a self, pattern: &'a str) -> Vec<&'a Arc<Service>> {
        if !pattern.starts_with('*') {
            return self.services.get(pattern).into_iter().collect();
        }
        let all = self.services.values();
        all.filter(|service| hostname::matches(pattern, &service.hostname))
            .collect()
    }

    /// A Secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(&(namespace.to_string(), name.to_string()))
    }

    /// Whether a namespace object exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }
}

/// What an index has for a label and value, in order.
fn labels_of<'a, T: Ord + Least + 'a>(
    index: &'a LabelIndex<T>,
    namespace: &'a str,
    label: &'a str,
    value: &'a str,
) -> impl Iterator<Item = &'a T> {
    let from = (
        namespace.to_string(),
        label.to_string(),
        value.to_string(),
        T::least(),
    );
    index
        .range(from..)
        .take_while(move |((n, l, v, _), ())| n == namespace && l == label && v == value)
        .map(|((_, _, _, what), ())| what)
}

/// The first entry of a host.
fn range_of<'a, V>(
    map: &'a RedBlackTreeMapSync<Claim, V>,
    host: &Arc<str>,
) -> Option<(&'a Claim, &'a V)> {
    let from = (host.clone(), Origin::least(), Source::Kubernetes);
    map.range(from..).next().filter(|(key, _)| key.0 == *host)
}

/// A value before all others, where a range begins.
trait Least {
    fn least() -> Self;
}

impl Least for (String, WorkloadKind) {
    fn least() -> Self {
        (String::new(), WorkloadKind::Pod)
    }
}

impl Least for Arc<str> {
    fn least() -> Arc<str> {
        Arc::from("")
    }
}
