//! One client's side of ADS as a plain value: requests and pushes go in, responses come out.
//!
//! No socket, no task, no clock (the caller says what time it is), and no resource is made here:
//! they are asked of a [`View`] of the current snapshot.
//!
//! Invariants:
//! - A resource is sent only when its version differs from the one the client holds, when the
//!   client asks for it by name, or when a cluster that was replaced waits for its endpoints.
//! - In one push, what is referred to is sent before what refers to it, and what is gone is told
//!   after the rest was answered ("make before break").

mod delta;
mod held;
mod hosts;
mod sotw;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;
use thiserror::Error;

use crate::status::Detail;
use crate::type_url::{self, CLUSTER, ENDPOINT, LISTENER, ROUTE, VIRTUAL_HOST};
use crate::{Changed, Names, Protocol, Resource, Stamp, TypeStatus};
use hosts::HostTables;
pub(crate) use watch::Answer;
use watch::Watch;

/// The snapshot as one client sees it.
pub(crate) struct View<'a> {
    pub(crate) version: &'a str,
    pub(crate) now: Instant,
    pub(crate) generate: &'a Generate<'a>,
}

/// Resources of a type: all of them, or those of these names that exist.
pub(crate) type Generate<'a> = dyn Fn(&str, Option<&BTreeSet<String>>) -> Vec<Arc<Resource>> + 'a;

/// A response, not yet in the form of either protocol.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) type_url: String,
    pub(crate) version: String,
    pub(crate) nonce: String,
    pub(crate) resources: Vec<Arc<Resource>>,
    /// Delta only.
    pub(crate) removed: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

/// A request that ends the stream.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error(
        "type_url is empty: on an aggregated stream every request names the type of resource it is about"
    )]
    NoType,
    #[error("{kind}: more than {most} names subscribed; the server allows no more per client")]
    TooManyNames { kind: String, most: usize },
    #[error("a client may watch at most {most} types of resources")]
    TooManyTypes { most: usize },
}

/// More types than exist; a bound, not a feature.
const MOST_TYPES: usize = 32;

/// May the next push begin?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Answers are owed; look again then, or when one comes.
    ClosedUntil(Instant),
}

pub(crate) struct Session {
    protocol: Protocol,
    most_names: usize,
    most_outstanding: usize,
    nonce_prefix: String,
    nonces: u64,
    watches: BTreeMap<String, Watch>,
    /// Endpoint sets of clusters that were sent anew: Envoy replaces such a cluster and lets it
    /// wait for its endpoints even if it has them, so they are sent again although unchanged
    /// (Istio does the same on every CDS push; envoy#13009).
    rewarm: BTreeSet<String>,
    /// Those of them that were not sent yet, and since when: what refers to the cluster waits.
    unwarmed: BTreeMap<String, Instant>,
    /// Route tables whose virtual hosts are resources of their own.
    tables: HostTables,
    /// What is left of the push in work, in push order.
    todo: VecDeque<(String, Names)>,
}

impl Session {
    pub(crate) fn new(
        protocol: Protocol,
        nonce_prefix: String,
        most_names: usize,
        most_outstanding: usize,
    ) -> Self {
        Self {
            protocol,
            most_names,
            most_outstanding,
            nonce_prefix,
            nonces: 0,
            watches: BTreeMap::new(),
            rewarm: BTreeSet::new(),
            unwarmed: BTreeMap::new(),
            tables: HostTables::default(),
            todo: VecDeque::new(),
        }
    }

    /// Takes one request. The responses are those that the request itself calls for.
    pub(crate) fn request(
        &mut self,
        request: Request,
        view: &View<'_>,
    ) -> Result<(Answer, Vec<Response>), Refused> {
        let type_url = match &request {
            Request::Delta(delta) => delta.type_url.clone(),
            Request::Sotw(sotw) => sotw.type_url.clone(),
        };
        if type_url.is_empty() {
            return Err(Refused::NoType);
        }
        if !self.watches.contains_key(&type_url) && self.watches.len() >= MOST_TYPES {
            return Err(Refused::TooManyTypes { most: MOST_TYPES });
        }
        let (answer, mut responses) = match request {
            Request::Delta(delta) => self.delta_request(delta, view),
            Request::Sotw(sotw) => self.sotw_request(sotw, view),
        };
        if let Some(watch) = self.watches.get_mut(&type_url) {
            if watch.names.len() > self.most_names {
                let kind = type_url::short(&type_url).to_owned();
                return Err(Refused::TooManyNames {
                    kind,
                    most: self.most_names,
                });
            }
            let held_back = match watch.outstanding.len() < self.most_outstanding {
                true => watch.held_back.take(),
                false => None,
            };
            // Where a response must carry everything, parts of it cannot be tried.
            if self.protocol == Protocol::Sotw && type_url::is_full_state(&type_url) {
                watch.retry.clear();
            }
            let retry = match watch.outstanding.is_empty() && held_back.is_none() {
                true => watch.retry.pop_front(),
                false => None,
            };
            let mut retold = std::mem::take(&mut watch.retold);
            // Of other types a client carries removals out whatever else it refuses.
            retold.retain(|name| type_url == VIRTUAL_HOST && !watch.held.contains(name));
            if let Some(names) = held_back {
                responses.extend(self.update(&type_url, &names, view));
            }
            if retry.is_some() || !retold.is_empty() {
                let names = retry.iter();
                let resources = names.flat_map(|names| (view.generate)(&type_url, Some(names)));
                let resources = resources.collect();
                responses.extend(self.send(&type_url, resources, retold, view));
            }
        }
        Ok((answer, responses))
    }

    /// Begins a push; [`Session::step`] carries it out. `better`: what may differ of a type for this
    /// client, where that is known better than the push says it.
    pub(crate) fn begin(&mut self, changed: &Changed, better: &BTreeMap<String, Names>) {
        let mut todo: Vec<(String, Names)> = Vec::new();
        for url in self.watches.keys() {
            match changed.of(url) {
                Some(names) => {
                    let names = better.get(url).unwrap_or(names);
                    todo.push((url.clone(), names.clone()));
                }
                // Clusters that are replaced may wait for endpoints that did not change, and route
                // tables that are new for their virtual hosts.
                None if url == ENDPOINT || url == VIRTUAL_HOST => {
                    todo.push((url.clone(), Names::Some(BTreeSet::new())));
                }
                None => {}
            }
        }
        todo.sort_by_key(|(url, _)| type_url::push_rank(url));
        self.todo = todo.into();
    }

    /// The next part of a push: clusters with their endpoints; then what refers to them; then what
    /// is gone. To be called while the gate is open and the session is [`Session::is_pushing`].
    pub(crate) fn step(&mut self, view: &View<'_>) -> Vec<Response> {
        let mut responses = Vec::new();
        while let Some((url, _)) = self.todo.front() {
            let before: Option<&Response> = responses.last();
            if !is_foundation(url) && before.is_some_and(|sent| is_foundation(&sent.type_url)) {
                return responses;
            }
            if let Some((url, names)) = self.todo.pop_front() {
                responses.extend(self.update(&url, &names, view));
            }
        }
        if !responses.is_empty() {
            return responses;
        }
        let mut types: Vec<String> = self
            .watches
            .iter()
            .filter(|(_, watch)| !watch.pending_removals.is_empty())
            .map(|(url, _)| url.clone())
            .collect();
        types.sort_by_key(|url| removal_rank(url));
        types
            .iter()
            .filter_map(|url| self.removals(url, view))
            .collect()
    }

    /// A push is not finished.
    pub(crate) fn is_pushing(&self) -> bool {
        !self.todo.is_empty()
            || self
                .watches
                .values()
                .any(|w| !w.pending_removals.is_empty())
    }

    /// The next step may begin when every response was answered and every new cluster has asked
    /// for its endpoints and got them, or when the client has had `patience` for it. (Envoy uses a
    /// new route at once, also while its cluster still waits for endpoints, and answers 503 then.
    /// Waiting for ever would let one missing endpoint set stop all pushes.)
    pub(crate) fn gate(&mut self, now: Instant, patience: Duration) -> Gate {
        let oldest = self
            .watches
            .values()
            .filter_map(|w| Some(w.outstanding.front()?.at))
            .min();
        let unwarmed = self.unwarmed.values().min().copied();
        match oldest.into_iter().chain(unwarmed).min() {
            Some(at) if now < at + patience => return Gate::ClosedUntil(at + patience),
            _ => {}
        }
        self.unwarmed.clear();
        Gate::Open
    }

    pub(crate) fn status(&self, detail: Detail) -> BTreeMap<String, TypeStatus> {
        self.watches
            .iter()
            .map(|(url, watch)| (url.clone(), watch.status(detail)))
            .collect()
    }

    /// Updates of one type within a push; its removals are noted for later.
    fn update(&mut self, url: &str, names: &Names, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get_mut(url)?;
        if watch.outstanding.len() >= self.most_outstanding {
            match &mut watch.held_back {
                Some(waiting) => waiting.merge(names.clone()),
                waiting => *waiting = Some(names.clone()),
            }
            return None;
        }
        match self.protocol {
            Protocol::Delta if url == VIRTUAL_HOST => self.host_update(names, view),
            Protocol::Delta => self.delta_update(url, names, view),
            Protocol::Sotw => self.sotw_update(url, names, view),
        }
    }

    fn removals(&mut self, url: &str, view: &View<'_>) -> Option<Response> {
        match self.protocol {
            Protocol::Delta => self.delta_removals(url, view),
            Protocol::Sotw => self.sotw_removals(url, view),
        }
    }

    /// Gives the response its nonce and notes it as sent.
    fn send(
        &mut self,
        url: &str,
        resources: Vec<Arc<Resource>>,
        removed: Vec<String>,
        view: &View<'_>,
    ) -> Option<Response> {
        let watch = self.watches.get_mut(url)?;
        if url == CLUSTER {
            for cluster in resources.iter().filter(|cluster| !watch.held.has(cluster)) {
                if let Some(endpoints) = endpoint_set_of(cluster) {
                    self.unwarmed.insert(endpoints.clone(), view.now);
                    self.rewarm.insert(endpoints);
                }
            }
        } else if url == ENDPOINT {
            let sent = resources.iter().map(|r| r.name());
            for name in sent.chain(removed.iter().map(String::as_str)) {
                self.rewarm.remove(name);
                self.unwarmed.remove(name);
            }
        }
        self.nonces += 1;
        let nonce = format!("{}{}", self.nonce_prefix, self.nonces);
        let version = view.version.to_owned();
        let stamp = Stamp {
            version: version.clone(),
            nonce: nonce.clone(),
            at: SystemTime::now(),
        };
        let keep = self.protocol == Protocol::Sotw && url == CLUSTER;
        watch.record(stamp, view.now, &resources, &removed, keep);
        while watch.outstanding.len() > 4 * self.most_outstanding {
            watch.outstanding.pop_front();
        }
        Some(Response {
            type_url: url.to_owned(),
            version,
            nonce,
            resources,
            removed,
        })
    }

    /// Endpoint sets that a replaced cluster waits for and this client watches.
    fn forced(&self, url: &str) -> BTreeSet<String> {
        match self.watches.get(url) {
            Some(watch) if url == ENDPOINT => self
                .rewarm
                .iter()
                .filter(|name| watch.wants(name))
                .cloned()
                .collect(),
            _ => BTreeSet::new(),
        }
    }
}

/// What others refer to.
fn is_foundation(url: &str) -> bool {
    matches!(url, CLUSTER | ENDPOINT)
}

/// Removals go the other way round: first what refers, then what is referred to; endpoint sets
/// after their clusters.
fn removal_rank(url: &str) -> usize {
    match url {
        LISTENER => 0,
        ROUTE => 1,
        CLUSTER => 2,
        ENDPOINT => 3,
        _ => 4,
    }
}

/// The two fields of `envoy.config.cluster.v3.Cluster` that say which endpoint set it waits for.
/// Decoding only these keeps a CDS push cheap; the field numbers are Envoy's.
#[derive(Clone, PartialEq, Message)]
struct ClusterEndpoints {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    eds: Option<EdsConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct EdsConfig {
    #[prost(string, tag = "2")]
    service_name: String,
}

fn endpoint_set_of(cluster: &Resource) -> Option<String> {
    let cluster = ClusterEndpoints::decode(&*cluster.value).ok()?;
    let eds = cluster.eds?;
    Some(if eds.service_name.is_empty() {
        cluster.name
    } else {
        eds.service_name
    })
}

#[cfg(test)]
mod tests;
