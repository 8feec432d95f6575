//! From one snapshot to the next: only what the changed objects contribute to is made again.
//!
//! A full build is the same work with every object as a change, so that there is one way to be
//! right; a property test compares the two over random sequences.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::{Object, Spec};

use super::settings::configured;
use super::{Changes, Key, MeshSnapshot, WorkloadKey};
use crate::authorization::AuthorizationPolicy;
use crate::auto_allocate::Allocation;
use crate::delegate;
use crate::peer_authentication::PeerAuthentication;
use crate::registry::{self, Registered};
use crate::request_authentication::RequestAuthentication;
use crate::rules::{Gateway, Origin, RuleKey, VirtualService};
use crate::secret::Secret;
use crate::servers;
use crate::service::{Workload, WorkloadKind};
use crate::settings::MeshSettings;
use crate::sidecar::Sidecar;

/// One object, before and after a change.
#[derive(Clone, Copy)]
pub struct ObjectChange<'a> {
    pub before: Option<&'a Object>,
    pub after: Option<&'a Object>,
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
        let mut next = MeshSnapshot {
            revision,
            settings,
            key_sets: previous.map(|p| p.key_sets.clone()).unwrap_or_default(),
            ..MeshSnapshot::default()
        };
        let changes = objects.iter().map(|object| ObjectChange {
            before: None,
            after: Some(object),
        });
        Update::new(&mut next, previous).apply(changes);
        next
    }

    /// The snapshot after some objects changed, and what differs from this one. `None` when the
    /// settings may have changed, on which everything depends: then [`MeshSnapshot::build`].
    pub fn updated(
        &self,
        changes: &[ObjectChange<'_>],
        revision: u64,
    ) -> Option<(MeshSnapshot, Changes)> {
        let sets =
            |object: &&Object| matches!(object.spec, Spec::ConfigMap(_) | Spec::IstioOperator(_));
        if changes.iter().any(|change| {
            change.before.is_some_and(|o| sets(&o)) || change.after.is_some_and(|o| sets(&o))
        }) {
            return None;
        }
        let mut next = MeshSnapshot {
            revision,
            identity: Arc::default(),
            ..self.clone()
        };
        let differs = Update::new(&mut next, Some(self)).apply(changes.iter().copied());
        if differs.touch_routes() {
            next.routing = Arc::default();
        }
        Some((next, differs))
    }
}

/// One update in work.
pub(super) struct Update<'a> {
    pub(super) next: &'a mut MeshSnapshot,
    pub(super) previous: Option<&'a MeshSnapshot>,
    pub(super) changes: Changes,
    /// Hosts whose objects changed.
    pub(super) hosts: BTreeSet<Arc<str>>,
    /// Workloads that came, went or changed, as they were and as they are.
    workloads: Vec<Arc<Workload>>,
    /// Which DestinationRules have to be merged again.
    destination_rules: BTreeSet<RuleKey>,
    /// VirtualServices that changed, or whose delegates did.
    rules: BTreeSet<Origin>,
    /// Hosts to which slices came, or from which they went.
    pub(super) sliced: BTreeSet<Arc<str>>,
    /// Whether addresses have to be given out again.
    allocate: bool,
}

impl<'a> Update<'a> {
    fn new(next: &'a mut MeshSnapshot, previous: Option<&'a MeshSnapshot>) -> Self {
        Update {
            next,
            previous,
            changes: Changes::default(),
            hosts: BTreeSet::new(),
            workloads: Vec::new(),
            destination_rules: BTreeSet::new(),
            rules: BTreeSet::new(),
            sliced: BTreeSet::new(),
            allocate: false,
        }
    }

    fn apply<'o>(mut self, changes: impl Iterator<Item = ObjectChange<'o>>) -> Changes {
        for change in changes {
            if let Some(object) = change.before {
                self.remove(object);
            }
            if let Some(object) = change.after {
                self.add(object);
            }
        }
        self.allocate();
        for origin in std::mem::take(&mut self.rules) {
            self.settle_rule(origin);
        }
        for key in std::mem::take(&mut self.destination_rules) {
            self.settle_destination_rule(key);
        }
        let hosts = std::mem::take(&mut self.hosts);
        for host in &hosts {
            self.settle_service(host);
        }
        let mut affected = hosts;
        affected.append(&mut self.sliced);
        for workload in std::mem::take(&mut self.workloads) {
            let selecting = self.next.services_of(&workload);
            affected.extend(selecting.map(|service| service.hostname.clone()));
        }
        for host in &affected {
            self.settle_endpoints(host);
        }
        self.changes
    }

    fn remove(&mut self, object: &Object) {
        let origin = registry::origin(object);
        match &object.spec {
            Spec::Service(spec) => match registry::alias(&origin, spec, &self.next.settings) {
                Some(alias) => self.remove_alias(alias),
                None => {
                    let mesh = &self.next.settings;
                    let one = registry::kubernetes_service(&origin, spec, mesh);
                    self.unregister(&origin, one);
                }
            },
            Spec::ServiceEntry(spec) => {
                for one in registry::service_entry(&origin, spec, &self.next.settings) {
                    self.unregister(&origin, one);
                }
                self.next.allocations.remove_mut(&origin);
                self.allocate = true;
            }
            Spec::WorkloadEntry(_) => {
                self.remove_workload((origin.namespace, origin.name, WorkloadKind::Entry));
            }
            Spec::Pod(_) => {
                self.remove_workload((origin.namespace, origin.name, WorkloadKind::Pod));
            }
            Spec::VirtualService(_) => self.remove_rule(origin),
            Spec::DestinationRule(spec) => {
                let key = self
                    .next
                    .destination_rules
                    .remove(&origin, spec, &self.next.settings);
                self.destination_rules.insert(key);
            }
            Spec::Gateway(spec) => {
                self.next.gateways.remove_mut(&origin);
                self.changes.gateways = true;
                self.changes.gateways_by_name |= servers::is_by_name(spec);
            }
            Spec::Sidecar(_) => {
                self.next.sidecars.remove_mut(&origin);
                self.changes.sidecars = true;
            }
            Spec::PeerAuthentication(_) => {
                let namespace = origin.namespace.clone();
                let key = (namespace.clone(), origin);
                self.next.peer_authentications.remove_mut(&key);
                self.changes.peer_authentications.insert(namespace);
            }
            Spec::AuthorizationPolicy(_) => {
                let key = (origin.namespace.clone(), origin);
                self.next.authorization_policies.remove_mut(&key);
                self.changes.authorization_policies = true;
            }
            Spec::RequestAuthentication(_) => {
                let key = (origin.namespace.clone(), origin);
                self.next.request_authentications.remove_mut(&key);
                self.changes.request_authentications = true;
            }
            Spec::Secret(_) => {
                let key = (origin.namespace, origin.name);
                self.next.secrets.remove_mut(&key);
                self.changes.secrets.insert(key);
            }
            Spec::Namespace(_) => {
                self.next.namespaces.remove_mut(&origin.name);
            }
            Spec::EndpointSlice(_) | Spec::Endpoints(_) => self.remove_slice(&origin, object),
            Spec::Role(_)
            | Spec::ClusterRole(_)
            | Spec::RoleBinding(_)
            | Spec::ClusterRoleBinding(_) => {
                self.next.roles.remove(object);
                self.changes.roles = true;
            }
            // The settings are read from these, see `configured`.
            Spec::ConfigMap(_) | Spec::IstioOperator(_) => {}
        }
    }

    fn add(&mut self, object: &Object) {
        let origin = registry::origin(object);
        match &object.spec {
            Spec::Service(spec) => match registry::alias(&origin, spec, &self.next.settings) {
                Some(alias) => self.add_alias(alias),
                None => {
                    let mesh = &self.next.settings;
                    let one = registry::kubernetes_service(&origin, spec, mesh);
                    self.register(&origin, one);
                }
            },
            Spec::ServiceEntry(spec) => {
                for one in registry::service_entry(&origin, spec, &self.next.settings) {
                    self.register(&origin, one);
                }
                let mut wanted = Allocation::default();
                wanted.note(&origin, object, spec);
                self.next.allocations.insert_mut(origin, Arc::new(wanted));
                self.allocate = true;
            }
            Spec::WorkloadEntry(spec) => {
                self.add_workload(registry::workload_entry(&origin, object, spec));
            }
            Spec::Pod(spec) => {
                if let Some(workload) = registry::pod(&origin, object, spec) {
                    self.add_workload(workload);
                }
            }
            Spec::VirtualService(spec) => {
                let mesh = &self.next.settings;
                let rule = VirtualService::resolve(origin.clone(), spec.clone(), mesh);
                self.add_rule(origin, rule);
            }
            Spec::DestinationRule(spec) => {
                let key = self.next.destination_rules.add(
                    &origin,
                    spec,
                    object.closed,
                    &self.next.settings,
                );
                self.destination_rules.insert(key);
            }
            Spec::Gateway(spec) => {
                let mut gateway = Arc::new(Gateway {
                    origin: origin.clone(),
                    spec: spec.clone(),
                });
                keep(
                    &mut gateway,
                    self.previous.and_then(|p| p.gateways.get(&origin)),
                );
                self.next.gateways.insert_mut(origin, gateway);
                self.changes.gateways = true;
                self.changes.gateways_by_name |= servers::is_by_name(spec);
            }
            Spec::Sidecar(spec) => {
                let mut sidecar = Arc::new(Sidecar::resolve(origin.clone(), spec.clone()));
                keep(
                    &mut sidecar,
                    self.previous.and_then(|p| p.sidecars.get(&origin)),
                );
                self.next.sidecars.insert_mut(origin, sidecar);
                self.changes.sidecars = true;
            }
            Spec::PeerAuthentication(spec) => {
                let namespace = origin.namespace.clone();
                let key = (namespace.clone(), origin.clone());
                let mut rule = Arc::new(PeerAuthentication {
                    origin,
                    spec: spec.clone(),
                    closed: object.closed,
                });
                let before = self.previous.and_then(|p| p.peer_authentications.get(&key));
                keep(&mut rule, before);
                self.next.peer_authentications.insert_mut(key, rule);
                self.changes.peer_authentications.insert(namespace);
            }
            Spec::AuthorizationPolicy(spec) => {
                let key = (origin.namespace.clone(), origin.clone());
                let policy = AuthorizationPolicy::read(origin, object, spec.clone());
                let mut policy = Arc::new(policy);
                let old = self
                    .previous
                    .and_then(|p| p.authorization_policies.get(&key));
                keep(&mut policy, old);
                self.next.authorization_policies.insert_mut(key, policy);
                self.changes.authorization_policies = true;
            }
            Spec::RequestAuthentication(spec) => {
                let key = (origin.namespace.clone(), origin.clone());
                let mut policy = Arc::new(RequestAuthentication {
                    origin,
                    spec: spec.clone(),
                    closed: object.closed,
                });
                let before = self.previous;
                let before = before.and_then(|p| p.request_authentications.get(&key));
                keep(&mut policy, before);
                self.next.request_authentications.insert_mut(key, policy);
                self.changes.request_authentications = true;
            }
            Spec::Secret(spec) => {
                let key = (origin.namespace.clone(), origin.name.clone());
                let old = self.previous.and_then(|p| p.secrets.get(&key));
                // One that is the same object as before is not read again.
                let secret = match old.filter(|old| old.is_of(&origin, spec)) {
                    Some(old) => old.clone(),
                    None => {
                        let mut secret = Arc::new(Secret::read(origin, spec.clone()));
                        keep(&mut secret, old);
                        secret
                    }
                };
                self.next.secrets.insert_mut(key.clone(), secret);
                self.changes.secrets.insert(key);
            }
            Spec::Namespace(_) => {
                self.next.namespaces.insert_mut(origin.name, ());
            }
            Spec::EndpointSlice(_) | Spec::Endpoints(_) => self.add_slice(&origin, object),
            Spec::Role(_)
            | Spec::ClusterRole(_)
            | Spec::RoleBinding(_)
            | Spec::ClusterRoleBinding(_) => {
                self.next.roles.add(object);
                self.changes.roles = true;
            }
            Spec::ConfigMap(_) | Spec::IstioOperator(_) => {}
        }
    }

    fn register(&mut self, origin: &Origin, one: Registered) {
        let host = one.service.hostname.clone();
        let key = (host.clone(), origin.clone(), one.service.source);
        self.next.registered.insert_mut(key, Arc::new(one));
        self.hosts.insert(host);
    }

    fn unregister(&mut self, origin: &Origin, one: Registered) {
        let host = one.service.hostname.clone();
        let key = (host.clone(), origin.clone(), one.service.source);
        self.next.registered.remove_mut(&key);
        self.hosts.insert(host);
    }

    /// Addresses depend on all ServiceEntries that want some; hosts whose address changes are
    /// settled again.
    fn allocate(&mut self) {
        if !self.allocate {
            return;
        }
        let all = Allocation::joined(self.next.allocations.values().map(|one| &**one));
        let found = all.allocate();
        let before = std::mem::take(&mut self.next.allocated);
        let differs = |a: &super::Allocated, b: &super::Allocated| -> Vec<Arc<str>> {
            let gone = a
                .iter()
                .filter(|(key, addresses)| b.get(*key) != Some(*addresses));
            gone.map(|((_, host), _)| Arc::from(host.as_str()))
                .collect()
        };
        self.hosts.extend(differs(&before, &found));
        self.hosts.extend(differs(&found, &before));
        self.next.allocated = Arc::new(found);
    }

    fn add_rule(&mut self, origin: Origin, rule: VirtualService) {
        let mut rule = Arc::new(rule);
        keep(
            &mut rule,
            self.previous.and_then(|p| p.written.get(&origin)),
        );
        if delegate::is_delegate(&rule) {
            let name = (origin.namespace.clone(), origin.name.clone());
            self.dirty_roots_of(&name);
            self.next.delegates.insert_mut(name, rule.clone());
        }
        for name in delegate::named(&rule) {
            self.next.delegating.insert_mut((name, origin.clone()), ());
        }
        self.next.written.insert_mut(origin.clone(), rule);
        self.rules.insert(origin);
    }

    fn remove_rule(&mut self, origin: Origin) {
        let Some(rule) = self.next.written.get(&origin).cloned() else {
            return;
        };
        if delegate::is_delegate(&rule) {
            let name = (origin.namespace.clone(), origin.name.clone());
            self.dirty_roots_of(&name);
            self.next.delegates.remove_mut(&name);
        }
        for name in delegate::named(&rule) {
            self.next.delegating.remove_mut(&(name, origin.clone()));
        }
        self.next.written.remove_mut(&origin);
        self.rules.insert(origin);
    }

    /// A delegate changed, and so do the rules that name it.
    fn dirty_roots_of(&mut self, name: &Key) {
        let from = (name.clone(), Origin::least());
        let roots = self.next.delegating.range(from..);
        let roots = roots.take_while(|((of, _), ())| of == name);
        self.rules.extend(roots.map(|((_, root), ())| root.clone()));
    }

    /// The rule of an object with its delegates in it.
    fn settle_rule(&mut self, origin: Origin) {
        let before = self.previous.and_then(|p| p.virtual_services.get(&origin));
        let written = self.next.written.get(&origin);
        let made = written
            .filter(|rule| !delegate::is_delegate(rule))
            .map(|rule| {
                if !delegate::delegates(rule) {
                    return rule.clone();
                }
                let find = |name: &Key| self.next.delegates.get(name);
                let merged = delegate::merge(rule, find, &self.next.settings.domain_suffix);
                let mut merged = Arc::new(merged);
                keep(&mut merged, before);
                merged
            });
        if let Some(old) = self.next.virtual_services.get(&origin).cloned() {
            self.index_rule(&old, false);
            self.next.virtual_services.remove_mut(&origin);
        }
        let same = match (&made, before) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (None, None) => true,
            _ => false,
        };
        if let Some(rule) = made {
            self.index_rule(&rule, true);
            self.next.virtual_services.insert_mut(origin.clone(), rule);
        }
        if !same {
            self.changes
                .virtual_services
                .insert(origin, before.cloned());
        }
    }

    fn settle_destination_rule(&mut self, key: RuleKey) {
        let before = self.previous.and_then(|p| p.destination_rules.get(&key));
        let same = self
            .next
            .destination_rules
            .settle(&key, before, &self.next.settings);
        if !same {
            self.changes.destination_rules.insert(key, before.cloned());
        }
    }

    fn remove_workload(&mut self, key: WorkloadKey) {
        let Some(workload) = self.next.workloads.get(&key).cloned() else {
            return;
        };
        self.index_labels(&key, &workload, false);
        self.next.workloads.remove_mut(&key);
        self.note_workload(&key);
        self.workloads.push(workload);
    }

    fn add_workload(&mut self, workload: Workload) {
        let (namespace, name) = (workload.namespace.clone(), workload.name.clone());
        let key = (namespace, name, workload.kind);
        self.index_labels(&key, &workload, true);
        let mut workload = Arc::new(workload);
        keep(
            &mut workload,
            self.previous.and_then(|p| p.workloads.get(&key)),
        );
        self.next
            .workloads
            .insert_mut(key.clone(), workload.clone());
        self.note_workload(&key);
        self.workloads.push(workload);
    }

    /// Listeners read a workload's name, labels and ports: a change there is more than a change of
    /// endpoints.
    fn note_workload(&mut self, (namespace, name, _): &WorkloadKey) {
        let shape = |of: &MeshSnapshot| -> Vec<_> {
            let all = of.workloads_named(namespace, name);
            let shape = |one: &Arc<Workload>| {
                let (labels, ports) = (one.labels.clone(), one.ports.clone());
                (one.kind, labels, ports, one.locality.clone())
            };
            all.map(shape).collect()
        };
        let before = self.previous.map(shape).unwrap_or_default();
        let key = (namespace.clone(), name.clone());
        match before == shape(self.next) {
            true => self.changes.workloads.remove(&key),
            false => self.changes.workloads.insert(key),
        };
    }
}

/// Takes over the old identity when the value is equal.
pub(super) fn keep<T: PartialEq>(value: &mut Arc<T>, old: Option<&Arc<T>>) {
    if let Some(old) = old.filter(|old| *old == value) {
        *value = old.clone();
    }
}
