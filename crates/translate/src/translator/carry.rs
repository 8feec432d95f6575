//! Route tables after a change of rules: the ones before with the virtual hosts of the services that
//! the rules are for made anew. To put a table together from the whole mesh costs in proportion to
//! the mesh; this costs in proportion to the change.
//!
//! Only where that is certainly all that differs: the rules are for services by their full names, and
//! no Sidecar says what is seen. Everything else is put together anew when it is asked for.
//!
//! Invariant: what is carried over equals what would be made anew (a test compares them).

use std::sync::{OnceLock, PoisonError};

use lateen_model::MESH_GATEWAY;

use super::routes::Apart;
use super::*;

impl<R> Translator<R> {
    /// Takes `changes`, which led to the snapshot `now`, into the tables that are remembered. To be
    /// called for every snapshot that proxies are given, before it is.
    pub fn advance(&self, now: &MeshSnapshot, changes: &Changes) {
        let before = {
            let mut routing = self.routing.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *routing, now.routing.clone())
        };
        if Arc::ptr_eq(&before, &now.routing) {
            return;
        }
        if let Some(hosts) = ruled_services(now, changes) {
            self.carry_views(&before, now, &hosts);
        }
        // Not by snapshots: between two that differ in routes there may be many that do not.
        self.views.sweep();
    }

    fn carry_views(&self, before: &Arc<Identity>, now: &MeshSnapshot, hosts: &BTreeSet<&str>) {
        let asks_for_labels = now.rules_ask_for_labels();
        let views = self.views.known(|key| {
            Arc::ptr_eq(&key.snapshot.0, before)
                && key.gateway.is_none()
                && key.sidecar.is_none()
                && key.labels.is_some() == asks_for_labels
        });
        for (mut key, table) in views {
            key.snapshot = ById(now.routing.clone());
            let table = (*table).as_ref();
            let carried = table.map(|table| self.carry(now, table, hosts));
            self.views.put(key, Arc::new(carried));
        }
    }

    fn carry(
        &self,
        now: &MeshSnapshot,
        table: &Arc<Parts<R>>,
        hosts: &BTreeSet<&str>,
    ) -> Arc<Parts<R>> {
        let proxy = &table.seen_by;
        let mut changed = Vec::new();
        let services = hosts.iter().filter_map(|host| now.service(host));
        for service in services.filter(|service| service.visibility.reaches(&proxy.namespace)) {
            let rule = now.mesh_rule_for(&proxy.namespace, &service.hostname);
            let rule = rule.filter(|rule| !rule.spec.http.is_empty());
            for port in &service.ports {
                let name = format!("{}:{}", service.hostname, port.number);
                let Some(at) = table.positions.get(name.as_str()) else {
                    continue;
                };
                let Some(known) = table.hosts.get(*at) else {
                    continue;
                };
                let Some(key) = &known.key else { continue };
                let key = route_table::with_rule(now, proxy, key, rule.clone());
                let made = ById(self.encoded_host(key));
                if made != *known {
                    changed.push((*at, made));
                }
            }
        }
        match changed.is_empty() {
            true => table.clone(),
            false => self.replaced(table, changed),
        }
    }

    /// A table with other virtual hosts at some positions.
    fn replaced(
        &self,
        table: &Arc<Parts<R>>,
        changed: Vec<(usize, ById<EncodedHost>)>,
    ) -> Arc<Parts<R>> {
        let mut hosts = table.hosts.clone();
        let mut differ = BTreeSet::new();
        let name: Arc<str> = table.name.as_str().into();
        let mut apart = table.apart.get().map(|apart| Apart {
            table: apart.table.clone(),
            hosts: apart.hosts.clone(),
        });
        for (at, host) in changed {
            if let Some(apart) = &mut apart {
                let (full, made) = self.named_host(&name, &host);
                differ.insert(full.to_string());
                apart.hosts.insert(full, made);
            }
            if let Some(place) = hosts.get_mut(at) {
                *place = host;
            }
        }
        let known = apart.is_some();
        let next = Arc::new(Parts {
            name: table.name.clone(),
            hosts,
            positions: table.positions.clone(),
            rest: table.rest.clone(),
            divides: table.divides,
            seen_by: table.seen_by.clone(),
            apart: apart.map(OnceLock::from).unwrap_or_default(),
        });
        if known {
            let key = (ById(table.clone()), ById(next.clone()));
            self.differences.put(key, Arc::new(differ));
        }
        next
    }
}

/// The services that changed rules are for; `None` when the tables can differ in anything else.
fn ruled_services<'a>(now: &'a MeshSnapshot, changes: &'a Changes) -> Option<BTreeSet<&'a str>> {
    if !changes.only_rules_of_routes(now) {
        return None;
    }
    let mut hosts = BTreeSet::new();
    for (origin, before) in &changes.virtual_services {
        let rules = before.iter().chain(now.virtual_service(origin));
        for rule in rules.filter(|rule| rule.is_bound_to(MESH_GATEWAY)) {
            for host in &rule.hosts {
                let is_service = !host.starts_with('*') && now.service(host).is_some();
                hosts.insert(is_service.then_some(host.as_str())?);
            }
        }
    }
    Some(hosts)
}
