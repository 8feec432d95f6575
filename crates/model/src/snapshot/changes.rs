//! What differs between two snapshots, with what was there before: the work that follows a change
//! is proportional to this, not to the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{MeshSnapshot, NamespacedName};
use crate::rules::{DestinationRule, Origin, RuleKey, VirtualService};
use crate::service::{Service, ServiceEndpoints};

/// What differs. Each map has what came, went or changed, and its value before.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The settings changed, so anything may differ.
    pub everything: bool,
    pub services: BTreeMap<Arc<str>, Option<Arc<Service>>>,
    pub endpoints: BTreeMap<Arc<str>, Option<Arc<ServiceEndpoints>>>,
    pub virtual_services: BTreeMap<Origin, Option<Arc<VirtualService>>>,
    pub destination_rules: BTreeMap<RuleKey, Option<Arc<DestinationRule>>>,
    pub gateways: bool,
    pub sidecars: bool,
    pub authorization_policies: bool,
    pub secrets: BTreeSet<NamespacedName>,
    /// Roles or their bindings, and so who may have Secrets.
    pub roles: bool,
    /// Namespaces whose PeerAuthentications changed.
    pub peer_authentications: BTreeSet<String>,
    /// RequestAuthentications, or the keys fetched for them.
    pub request_authentications: bool,
    /// Workloads that came, went or changed in what listeners read: names, labels, ports, place.
    pub workloads: BTreeSet<NamespacedName>,
}

impl Changes {
    /// For when nothing is known of what was before.
    pub fn everything() -> Changes {
        Changes {
            everything: true,
            ..Changes::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.everything && self.only_endpoints() && self.endpoints.is_empty()
    }

    /// Whether nothing but endpoints differs.
    pub fn only_endpoints(&self) -> bool {
        !self.everything
            && self.services.is_empty()
            && self.virtual_services.is_empty()
            && self.destination_rules.is_empty()
            && self.secrets.is_empty()
            && self.peer_authentications.is_empty()
            && self.workloads.is_empty()
            && !self.gateways
            && !self.sidecars
            && !self.roles
            && !self.authorization_policies
            && !self.request_authentications
    }

    /// Whether route tables can differ. They know services and rules, and no endpoints but those of
    /// services without an address of their own. (A gateway's know its own workload, too.)
    pub fn touch_routes(&self, now: &MeshSnapshot) -> bool {
        let headless = |host: &Arc<str>| now.service(host).is_some_and(|one| one.is_headless());
        self.everything
            || self.gateways
            || self.sidecars
            || !self.services.is_empty()
            || !self.virtual_services.is_empty()
            || !self.destination_rules.is_empty()
            || self.endpoints.keys().any(headless)
    }

    /// Whether of all that route tables are made from only services and rules differ.
    pub fn only_rules_and_services_of_routes(&self, now: &MeshSnapshot) -> bool {
        let is_headless = |one: &Arc<Service>| one.is_headless();
        let services = self.services.iter();
        let mut services =
            services.flat_map(|(host, before)| before.iter().chain(now.service(host)));
        let mut endpoints = self.endpoints.keys().filter_map(|host| now.service(host));
        !self.everything
            && !self.gateways
            && !self.sidecars
            && !services.any(is_headless)
            && !endpoints.any(is_headless)
    }

    /// Joins later changes into these: what was before is what was before the first.
    pub fn merge(&mut self, later: Changes) {
        fn join<K: Ord, V>(into: &mut BTreeMap<K, V>, later: BTreeMap<K, V>) {
            for (key, before) in later {
                into.entry(key).or_insert(before);
            }
        }
        self.everything |= later.everything;
        join(&mut self.services, later.services);
        join(&mut self.endpoints, later.endpoints);
        join(&mut self.virtual_services, later.virtual_services);
        join(&mut self.destination_rules, later.destination_rules);
        self.gateways |= later.gateways;
        self.sidecars |= later.sidecars;
        self.roles |= later.roles;
        self.authorization_policies |= later.authorization_policies;
        self.request_authentications |= later.request_authentications;
        self.secrets.extend(later.secrets);
        self.peer_authentications.extend(later.peer_authentications);
        self.workloads.extend(later.workloads);
    }
}
