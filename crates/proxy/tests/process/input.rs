//! What the proxy is started with: good, static, and bad.

use std::process::Stdio;

use lateen_testkit::echo::Echo;
use lateen_testkit::{PATIENCE, eventually, ports};
use serde_json::{Value, json};

use crate::mesh::http_manager;
use crate::proxy::{Proxy, address, answered_by, command, static_bootstrap};

fn listener(port: u16) -> Value {
    let mut manager = http_manager("inline");
    manager.as_object_mut().unwrap().remove("rds");
    manager["route_config"] = json!({"name": "inline", "virtual_hosts": [{
        "name": "all", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo"}}],
    }]});
    json!({
        "name": "main",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
        }]}],
    })
}

fn cluster(kind: &str, host: &str, port: u16) -> Value {
    let backend = json!({"socket_address": {"address": host, "port_value": port}});
    json!({
        "name": "echo", "type": kind, "connect_timeout": "1s", "dns_lookup_family": "V4_ONLY",
        "load_assignment": {"cluster_name": "echo", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": backend}}]},
        ]},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_control_plane_serves_what_the_file_says() {
    let echo = Echo::start("echo").await;
    for (kind, host) in [
        ("STATIC", "127.0.0.1"),
        ("STRICT_DNS", "localhost"),
        ("LOGICAL_DNS", "localhost"),
    ] {
        let port = ports::reserve();
        let resources = json!({
            "listeners": [listener(port)], "clusters": [cluster(kind, host, echo.port())],
        });
        let proxy = Proxy::start(&static_bootstrap(resources));
        proxy.ready().await;
        answered_by(address(port), "echo").await;
    }
}

/// A listener of its own and the cluster behind it.
fn serving() -> Value {
    json!({
        "listeners": [listener(lateen_testkit::ports::reserve())],
        "clusters": [cluster("STATIC", "127.0.0.1", 1)],
    })
}

/// Standard error of a proxy that does not start.
fn refusal(file: &std::path::Path) -> String {
    let output = command(file).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_bad_bootstrap_is_refused_with_file_field_and_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.json");
    let text = refusal(&missing);
    assert!(
        text.contains("missing.json") && text.contains("--config-path FILE"),
        "{text}"
    );

    let check = |content: &str, expect: &[&str]| {
        let file = directory.path().join("bootstrap.json");
        std::fs::write(&file, content).unwrap();
        let text = refusal(&file);
        for part in expect.iter().chain(&["bootstrap.json"]) {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    };
    check("{\"node\": ", &["not JSON", "line 1 column"]);
    let ads = json!({"dynamic_resources": {"ads_config": {
        "api_type": "DELTA_GRPC",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
    }}});
    check(
        &ads.to_string(),
        &[
            "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name",
            "static_resources.clusters has no cluster \"xds-grpc\"",
        ],
    );
    let mut misspelt = serving();
    misspelt["clusters"] = json!([{"name": "a", "conect_timeout": "1s"}]);
    let misspelt = static_bootstrap(misspelt);
    check(
        &misspelt.to_string(),
        &["static_resources", "clusters[0]", "conect_timeout"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_stops_the_start_and_is_named() {
    let echo = Echo::start("echo").await;
    let resources = json!({
        "listeners": [listener(echo.port())],
        "clusters": [cluster("STATIC", "127.0.0.1", echo.port())],
    });
    let mut proxy = Proxy::start(&static_bootstrap(resources));
    assert_eq!(proxy.ended(PATIENCE).await.code(), Some(1));
    let expect = format!("127.0.0.1:{} is taken", echo.port());
    assert!(proxy.log().contains(&expect), "{}", proxy.log());

    let mut bootstrap = static_bootstrap(serving());
    bootstrap["admin"]["address"]["socket_address"]["port_value"] = json!(echo.port());
    let mut proxy = Proxy::start(&bootstrap);
    assert_eq!(proxy.ended(PATIENCE).await.code(), Some(1));
    let expect = format!(
        "cannot listen on the admin address 127.0.0.1:{}",
        echo.port()
    );
    assert!(proxy.log().contains(&expect), "{}", proxy.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_without_effect_are_reported_at_the_start() {
    let mut bootstrap = static_bootstrap(serving());
    bootstrap["tracing"] = json!({});
    let proxy = Proxy::start(&bootstrap);
    proxy.ready().await;
    eventually("the report", async || {
        match proxy.log().contains("field=\"tracing\"") {
            true => Ok(()),
            false => Err(proxy.log()),
        }
    })
    .await;
}
