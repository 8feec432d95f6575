//! Random histories against a model client: whatever happened, it ends with the last state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc;
use proptest::prelude::*;

use super::{Driver, World};
use crate::session::Response;
use crate::type_url::{CLUSTER, ENDPOINT};
use crate::{Changed, Protocol, Rejection, nack};

#[derive(Clone, Debug)]
enum Step {
    /// The truth changes and is pushed at once.
    Set(usize, u8, Option<u32>),
    Subscribe(u8),
    Unsubscribe(u8),
    /// The client works off up to so many responses; the mask says which names it refuses.
    Answer(usize, u8),
    /// The next part of the push in work, or the next push.
    Advance,
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..2usize, 0..5u8, proptest::option::of(1..4u32)).prop_map(|(t, n, c)| Step::Set(t, n, c)),
        1 => (0..5u8).prop_map(Step::Subscribe),
        1 => (0..5u8).prop_map(Step::Unsubscribe),
        4 => (1..4usize, prop_oneof![4 => Just(0u8), 1 => any::<u8>()]).prop_map(|(n, m)| Step::Answer(n, m)),
        2 => Just(Step::Advance),
        1 => Just(Step::Reconnect),
    ];
    proptest::collection::vec(step, 1..60)
}

const KINDS: [&str; 2] = [CLUSTER, ENDPOINT];

/// A client that applies what it is sent: clusters by wildcard, endpoint sets by name.
struct Model {
    driver: Driver,
    names: BTreeSet<String>,
    holds: BTreeMap<&'static str, BTreeMap<String, String>>,
    refused: BTreeMap<&'static str, BTreeMap<String, String>>,
    inbox: VecDeque<Response>,
    /// Merged while a push is in work.
    waiting: Changed,
}

impl Model {
    fn new(protocol: Protocol) -> Self {
        let mut model = Self {
            driver: Driver::new(protocol, World::default()),
            names: BTreeSet::new(),
            holds: KINDS.map(|url| (url, BTreeMap::new())).into(),
            refused: KINDS.map(|url| (url, BTreeMap::new())).into(),
            inbox: Default::default(),
            waiting: Changed::none(),
        };
        model.connect();
        model
    }

    fn connect(&mut self) {
        let protocol = self.driver.session.protocol;
        self.driver = Driver::new(protocol, self.driver.world.clone());
        self.inbox.clear();
        for url in KINDS {
            let names: Vec<String> = match url {
                ENDPOINT if self.names.is_empty() => continue,
                ENDPOINT => self.names.iter().cloned().collect(),
                _ => Vec::new(),
            };
            self.request(url, names, vec![], None, true);
        }
    }

    fn request(
        &mut self,
        url: &'static str,
        add: Vec<String>,
        drop: Vec<String>,
        answer: Option<(String, Option<rpc::Status>)>,
        first: bool,
    ) {
        let (response_nonce, error_detail) = answer.unwrap_or_default();
        let responses = match self.driver.session.protocol {
            Protocol::Delta => self.driver.delta(DeltaDiscoveryRequest {
                type_url: url.into(),
                resource_names_subscribe: add,
                resource_names_unsubscribe: drop,
                initial_resource_versions: if first {
                    self.holds[url].clone().into_iter().collect()
                } else {
                    Default::default()
                },
                response_nonce,
                error_detail,
                ..Default::default()
            }),
            Protocol::Sotw => {
                let names = if url == ENDPOINT {
                    self.names.clone()
                } else {
                    BTreeSet::new()
                };
                self.driver.sotw(DiscoveryRequest {
                    type_url: url.into(),
                    resource_names: names.into_iter().collect(),
                    response_nonce,
                    error_detail,
                    ..Default::default()
                })
            }
        };
        self.inbox.extend(responses);
    }

    fn answer(&mut self, mask: u8) {
        let Some(response) = self.inbox.pop_front() else {
            return;
        };
        let Some(url) = KINDS.into_iter().find(|url| *url == response.type_url) else {
            return;
        };
        let mut rejections = Vec::new();
        let full = self.driver.session.protocol == Protocol::Sotw && url == CLUSTER;
        let mut kept = BTreeMap::new();
        for r in &response.resources {
            if url == ENDPOINT && !self.names.contains(r.name()) {
                continue;
            }
            let index: u8 = r.name().parse().unwrap();
            if mask & (1 << index) != 0 {
                rejections.push(Rejection {
                    name: r.name().to_string(),
                    reason: "no".into(),
                });
                self.refused
                    .get_mut(url)
                    .unwrap()
                    .insert(r.name().to_string(), r.version().to_string());
                if let Some(old) = self.holds[url].get(r.name()) {
                    kept.insert(r.name().to_string(), old.clone());
                }
            } else {
                kept.insert(r.name().to_string(), r.version().to_string());
            }
        }
        let holds = self.holds.get_mut(url).unwrap();
        if full {
            holds.clear();
        }
        holds.extend(kept);
        for name in &response.removed {
            holds.remove(name);
        }
        let error = (!rejections.is_empty()).then(|| nack::write(url, &rejections));
        self.request(url, vec![], vec![], Some((response.nonce, error)), false);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Set(kind, name, content) => {
                let (url, name) = (KINDS[*kind], name.to_string());
                let all = self.driver.world.0.entry(url).or_default();
                match content {
                    Some(content) => all.insert(name.clone(), *content),
                    None => all.remove(&name),
                };
                self.waiting.merge(Changed::names(url, [name]));
            }
            Step::Subscribe(name) => {
                if self.names.insert(name.to_string()) {
                    let first = !self.driver.session.watches.contains_key(ENDPOINT);
                    self.request(ENDPOINT, vec![name.to_string()], vec![], None, first);
                }
            }
            Step::Unsubscribe(name) => {
                let name = name.to_string();
                if self.names.remove(&name) {
                    for map in [&mut self.holds, &mut self.refused] {
                        map.get_mut(ENDPOINT).unwrap().remove(&name);
                    }
                    self.request(ENDPOINT, vec![], vec![name], None, false);
                }
            }
            Step::Answer(count, mask) => (0..*count).for_each(|_| self.answer(*mask)),
            Step::Advance => self.advance(),
            Step::Reconnect => self.connect(),
        }
    }

    fn advance(&mut self) {
        if !self.driver.session.is_pushing() {
            let changed = std::mem::replace(&mut self.waiting, Changed::none());
            self.driver.session.begin(&changed, &BTreeMap::new());
        }
        let responses = self.driver.step();
        self.inbox.extend(responses);
    }

    /// Answers everything, to the end.
    fn settle(&mut self) {
        for _ in 0..1000 {
            while !self.inbox.is_empty() {
                self.answer(0);
            }
            self.advance();
            let idle = self.waiting.is_none() && !self.driver.session.is_pushing();
            if idle && self.inbox.is_empty() {
                return;
            }
        }
        panic!("never comes to rest");
    }

    fn check(&self) {
        let protocol = self.driver.session.protocol;
        for url in KINDS {
            let truth = self.driver.world.0.get(url).cloned().unwrap_or_default();
            let wanted = |name: &String| url == CLUSTER || self.names.contains(name);
            for (name, content) in truth.iter().filter(|(name, _)| wanted(name)) {
                let version = content.to_string();
                let refused = self.refused[url].get(name) == Some(&version);
                let holds = self.holds[url].get(name) == Some(&version);
                assert!(
                    holds || refused,
                    "{protocol:?} {url} {name} should be {version}: {:?}",
                    self.holds[url]
                );
            }
            for name in self.holds[url].keys() {
                // State of the world cannot take back a resource that is asked for by name.
                let told = protocol == Protocol::Delta || url == CLUSTER;
                assert!(
                    !told || truth.contains_key(name),
                    "{protocol:?} {url} {name} is gone"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_the_client_ends_with_the_last_state(steps in steps()) {
        for protocol in [Protocol::Delta, Protocol::Sotw] {
            let mut model = Model::new(protocol);
            for step in &steps {
                model.step(step);
            }
            model.settle();
            model.check();
        }
    }
}
