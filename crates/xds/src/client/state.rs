//! What the client wants, holds and owes: the protocol side of the client as a plain value.
//!
//! Shared between the handle, the replies and the stream's task behind one short lock; no I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use super::Received;
use crate::{Rejection, nack, type_url};

#[derive(Default)]
pub(super) struct State {
    /// Counts streams; a reply to an earlier stream's response is not sent on a later one.
    stream: u64,
    types: BTreeMap<String, Watched>,
    pub(super) closed: bool,
}

#[derive(Default)]
struct Watched {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Accepted by the owner.
    versions: BTreeMap<String, String>,
    /// The first request of this type was sent on this stream.
    introduced: bool,
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    subscribe_all: bool,
    /// Responses of this stream in the order they came; answered in that order too, because a
    /// server may take an answer as the answer to all before it.
    owed: VecDeque<Owed>,
}

struct Owed {
    nonce: String,
    verdict: Option<Vec<Rejection>>,
}

/// Names one response and what it carried.
#[derive(Debug)]
pub(super) struct Ticket {
    stream: u64,
    nonce: String,
    type_url: String,
    versions: Vec<(String, String)>,
    removed: Vec<String>,
}

impl State {
    pub(super) fn subscribe_all(&mut self, type_url: &str) {
        let watched = self.watched(type_url);
        if !watched.wildcard {
            watched.wildcard = true;
            watched.subscribe_all = true;
        }
    }

    pub(super) fn subscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let watched = self.watched(type_url);
        for name in names {
            if watched.names.insert(name.clone()) && !watched.unsubscribe.remove(&name) {
                watched.subscribe.insert(name);
            } else if watched.introduced {
                // Wanted, dropped and wanted again before anything was sent: what we held is
                // forgotten, so it must be asked for again.
                if !watched.versions.contains_key(&name) {
                    watched.subscribe.insert(name);
                }
            }
        }
    }

    pub(super) fn unsubscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let watched = self.watched(type_url);
        for name in names {
            if !watched.names.remove(&name) {
                continue;
            }
            if !watched.wildcard {
                watched.versions.remove(&name);
            }
            if !watched.subscribe.remove(&name) {
                watched.unsubscribe.insert(name);
            }
        }
    }

    /// What was accepted of a type under names that begin so is no longer held.
    pub(super) fn forget(&mut self, type_url: &str, prefix: &str) {
        let versions = &mut self.watched(type_url).versions;
        versions.retain(|name, _| !name.starts_with(prefix));
    }

    fn watched(&mut self, type_url: &str) -> &mut Watched {
        self.types.entry(type_url.to_owned()).or_default()
    }

    /// A new stream: everything is to be said again, and nothing is owed.
    pub(super) fn begin_stream(&mut self) {
        self.stream += 1;
        for watched in self.types.values_mut() {
            watched.introduced = false;
            watched.subscribe.clear();
            watched.unsubscribe.clear();
            watched.subscribe_all = false;
            watched.owed.clear();
        }
    }

    pub(super) fn has_request(&self) -> bool {
        self.types.values().any(Watched::has_request)
    }

    /// The next message to send, types in push order. Without node.
    pub(super) fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let (url, watched) = self
            .types
            .iter_mut()
            .filter(|(_, watched)| watched.has_request())
            .min_by_key(|(url, _)| type_url::push_rank(url))?;
        Some(watched.take_request(url))
    }

    /// Notes a response; the ticket comes back with the owner's verdict.
    pub(super) fn received(&mut self, response: &DeltaDiscoveryResponse) -> Ticket {
        let stream = self.stream;
        let owed = Owed {
            nonce: response.nonce.clone(),
            verdict: None,
        };
        self.watched(&response.type_url).owed.push_back(owed);
        Ticket {
            stream,
            nonce: response.nonce.clone(),
            type_url: response.type_url.clone(),
            versions: response
                .resources
                .iter()
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect(),
            removed: response.removed_resources.clone(),
        }
    }

    /// Takes the owner's verdict. `None`: the owner dropped the reply.
    pub(super) fn verdict(&mut self, ticket: Ticket, rejections: Option<Vec<Rejection>>) {
        let current = self.stream == ticket.stream;
        let watched = self.watched(&ticket.type_url);
        let rejections = rejections.unwrap_or_else(|| {
            let reason = "the proxy stopped working on this update".to_owned();
            let names = ticket.versions.iter().map(|(name, _)| name.clone());
            names
                .map(|name| Rejection {
                    name,
                    reason: reason.clone(),
                })
                .collect()
        });
        let refused: BTreeSet<&str> = rejections.iter().map(|r| r.name.as_str()).collect();
        for (name, version) in ticket.versions {
            let wanted = watched.wildcard || watched.names.contains(&name);
            if wanted && !refused.contains(name.as_str()) {
                watched.versions.insert(name, version);
            }
        }
        for name in &ticket.removed {
            watched.versions.remove(name);
        }
        if current && let Some(owed) = watched.owed.iter_mut().find(|o| o.nonce == ticket.nonce) {
            owed.verdict = Some(rejections);
        }
    }
}

impl Watched {
    fn has_request(&self) -> bool {
        if !self.introduced {
            // An empty first request would mean "everything".
            return self.wildcard || !self.names.is_empty();
        }
        self.subscribe_all
            || !self.subscribe.is_empty()
            || !self.unsubscribe.is_empty()
            || self.owed.front().is_some_and(|owed| owed.verdict.is_some())
    }

    fn take_request(&mut self, url: &str) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest {
            type_url: url.to_owned(),
            ..Default::default()
        };
        if !self.introduced {
            self.introduced = true;
            self.subscribe.clear();
            self.unsubscribe.clear();
            self.subscribe_all = false;
            // Everything and nothing else is said by an empty list, which every server knows.
            if self.wildcard && !self.names.is_empty() {
                request.resource_names_subscribe.push("*".to_owned());
            }
            request
                .resource_names_subscribe
                .extend(self.names.iter().cloned());
            request.initial_resource_versions = self
                .versions
                .iter()
                .map(|(name, v)| (name.clone(), v.clone()))
                .collect();
            return request;
        }
        if std::mem::take(&mut self.subscribe_all) {
            request.resource_names_subscribe.push("*".to_owned());
        }
        request
            .resource_names_subscribe
            .extend(std::mem::take(&mut self.subscribe));
        request
            .resource_names_unsubscribe
            .extend(std::mem::take(&mut self.unsubscribe));
        if self.owed.front().is_some_and(|owed| owed.verdict.is_some())
            && let Some(owed) = self.owed.pop_front()
        {
            request.response_nonce = owed.nonce;
            let rejections = owed.verdict.unwrap_or_default();
            if !rejections.is_empty() {
                request.error_detail = Some(nack::write(url, &rejections));
            }
        }
        request
    }
}

/// The resources of a response as the owner gets them.
pub(super) fn resources(response: DeltaDiscoveryResponse) -> (Vec<Received>, Vec<String>) {
    let resources = response
        .resources
        .into_iter()
        .filter_map(|resource| {
            // Without a body it is a TTL heartbeat, which changes nothing.
            let any = resource.resource?;
            Some(Received {
                name: resource.name,
                version: resource.version,
                any: any.into(),
            })
        })
        .collect();
    (resources, response.removed_resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_url::{CLUSTER, ENDPOINT};
    use envoy_types::pb::envoy::service::discovery::v3::Resource;

    fn response(url: &str, nonce: &str, resources: &[(&str, &str)]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: url.into(),
            nonce: nonce.into(),
            resources: resources
                .iter()
                .map(|(name, version)| Resource {
                    name: (*name).into(),
                    version: (*version).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_type_without_names_is_not_asked_for() {
        let mut state = State::default();
        state.begin_stream();
        state.subscribe(ENDPOINT, names(&["a"]));
        state.unsubscribe(ENDPOINT, names(&["a"]));
        assert!(
            state.next_request().is_none(),
            "an empty list would ask for everything"
        );
    }

    #[test]
    fn only_what_was_accepted_is_claimed_after_a_reconnect() {
        let mut state = State::default();
        state.subscribe_all(CLUSTER);
        state.begin_stream();
        let first = state.next_request().unwrap();
        assert!(first.resource_names_subscribe.is_empty());
        assert!(state.next_request().is_none());
        let ticket = state.received(&response(CLUSTER, "1", &[("a", "v1"), ("b", "v1")]));
        state.verdict(
            ticket,
            Some(vec![Rejection {
                name: "b".into(),
                reason: "no".into(),
            }]),
        );
        let nack = state.next_request().unwrap();
        assert_eq!(nack.response_nonce, "1");
        assert!(nack.error_detail.unwrap().message.ends_with("b: no"));
        state.begin_stream();
        let again = state.next_request().unwrap();
        assert_eq!(
            again.initial_resource_versions,
            [("a".into(), "v1".into())].into()
        );
    }

    #[test]
    fn answers_leave_in_the_order_of_the_responses() {
        let mut state = State::default();
        state.subscribe_all(CLUSTER);
        state.begin_stream();
        state.next_request();
        let one = state.received(&response(CLUSTER, "1", &[("a", "v1")]));
        let two = state.received(&response(CLUSTER, "2", &[("a", "v2")]));
        state.verdict(two, Some(vec![]));
        assert!(!state.has_request(), "the first is not answered yet");
        state.verdict(one, None);
        assert_eq!(state.next_request().unwrap().response_nonce, "1");
        let second = state.next_request().unwrap();
        assert_eq!(
            (second.response_nonce.as_str(), second.error_detail),
            ("2", None)
        );
    }

    #[test]
    fn a_name_dropped_and_wanted_again_is_asked_for_again() {
        let mut state = State::default();
        state.subscribe(ENDPOINT, names(&["a", "b"]));
        state.begin_stream();
        state.next_request();
        let ticket = state.received(&response(ENDPOINT, "1", &[("a", "v1"), ("b", "v1")]));
        state.verdict(ticket, Some(vec![]));
        state.next_request();
        state.unsubscribe(ENDPOINT, names(&["a"]));
        state.subscribe(ENDPOINT, names(&["a"]));
        let request = state.next_request().unwrap();
        assert_eq!(request.resource_names_subscribe, ["a"]);
        assert!(request.resource_names_unsubscribe.is_empty());
        state.unsubscribe(ENDPOINT, names(&["b", "never"]));
        assert_eq!(
            state.next_request().unwrap().resource_names_unsubscribe,
            ["b"]
        );
        assert!(!state.has_request());
    }

    #[test]
    fn replies_to_an_earlier_stream_count_but_are_not_sent() {
        let mut state = State::default();
        state.subscribe_all(CLUSTER);
        state.begin_stream();
        state.next_request();
        let ticket = state.received(&response(CLUSTER, "1", &[("a", "v1")]));
        state.begin_stream();
        state.verdict(ticket, Some(vec![]));
        let first = state.next_request().unwrap();
        assert_eq!(first.initial_resource_versions.len(), 1);
        assert_eq!(first.response_nonce, "");
        assert!(!state.has_request());
    }
}
