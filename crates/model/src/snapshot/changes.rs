//! What differs between two snapshots, with what was there before: the work that follows a change
//! is proportional to this, not to the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{MeshSnapshot, NamespacedName};
use crate::rules::{DestinationRule, MESH_GATEWAY, Origin, RuleKey, VirtualService};
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
    /// Gateways among them whose clients name their cluster.
    pub gateways_by_name: bool,
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

    /// Whether route tables can differ. They know services and rules, and no endpoints. (A gateway's
    /// know its own workload, too.)
    pub fn touch_routes(&self) -> bool {
        self.everything
            || self.gateways
            || self.sidecars
            || !self.services.is_empty()
            || !self.virtual_services.is_empty()
            || !self.destination_rules.is_empty()
    }

    /// Services that differ, as they were and as they are.
    pub fn services_then_and<'a>(
        &'a self,
        now: &'a MeshSnapshot,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let services = self.services.iter();
        services.flat_map(|(host, before)| before.iter().chain(now.service(host)))
    }

    /// VirtualServices that send anything to services that differ, by whichever of their names.
    pub fn rules_to_services<'a>(
        &'a self,
        now: &'a MeshSnapshot,
    ) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        let aliases = self.services_then_and(now);
        let aliases = aliases.flat_map(|service| &service.aliases);
        let names = self.services.keys().chain(aliases);
        names.flat_map(|host| now.rules_to(host))
    }

    /// VirtualServices that differ, as they were and as they are.
    pub fn rules_then_and<'a>(
        &'a self,
        now: &'a MeshSnapshot,
    ) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        let rules = self.virtual_services.iter();
        rules.flat_map(|(origin, before)| before.iter().chain(now.virtual_service(origin)))
    }

    /// Hosts that changed rules lead to, where that or who follows the rule differs: who sees only
    /// what a Sidecar imports may see them now, or no longer.
    pub fn led_to(&self, now: &MeshSnapshot) -> BTreeSet<String> {
        let domain = &now.settings.domain_suffix;
        let leads = |rule: &Arc<VirtualService>| {
            let to: BTreeSet<String> = rule.destinations(domain).into_iter().collect();
            (to, rule.hosts.clone(), rule.visibility.clone())
        };
        let mut hosts = BTreeSet::new();
        for (origin, before) in &self.virtual_services {
            let for_mesh = |rule: &&Arc<VirtualService>| rule.is_bound_to(MESH_GATEWAY);
            let before = before.as_ref().filter(for_mesh).map(leads);
            let now = now.virtual_service(origin).filter(for_mesh).map(leads);
            if before != now {
                hosts.extend([before, now].into_iter().flatten().flat_map(|(to, ..)| to));
            }
        }
        hosts
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
        self.gateways_by_name |= later.gateways_by_name;
        self.sidecars |= later.sidecars;
        self.roles |= later.roles;
        self.authorization_policies |= later.authorization_policies;
        self.request_authentications |= later.request_authentications;
        self.secrets.extend(later.secrets);
        self.peer_authentications.extend(later.peer_authentications);
        self.workloads.extend(later.workloads);
    }
}
