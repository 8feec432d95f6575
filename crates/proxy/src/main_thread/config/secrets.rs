//! Secrets: asked for by the clusters and listeners that name them, given to the workers as they
//! come.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use lateen_proxy_config::compile::compile_secret;
use lateen_proxy_config::{Cluster, Compiled, ConfigError, Listener, SecretRef, SecretSource};
use lateen_xds::client::Received;

use super::apply::{Arrival, Offered, has_active};
use super::refers::Refers;
use super::{Config, Outside};
use crate::tls;
use crate::worker::WorkerUpdate;

impl Config {
    /// Takes a secret that came another way than over the aggregated stream.
    pub(in crate::main_thread) fn apply_secret(
        &mut self,
        whose: &SecretRef,
        received: &Received,
        now: Instant,
        out: &mut dyn Outside,
    ) -> Result<(), String> {
        let arrival = Arrival::of_discovery(received, now);
        let outcome = self.set_secret(whose.clone(), &arrival, out);
        self.settle(now, out);
        outcome
    }

    /// What the connection to the control plane needs.
    pub(in crate::main_thread) fn need_secrets(
        &mut self,
        own: BTreeSet<SecretRef>,
        out: &mut dyn Outside,
    ) {
        self.wait.sds_own = own;
        self.refresh_sds(out);
    }

    pub(super) fn set_secret(
        &mut self,
        whose: SecretRef,
        arrival: &Arrival<'_>,
        out: &mut dyn Outside,
    ) -> Result<(), String> {
        if !self.wait.sds_names.contains(&whose) {
            return Ok(());
        }
        let entry = self.secrets.entry(whose.clone()).or_default();
        let compile = |bytes: &[u8]| {
            let compiled = compile_secret(bytes)?;
            tls::check_secret(&compiled.value).map_err(|error| refusal("type", &error))?;
            Ok(compiled)
        };
        let offered = entry.offer(arrival, compile, |_| Refers::default(), |s| &s.name)?;
        self.wait.sds_missing.remove(&whose);
        if matches!(offered, Offered::New) {
            entry.active = entry.warming.take();
            if let Some(active) = &entry.active {
                // What is wrong with it was found above.
                let _ = out.worker(WorkerUpdate::Secret(whose, active.value.clone()));
            }
        }
        Ok(())
    }

    /// The control plane has no such secret: what waits for it goes on without.
    pub(super) fn remove_secret(&mut self, name: &str) {
        let whose = of_ads(name);
        if !has_active(self.secrets.get(&whose)) {
            self.wait.sds_missing.insert(whose);
        }
    }

    /// Whether nothing that is named is waited for.
    pub(super) fn secrets_up(&self, refers: &Refers) -> bool {
        refers.secrets.iter().all(|whose| {
            self.wait.sds_missing.contains(whose) || has_active(self.secrets.get(whose))
        })
    }

    /// Brings what is asked for in line with what clusters and listeners name.
    pub(super) fn refresh_sds(&mut self, out: &mut dyn Outside) {
        let clusters = self.clusters.values();
        let clusters = clusters.flat_map(|entry| entry.active.iter().chain(&entry.warming));
        let clusters = clusters.map(|generation| &generation.refers);
        let listeners = self.listeners.values();
        let listeners = listeners.flat_map(|entry| entry.active.iter().chain(&entry.warming));
        let unbound = self.wait.unbound.values();
        let listeners = listeners.chain(unbound.map(|unbound| &unbound.generation));
        let listeners = listeners.map(|generation| &generation.refers);
        let wanted: BTreeSet<SecretRef> = clusters
            .chain(listeners)
            .flat_map(|refers| &refers.secrets)
            .chain(&self.wait.sds_own)
            .cloned()
            .collect();
        for whose in wanted.difference(&self.wait.sds_names) {
            out.follow(whose);
        }
        for whose in self.wait.sds_names.difference(&wanted) {
            out.unfollow(whose);
            self.wait.sds_missing.remove(whose);
            self.secrets.remove(whose);
        }
        self.wait.sds_names = wanted;
    }
}

/// A secret that the control plane is asked for.
pub(super) fn of_ads(name: &str) -> SecretRef {
    SecretRef {
        name: name.into(),
        source: SecretSource::Ads,
    }
}

/// Nobody would ever answer for a secret from somewhere else.
fn answered(
    mut secrets: impl Iterator<Item = SecretRef>,
    sources: &BTreeSet<Arc<str>>,
) -> Result<(), ConfigError> {
    let unknown = secrets.find_map(|whose| match whose.source {
        SecretSource::Cluster(cluster) if !sources.contains(&cluster) => {
            Some((whose.name, cluster))
        }
        _ => None,
    });
    let Some((name, cluster)) = unknown else {
        return Ok(());
    };
    Err(ConfigError {
        path: format!("sds_config of {name}"),
        reason: format!(
            "nobody answers for cluster {cluster}: the bootstrap has no such cluster on a socket, \
             and this proxy has no identity of its own (--ca-address)"
        ),
    })
}

/// A listener whose certificates, where they do not come as secrets, can be used.
pub(super) fn usable_listener(
    compiled: Compiled<Listener>,
    sources: &BTreeSet<Arc<str>>,
) -> Result<Compiled<Listener>, ConfigError> {
    let contexts = tls::contexts(&compiled.value);
    answered(
        contexts.flat_map(|tls| tls.common.secrets()).cloned(),
        sources,
    )?;
    tls::check(tls::contexts(&compiled.value), std::iter::empty())
        .map_err(|error| refusal("filter_chains", &error))?;
    Ok(compiled)
}

/// The same of a cluster.
pub(super) fn usable_cluster(
    compiled: Compiled<Cluster>,
    sources: &BTreeSet<Arc<str>>,
) -> Result<Compiled<Cluster>, ConfigError> {
    let contexts = compiled.value.tls();
    answered(
        contexts.flat_map(|tls| tls.common.secrets()).cloned(),
        sources,
    )?;
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
