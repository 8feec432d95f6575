//! Secrets: asked for by the clusters and listeners that name them, given to the workers as they
//! come.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_proxy_config::compile::compile_secret;
use lateen_proxy_config::{Cluster, Compiled, ConfigError, Listener};
use lateen_xds::type_url;

use super::apply::{Arrival, Offered, has_active};
use super::refers::Refers;
use super::{Config, Outside};
use crate::tls;
use crate::worker::WorkerUpdate;

impl Config {
    pub(super) fn set_secret(
        &mut self,
        arrival: &Arrival<'_>,
        out: &mut dyn Outside,
    ) -> Result<(), String> {
        let name: Arc<str> = arrival.received.name.as_str().into();
        if !self.wait.sds_names.contains(&name) {
            return Ok(());
        }
        let entry = self.secrets.entry(name.clone()).or_default();
        let compile = |bytes: &[u8]| {
            let compiled = compile_secret(bytes)?;
            tls::check_secret(&compiled.value).map_err(|error| refusal("type", &error))?;
            Ok(compiled)
        };
        let offered = entry.offer(arrival, compile, |_| Refers::default(), |s| &s.name)?;
        self.wait.sds_missing.remove(&name);
        if matches!(offered, Offered::New) {
            entry.active = entry.warming.take();
            if let Some(active) = &entry.active {
                // What is wrong with it was found above.
                let _ = out.worker(WorkerUpdate::Secret(active.value.clone()));
            }
        }
        Ok(())
    }

    /// The control plane has no such secret: what waits for it goes on without.
    pub(super) fn remove_secret(&mut self, name: &str) {
        if !has_active(self.secrets.get(name)) {
            self.wait.sds_missing.insert(name.into());
        }
    }

    /// Whether nothing that is named is waited for.
    pub(super) fn secrets_up(&self, refers: &Refers) -> bool {
        refers
            .secrets
            .iter()
            .all(|name| self.wait.sds_missing.contains(name) || has_active(self.secrets.get(name)))
    }

    /// Brings the subscriptions in line with what clusters and listeners name.
    pub(super) fn refresh_sds(&mut self, out: &mut dyn Outside) {
        let clusters = self.clusters.values();
        let clusters = clusters.flat_map(|entry| entry.active.iter().chain(&entry.warming));
        let clusters = clusters.map(|generation| &generation.refers);
        let listeners = self.listeners.values();
        let listeners = listeners.flat_map(|entry| entry.active.iter().chain(&entry.warming));
        let unbound = self.wait.unbound.values();
        let listeners = listeners.chain(unbound.map(|unbound| &unbound.generation));
        let listeners = listeners.map(|generation| &generation.refers);
        let wanted: BTreeSet<Arc<str>> = clusters
            .chain(listeners)
            .flat_map(|refers| refers.secrets.iter().cloned())
            .collect();
        for name in wanted.difference(&self.wait.sds_names) {
            out.subscribe(type_url::SECRET, name);
        }
        for name in self.wait.sds_names.difference(&wanted) {
            out.unsubscribe(type_url::SECRET, name);
            self.wait.sds_missing.remove(name);
            self.secrets.remove(name);
        }
        self.wait.sds_names = wanted;
    }
}

/// A listener whose certificates, where they do not come as secrets, can be used.
pub(super) fn usable_listener(
    compiled: Compiled<Listener>,
) -> Result<Compiled<Listener>, ConfigError> {
    tls::check(tls::contexts(&compiled.value), std::iter::empty())
        .map_err(|error| refusal("filter_chains", &error))?;
    Ok(compiled)
}

/// The same of a cluster.
pub(super) fn usable_cluster(
    compiled: Compiled<Cluster>,
) -> Result<Compiled<Cluster>, ConfigError> {
    tls::check(std::iter::empty(), compiled.value.tls())
        .map_err(|error| refusal("transport_socket", &error))?;
    Ok(compiled)
}

fn refusal(path: &str, error: &tls::TlsError) -> ConfigError {
    ConfigError {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
