//! What follows for services: who makes each, how it is found, and which endpoints it has.

use std::sync::Arc;

use lateen_api::{Kind, Object};

use super::update::{Update, keep};
use super::{MeshSnapshot, SliceKey, labels_of, range_of};
use crate::hostname;
use crate::registry::{self, Registered};
use crate::rules::Origin;
use crate::service::{Service, Source, Workload};
use crate::slices::Slice;

impl Update<'_> {
    pub(super) fn add_slice(&mut self, origin: &Origin, object: &Object) {
        if let Some(slice) = Slice::of(origin, object) {
            let key = self.note_slice(origin, object.kind, &slice);
            let mut slice = Arc::new(slice);
            keep(&mut slice, self.previous.and_then(|p| p.slices.get(&key)));
            self.next.slices.insert_mut(key, slice);
        }
    }

    pub(super) fn remove_slice(&mut self, origin: &Origin, object: &Object) {
        if let Some(slice) = Slice::of(origin, object) {
            let key = self.note_slice(origin, object.kind, &slice);
            self.next.slices.remove_mut(&key);
        }
    }

    /// The endpoints of its service are to be settled again.
    fn note_slice(&mut self, origin: &Origin, kind: Kind, slice: &Slice) -> SliceKey {
        let (namespace, service) = (slice.namespace.clone(), slice.service.clone());
        let suffix = &self.next.settings.domain_suffix;
        let host = hostname::resolve(&service, &namespace, suffix);
        self.sliced.insert(Arc::from(host));
        (namespace, service, kind, origin.name.clone())
    }

    pub(super) fn add_alias(&mut self, (host, target): (Arc<str>, Arc<str>)) {
        self.next
            .aliases
            .insert_mut((target.clone(), host.clone()), ());
        self.next.alias_of.insert_mut(host.clone(), target);
        self.note_alias(&host);
    }

    pub(super) fn remove_alias(&mut self, (host, target): (Arc<str>, Arc<str>)) {
        self.note_alias(&host);
        self.next.aliases.remove_mut(&(target, host.clone()));
        self.next.alias_of.remove_mut(&host);
    }

    /// The service at the end of the chain has other names than before.
    fn note_alias(&mut self, host: &str) {
        self.hosts.extend(self.next.alias_of(host).cloned());
        // Rules that send there send elsewhere now.
        self.changes.services.insert(Arc::from(host), None);
    }

    /// The oldest object of a host makes its service.
    pub(super) fn settle_service(&mut self, host: &Arc<str>) {
        let made = self.next.owner(host).map(|(origin, registered)| {
            let mut service = registered.service.clone();
            if service.source == crate::service::Source::ServiceEntry {
                let key = (origin.clone(), host.to_string());
                let given = self.next.allocated.get(&key);
                service.auto_addresses = given.map(|found| found.to_vec()).unwrap_or_default();
            }
            service.aliases = self.next.aliases_of(host);
            let mut service = Arc::new(service);
            keep(
                &mut service,
                self.previous.and_then(|p| p.services.get(host)),
            );
            service
        });
        if let Some(old) = self.next.services.get(host).cloned() {
            self.index_service(&old, false);
        }
        match &made {
            Some(service) => {
                self.next.services.insert_mut(host.clone(), service.clone());
                self.index_service(service, true);
            }
            None => {
                self.next.services.remove_mut(host);
            }
        }
        let before = self.previous.and_then(|p| p.services.get(host));
        let same = match (&made, before) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.changes.services.insert(host.clone(), before.cloned());
        }
    }

    pub(super) fn settle_endpoints(&mut self, host: &Arc<str>) {
        let made = self.next.owner(host).map(|(_, registered)| {
            let service = &registered.service;
            let workloads = self.next.selected_by(service);
            let slices = self.next.slices_of(service);
            let mut made = Arc::new(registry::endpoints(registered, &workloads, &slices));
            keep(&mut made, self.previous.and_then(|p| p.endpoints.get(host)));
            made
        });
        let before = self.previous.and_then(|p| p.endpoints.get(host));
        let same = match (&made, before) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (None, None) => true,
            _ => false,
        };
        if let Some(old) = self.next.endpoints.get(host).cloned() {
            self.index_headless(host, &old, false);
        }
        let service = self.next.services.get(host);
        let is_headless = service.is_some_and(|service| service.is_headless());
        if let Some(made) = made.as_ref().filter(|_| is_headless) {
            self.index_headless(host, made, true);
        }
        match made {
            Some(made) => self.next.endpoints.insert_mut(host.clone(), made),
            None => {
                self.next.endpoints.remove_mut(host);
            }
        }
        if !same {
            self.changes.endpoints.insert(host.clone(), before.cloned());
        }
    }
}

impl MeshSnapshot {
    /// The oldest of the objects that claim a host.
    fn owner(&self, host: &Arc<str>) -> Option<(&Origin, &Arc<Registered>)> {
        let (key, registered) = range_of(&self.registered, host)?;
        Some((&key.1, registered))
    }

    /// The workloads that a service's selector picks, by name.
    fn selected_by(&self, service: &Service) -> Vec<Arc<Workload>> {
        let Some((label, value)) = service.selector.iter().next() else {
            return Vec::new();
        };
        labels_of(&self.labelled, &service.namespace, label, value)
            .filter_map(|(name, kind)| {
                let key = (service.namespace.clone(), name.clone(), *kind);
                self.workloads.get(&key).cloned()
            })
            .collect()
    }

    /// Every other name of a host, in order.
    fn aliases_of(&self, host: &Arc<str>) -> Vec<Arc<str>> {
        let mut found = std::collections::BTreeSet::new();
        let mut names = vec![host.clone()];
        while let Some(name) = names.pop() {
            let range = self.aliases.range((name.clone(), Arc::from(""))..);
            let range = range.take_while(|((target, _), ())| *target == name);
            for ((_, alias), ()) in range {
                // Not those of a circle, which lead nowhere.
                if self.alias_of(alias) == Some(host) && found.insert(alias.clone()) {
                    names.push(alias.clone());
                }
            }
        }
        found.into_iter().collect()
    }

    /// What objects give a service endpoints.
    fn slices_of(&self, service: &Service) -> Vec<Arc<Slice>> {
        if service.source != Source::Kubernetes {
            return Vec::new();
        }
        let (namespace, name) = (&service.namespace, &service.name);
        let from = (namespace.clone(), name.clone(), Kind::ALL[0], String::new());
        let range = self.slices.range(from..);
        range
            .take_while(|((n, s, ..), _)| n == namespace && s == name)
            .map(|(_, slice)| slice.clone())
            .collect()
    }
}
