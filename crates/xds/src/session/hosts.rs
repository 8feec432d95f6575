//! Virtual hosts by name (VHDS, delta only): which of them a client is to have follows from the route
//! tables it was sent.
//!
//! Envoy asks for virtual hosts once for all of its tables, with an empty list that stays as it is
//! whatever tables come later (`NewGrpcMuxImpl::updateWatch` keeps the names of tables to itself), and
//! it throws away those of tables it does not know yet. So the server keeps count: a table that is
//! sent to a client that has none brings all of its virtual hosts along, right behind it, whatever
//! the client says it holds. A table waits for its first virtual hosts in the client, so there is
//! always an answer for it.
//!
//! Invariant: what a table lost and what it gained are told in one response. A domain that moves from
//! one virtual host to another would be refused as a duplicate otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;

use super::{Response, Session, View, Watch};
use crate::type_url::{ROUTE, VIRTUAL_HOST};
use crate::{Names, Resource};

/// The tables of one client whose virtual hosts are resources of their own.
#[derive(Default)]
pub(super) struct HostTables {
    known: BTreeSet<String>,
    due: BTreeMap<String, Due>,
}

/// Why all virtual hosts of a table have to be looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// The client has the table from an earlier stream.
    Compared,
    /// The table is new to the client, which has none of them, or has dropped them.
    Sent,
}

impl HostTables {
    /// Takes note of route tables that the client has or is about to get.
    pub(super) fn note(&mut self, tables: &[Arc<Resource>], accepted: impl Fn(&str) -> bool) {
        for table in tables {
            let name = table.name();
            if !discovers_hosts(table) {
                self.known.remove(name);
                self.due.remove(name);
                continue;
            }
            let is_known = self.known.contains(name);
            if !accepted(name) {
                self.due.insert(name.to_owned(), Due::Sent);
            } else if !is_known {
                self.due.insert(name.to_owned(), Due::Compared);
            }
            if !is_known {
                self.known.insert(name.to_owned());
            }
        }
    }
}

impl Session {
    /// The tables whose virtual hosts this client follows; `None`: it follows none.
    pub(crate) fn host_tables(&self) -> Option<BTreeSet<String>> {
        let follows = self.watches.contains_key(VIRTUAL_HOST) && !self.tables.known.is_empty();
        follows.then(|| self.tables.known.clone())
    }

    /// Forgets tables that the client no longer asks for; it drops their virtual hosts itself.
    pub(super) fn forget_tables(&mut self) {
        let Some(routes) = self.watches.get(ROUTE) else {
            return;
        };
        let tables = &mut self.tables;
        tables.known.retain(|name| routes.wants(name));
        tables.due.retain(|name, _| routes.wants(name));
        if let Some(watch) = self.watches.get_mut(VIRTUAL_HOST) {
            let known = &tables.known;
            watch.held.retain(|name| known.contains(table_of(name)));
        }
    }

    /// A client asks for virtual hosts: for all of its tables, or (a later Envoy) for those of one.
    pub(super) fn host_request(
        &mut self,
        asked: &BTreeSet<String>,
        first: bool,
        view: &View<'_>,
    ) -> Vec<Response> {
        for table in asked
            .iter()
            .filter(|name| self.tables.known.contains(*name))
        {
            self.tables.due.insert(table.clone(), Due::Sent);
        }
        if !first && asked.is_empty() {
            return Vec::new();
        }
        let none = Names::Some(BTreeSet::new());
        self.host_update(&none, view).into_iter().collect()
    }

    /// Sends what differs among `names`, and what is due.
    pub(super) fn host_update(&mut self, names: &Names, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get_mut(VIRTUAL_HOST)?;
        let tables = &mut self.tables;
        if *names == Names::All {
            for table in &tables.known {
                tables.due.entry(table.clone()).or_insert(Due::Compared);
            }
        }
        let due = std::mem::take(&mut tables.due);
        let single: BTreeSet<String> = match names {
            Names::All => BTreeSet::new(),
            Names::Some(some) => {
                let ours = |name: &&String| {
                    let table = table_of(name);
                    tables.known.contains(table) && !due.contains_key(table)
                };
                some.iter().filter(ours).cloned().collect()
            }
        };
        let whole = due.keys().map(|table| format!("{table}/"));
        let wanted: BTreeSet<String> = whole.chain(single.iter().cloned()).collect();
        if wanted.is_empty() {
            return None;
        }
        let found = (view.generate)(VIRTUAL_HOST, Some(&wanted));
        let gone = gone(watch, &due, &single, &found);
        let is_due = |r: &Resource| due.get(table_of(r.name())) == Some(&Due::Sent);
        let news: Vec<_> = found
            .into_iter()
            .filter(|r| is_due(r) || !watch.held.has(r))
            .collect();
        if news.is_empty() && gone.is_empty() {
            return None;
        }
        self.send(VIRTUAL_HOST, news, gone, view)
    }
}

/// What the client holds of what was looked at, and is no longer there. A table without any virtual
/// host is gone itself: the client keeps the last good one with all it had.
fn gone(
    watch: &Watch,
    due: &BTreeMap<String, Due>,
    single: &BTreeSet<String>,
    found: &[Arc<Resource>],
) -> Vec<String> {
    let present: BTreeSet<&str> = found.iter().map(|r| r.name()).collect();
    let tables: BTreeSet<&str> = present.iter().map(|name| table_of(name)).collect();
    let whole = due.keys().filter(|table| tables.contains(table.as_str()));
    let whole = whole.flat_map(|table| held_of(watch, table));
    let single = single.iter().map(String::as_str);
    let single = single.filter(|name| watch.held.contains(name));
    let all = whole.chain(single).filter(|name| !present.contains(name));
    all.map(str::to_owned).collect()
}

/// Names of the virtual hosts of a table that the client holds.
fn held_of<'a>(watch: &'a Watch, table: &str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("{table}/");
    let names = watch.held.names_from(&prefix);
    let own = move |name: &&str| table_of(name).len() + 1 == prefix.len();
    names.into_iter().filter(own)
}

/// The table of a virtual host: all before the last slash (Envoy's `namespaceFromName`).
fn table_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(table, _)| table)
}

/// The two fields of `envoy.config.route.v3.RouteConfiguration` that say whether it has virtual hosts
/// of its own, and the field numbers are Envoy's.
#[derive(Clone, PartialEq, Message)]
struct RouteHosts {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "9")]
    vhds: Option<Vhds>,
}

#[derive(Clone, PartialEq, Message)]
struct Vhds {}

fn discovers_hosts(table: &Resource) -> bool {
    RouteHosts::decode(&*table.value).is_ok_and(|table| table.vhds.is_some())
}
