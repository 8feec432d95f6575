//! Takes updates: compiles each resource, keeps it as warming, or notes why it is refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use lateen_proxy_config::compile::{
    compile_cluster, compile_endpoints, compile_listener, compile_routes,
};
use lateen_proxy_config::{Cluster, ClusterKind, Compiled, ConfigError, EndpointSet};
use lateen_xds::client::{Raw, Received};
use lateen_xds::{Rejection, type_url};

use super::refers::Refers;
use super::secrets::{of_ads, usable_cluster, usable_listener};
use super::{Config, Entry, Generation, Origin, Outside, UpdateFailure};
use crate::worker::WorkerUpdate;

/// What became of a resource that was offered.
pub(super) enum Offered {
    New,
    /// Byte for byte what is there already.
    Same,
}

/// What comes with a resource.
pub(super) struct Arrival<'a> {
    pub(super) received: &'a Received,
    origin: Origin,
    now: Instant,
}

impl<'a> Arrival<'a> {
    pub(super) fn of_discovery(received: &'a Received, now: Instant) -> Self {
        Self {
            received,
            origin: Origin::Ads,
            now,
        }
    }
}

impl Config {
    /// Applies one update of one type. Answers what is refused; listeners that can only be
    /// refused when they are bound are decided later ([`Outside::listener_decided`]).
    pub(in crate::main_thread) fn apply(
        &mut self,
        url: &str,
        resources: &[Received],
        removed: &[String],
        now: Instant,
        out: &mut dyn Outside,
    ) -> Vec<Rejection> {
        let rejections = match url {
            type_url::VIRTUAL_HOST => self.take_hosts(resources, removed, now),
            _ => self.take(url, resources, Origin::Ads, now, out),
        };
        for name in removed {
            self.remove(url, name, out);
        }
        match url {
            type_url::CLUSTER => self.wait.first_clusters = true,
            type_url::LISTENER => self.wait.first_listeners = true,
            _ => {}
        }
        if matches!(url, type_url::CLUSTER | type_url::LISTENER) {
            self.refresh_sds(out);
        }
        self.settle(now, out);
        rejections
    }

    /// Takes the resources of the bootstrap file.
    pub(in crate::main_thread) fn apply_static(
        &mut self,
        url: &str,
        resources: &[Received],
        now: Instant,
        out: &mut dyn Outside,
    ) -> Vec<Rejection> {
        let rejections = self.take(url, resources, Origin::Static, now, out);
        self.refresh_sds(out);
        rejections
    }

    fn take(
        &mut self,
        url: &str,
        resources: &[Received],
        origin: Origin,
        now: Instant,
        out: &mut dyn Outside,
    ) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for received in resources {
            let arrival = Arrival {
                received,
                origin,
                now,
            };
            let outcome = match url {
                type_url::CLUSTER => self.set_cluster(&arrival, out),
                type_url::ENDPOINT => self.set_endpoints(&arrival, out),
                type_url::ROUTE => self.set_routes(&arrival, out),
                type_url::LISTENER => self.set_listener(&arrival, out),
                type_url::SECRET => self.set_secret(of_ads(&received.name), &arrival, out),
                _ => Err(format!("this proxy takes no resources of type {url}")),
            };
            if let Err(reason) = outcome {
                rejections.push(Rejection {
                    name: received.name.clone(),
                    reason,
                });
            }
        }
        rejections
    }

    fn remove(&mut self, url: &str, name: &str, out: &mut dyn Outside) {
        match url {
            type_url::CLUSTER => self.remove_cluster(name, out),
            type_url::LISTENER => self.remove_listener(name, out),
            // Envoy keeps the last endpoints and routes of what is still asked for; the removal
            // only ends the wait for what never came.
            // Of what is not asked for, nothing is missing when it is.
            type_url::ENDPOINT
                if self.wait.eds_users.contains_key(name)
                    && !has_active(self.endpoints.get(name)) =>
            {
                self.wait.eds_missing.insert(name.into());
            }
            type_url::SECRET => self.remove_secret(name),
            type_url::ROUTE
                if self.wait.rds_names.contains(name) && !has_active(self.routes.get(name)) =>
            {
                self.wait.rds_missing.insert(name.into());
            }
            _ => {}
        }
    }

    fn set_cluster(&mut self, arrival: &Arrival<'_>, out: &mut dyn Outside) -> Result<(), String> {
        let name: Arc<str> = arrival.received.name.as_str().into();
        let entry = self.clusters.entry(name.clone()).or_default();
        let offered = entry.offer(
            arrival,
            |bytes| usable_cluster(compile_cluster(bytes)?, &self.secret_sources),
            Refers::of_cluster,
            |c| &c.name,
        )?;
        self.wait.leaving_clusters.remove(&name);
        if let (Offered::New, Some(warming)) = (offered, &entry.warming) {
            let cluster = warming.value.clone();
            self.wait.warming_clusters.insert(name.clone());
            match &cluster.kind {
                ClusterKind::StrictDns { .. } | ClusterKind::LogicalDns { .. } => {
                    self.wait.resolved.remove(&name);
                    out.resolve(&cluster);
                }
                _ => {}
            }
            self.refresh_eds_users(&name, out);
        }
        Ok(())
    }

    fn remove_cluster(&mut self, name: &str, out: &mut dyn Outside) {
        let Some((name, entry)) = self.clusters.get_key_value(name) else {
            return;
        };
        if entry.origin == Origin::Static {
            return;
        }
        let name = name.clone();
        self.wait.warming_clusters.remove(&name);
        if let Some(entry) = self.clusters.get_mut(&name) {
            entry.warming = None;
            if entry.active.is_some() {
                self.wait.leaving_clusters.insert(name);
                return;
            }
        }
        self.forget_cluster(&name, out);
    }

    /// The cluster and all that was kept for it.
    pub(super) fn forget_cluster(&mut self, name: &Arc<str>, out: &mut dyn Outside) {
        self.clusters.remove(name);
        self.cluster_endpoints.remove(name);
        self.wait.resolved.remove(name);
        out.stop_resolving(name);
        self.refresh_eds_users(name, out);
    }

    /// Brings the endpoint subscriptions in line with what a cluster uses now.
    pub(super) fn refresh_eds_users(&mut self, name: &Arc<str>, out: &mut dyn Outside) {
        let wanted: BTreeSet<Arc<str>> = self
            .clusters
            .get(name)
            .into_iter()
            .flat_map(|entry| entry.active.iter().chain(&entry.warming))
            .filter_map(|generation| eds_name(&generation.value).cloned())
            .collect();
        for service in &wanted {
            let users = self.wait.eds_users.entry(service.clone()).or_default();
            if users.is_empty() {
                out.subscribe(type_url::ENDPOINT, service);
            }
            users.insert(name.clone());
        }
        let used = self
            .wait
            .eds_of
            .insert(name.clone(), wanted.clone())
            .unwrap_or_default();
        for service in used.difference(&wanted) {
            let Some(users) = self.wait.eds_users.get_mut(service) else {
                continue;
            };
            users.remove(name);
            if users.is_empty() {
                self.wait.eds_users.remove(service);
                self.wait.eds_missing.remove(service);
                self.endpoints.remove(service);
                out.unsubscribe(type_url::ENDPOINT, service);
            }
        }
        if wanted.is_empty() {
            self.wait.eds_of.remove(name);
        }
    }

    fn set_endpoints(
        &mut self,
        arrival: &Arrival<'_>,
        out: &mut dyn Outside,
    ) -> Result<(), String> {
        let name: Arc<str> = arrival.received.name.as_str().into();
        let Some(users) = self.wait.eds_users.get(&name).cloned() else {
            // No cluster asks for it any more; the answer was on its way.
            return Ok(());
        };
        let entry = self.endpoints.entry(name.clone()).or_default();
        let offered = entry.offer(
            arrival,
            compile_endpoints,
            |_| Refers::default(),
            |e| &e.cluster,
        )?;
        self.wait.eds_missing.remove(&name);
        if matches!(offered, Offered::Same) {
            return Ok(());
        }
        entry.active = entry.warming.take();
        let Some(set) = entry.active.as_ref().map(|active| active.value.clone()) else {
            return Ok(());
        };
        for cluster in users {
            let active = self
                .clusters
                .get(&cluster)
                .and_then(|entry| entry.active.as_ref());
            if active.is_some_and(|active| eds_name(&active.value) == Some(&name)) {
                self.give_endpoints(&cluster, set.clone(), out);
            }
        }
        Ok(())
    }

    pub(super) fn give_endpoints(
        &mut self,
        cluster: &Arc<str>,
        set: Arc<EndpointSet>,
        out: &mut dyn Outside,
    ) {
        self.cluster_endpoints.insert(cluster.clone(), set.clone());
        // Endpoints cannot fail.
        let _ = out.worker(WorkerUpdate::Endpoints(cluster.clone(), set));
    }

    /// Names of a DNS cluster were resolved (`None`: none could be).
    pub(in crate::main_thread) fn resolved(
        &mut self,
        cluster: &Arc<Cluster>,
        set: Option<EndpointSet>,
        now: Instant,
        out: &mut dyn Outside,
    ) {
        let Some(entry) = self.clusters.get(&cluster.name) else {
            return;
        };
        let latest = entry.warming.as_ref().or(entry.active.as_ref());
        if !latest.is_some_and(|latest| Arc::ptr_eq(&latest.value, cluster)) {
            return;
        }
        let warming = entry.warming.is_some();
        self.wait.resolved.insert(cluster.name.clone());
        if let Some(set) = set.map(Arc::new) {
            let known = self.cluster_endpoints.get(&cluster.name);
            if warming {
                self.cluster_endpoints.insert(cluster.name.clone(), set);
            } else if known.is_none_or(|known| **known != *set) {
                self.give_endpoints(&cluster.name, set, out);
            }
        }
        self.settle(now, out);
    }

    fn set_routes(&mut self, arrival: &Arrival<'_>, out: &mut dyn Outside) -> Result<(), String> {
        let name: Arc<str> = arrival.received.name.as_str().into();
        if !self.wait.rds_names.contains(&name) {
            return Ok(());
        }
        let entry = self.routes.entry(name.clone()).or_default();
        let offered = entry.offer(arrival, compile_routes, Refers::of_table, |t| &t.name)?;
        self.wait.rds_missing.remove(&name);
        if matches!(offered, Offered::New) {
            self.wait.warming_routes.insert(name.clone());
            self.take_table(&name, out)?;
        }
        Ok(())
    }

    fn set_listener(&mut self, arrival: &Arrival<'_>, out: &mut dyn Outside) -> Result<(), String> {
        let name: Arc<str> = arrival.received.name.as_str().into();
        let version = &arrival.received.version;
        let entry = self.listeners.entry(name.clone()).or_default();
        let before = entry
            .warming
            .as_ref()
            .map(|warming| warming.version_info.clone());
        let offered = entry.offer(
            arrival,
            |bytes| usable_listener(compile_listener(bytes)?, &self.secret_sources),
            Refers::of_listener,
            |l| &l.name,
        )?;
        self.wait.unbound.remove(&name);
        match offered {
            Offered::New => {
                self.wait.warming_listeners.insert(name.clone());
                self.refresh_rds(out);
            }
            Offered::Same if entry.warming.is_none() => {
                out.listener_decided(&name, version, Ok(()));
            }
            Offered::Same => {}
        }
        if let Some(before) = before.filter(|before| before != version) {
            out.listener_decided(&name, &before, Ok(()));
        }
        Ok(())
    }

    fn remove_listener(&mut self, name: &str, out: &mut dyn Outside) {
        let Some((name, entry)) = self.listeners.get_key_value(name) else {
            return;
        };
        if entry.origin == Origin::Static {
            return;
        }
        let name = name.clone();
        let Some(entry) = self.listeners.remove(&name) else {
            return;
        };
        self.wait.warming_listeners.remove(&name);
        self.wait.unbound.remove(&name);
        if let Some(warming) = entry.warming {
            out.listener_decided(&name, &warming.version_info, Ok(()));
        }
        if entry.active.is_some() {
            let _ = out.worker(WorkerUpdate::RemoveListener(name));
        }
        self.refresh_rds(out);
    }

    /// Brings the route subscriptions in line with what listeners name.
    pub(super) fn refresh_rds(&mut self, out: &mut dyn Outside) {
        let wanted: BTreeSet<Arc<str>> = self
            .listeners
            .values()
            .flat_map(|entry| entry.active.iter().chain(&entry.warming))
            .chain(
                self.wait
                    .unbound
                    .values()
                    .map(|unbound| &unbound.generation),
            )
            .flat_map(|generation| generation.refers.routes.iter().cloned())
            .collect();
        for name in wanted.difference(&self.wait.rds_names) {
            out.subscribe(type_url::ROUTE, name);
        }
        let gone: Vec<_> = self.wait.rds_names.difference(&wanted).cloned().collect();
        for name in &gone {
            out.unsubscribe(type_url::ROUTE, name);
            self.wait.rds_missing.remove(name);
            self.wait.warming_routes.remove(name);
            self.forget_hosts(name, out);
            if has_active(self.routes.remove(name).as_ref()) {
                let _ = out.worker(WorkerUpdate::RemoveRoutes(name.clone()));
            }
        }
        self.wait.rds_names = wanted;
    }
}

impl<T> Entry<T> {
    /// Compiles what arrived and makes it the warming generation.
    pub(super) fn offer(
        &mut self,
        arrival: &Arrival<'_>,
        compile: impl FnOnce(&[u8]) -> Result<Compiled<T>, ConfigError>,
        refers: impl FnOnce(&T) -> Refers,
        name: impl FnOnce(&T) -> &Arc<str>,
    ) -> Result<Offered, String> {
        let Arrival {
            received,
            origin,
            now,
        } = arrival;
        let is_new = self.active.is_none() && self.warming.is_none();
        if self.origin == Origin::Static && *origin == Origin::Ads && !is_new {
            return Err("defined in the bootstrap file, which discovery cannot change".to_owned());
        }
        if let Some(latest) = self.warming.as_mut().or(self.active.as_mut())
            && *latest.any == received.any
        {
            latest.version_info.clone_from(&received.version);
            self.error = None;
            return Ok(Offered::Same);
        }
        let any = Arc::new(received.any.clone());
        match compile(&received.any.value)
            .map_err(|error| error.to_string())
            .and_then(|compiled| {
                let inner = name(&compiled.value);
                if **inner == *received.name {
                    return Ok(compiled);
                }
                Err(format!(
                    "the resource is called {inner} inside, {} outside",
                    received.name
                ))
            }) {
            Ok(Compiled { value, unsupported }) => {
                if !unsupported.is_empty() {
                    let fields = unsupported.len();
                    tracing::info!(
                        resource = received.name,
                        fields,
                        "accepted with fields that have no effect here; /config_dump?unsupported \
                         lists them"
                    );
                }
                self.origin = *origin;
                self.error = None;
                self.warming = Some(Generation {
                    version_info: received.version.clone(),
                    any,
                    last_updated: SystemTime::now(),
                    refers: Arc::new(refers(&value)),
                    value,
                    notices: unsupported,
                    since: *now,
                });
                Ok(Offered::New)
            }
            Err(reason) => {
                self.fail(any, &received.version, &reason);
                Err(reason)
            }
        }
    }

    pub(super) fn fail(&mut self, failed: Arc<Raw>, version: &str, reason: &str) {
        self.error = Some(UpdateFailure {
            failed,
            last_attempt: SystemTime::now(),
            details: reason.to_owned(),
            version_info: version.to_owned(),
        });
    }
}

/// The endpoint set a cluster takes its endpoints from.
pub(super) fn eds_name(cluster: &Cluster) -> Option<&Arc<str>> {
    match &cluster.kind {
        ClusterKind::Eds { service_name } => Some(service_name),
        _ => None,
    }
}

pub(super) fn has_active<T>(entry: Option<&Entry<T>>) -> bool {
    entry.is_some_and(|entry| entry.active.is_some())
}
