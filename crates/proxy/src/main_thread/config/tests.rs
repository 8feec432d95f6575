//! The order in which workers get what: tables for single rules, and a property over random
//! orders of discovery.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::envoy::config::listener::v3 as lds;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use lateen_proxy_config::{Cluster, SecretRef};
use lateen_xds::client::Received;
use lateen_xds::type_url::{self, CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET};
use proptest::prelude::*;
use prost::Message;

use super::{Config, INIT_FETCH_TIMEOUT, Outside};
use crate::worker::WorkerUpdate;

/// Keeps what the workers would have.
#[derive(Default)]
struct Workers {
    clusters: BTreeSet<String>,
    endpoints: BTreeMap<String, usize>,
    /// Table -> clusters it names.
    routes: BTreeMap<String, BTreeSet<String>>,
    listeners: BTreeSet<String>,
    asked: BTreeSet<(&'static str, String)>,
    resolving: BTreeSet<String>,
    decided: Vec<(String, Result<(), String>)>,
    log: Vec<String>,
    taken_port: bool,
}

impl Outside for Workers {
    fn worker(&mut self, update: WorkerUpdate) -> Result<(), String> {
        match update {
            WorkerUpdate::Cluster(cluster) => {
                self.log.push(format!("cluster {}", cluster.name));
                self.clusters.insert(cluster.name.to_string());
            }
            WorkerUpdate::RemoveCluster(name) => {
                self.log.push(format!("no cluster {name}"));
                self.clusters.remove(&*name);
                self.endpoints.remove(&*name);
            }
            WorkerUpdate::Endpoints(name, set) => {
                self.log
                    .push(format!("endpoints {name} {}", set.endpoints().count()));
                self.endpoints
                    .insert(name.to_string(), set.endpoints().count());
            }
            WorkerUpdate::Routes(table) => {
                self.log.push(format!("routes {}", table.name));
                let refers = super::refers::Refers::of_table(&table);
                let names = refers.clusters.iter().map(ToString::to_string).collect();
                self.routes.insert(table.name.to_string(), names);
            }
            WorkerUpdate::RemoveRoutes(name) => {
                self.log.push(format!("no routes {name}"));
                self.routes.remove(&*name);
            }
            WorkerUpdate::Secret(_, secret) => self.log.push(format!("secret {}", secret.name)),
            WorkerUpdate::Listener(_) if self.taken_port => {
                return Err("the port is taken".to_owned());
            }
            WorkerUpdate::Listener(listener) => {
                self.log.push(format!("listener {}", listener.name));
                self.listeners.insert(listener.name.to_string());
            }
            WorkerUpdate::RemoveListener(name) => {
                self.log.push(format!("no listener {name}"));
                self.listeners.remove(&*name);
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, type_url: &'static str, name: &str) {
        assert!(
            self.asked.insert((type_url, name.to_owned())),
            "asked twice for {name}"
        );
    }

    fn unsubscribe(&mut self, type_url: &'static str, name: &str) {
        assert!(
            self.asked.remove(&(type_url, name.to_owned())),
            "never asked for {name}"
        );
    }

    fn subscribe_all(&mut self, type_url: &'static str) {
        self.asked.insert((type_url, "*".to_owned()));
    }

    fn forget(&mut self, _type_url: &'static str, prefix: &str) {
        self.log.push(format!("forget {prefix}"));
    }

    fn follow(&mut self, secret: &SecretRef) {
        self.subscribe(SECRET, &secret.name);
    }

    fn unfollow(&mut self, secret: &SecretRef) {
        self.unsubscribe(SECRET, &secret.name);
    }

    fn resolve(&mut self, cluster: &Arc<Cluster>) {
        self.resolving.insert(cluster.name.to_string());
    }

    fn stop_resolving(&mut self, cluster: &str) {
        self.resolving.remove(cluster);
    }

    fn listener_decided(&mut self, name: &str, version: &str, outcome: Result<(), String>) {
        self.decided.push((format!("{name}@{version}"), outcome));
    }
}

fn received(url: &str, name: &str, version: u32, message: &impl Message) -> Received {
    let any = Any {
        type_url: url.to_owned(),
        value: message.encode_to_vec(),
    };
    Received {
        name: name.to_owned(),
        version: version.to_string(),
        any: any.into(),
    }
}

fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

fn cluster(name: &str, version: u32) -> Received {
    let message = cds::Cluster {
        name: name.to_owned(),
        alt_stat_name: format!("v{version}"),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(
            cds::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cds::cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: String::new(),
        }),
        ..Default::default()
    };
    received(CLUSTER, name, version, &message)
}

fn address(port: u32) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

fn endpoints(name: &str, count: u32) -> Received {
    let lb_endpoints = (0..count)
        .map(|i| eds::LbEndpoint {
            host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
                address: Some(address(9000 + i)),
                ..Default::default()
            })),
            ..Default::default()
        })
        .collect();
    let message = eds::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints,
            ..Default::default()
        }],
        ..Default::default()
    };
    received(ENDPOINT, name, count, &message)
}

fn routes(name: &str, version: u32, clusters: &[&str]) -> Received {
    let routes = clusters
        .iter()
        .map(|cluster| rds::Route {
            r#match: Some(rds::RouteMatch {
                path_specifier: Some(rds::route_match::PathSpecifier::Prefix("/".into())),
                ..Default::default()
            }),
            action: Some(rds::route::Action::Route(rds::RouteAction {
                cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(
                    (*cluster).to_owned(),
                )),
                ..Default::default()
            })),
            ..Default::default()
        })
        .collect();
    let message = rds::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![rds::VirtualHost {
            name: format!("host-{version}"),
            domains: vec!["*".into()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    };
    received(ROUTE, name, version, &message)
}

fn listener(name: &str, version: u32, table: &str) -> Received {
    let router = hcm::HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router".into(),
            value: Router::default().encode_to_vec(),
        })),
        ..Default::default()
    };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: format!("v{version}"),
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(
            hcm::Rds {
                config_source: Some(ads()),
                route_config_name: table.to_owned(),
            },
        )),
        http_filters: vec![router],
        ..Default::default()
    };
    let url = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
               HttpConnectionManager";
    let filter = lds::Filter {
        name: "envoy.filters.network.http_connection_manager".into(),
        config_type: Some(lds::filter::ConfigType::TypedConfig(Any {
            type_url: url.into(),
            value: manager.encode_to_vec(),
        })),
    };
    let message = lds::Listener {
        name: name.to_owned(),
        address: Some(address(8080)),
        filter_chains: vec![lds::FilterChain {
            filters: vec![filter],
            ..Default::default()
        }],
        ..Default::default()
    };
    received(LISTENER, name, version, &message)
}

struct Bench {
    config: Config,
    workers: Workers,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self {
            config: Config::new(true, BTreeSet::new()),
            workers: Workers::default(),
            now: Instant::now(),
        }
    }

    fn update(&mut self, url: &str, resources: &[Received], removed: &[&str]) -> Vec<String> {
        let removed: Vec<String> = removed.iter().map(|name| (*name).to_owned()).collect();
        let rejections = self
            .config
            .apply(url, resources, &removed, self.now, &mut self.workers);
        rejections
            .into_iter()
            .map(|r| format!("{}: {}", r.name, r.reason))
            .collect()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.config.settle(self.now, &mut self.workers);
    }

    /// What happened since the last look.
    fn log(&mut self) -> String {
        std::mem::take(&mut self.workers.log).join(", ")
    }

    fn complete(&mut self) {
        self.update(CLUSTER, &[cluster("a", 1)], &[]);
        self.update(ENDPOINT, &[endpoints("a", 1)], &[]);
        self.update(LISTENER, &[listener("l", 1, "r")], &[]);
        self.update(ROUTE, &[routes("r", 1, &["a"])], &[]);
        assert!(self.config.is_live());
        self.log();
    }
}

mod hosts;

#[test]
fn a_start_brings_clusters_routes_and_listeners_in_this_order() {
    let mut bench = Bench::new();
    bench.update(LISTENER, &[listener("l", 1, "r")], &[]);
    bench.update(CLUSTER, &[cluster("a", 1), cluster("b", 1)], &[]);
    bench.update(ROUTE, &[routes("r", 1, &["a", "b"])], &[]);
    bench.update(ENDPOINT, &[endpoints("b", 2)], &[]);
    assert_eq!(bench.log(), "cluster b, endpoints b 2");
    assert!(!bench.config.is_live());
    assert_eq!(
        bench.config.waits_for(),
        ["endpoints or secrets of cluster a", "listener l to warm"]
    );
    bench.update(ENDPOINT, &[endpoints("a", 1)], &[]);
    assert_eq!(
        bench.log(),
        "cluster a, endpoints a 1, routes r, listener l"
    );
    assert!(bench.config.is_live());
    assert_eq!(bench.config.next_deadline(), None);
    assert_eq!(bench.workers.decided, [("l@1".to_owned(), Ok(()))]);
}

#[test]
fn what_never_comes_is_waited_for_only_so_long() {
    let mut bench = Bench::new();
    bench.update(CLUSTER, &[cluster("a", 1)], &[]);
    bench.update(LISTENER, &[listener("l", 1, "r")], &[]);
    assert_eq!(
        bench.config.next_deadline(),
        Some(bench.now + INIT_FETCH_TIMEOUT)
    );
    bench.wait(INIT_FETCH_TIMEOUT - Duration::from_millis(1));
    assert_eq!(bench.log(), "");
    bench.wait(Duration::from_millis(1));
    assert_eq!(bench.log(), "cluster a, listener l");
    assert!(bench.config.is_live());
    assert_eq!(bench.config.next_deadline(), None);
}

#[test]
fn what_does_not_exist_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.update(CLUSTER, &[cluster("a", 1)], &[]);
    bench.update(ENDPOINT, &[], &["a"]);
    bench.update(LISTENER, &[listener("l", 1, "r")], &[]);
    bench.update(ROUTE, &[], &["r"]);
    assert_eq!(bench.log(), "cluster a, endpoints a 0, listener l");
    bench.update(ENDPOINT, &[endpoints("a", 3)], &[]);
    assert_eq!(bench.log(), "endpoints a 3");
}

#[test]
fn a_route_to_a_new_cluster_waits_for_its_endpoints_and_the_old_cluster_for_the_route() {
    let mut bench = Bench::new();
    bench.complete();
    bench.update(CLUSTER, &[cluster("new", 1)], &[]);
    bench.update(ROUTE, &[routes("r", 2, &["new"])], &[]);
    bench.update(CLUSTER, &[], &["a"]);
    assert_eq!(bench.log(), "");
    assert!(bench.config.clusters.contains_key("a"));
    bench.update(ENDPOINT, &[endpoints("new", 1)], &[]);
    assert_eq!(
        bench.log(),
        "cluster new, endpoints new 1, routes r, no cluster a"
    );
    assert_eq!(
        bench
            .workers
            .asked
            .iter()
            .filter(|(url, _)| *url == ENDPOINT)
            .count(),
        1
    );
}

#[test]
fn a_new_generation_of_a_cluster_keeps_its_endpoints() {
    let mut bench = Bench::new();
    bench.complete();
    bench.update(CLUSTER, &[cluster("a", 2)], &[]);
    assert_eq!(bench.log(), "cluster a, endpoints a 1");
    // The very same bytes change nothing.
    bench.update(CLUSTER, &[cluster("a", 2)], &[]);
    bench.update(ENDPOINT, &[endpoints("a", 1)], &[]);
    bench.update(ROUTE, &[routes("r", 1, &["a"])], &[]);
    assert_eq!(bench.log(), "");
}

#[test]
fn endpoints_of_a_cluster_reach_the_workers_and_nothing_else_does() {
    let mut bench = Bench::new();
    bench.complete();
    bench.update(ENDPOINT, &[endpoints("a", 5)], &[]);
    assert_eq!(bench.log(), "endpoints a 5");
    bench.update(ENDPOINT, &[], &["a"]);
    assert_eq!(
        bench.log(),
        "",
        "the last endpoints are kept, as Envoy keeps them"
    );
}

#[test]
fn a_refused_resource_leaves_the_last_good_one_and_the_others_apply() {
    let mut bench = Bench::new();
    bench.complete();
    let mut broken = cluster("a", 3);
    broken.any.value = vec![0xff];
    let refused = bench.update(CLUSTER, &[broken, cluster("b", 1)], &[]);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].starts_with("a: "), "{refused:?}");
    let entry = &bench.config.clusters["a"];
    assert_eq!(entry.active.as_ref().unwrap().version_info, "1");
    assert_eq!(entry.error.as_ref().unwrap().version_info, "3");
    bench.update(ENDPOINT, &[endpoints("b", 1)], &[]);
    assert_eq!(bench.log(), "cluster b, endpoints b 1");
    bench.update(CLUSTER, &[cluster("a", 4)], &[]);
    assert!(bench.config.clusters["a"].error.is_none());
    let other = Received {
        name: "z".to_owned(),
        ..cluster("y", 1)
    };
    let refused = bench.update(CLUSTER, &[other], &[]);
    assert_eq!(refused, ["z: the resource is called y inside, z outside"]);
    let refused = bench.update("type/unknown", &[cluster("y", 1)], &[]);
    assert_eq!(
        refused,
        ["y: this proxy takes no resources of type type/unknown"]
    );
}

#[test]
fn a_listener_that_cannot_listen_is_refused_and_the_one_before_stays() {
    let mut bench = Bench::new();
    bench.complete();
    bench.workers.decided.clear();
    bench.workers.taken_port = true;
    bench.update(LISTENER, &[listener("l", 2, "r")], &[]);
    let refused = ("l@2".to_owned(), Err("the port is taken".to_owned()));
    assert_eq!(bench.workers.decided, [refused]);
    let entry = &bench.config.listeners["l"];
    assert_eq!(entry.active.as_ref().unwrap().version_info, "1");
    assert_eq!(entry.error.as_ref().unwrap().details, "the port is taken");
}

#[test]
fn a_listener_whose_port_was_taken_comes_up_by_itself() {
    let mut bench = Bench::new();
    bench.complete();
    bench.workers.taken_port = true;
    bench.update(LISTENER, &[listener("m", 1, "of m")], &[]);
    bench.update(ROUTE, &[routes("of m", 1, &["a"])], &[]);
    assert!(bench.config.listeners["m"].error.is_some());
    // It is not tried without pause.
    assert!(bench.config.next_deadline().unwrap() > bench.now);
    for _ in 0..10 {
        bench.wait(Duration::from_secs(8));
    }
    assert!(bench.config.listeners["m"].active.is_none());
    assert!(bench.workers.asked.contains(&(ROUTE, "of m".to_owned())));
    bench.workers.taken_port = false;
    bench.log();
    bench.wait(Duration::from_secs(8));
    assert_eq!(bench.log(), "listener m");
    assert!(bench.config.listeners["m"].error.is_none());
    assert_eq!(bench.config.next_deadline(), None);
}

#[test]
fn a_listener_that_is_gone_or_changed_is_not_tried_again() {
    let mut bench = Bench::new();
    bench.complete();
    bench.workers.taken_port = true;
    bench.update(
        LISTENER,
        &[listener("l", 2, "r"), listener("m", 1, "r")],
        &[],
    );
    bench.update(LISTENER, &[listener("l", 1, "r")], &["m"]);
    bench.workers.taken_port = false;
    bench.log();
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.log(), "");
    assert_eq!(bench.config.next_deadline(), None);
}

#[test]
fn a_listener_that_is_overtaken_while_it_warms_is_answered() {
    let mut bench = Bench::new();
    bench.complete();
    bench.workers.decided.clear();
    bench.update(LISTENER, &[listener("l", 2, "other")], &[]);
    bench.update(LISTENER, &[listener("l", 3, "r")], &[]);
    let outcomes = [("l@2".to_owned(), Ok(())), ("l@3".to_owned(), Ok(()))];
    assert_eq!(bench.workers.decided, outcomes);
    assert_eq!(bench.log(), "listener l");
    let asked: Vec<_> = bench
        .workers
        .asked
        .iter()
        .filter(|(url, _)| *url == ROUTE)
        .collect();
    assert_eq!(asked, [&(ROUTE, "r".to_owned())]);
    bench.update(LISTENER, &[], &["l"]);
    assert_eq!(bench.log(), "no listener l, no routes r");
}

// ---- property ----

#[derive(Clone, Debug)]
enum Step {
    Cluster(u8, u32),
    NoCluster(u8),
    Endpoints(u8, u32),
    Listener(u32, u8),
    Routes(u8, u32, Vec<u8>),
    Time(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4u8, 1..4u32).prop_map(|(n, v)| Step::Cluster(n, v)),
        1 => (0..4u8).prop_map(Step::NoCluster),
        4 => (0..4u8, 1..4u32).prop_map(|(n, c)| Step::Endpoints(n, c)),
        2 => (1..4u32, 0..2u8).prop_map(|(v, t)| Step::Listener(v, t)),
        3 => (0..2u8, 1..9u32, proptest::collection::vec(0..4u8, 0..3))
            .prop_map(|(t, v, c)| Step::Routes(t, v, c)),
        1 => (1..8u64).prop_map(Step::Time),
    ];
    proptest::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// As long as nothing waited in vain: workers never have a listener without its routes, a new
    /// table with a cluster that discovery has but they do not, or a cluster without endpoints.
    #[test]
    fn workers_never_have_half_a_configuration(steps in steps()) {
        let mut bench = Bench::new();
        let mut told: BTreeSet<String> = BTreeSet::new();
        let mut seconds = 0;
        for step in &steps {
            let names: Vec<String>;
            match step {
                Step::Cluster(n, v) => {
                    told.insert(n.to_string());
                    bench.update(CLUSTER, &[cluster(&n.to_string(), *v)], &[]);
                }
                Step::NoCluster(n) => {
                    told.remove(&n.to_string());
                    bench.update(CLUSTER, &[], &[&n.to_string()]);
                }
                Step::Endpoints(n, c) => {
                    bench.update(ENDPOINT, &[endpoints(&n.to_string(), *c)], &[]);
                }
                Step::Listener(v, t) => {
                    bench.update(LISTENER, &[listener("l", *v, &format!("t{t}"))], &[]);
                }
                Step::Routes(t, v, clusters) => {
                    names = clusters.iter().map(ToString::to_string).collect();
                    let clusters: Vec<&str> = names.iter().map(String::as_str).collect();
                    bench.update(ROUTE, &[routes(&format!("t{t}"), *v, &clusters)], &[]);
                }
                Step::Time(s) => {
                    seconds += s;
                    bench.wait(Duration::from_secs(*s));
                }
            }
            if seconds >= INIT_FETCH_TIMEOUT.as_secs() {
                return Ok(());
            }
            let workers = &bench.workers;
            for name in &workers.clusters {
                prop_assert!(workers.endpoints.contains_key(name), "{name} has no endpoints");
            }
            if workers.listeners.contains("l") {
                let active = bench.config.listeners["l"].active.as_ref().unwrap();
                for table in &active.refers.routes {
                    prop_assert!(workers.routes.contains_key(&**table), "no table {table}");
                }
            }
            for (table, clusters) in &workers.routes {
                for name in clusters.iter().filter(|name| told.contains(*name)) {
                    // A cluster that came, or came back, after the table may still be warming.
                    let warming = bench.config.clusters[name.as_str()].warming.as_ref();
                    let table_since =
                        bench.config.routes[table.as_str()].active.as_ref().unwrap().since;
                    let late = warming.is_some_and(|w| w.since >= table_since);
                    prop_assert!(workers.clusters.contains(name) || late, "{table} lacks {name}");
                }
            }
            // What is asked for is what is used.
            for (url, name) in &workers.asked {
                let used = match *url {
                    ENDPOINT => bench.config.clusters.contains_key(name.as_str()),
                    _ => *url == type_url::ROUTE,
                };
                prop_assert!(used, "{url} {name} is asked for in vain");
            }
        }
    }
}
