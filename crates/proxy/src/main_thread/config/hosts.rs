//! Virtual hosts that come by themselves (VHDS): each is compiled alone, and the table they belong to
//! is put together anew with the others as they are.
//!
//! A table waits for the first of them, as a listener waits for its tables. Those of tables that this
//! proxy does not know are passed over, as in Envoy: who sends them sends them again with the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use lateen_proxy_config::compile::compile_virtual_host;
use lateen_proxy_config::route::{RouteTable, VirtualHost};
use lateen_proxy_config::{ConfigError, Notice};
use lateen_xds::client::{Raw, Received};
use lateen_xds::{Rejection, type_url};

use super::refers::Refers;
use super::{Config, Generation, Outside};

/// What a table is put together from.
#[derive(Debug)]
pub(super) struct Discovered {
    /// The table as it was received.
    base: Generation<RouteTable>,
    /// By the name of the resource.
    hosts: BTreeMap<Arc<str>, Host>,
    /// The first update for the table has come.
    arrived: bool,
}

#[derive(Clone, Debug)]
struct Host {
    any: Arc<Raw>,
    value: Arc<VirtualHost>,
    notices: Vec<Notice>,
}

impl Config {
    /// Virtual hosts of a table that came by themselves, as received.
    pub fn discovered_hosts(&self, table: &str) -> impl Iterator<Item = &Arc<Raw>> {
        let found = self.hosts.get(table).into_iter();
        found.flat_map(|table| table.hosts.values().map(|host| &host.any))
    }

    /// A new version of a table is warming. Where its virtual hosts come by themselves, those of the
    /// version before stay with it.
    pub(super) fn take_table(
        &mut self,
        name: &Arc<str>,
        out: &mut dyn Outside,
    ) -> Result<(), String> {
        let Some(entry) = self.routes.get_mut(name) else {
            return Ok(());
        };
        let Some(warming) = &mut entry.warming else {
            return Ok(());
        };
        if !warming.value.discovers_hosts() {
            self.forget_hosts(name, out);
            return Ok(());
        }
        let before = self.hosts.get(name);
        let hosts = before.into_iter().flat_map(|before| &before.hosts);
        let compiled = hosts.filter_map(|(name, host)| {
            // What a table says counts for its virtual hosts, too.
            let again = Host::compile(host.any.clone(), &warming.value).ok()?;
            Some((name.clone(), again))
        });
        let discovered = Discovered {
            base: warming.clone(),
            hosts: compiled.collect(),
            arrived: before.is_some_and(|before| before.arrived),
        };
        match discovered.together(&BTreeSet::new()) {
            Ok(together) => *warming = together,
            Err((_, error)) => {
                let (any, version) = (warming.any.clone(), warming.version_info.clone());
                entry.warming = None;
                entry.fail(any, &version, &error.to_string());
                return Err(error.to_string());
            }
        }
        self.hosts.insert(name.clone(), discovered);
        out.subscribe_all(type_url::VIRTUAL_HOST);
        Ok(())
    }

    pub(super) fn forget_hosts(&mut self, table: &Arc<str>, out: &mut dyn Outside) {
        if self.hosts.remove(table).is_some() {
            out.forget(type_url::VIRTUAL_HOST, &format!("{table}/"));
        }
    }

    /// Whether a table that waits for its first virtual hosts has them.
    pub(super) fn hosts_up(&self, table: &str) -> bool {
        self.hosts.get(table).is_none_or(|table| table.arrived)
    }

    /// Takes one update of virtual hosts.
    pub(super) fn take_hosts(
        &mut self,
        resources: &[Received],
        removed: &[String],
        now: Instant,
    ) -> Vec<Rejection> {
        let mut updates: BTreeMap<&str, Update<'_>> = BTreeMap::new();
        for one in resources {
            let update = updates.entry(table_of(&one.name)).or_default();
            update.received.push(one);
        }
        for name in removed {
            let update = updates.entry(table_of(name)).or_default();
            update.removed.push(name);
        }
        let mut rejections = Vec::new();
        for (table, update) in updates {
            let Some(discovered) = self.hosts.get_mut(table) else {
                continue;
            };
            let Some(mut together) = discovered.change(&update, &mut rejections) else {
                continue;
            };
            let Some((name, entry)) = self.routes.get_key_value(table) else {
                continue;
            };
            let name = name.clone();
            together.since = entry.warming.as_ref().map_or(now, |warming| warming.since);
            if let Some(entry) = self.routes.get_mut(&name) {
                entry.warming = Some(together);
                self.wait.warming_routes.insert(name);
            }
        }
        rejections
    }
}

/// What came for one table.
#[derive(Default)]
struct Update<'a> {
    received: Vec<&'a Received>,
    removed: Vec<&'a str>,
}

impl Discovered {
    /// The table after an update; `None` when it is as before. A virtual host that is refused leaves
    /// the one before in its place.
    fn change(
        &mut self,
        update: &Update<'_>,
        rejections: &mut Vec<Rejection>,
    ) -> Option<Generation<RouteTable>> {
        let mut differs = !std::mem::replace(&mut self.arrived, true);
        for name in &update.removed {
            differs |= self.hosts.remove(*name).is_some();
        }
        let mut refuse = |name: &str, error: &ConfigError| {
            rejections.push(Rejection {
                name: name.to_owned(),
                reason: error.to_string(),
            });
        };
        let mut before: BTreeMap<Arc<str>, Option<Host>> = BTreeMap::new();
        for one in &update.received {
            let name = one.name.as_str();
            if self
                .hosts
                .get(name)
                .is_some_and(|host| *host.any == one.any)
            {
                continue;
            }
            match Host::compile(Arc::new(one.any.clone()), &self.base.value) {
                Ok(host) => {
                    let name: Arc<str> = name.into();
                    before.insert(name.clone(), self.hosts.insert(name, host));
                }
                Err(error) => refuse(name, &error),
            }
        }
        if !differs && before.is_empty() {
            return None;
        }
        loop {
            let changed: BTreeSet<&Arc<str>> = before.keys().collect();
            let (name, error) = match self.together(&changed) {
                Ok(together) => return Some(together),
                Err(refused) => self.intruder(refused, &before),
            };
            refuse(&name, &error);
            match before.remove(&name) {
                Some(Some(host)) => self.hosts.insert(name, host),
                _ => self.hosts.remove(&name),
            };
        }
    }

    /// Who is to be refused where two that changed want the same domain: the one that did not have it.
    fn intruder(
        &self,
        (name, error): (Arc<str>, ConfigError),
        before: &BTreeMap<Arc<str>, Option<Host>>,
    ) -> (Arc<str>, ConfigError) {
        let had = |name: &Arc<str>, domain: &str| {
            let host = before.get(name).and_then(Option::as_ref);
            host.is_some_and(|host| host.has(domain))
        };
        let domains = self.hosts.get(&name).map(|host| &host.value.domains);
        for domain in domains.into_iter().flatten().filter(|d| had(&name, d)) {
            let wants = |one: &&Arc<str>| {
                let host = self.hosts.get(*one);
                **one != name && !had(one, domain) && host.is_some_and(|host| host.has(domain))
            };
            if let Some(other) = before.keys().find(wants) {
                let path = "domains".to_owned();
                let reason = format!("'{domain}' is a domain of {name}");
                return (other.clone(), ConfigError { path, reason });
            }
        }
        (name, error)
    }

    /// The table with its virtual hosts. What `changed` comes last, so that of two that want the same
    /// domain the one that has it keeps it; the error names the other.
    fn together(
        &self,
        changed: &BTreeSet<&Arc<str>>,
    ) -> Result<Generation<RouteTable>, (Arc<str>, ConfigError)> {
        let (new, old): (Vec<_>, Vec<_>) = self
            .hosts
            .iter()
            .partition(|(name, _)| changed.contains(name));
        let all = || old.iter().chain(&new);
        let values = all().map(|(_, host)| host.value.clone());
        let table = self.base.value.with_hosts(values).map_err(|(at, error)| {
            let name = all().nth(at).map(|(name, _)| Arc::clone(name));
            (name.unwrap_or_else(|| "".into()), error)
        })?;
        let mut notices = self.base.notices.clone();
        notices.extend(self.hosts.values().flat_map(|host| host.notices.clone()));
        Ok(Generation {
            version_info: self.base.version_info.clone(),
            any: self.base.any.clone(),
            last_updated: SystemTime::now(),
            refers: Arc::new(Refers::of_table(&table)),
            value: Arc::new(table),
            notices,
            since: self.base.since,
        })
    }
}

impl Host {
    fn has(&self, domain: &str) -> bool {
        let mut domains = self.value.domains.iter();
        domains.any(|own| own.eq_ignore_ascii_case(domain))
    }

    fn compile(any: Arc<Raw>, table: &RouteTable) -> Result<Host, ConfigError> {
        let compiled = compile_virtual_host(&any.value, table)?;
        Ok(Host {
            any,
            value: compiled.value,
            notices: compiled.unsupported,
        })
    }
}

/// The table of a virtual host: all before the last slash (Envoy's `namespaceFromName`).
fn table_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(table, _)| table)
}
