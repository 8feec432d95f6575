//! Changes of configuration under load: no request is lost, and each sees one configuration.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{
    Client, Gate, Proxy, Upstream, eventually, get, http_listener, route_table, static_cluster,
};
use lateen_proxy::worker::{BindError, WorkerUpdate, Workers};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// Sends requests on kept and on new connections until told to stop; every answer must be 200.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(at: SocketAddr) -> Load {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let threads = (0..4)
            .map(|i| {
                let (stop, done) = (stop.clone(), done.clone());
                std::thread::spawn(move || {
                    let mut client = Client::new(at);
                    while !stop.load(SeqCst) {
                        if i == 0 {
                            client = Client::new(at);
                        }
                        let seen = client.get("/");
                        assert_eq!(seen.status(), 200, "{}", seen.text());
                        if seen.header("connection") == Some("close") {
                            client = Client::new(at);
                        }
                        done.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        Load {
            stop,
            done,
            threads,
        }
    }

    /// Lets some more requests pass.
    fn pass(&self, requests: usize) {
        let until = self.done.load(SeqCst) + requests;
        eventually("requests pass", || {
            self.done.load(SeqCst) >= until || self.threads.iter().any(|t| t.is_finished())
        });
    }

    fn finish(self) -> usize {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        self.done.load(SeqCst)
    }
}

fn manager(route: &str) -> Value {
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": route } }]);
    json!({ "route_config": route_table("t", routes) })
}

#[test]
fn a_listener_update_under_load_loses_nothing_and_reaches_open_connections() {
    let (one, two) = (Upstream::fixed("one"), Upstream::fixed("two"));
    for workers in [1, 2] {
        let proxy = Proxy::start(workers);
        proxy.cluster(&static_cluster("one", &[one.address]));
        proxy.cluster(&static_cluster("two", &[two.address]));
        let at = proxy.listener(&http_listener("l", manager("one")));
        let mut open = Client::new(at);
        assert_eq!(open.get("/").text(), "one");
        let load = Load::start(at);
        for i in 0..20 {
            load.pass(10);
            let route = if i % 2 == 0 { "two" } else { "one" };
            assert_eq!(proxy.listener(&http_listener("l", manager(route))), at);
            assert_eq!(open.get("/").text(), route);
        }
        assert!(load.finish() > 100);
    }
}

#[test]
fn endpoint_and_cluster_updates_under_load_lose_nothing() {
    let ups: Vec<Upstream> = (0..3).map(|i| Upstream::fixed(&i.to_string())).collect();
    let all: Vec<SocketAddr> = ups.iter().map(|u| u.address).collect();
    let proxy = Proxy::start(1);
    proxy.cluster(&common::eds_cluster("up"));
    proxy.endpoints("up", &all);
    let at = proxy.listener(&http_listener("l", manager("up")));
    let load = Load::start(at);
    for i in 0..30 {
        load.pass(10);
        proxy.endpoints("up", &all[i % 3..i % 3 + 1]);
        if i % 5 == 0 {
            proxy.cluster(&common::eds_cluster("up"));
        }
    }
    load.finish();
}

#[test]
fn endpoints_of_a_replaced_static_cluster_close_their_connections() {
    let (one, two) = (Upstream::fixed("one"), Upstream::fixed("two"));
    let (proxy, at) = Proxy::simple(&[one.address]);
    let mut client = Client::new(at);
    assert_eq!(client.get("/").text(), "one");
    proxy.cluster(&static_cluster("up", &[two.address]));
    assert_eq!(client.get("/").text(), "two");
    eventually("only the new endpoint has one", || {
        proxy.stat("upstream_cx_active") == 1
    });
    proxy
        .workers
        .update(WorkerUpdate::RemoveCluster("up".into()))
        .unwrap();
    proxy.flush();
    assert_eq!(client.get("/").status(), 503);
}

#[test]
fn a_discovered_route_table_takes_effect_on_the_next_request() {
    let up = Upstream::fixed("up");
    let proxy = Proxy::start(1);
    proxy.cluster(&static_cluster("up", &[up.address]));
    let rds = json!({ "rds": { "route_config_name": "t", "config_source": { "ads": {}, "resource_api_version": "V3" } } });
    let at = proxy.listener(&http_listener("l", rds));
    let mut client = Client::new(at);
    assert_eq!(client.get("/").status(), 404);
    proxy.routes(&route_table(
        "t",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    ));
    assert_eq!(client.get("/").text(), "up");
    proxy.routes(&route_table(
        "t",
        json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 299 } }]),
    ));
    assert_eq!(client.get("/").status(), 299);
    proxy
        .workers
        .update(WorkerUpdate::RemoveRoutes("t".into()))
        .unwrap();
    proxy.flush();
    assert_eq!(client.get("/").status(), 404);
}

#[test]
fn a_removed_listener_closes_its_port_and_lets_connections_finish() {
    let up = Upstream::fixed("up");
    let proxy = Proxy::start(2);
    proxy.cluster(&static_cluster("up", &[up.address]));
    let at = proxy.listener(&http_listener("l", manager("up")));
    let mut client = Client::new(at);
    assert_eq!(client.get("/").header("connection"), None);
    proxy
        .workers
        .update(WorkerUpdate::RemoveListener("l".into()))
        .unwrap();
    proxy.flush();
    eventually("nobody listens", || {
        std::net::TcpStream::connect(at).is_err()
    });
    let last = client.get("/");
    assert_eq!(
        (last.text().as_str(), last.header("connection")),
        ("up", Some("close"))
    );
    assert!(client.closed());
}

#[test]
fn a_listener_that_comes_back_gets_its_port_again() {
    let proxy = Proxy::start(2);
    let mut json = http_listener("l", manager("none"));
    json["address"]["socket_address"]["port_value"] = lateen_testkit::ports::reserve().into();
    for _ in 0..10 {
        let at = proxy.listener(&json);
        assert_eq!(get(at, "/").status(), 503);
        proxy
            .workers
            .update(WorkerUpdate::RemoveListener("l".into()))
            .unwrap();
    }
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut json = http_listener("l", manager("none"));
    json["address"]["socket_address"]["port_value"] = taken.local_addr().unwrap().port().into();
    for workers in [1, 2] {
        let workers = Workers::start(workers).unwrap();
        let bytes = common::message("envoy.config.listener.v3.Listener", &json);
        let listener = lateen_proxy_config::compile::compile_listener(&bytes)
            .unwrap()
            .value;
        let error = workers
            .update(WorkerUpdate::Listener(listener))
            .unwrap_err();
        assert!(matches!(error, BindError::Taken { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(&taken.local_addr().unwrap().to_string()),
            "{error}"
        );
    }
}

#[test]
fn draining_asks_clients_to_go_and_finishes_what_is_running() {
    let gate = Gate::default();
    let held = gate.clone();
    let up = Upstream::http(move |_| {
        held.pass();
        common::ok("slow")
    });
    let (proxy, at) = Proxy::simple(&[up.address]);
    let running = std::thread::spawn(move || get(at, "/"));
    eventually("it runs", || proxy.workers.active_requests() == 1);
    proxy.workers.set_draining(true);
    proxy.workers.stop_listening();
    proxy.flush();
    gate.open();
    let seen = running.join().unwrap();
    assert_eq!(seen.text(), "slow");
    // Draining began while it ran: its response is the last one of its connection and says so.
    assert_eq!(seen.header("connection"), Some("close"));
    eventually("all is done", || proxy.workers.active_requests() == 0);
}

#[test]
fn counters_are_made_on_first_use_only() {
    let up = Upstream::fixed("up");
    let (proxy, at) = Proxy::simple(&[up.address]);
    for i in 0..100 {
        proxy.cluster(&static_cluster(&format!("c{i}"), &[up.address]));
        if i == 2 {
            get(at, "/");
        }
    }
    let clusters = proxy
        .workers
        .stats()
        .scopes
        .iter()
        .filter(|s| matches!(s.scope, lateen_proxy::stats::Scope::Cluster(_)))
        .count();
    assert_eq!(clusters, 1);
}
