//! The session alone: tables for the rules of both protocols. `history` is the property.

mod history;
mod hosts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::EdsClusterConfig;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc;

use super::{Answer, Gate, Refused, Request, Response, Session, View};
use crate::status::Detail;
use crate::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use crate::{Changed, Names, Protocol, Resource, ResourceState};

/// The truth: type -> name -> content.
#[derive(Clone, Default)]
struct World(BTreeMap<&'static str, BTreeMap<String, u32>>);

impl World {
    fn of(entries: &[(&'static str, &str, u32)]) -> Self {
        let mut world = Self::default();
        for (url, name, content) in entries {
            world
                .0
                .entry(url)
                .or_default()
                .insert((*name).to_owned(), *content);
        }
        world
    }

    fn generate(&self, url: &str, names: Option<&BTreeSet<String>>) -> Vec<Arc<Resource>> {
        let all = self.0.get(url).into_iter().flatten();
        let wanted = |name: &String| {
            let table = name.rsplit_once('/').map(|(table, _)| format!("{table}/"));
            let whole = |names: &BTreeSet<String>| table.is_some_and(|t| names.contains(&t));
            names.is_none_or(|names| names.contains(name) || whole(names))
        };
        all.filter(|(name, _)| wanted(name))
            .map(|(name, content)| {
                if url == ROUTE && *content >= hosts::APART {
                    return hosts::table(name, *content);
                }
                let message = Cluster {
                    name: name.clone(),
                    alt_stat_name: content.to_string(),
                    eds_cluster_config: Some(EdsClusterConfig::default()),
                    ..Default::default()
                };
                Arc::new(Resource::with_version(
                    name.as_str(),
                    content.to_string(),
                    url,
                    &message,
                ))
            })
            .collect()
    }
}

struct Driver {
    session: Session,
    world: World,
}

impl Driver {
    fn new(protocol: Protocol, world: World) -> Self {
        Self {
            session: Session::new(protocol, "n".into(), 100, 4),
            world,
        }
    }

    fn with<T>(&mut self, step: impl FnOnce(&mut Session, &View<'_>) -> T) -> T {
        let world = &self.world;
        let generate = |url: &str, names: Option<&BTreeSet<String>>| world.generate(url, names);
        let view = View {
            version: "7",
            now: Instant::now(),
            generate: &generate,
        };
        step(&mut self.session, &view)
    }

    fn delta(&mut self, request: DeltaDiscoveryRequest) -> Vec<Response> {
        self.with(|s, view| s.request(Request::Delta(request), view))
            .unwrap()
            .1
    }

    fn sotw(&mut self, request: DiscoveryRequest) -> Vec<Response> {
        self.with(|s, view| s.request(Request::Sotw(request), view))
            .unwrap()
            .1
    }

    fn push(&mut self, changed: Changed) -> Vec<Response> {
        self.session.begin(&changed, &BTreeMap::new());
        self.with(|s, view| s.step(view))
    }

    fn step(&mut self) -> Vec<Response> {
        self.with(|s, view| s.step(view))
    }

    fn ack_all(&mut self, responses: &[Response]) {
        for response in responses {
            let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
            match self.session.protocol {
                Protocol::Delta => {
                    let ack = delta(&type_url, &[]);
                    self.delta(DeltaDiscoveryRequest {
                        response_nonce: nonce,
                        ..ack
                    });
                }
                Protocol::Sotw => {
                    let names = self.session.watches[&type_url]
                        .names
                        .iter()
                        .map(|known| known.name().to_owned())
                        .collect();
                    self.sotw(DiscoveryRequest {
                        type_url,
                        response_nonce: nonce,
                        resource_names: names,
                        ..Default::default()
                    });
                }
            }
        }
    }
}

fn delta(url: &str, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: url.into(),
        resource_names_subscribe: subscribe.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}

fn sotw(url: &str, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: url.into(),
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}

/// `cds +a@1 +b@1 -c` per response.
fn show(responses: &[Response]) -> String {
    let lines: Vec<String> = responses
        .iter()
        .map(|response| {
            let mut line = crate::type_url::short(&response.type_url).to_owned();
            for r in &response.resources {
                line += &format!(" +{}@{}", r.name(), r.version());
            }
            for name in &response.removed {
                line += &format!(" -{name}");
            }
            line
        })
        .collect();
    lines.join("; ")
}

#[test]
fn first_delta_requests_are_answered_by_the_kind_of_subscription() {
    let world = World::of(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1), (ENDPOINT, "a", 1)]);
    let check = |request: DeltaDiscoveryRequest, expect: &str| {
        let mut driver = Driver::new(Protocol::Delta, world.clone());
        assert_eq!(show(&driver.delta(request.clone())), expect, "{request:?}");
    };
    check(delta(CLUSTER, &[]), "cds +a@1 +b@1");
    check(delta(CLUSTER, &["*"]), "cds +a@1 +b@1");
    check(delta(CLUSTER, &["b"]), "cds +b@1");
    check(delta(CLUSTER, &["b", "x"]), "cds +b@1 -x");
    // Named types know no legacy wildcard, and nothing asked is nothing answered.
    check(delta(ENDPOINT, &[]), "");
    check(delta(ENDPOINT, &["*"]), "eds +a@1");
    // A client that waits for "everything" is told that there is nothing.
    check(delta(LISTENER, &[]), "lds");
    let held = |versions: &[(&str, &str)], request: DeltaDiscoveryRequest| DeltaDiscoveryRequest {
        initial_resource_versions: versions
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect(),
        ..request
    };
    // After a reconnect only what differs is sent.
    check(held(&[("a", "1"), ("b", "1")], delta(CLUSTER, &[])), "cds");
    check(
        held(&[("a", "0"), ("b", "1")], delta(CLUSTER, &[])),
        "cds +a@1",
    );
    check(held(&[("a", "1")], delta(CLUSTER, &["a", "b"])), "cds +b@1");
    check(held(&[("a", "1")], delta(ENDPOINT, &["a"])), "");
}

#[test]
fn what_a_reconnecting_client_holds_too_much_is_removed() {
    let mut driver = Driver::new(Protocol::Delta, World::of(&[(CLUSTER, "a", 1)]));
    let mut request = delta(CLUSTER, &[]);
    request.initial_resource_versions = [("gone".to_owned(), "1".to_owned())].into();
    let first = driver.delta(request);
    assert_eq!(show(&first), "cds +a@1");
    driver.ack_all(&first);
    assert_eq!(show(&driver.step()), "cds -gone");
}

#[test]
fn a_name_asked_for_again_is_always_answered() {
    let mut driver = Driver::new(Protocol::Delta, World::of(&[(ENDPOINT, "a", 1)]));
    assert_eq!(show(&driver.delta(delta(ENDPOINT, &["a"]))), "eds +a@1");
    assert_eq!(show(&driver.delta(delta(ENDPOINT, &["a"]))), "eds +a@1");
    assert_eq!(show(&driver.delta(delta(ENDPOINT, &["b"]))), "eds -b");
    driver.world = World::of(&[(ENDPOINT, "a", 1), (ENDPOINT, "b", 1)]);
    assert_eq!(show(&driver.push(Changed::All)), "eds +b@1");
}

#[test]
fn unsubscribing_and_narrowing() {
    let world = World::of(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1)]);
    let mut driver = Driver::new(Protocol::Delta, world);
    driver.delta(delta(CLUSTER, &[]));
    driver.delta(delta(CLUSTER, &["b"]));
    let mut narrow = delta(CLUSTER, &[]);
    narrow.resource_names_unsubscribe = vec!["*".into()];
    assert_eq!(show(&driver.delta(narrow)), "");
    driver.world = World::of(&[(CLUSTER, "a", 2), (CLUSTER, "b", 2)]);
    assert_eq!(show(&driver.push(Changed::All)), "cds +b@2");
    let mut nothing = delta(CLUSTER, &[]);
    nothing.resource_names_unsubscribe = vec!["b".into()];
    driver.delta(nothing);
    driver.world = World::of(&[(CLUSTER, "b", 3)]);
    assert_eq!(show(&driver.push(Changed::All)), "");
}

#[test]
fn an_endpoint_change_sends_that_endpoint_set_only() {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let all = [
            (CLUSTER, "a", 1),
            (CLUSTER, "b", 1),
            (ENDPOINT, "a", 1),
            (ENDPOINT, "b", 1),
        ];
        let mut driver = Driver::new(protocol, World::of(&all));
        let first = match protocol {
            Protocol::Delta => {
                let mut first = driver.delta(delta(CLUSTER, &[]));
                first.extend(driver.delta(delta(ENDPOINT, &["a", "b"])));
                first
            }
            Protocol::Sotw => {
                let mut first = driver.sotw(sotw(CLUSTER, &[], ""));
                first.extend(driver.sotw(sotw(ENDPOINT, &["a", "b"], "")));
                first
            }
        };
        assert_eq!(show(&first), "cds +a@1 +b@1; eds +a@1 +b@1");
        driver.ack_all(&first);
        driver
            .world
            .0
            .get_mut(ENDPOINT)
            .unwrap()
            .insert("b".into(), 2);
        assert_eq!(
            show(&driver.push(Changed::names(ENDPOINT, ["b"]))),
            "eds +b@2"
        );
        assert_eq!(show(&driver.push(Changed::All)), "");
    }
}

#[test]
fn one_push_goes_from_clusters_to_routes_and_removes_last() {
    let first = [
        (CLUSTER, "a", 1),
        (ENDPOINT, "a", 1),
        (LISTENER, "l", 1),
        (ROUTE, "r", 1),
    ];
    let mut driver = Driver::new(Protocol::Delta, World::of(&first));
    let mut sent = Vec::new();
    for (url, names) in [
        (ROUTE, &["r"][..]),
        (LISTENER, &[]),
        (ENDPOINT, &["a", "b"]),
        (CLUSTER, &[]),
    ] {
        sent.extend(driver.delta(delta(url, names)));
    }
    driver.ack_all(&sent);
    driver.world = World::of(&[(CLUSTER, "b", 1), (ENDPOINT, "b", 1), (ROUTE, "r", 2)]);
    let clusters = driver.push(Changed::All);
    assert_eq!(show(&clusters), "cds +b@1; eds +b@1");
    driver.ack_all(&clusters);
    let routes = driver.step();
    assert_eq!(show(&routes), "rds +r@2");
    driver.ack_all(&routes);
    assert_eq!(show(&driver.step()), "lds -l; cds -a; eds -a");
    assert!(!driver.session.is_pushing());
}

#[test]
fn a_replaced_cluster_gets_its_endpoints_again() {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let entries = [
            (CLUSTER, "a", 1),
            (CLUSTER, "b", 1),
            (ENDPOINT, "a", 1),
            (ENDPOINT, "b", 1),
        ];
        let mut driver = Driver::new(protocol, World::of(&entries));
        let mut first = Vec::new();
        match protocol {
            Protocol::Delta => {
                first.extend(driver.delta(delta(CLUSTER, &[])));
                first.extend(driver.delta(delta(ENDPOINT, &["a", "b"])));
            }
            Protocol::Sotw => {
                first.extend(driver.sotw(sotw(CLUSTER, &[], "")));
                first.extend(driver.sotw(sotw(ENDPOINT, &["a", "b"], "")));
            }
        }
        driver.ack_all(&first);
        driver
            .world
            .0
            .get_mut(CLUSTER)
            .unwrap()
            .insert("b".into(), 2);
        let expect = match protocol {
            Protocol::Delta => "cds +b@2; eds +b@1",
            Protocol::Sotw => "cds +a@1 +b@2; eds +b@1",
        };
        assert_eq!(show(&driver.push(Changed::names(CLUSTER, ["b"]))), expect);
    }
}

#[test]
fn sotw_clusters_stay_until_the_rest_of_the_push_was_answered() {
    let entries = [(CLUSTER, "old", 1), (ROUTE, "r", 1)];
    let mut driver = Driver::new(Protocol::Sotw, World::of(&entries));
    let mut first = driver.sotw(sotw(CLUSTER, &[], ""));
    first.extend(driver.sotw(sotw(ROUTE, &["r"], "")));
    driver.ack_all(&first);
    driver.world = World::of(&[(CLUSTER, "new", 1), (ROUTE, "r", 2)]);
    let push = driver.push(Changed::All);
    assert_eq!(show(&push), "cds +new@1 +old@1");
    driver.ack_all(&push);
    let routes = driver.step();
    assert_eq!(show(&routes), "rds +r@2");
    driver.ack_all(&routes);
    assert_eq!(show(&driver.step()), "cds +new@1");
    assert_eq!(show(&driver.step()), "");
}

#[test]
fn sotw_lists_replace_each_other_and_grpc_asks_by_name() {
    let entries = [
        (LISTENER, "svc:80", 1),
        (LISTENER, "other", 1),
        (ENDPOINT, "a", 1),
    ];
    let mut driver = Driver::new(Protocol::Sotw, World::of(&entries));
    let first = driver.sotw(sotw(LISTENER, &["svc:80"], ""));
    assert_eq!(show(&first), "lds +svc:80@1");
    driver.ack_all(&first);
    // For listeners absence is an answer, so one that does not exist is answered by the rest.
    let second = driver.sotw(sotw(LISTENER, &["svc:80", "nope"], &first[0].nonce));
    assert_eq!(show(&second), "lds +svc:80@1");
    driver.ack_all(&second);
    // An empty list after names is "nothing", not "everything".
    assert_eq!(
        show(&driver.sotw(sotw(LISTENER, &[], &second[0].nonce))),
        ""
    );
    driver.world = World::of(&[(LISTENER, "svc:80", 2)]);
    assert_eq!(show(&driver.push(Changed::All)), "");
    // Endpoints: an empty list never means everything.
    assert_eq!(show(&driver.sotw(sotw(ENDPOINT, &[], ""))), "");
}

#[test]
fn stale_nonces_are_ignored() {
    let mut driver = Driver::new(Protocol::Sotw, World::of(&[(ENDPOINT, "a", 1)]));
    driver.sotw(sotw(ENDPOINT, &["a"], "from-another-stream"));
    let (answer, responses) = driver
        .with(|s, view| s.request(Request::Sotw(sotw(ENDPOINT, &["a", "b"], "stale")), view))
        .unwrap();
    assert_eq!((answer, responses.len()), (Answer::Expired, 0));
    assert_eq!(driver.session.watches[ENDPOINT].names.len(), 1);

    let mut driver = Driver::new(Protocol::Delta, World::of(&[(ENDPOINT, "a", 1)]));
    driver.delta(delta(ENDPOINT, &["x"]));
    let mut request = delta(ENDPOINT, &["a"]);
    request.response_nonce = "stale".into();
    let (answer, responses) = driver
        .with(|s, view| s.request(Request::Delta(request), view))
        .unwrap();
    // Delta subscriptions are said once, so they count whatever the nonce.
    assert_eq!(
        (answer, show(&responses).as_str()),
        (Answer::Expired, "eds +a@1")
    );
}

#[test]
fn a_rejection_that_names_a_resource_leaves_the_others_accepted() {
    let mut driver = Driver::new(
        Protocol::Delta,
        World::of(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1)]),
    );
    let first = driver.delta(delta(CLUSTER, &[]));
    let mut nack = delta(CLUSTER, &[]);
    nack.response_nonce.clone_from(&first[0].nonce);
    nack.error_detail = Some(rpc::Status {
        code: 13,
        message: "Error adding/updating cluster(s) b: no such policy".into(),
        details: vec![],
    });
    driver.delta(nack);
    let status = &driver.session.status(Detail::Resources)[CLUSTER];
    assert_eq!(status.state(), crate::SyncState::Error);
    assert_eq!(status.resources["a"].state, ResourceState::Acked);
    assert_eq!(
        status.resources["b"].state,
        ResourceState::Rejected("no such policy".into())
    );
    assert_eq!(status.resources["b"].acked, None);
    // The refused version is not sent again; another change is, and does not hide the error.
    driver
        .world
        .0
        .get_mut(CLUSTER)
        .unwrap()
        .insert("c".into(), 1);
    let push = driver.push(Changed::All);
    assert_eq!(show(&push), "cds +c@1");
    driver.ack_all(&push);
    assert_eq!(
        driver.session.status(Detail::Resources)[CLUSTER].state(),
        crate::SyncState::Error
    );
    driver
        .world
        .0
        .get_mut(CLUSTER)
        .unwrap()
        .insert("b".into(), 2);
    let push = driver.push(Changed::All);
    driver.ack_all(&push);
    assert_eq!(
        driver.session.status(Detail::Resources)[CLUSTER].state(),
        crate::SyncState::Synced
    );
}

/// Refuses the whole of every response that holds a bad resource, naming none, as Envoy does
/// when a resource cannot be decoded; answers what is applied in the end.
fn refuse_whole(driver: &mut Driver, mut inbox: Vec<Response>, bad: &[&str]) -> BTreeSet<String> {
    let mut applied = BTreeSet::new();
    while !inbox.is_empty() {
        let response = inbox.remove(0);
        let refused = response.resources.iter().any(|r| bad.contains(&r.name()));
        let mut answer = delta(&response.type_url, &[]);
        answer.response_nonce.clone_from(&response.nonce);
        if refused {
            let message = "Proto constraint validation failed".to_owned();
            answer.error_detail = Some(rpc::Status {
                code: 13,
                message,
                details: vec![],
            });
        } else {
            applied.extend(response.resources.iter().map(|r| r.name().to_string()));
        }
        inbox.extend(driver.delta(answer));
    }
    applied
}

#[test]
fn a_rejection_of_a_whole_response_is_narrowed_down_to_the_bad_resources() {
    let names: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
    let entries: Vec<_> = names
        .iter()
        .map(|name| (CLUSTER, name.as_str(), 1))
        .collect();
    let mut driver = Driver::new(Protocol::Delta, World::of(&entries));
    let first = driver.delta(delta(CLUSTER, &[]));
    let applied = refuse_whole(&mut driver, first, &["c7", "c13"]);
    assert_eq!(applied.len(), 18);
    let status = &driver.session.status(Detail::Resources)[CLUSTER];
    let refused: Vec<_> = status
        .resources
        .iter()
        .filter(|(_, r)| matches!(r.state, ResourceState::Rejected(_)))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(refused, ["c13", "c7"]);
    assert_eq!(
        (status.outstanding, status.state()),
        (0, crate::SyncState::Error)
    );
    // Repaired, only they are sent.
    driver
        .world
        .0
        .get_mut(CLUSTER)
        .unwrap()
        .insert("c7".into(), 2);
    assert_eq!(show(&driver.push(Changed::All)), "cds +c7@2");
}

#[test]
fn envoy_stops_at_the_first_bad_endpoint_set_so_the_others_are_sent_again() {
    let entries = [(ENDPOINT, "a", 1), (ENDPOINT, "b", 1), (ENDPOINT, "c", 1)];
    let mut driver = Driver::new(Protocol::Delta, World::of(&entries));
    let first = driver.delta(delta(ENDPOINT, &["a", "b", "c"]));
    let mut answer = delta(ENDPOINT, &[]);
    answer.response_nonce.clone_from(&first[0].nonce);
    answer.error_detail = Some(rpc::Status {
        message: "b: no".into(),
        ..Default::default()
    });
    assert_eq!(show(&driver.delta(answer)), "eds +a@1 +c@1");
}

#[test]
fn routes_wait_until_a_new_cluster_has_asked_for_its_endpoints_and_got_them() {
    let mut driver = Driver::new(Protocol::Delta, World::of(&[(ROUTE, "r", 1)]));
    let mut first = driver.delta(delta(CLUSTER, &[]));
    first.extend(driver.delta(delta(ROUTE, &["r"])));
    driver.ack_all(&first);
    driver.world = World::of(&[(CLUSTER, "a", 1), (ENDPOINT, "a", 1), (ROUTE, "r", 2)]);
    let clusters = driver.push(Changed::All);
    assert_eq!(show(&clusters), "cds +a@1");
    driver.ack_all(&clusters);
    let patience = Duration::from_secs(1);
    let closed = driver.session.gate(Instant::now(), patience);
    assert!(
        matches!(closed, Gate::ClosedUntil(_)),
        "the endpoints were not asked for yet"
    );
    let endpoints = driver.delta(delta(ENDPOINT, &["a"]));
    driver.ack_all(&endpoints);
    assert_eq!(driver.session.gate(Instant::now(), patience), Gate::Open);
    assert_eq!(show(&driver.step()), "rds +r@2");
}

#[test]
fn the_gate_waits_for_answers_but_not_for_ever() {
    let patience = Duration::from_secs(1);
    let mut driver = Driver::new(Protocol::Delta, World::of(&[(CLUSTER, "a", 1)]));
    assert_eq!(driver.session.gate(Instant::now(), patience), Gate::Open);
    let first = driver.delta(delta(CLUSTER, &[]));
    let now = Instant::now();
    assert!(matches!(driver.session.gate(now, patience), Gate::ClosedUntil(at) if at > now));
    assert_eq!(driver.session.gate(now + patience, patience), Gate::Open);
    driver.ack_all(&first);
    assert_eq!(driver.session.gate(now, patience), Gate::Open);
}

#[test]
fn a_client_that_never_answers_is_not_flooded_and_catches_up_with_its_first_answer() {
    let mut driver = Driver::new(Protocol::Delta, World::of(&[(CLUSTER, "a", 1)]));
    let mut last = driver.delta(delta(CLUSTER, &[]));
    for content in 2..20 {
        driver.world = World::of(&[(CLUSTER, "a", content)]);
        let push = driver.push(Changed::names(CLUSTER, ["a"]));
        if !push.is_empty() {
            last = push;
        }
    }
    let status = &driver.session.status(Detail::Resources)[CLUSTER];
    assert_eq!((status.outstanding, status.held_back), (4, true));
    assert_eq!(status.state(), crate::SyncState::Stale);
    let mut ack = delta(CLUSTER, &[]);
    ack.response_nonce.clone_from(&last[0].nonce);
    assert_eq!(show(&driver.delta(ack)), "cds +a@19");
}

#[test]
fn hostile_requests_are_refused() {
    let check = |request: DeltaDiscoveryRequest, expect: Refused| {
        let mut driver = Driver::new(Protocol::Delta, World::default());
        let got = driver.with(|s, view| s.request(Request::Delta(request), view));
        assert_eq!(got.unwrap_err(), expect);
    };
    check(delta("", &[]), Refused::NoType);
    let names: Vec<String> = (0..101).map(|i| i.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    check(
        delta(ENDPOINT, &names),
        Refused::TooManyNames {
            kind: "eds".into(),
            most: 100,
        },
    );
    let mut driver = Driver::new(Protocol::Delta, World::default());
    for kind in 0..32 {
        driver.delta(delta(&format!("type/{kind}"), &[]));
    }
    let more = Request::Delta(delta("type/33", &[]));
    let got = driver.with(|s, view| s.request(more, view));
    assert_eq!(got.unwrap_err(), Refused::TooManyTypes { most: 32 });
}

#[test]
fn names_all_equals_naming_each() {
    let mut driver = Driver::new(Protocol::Delta, World::of(&[(ENDPOINT, "a", 1)]));
    driver.delta(delta(ENDPOINT, &["a"]));
    driver.world = World::of(&[(ENDPOINT, "a", 2)]);
    let mut changed = Changed::none();
    changed.add(ENDPOINT, Names::All);
    assert_eq!(show(&driver.push(changed)), "eds +a@2");
}
