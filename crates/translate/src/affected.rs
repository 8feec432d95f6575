//! Which resources a change of the mesh can touch, for any proxy: what a push has to look at.
//!
//! Too many names cost work, too few are a bug. Names are those before and after the change, so
//! that what went is told, too. Those of listeners and route tables that only one proxy has are not
//! among them: it adds them itself ([`crate::own_names`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_model::{
    Changes, DestinationRule, MeshSnapshot, NamespacedName, Service, ServiceEndpoints,
};

use crate::translator::type_url;
use crate::{names, shared_names};

/// Names of one type; `None` is all of it.
pub type Affected = BTreeMap<&'static str, Option<BTreeSet<String>>>;

/// The resources that may differ in `now` after `changes`; `None` when that is everything. A change
/// of a workload itself concerns its own proxy alone, if that `is_connected`; to the others it is a
/// change of endpoints.
pub fn affected(
    now: &MeshSnapshot,
    changes: &Changes,
    is_connected: impl Fn(&NamespacedName) -> bool,
) -> Option<Affected> {
    if changes.everything {
        return None;
    }
    let mut affected = Affected::new();
    let own = changes.workloads.iter().any(is_connected);
    let mut clusters = cluster_names(now, changes);
    let mut secured = secured_names(now, changes);
    // What a Sidecar imports decides which clusters a proxy has, and rules lead there.
    let led_to = match now.sidecars().next() {
        Some(_) => changes.led_to(now),
        None => BTreeSet::new(),
    };
    for service in led_to.iter().filter_map(|host| now.service(host)) {
        add_all_names(now, service, &mut secured);
    }
    // A Gateway may ask for clusters by server name.
    let scoped = changes.sidecars || changes.gateways_by_name;
    if own || scoped {
        affected.insert(type_url::ENDPOINT, None);
    } else if !(clusters.is_empty() && secured.is_empty()) {
        let mut names: BTreeSet<String> = clusters.union(&secured).cloned().collect();
        // Every service may be somebody's own.
        if !(changes.endpoints.is_empty() && changes.services.is_empty()) {
            names.insert(names::LOCAL_CLUSTER.to_string());
        }
        affected.insert(type_url::ENDPOINT, Some(names));
    }
    let inbound = own || !changes.services.is_empty();
    let ingress = || {
        now.sidecars()
            .any(|sidecar| !sidecar.spec.ingress.is_empty())
    };
    // Clusters with a Secret that a gateway may have, or no longer.
    let credentials = changes.roles && now.destination_rules().next().is_some();
    if own || scoped || credentials || (inbound && ingress()) {
        affected.insert(type_url::CLUSTER, None);
    } else if !(changes.services.is_empty() && changes.destination_rules.is_empty()) {
        clusters.extend(inbound_names(now, changes));
        clusters.extend(secured);
        affected.insert(type_url::CLUSTER, Some(clusters));
    } else if !secured.is_empty() {
        affected.insert(type_url::CLUSTER, Some(secured));
    }
    // Workloads of a service without an address of its own are addresses that listeners and names
    // know.
    let headless = changes.endpoints.keys().any(|host| {
        let service = now.service(host);
        service.is_some_and(|service| service.is_headless())
    });
    if own || headless || !led_to.is_empty() || listeners(now, changes) {
        let names = shared_names::listeners(now, changes, &led_to).filter(|_| !own);
        affected.insert(type_url::LISTENER, names);
    }
    // Rules of every kind select by the labels of the workload.
    if own || changes.touch_routes() {
        let names = shared_names::routes(now, changes, &led_to).filter(|_| !own);
        affected.insert(type_url::ROUTE, names);
        affected.insert(type_url::VIRTUAL_HOST, None);
    }
    if own
        || changes.gateways
        || !changes.secrets.is_empty()
        || changes.roles
        || !changes.destination_rules.is_empty()
    {
        affected.insert(type_url::SECRET, None);
    }
    let named = !led_to.is_empty() || headless || !changes.services.is_empty();
    if own || changes.sidecars || named {
        affected.insert(type_url::NAME_TABLE, None);
    }
    Some(affected)
}

/// Whether listeners can differ: all but the rules for HTTP and the endpoints can make them so.
fn listeners(now: &MeshSnapshot, changes: &Changes) -> bool {
    let mut rules = changes.rules_then_and(now);
    changes.gateways
        || changes.sidecars
        || changes.authorization_policies
        || changes.request_authentications
        || !changes.secrets.is_empty()
        || changes.roles
        || !changes.peer_authentications.is_empty()
        || !changes.services.is_empty()
        || !changes.destination_rules.is_empty()
        || rules.any(|rule| rule.is_of_connections())
}

/// The clusters of every service that changed, whose endpoints did, or whose rule did.
fn cluster_names(now: &MeshSnapshot, changes: &Changes) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let hosts = changes.services.keys().chain(changes.endpoints.keys());
    for host in hosts.collect::<BTreeSet<_>>() {
        let before = changes.services.get(host).and_then(Option::as_ref);
        for service in now.service(host).into_iter().chain(before) {
            add_all_names(now, service, &mut names);
        }
    }
    for ((_, pattern, _), before) in &changes.destination_rules {
        for service in now.services_like(pattern) {
            add_names(service, None, &mut names);
            for rule in now.destination_rules_for(&service.hostname).chain(before) {
                add_names(service, Some(rule), &mut names);
            }
        }
    }
    // A rule that went may have made subsets of a service that went with it.
    for service in changes.services.values().flatten() {
        for rule in changes.destination_rules.values().flatten() {
            add_names(service, Some(rule), &mut names);
        }
    }
    names
}

/// The clusters whose mutual TLS can differ: of services whose endpoints have other accounts or take
/// it now and did not, and of those in namespaces whose PeerAuthentications changed.
fn secured_names(now: &MeshSnapshot, changes: &Changes) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |service: &Service| add_all_names(now, service, &mut names);
    for (host, before) in &changes.endpoints {
        let now_there = now.endpoints(host);
        let peers = |of: &ServiceEndpoints| (of.accounts.clone(), of.all_take_mtls);
        let same = before
            .as_ref()
            .is_some_and(|before| peers(before) == peers(&now_there));
        if let Some(service) = now.service(host).filter(|_| !same) {
            add(service);
        }
    }
    let ruled = &changes.peer_authentications;
    if !ruled.is_empty() {
        let everywhere = ruled.contains(&now.settings.root_namespace);
        for service in now.services() {
            if everywhere || ruled.contains(&service.namespace) {
                add(service);
            }
        }
    }
    names
}

fn add_all_names(now: &MeshSnapshot, service: &Service, names: &mut BTreeSet<String>) {
    add_names(service, None, names);
    for rule in now.destination_rules_for(&service.hostname) {
        add_names(service, Some(rule), names);
    }
}

fn add_names(service: &Service, rule: Option<&Arc<DestinationRule>>, names: &mut BTreeSet<String>) {
    let subsets = rule.into_iter().flat_map(|rule| &rule.subsets);
    let subsets: Vec<&str> = subsets.map(|subset| subset.name.as_str()).collect();
    for port in &service.ports {
        for subset in std::iter::once("").chain(subsets.iter().copied()) {
            names.insert(names::outbound_cluster(
                port.number,
                subset,
                &service.hostname,
            ));
            names.insert(names::sni_cluster(port.number, subset, &service.hostname));
        }
    }
}

/// The inbound clusters behind services that changed.
fn inbound_names(now: &MeshSnapshot, changes: &Changes) -> BTreeSet<String> {
    let mut ports: BTreeSet<u16> = BTreeSet::new();
    for host in changes.services.keys() {
        let before = changes.endpoints.get(host).and_then(Option::as_ref);
        let after = now.endpoints(host);
        for endpoints in before.into_iter().chain([&after]) {
            let all = endpoints.by_port.values().flatten();
            ports.extend(all.filter_map(|one| u16::try_from(one.port).ok()));
        }
    }
    ports.into_iter().map(names::inbound_cluster).collect()
}
