//! The admin port of a whole proxy, through its socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{eventually, http_listener, merged, route_table, static_cluster};
use lateen_proxy::main_thread::{Options, run};
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::ports;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

struct Running {
    admin: SocketAddr,
    listener: SocketAddr,
    upstream: SocketAddr,
    thread: JoinHandle<Result<(), lateen_proxy::main_thread::RunError>>,
    _dir: tempfile::TempDir,
}

/// Answers every connection with one empty 200.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    address
}

fn start() -> Running {
    let first = ports::block(2);
    let [admin, listener] = [first, first + 1].map(|p| SocketAddr::from(([127, 0, 0, 1], p)));
    let upstream = upstream();
    let table = route_table(
        "local_route",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    );
    let bootstrap = json!({
        "node": { "id": "sidecar~127.0.0.1~a.default~x", "cluster": "a.default", "metadata": { "NAME": "a" } },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": admin.port() } } },
        "static_resources": {
            "clusters": [merged(static_cluster("up", &[upstream]), json!({ "health_checks": [{ "timeout": "20s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {} }], "alt_stat_name": "shown" }))],
            "listeners": [merged(http_listener("in", json!({ "route_config": table })), json!({
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": listener.port() } },
            }))],
        },
    });
    let dir = tempfile::tempdir().unwrap();
    let config_path = dir.path().join("bootstrap.json");
    std::fs::write(&config_path, bootstrap.to_string()).unwrap();
    let options = Options {
        config_path,
        concurrency: 1,
        log_level: "info".to_owned(),
        max_drain: Duration::from_secs(1),
        chain_drain: Duration::from_secs(1),
        min_drain: Duration::ZERO,
        exit_with_parent: false,
        identity: Default::default(),
    };
    let thread = std::thread::spawn(|| run(options));
    let running = Running {
        admin,
        listener,
        upstream,
        thread,
        _dir: dir,
    };
    eventually("the proxy is ready", || {
        assert!(!running.thread.is_finished(), "it has ended");
        std::net::TcpStream::connect(admin).is_ok() && send(get("/ready"), admin).status == 200
    });
    running
}

/// One proxy for all tests that only look.
fn shared() -> &'static Running {
    static SHARED: OnceLock<Running> = OnceLock::new();
    SHARED.get_or_init(|| {
        let running = start();
        let answer = send(Call::get("example", "/x"), running.listener);
        assert_eq!(answer.status, 200);
        // It is counted when it is over, which its client may know first.
        eventually("the request is over", || {
            let clusters = send(get("/clusters"), running.admin).body;
            let stats = send(get("/stats"), running.admin).body;
            let is_counted = |line: &str| stats.contains(line);
            clusters.contains("::rq_success::1\n")
                && clusters.contains("::cx_active::0\n")
                && is_counted("http.in.downstream_rq_2xx: 1\n")
                && is_counted("http.in.downstream_rq_active: 0\n")
                && is_counted("http.in.downstream_cx_active: 0\n")
        });
        running
    })
}

fn get(path: &str) -> Call {
    Call::get("localhost", path)
}

fn post(path: &str) -> Call {
    get(path).method("POST")
}

fn send(call: Call, to: SocketAddr) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(call.send(to))
        .unwrap_or_else(|e| panic!("{call:?}: {e}"))
}

fn text(path: &str) -> String {
    let answer = send(get(path), shared().admin);
    assert_eq!(answer.status, 200, "{path}");
    answer.body
}

fn json_of(path: &str) -> Value {
    serde_json::from_str(&text(path)).unwrap()
}

/// Status and body.
fn check(call: Call, status: u16, body: &str) {
    let answer = send(call.clone(), shared().admin);
    let text = answer.body;
    assert_eq!(
        (answer.status, text.contains(body)),
        (status, true),
        "{call:?}: {text}"
    );
}

#[test]
fn envoys_status_codes_and_bodies() {
    check(get("/ready"), 200, "LIVE\n");
    check(
        get("/quitquitquit"),
        405,
        "Method GET not allowed, POST required.",
    );
    check(get("/drain_listeners"), 405, "POST required");
    check(get("/nothing"), 404, "invalid path. admin commands are:");
    check(get("/help"), 200, "/config_dump: dump current configs");
    check(get("/"), 200, "<a href=\"/stats\">");
    check(get("/stats?format=xml"), 400, "usage: /stats?format=");
    check(get("/stats?filter=("), 400, "invalid regex '('");
    check(
        get("/config_dump?resource=x"),
        404,
        "x not found in config dump",
    );
    check(post("/reopen_logs"), 200, "OK\n");
}

#[test]
fn requests_on_behalf_of_other_sites_are_refused() {
    check(
        get("/ready").header("origin", "http://evil.example"),
        403,
        "http://evil.example",
    );
    check(
        get("/ready").header("sec-fetch-site", "cross-site"),
        403,
        "not allowed",
    );
    check(
        get("/ready").header("origin", "http://localhost"),
        200,
        "LIVE",
    );
}

fn config<'a>(dump: &'a Value, kind: &str) -> &'a Value {
    let wanted = format!("type.googleapis.com/envoy.admin.v3.{kind}");
    let configs = dump["configs"].as_array().unwrap();
    configs
        .iter()
        .find(|c| c["@type"] == wanted.as_str())
        .unwrap_or_else(|| panic!("no {kind} in {dump}"))
}

#[test]
fn config_dump_has_envoys_shape() {
    let running = shared();
    let dump = json_of("/config_dump?include_eds");
    let bootstrap = config(&dump, "BootstrapConfigDump");
    assert_eq!(
        bootstrap["bootstrap"]["node"]["id"],
        "sidecar~127.0.0.1~a.default~x"
    );
    let cluster = &config(&dump, "ClustersConfigDump")["static_clusters"][0];
    assert_eq!(
        cluster["cluster"]["@type"],
        "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    );
    assert_eq!(cluster["cluster"]["connect_timeout"], "5s");
    assert!(cluster["last_updated"].as_str().unwrap().ends_with('Z'));
    let listener = &config(&dump, "ListenersConfigDump")["static_listeners"][0]["listener"];
    let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["stat_prefix"], "in");
    let route = &config(&dump, "RoutesConfigDump")["static_route_configs"][0]["route_config"];
    assert_eq!(route["name"], "local_route");
    let endpoints = &config(&dump, "EndpointsConfigDump")["static_endpoint_configs"][0];
    let address =
        &endpoints["endpoint_config"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(
        address["socket_address"]["port_value"],
        running.upstream.port()
    );
}

#[test]
fn config_dump_can_be_narrowed() {
    let one = json_of("/config_dump?resource=static_clusters&mask=cluster.name");
    assert_eq!(
        one,
        json!({ "configs": [{
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
        "cluster": { "name": "up" },
    }] })
    );
    let none = json_of("/config_dump?name_regex=down");
    assert_eq!(
        config(&none, "ClustersConfigDump").get("static_clusters"),
        None
    );
    let unsupported = json_of("/config_dump?unsupported");
    let found = &unsupported["unsupported"][0];
    assert_eq!(
        (&found["resource"], &found["path"]),
        (&json!("up"), &json!("health_checks"))
    );
}

#[test]
fn clusters_and_listeners_as_text_and_json() {
    let running = shared();
    let clusters = text("/clusters");
    for line in [
        "up::observability_name::shown".to_owned(),
        "up::default_priority::max_connections::1024".to_owned(),
        "up::added_via_api::false".to_owned(),
        format!("up::{}::health_flags::healthy", running.upstream),
        format!("up::{}::rq_success::1", running.upstream),
    ] {
        assert!(clusters.contains(&line), "{line}\n{clusters}");
    }
    let json = json_of("/clusters?format=json");
    let host = &json["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
    assert_eq!(
        host["address"]["socket_address"]["port_value"],
        running.upstream.port()
    );
    assert_eq!(text("/listeners"), format!("in::{}\n", running.listener));
    let json = json_of("/listeners?format=json");
    let status = &json["listener_statuses"][0];
    assert_eq!(
        status["local_address"]["socket_address"]["port_value"],
        running.listener.port()
    );
}

#[test]
fn stats_as_text_json_and_prometheus() {
    let all = text("/stats?usedonly");
    assert!(all.contains("cluster.shown.upstream_rq_200: 1\n"), "{all}");
    assert!(all.contains("http.in.downstream_rq_2xx: 1\n"), "{all}");
    assert!(
        all.contains("server.live: 1\n") && !all.contains("upstream_rq_timeout"),
        "{all}"
    );
    assert_eq!(text("/stats?filter=^server.live$"), "server.live: 1\n");
    let json = json_of("/stats?format=json&filter=membership_healthy");
    assert_eq!(
        json,
        json!({ "stats": [{ "name": "cluster.shown.membership_healthy", "value": 1 }] })
    );
    let answer = send(get("/stats/prometheus"), shared().admin);
    let exposition = answer.body;
    for line in [
        "# TYPE envoy_cluster_upstream_rq_total counter\n",
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"shown\"} 1\n",
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"shown\"} 1\n",
        "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"shown\"} 1\n",
        "envoy_server_live 1\n",
    ] {
        assert!(exposition.contains(line), "{line}\n{exposition}");
    }
}

#[test]
fn server_info_names_version_state_and_node() {
    let info = json_of("/server_info");
    assert_eq!(info["state"], "LIVE");
    assert!(info["version"].as_str().unwrap().starts_with("lateen/"));
    assert_eq!(info["node"]["cluster"], "a.default");
    assert_eq!(info["command_line_options"]["concurrency"], 1);
    assert_eq!(
        json_of("/init_dump"),
        json!({ "unready_targets_dumps": [] })
    );
}

/// One after the other: these change the process.
#[test]
fn levers() {
    check(get("/logging"), 200, "active loggers:\n  admin: info\n");
    check(get("/logging?level=debug"), 405, "POST required");
    check(
        post("/logging?level=loud"),
        400,
        "unknown logger level \"loud\"; use trace, debug",
    );
    check(
        post("/logging?nobody=debug"),
        400,
        "unknown logger \"nobody\"",
    );

    let other = start();
    let levers = |path: &str| {
        let answer = send(post(path), other.admin);
        (answer.status, answer.body)
    };
    assert_eq!(levers("/healthcheck/fail"), (200, "OK\n".to_owned()));
    eventually("not ready after /healthcheck/fail", || {
        send(get("/ready"), other.admin).status == 503
    });
    assert_eq!(levers("/healthcheck/ok").0, 200);
    assert_eq!(levers("/drain_listeners?inboundonly").0, 400);
    assert_eq!(levers("/quitquitquit"), (200, "OK\n".to_owned()));
    assert!(other.thread.join().unwrap().is_ok());
}
