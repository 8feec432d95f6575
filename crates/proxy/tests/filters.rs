//! Filters in front of the router, where the levels of a route table meet, through real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{Client, Proxy, Upstream, exchange, http_listener, static_cluster};
use lateen_proxy::stats::Scope;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http";

fn fault(config: Value) -> Value {
    let kind = json!({ "@type": format!("{TYPES}.fault.v3.HTTPFault") });
    json!({ "envoy.filters.http.fault": common::merged(kind, config) })
}

fn cors(config: Value) -> Value {
    let kind = json!({ "@type": format!("{TYPES}.cors.v3.CorsPolicy") });
    json!({ "envoy.filters.http.cors": common::merged(kind, config) })
}

fn off(filter: &str) -> Value {
    let kind = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    json!({ filter: { "@type": kind, "disabled": true } })
}

/// A proxy whose virtual host says `host` about filters, and each route what stands beside its path.
fn proxy(host: Value, routes: &[(&str, Value)]) -> (Proxy, SocketAddr, Upstream) {
    let up = Upstream::fixed("up");
    let proxy = Proxy::start(1);
    proxy.cluster(&static_cluster("up", &[up.address]));
    let route = |(path, config): &(&str, Value)| json!({ "match": { "path": path }, "route": { "cluster": "up" }, "typed_per_filter_config": config });
    let routes: Vec<Value> = routes.iter().map(route).collect();
    let filter = |name: &str, kind: &str| json!({ "name": name, "typed_config": { "@type": format!("{TYPES}.{kind}") } });
    let manager = json!({
        "http_filters": [
            filter("envoy.filters.http.fault", "fault.v3.HTTPFault"),
            filter("envoy.filters.http.cors", "cors.v3.Cors"),
            filter("envoy.filters.http.router", "router.v3.Router"),
        ],
        "route_config": { "name": "t", "virtual_hosts": [
            { "name": "all", "domains": ["*"], "routes": routes, "typed_per_filter_config": host },
        ] },
    });
    let at = proxy.listener(&http_listener("l", manager));
    (proxy, at, up)
}

#[test]
fn a_route_says_more_about_faults_than_its_virtual_host() {
    let abort = |status: u16| json!({ "abort": { "http_status": status, "percentage": { "numerator": 100 } } });
    let only_marked = json!({ "headers": [{ "name": "x-mark", "present_match": true }] });
    let (_proxy, at, _up) = proxy(
        fault(abort(500)),
        &[
            ("/host", json!({})),
            ("/route", fault(abort(418))),
            ("/off", off("envoy.filters.http.fault")),
            ("/none", fault(json!({}))),
            ("/marked", fault(common::merged(abort(418), only_marked))),
        ],
    );
    let mut client = Client::new(at);
    for (path, status) in [
        ("/host", 500),
        ("/route", 418),
        ("/off", 200),
        ("/none", 200),
        ("/marked", 200),
    ] {
        assert_eq!(client.get(path).status(), status, "{path}");
    }
    let marked = exchange(at, "GET /marked HTTP/1.1\r\nhost: h\r\nx-mark: 1\r\n\r\n");
    assert_eq!(marked.status(), 418);
}

#[test]
fn no_more_requests_have_a_fault_at_a_time_than_the_route_allows() {
    let slow = json!({
        "delay": { "fixed_delay": "60s", "percentage": { "numerator": 100 } },
        "max_active_faults": 1,
    });
    let (proxy, at, _up) = proxy(json!({}), &[("/slow", fault(slow))]);
    let mut first = Client::new(at);
    first.send("GET /slow HTTP/1.1\r\nhost: h\r\n\r\n");
    let started = Instant::now();
    let scope = Scope::Http("l".into());
    let stat = |name: &str| proxy.workers.stats().value(&scope, name);
    common::eventually("a request is delayed", || stat("fault.active_faults") == 1);
    let mut second = Client::new(at);
    assert_eq!(second.get("/slow").status(), 200);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(stat("fault.faults_overflow"), 1);
    // A client that leaves makes room.
    drop(first);
    common::eventually("no request is delayed", || stat("fault.active_faults") == 0);
}

#[test]
fn what_a_route_leaves_open_about_cors_its_virtual_host_says() {
    let (_proxy, at, _up) = proxy(
        cors(json!({
            "allow_origin_string_match": [{ "exact": "https://a.test" }],
            "allow_methods": "GET",
            "allow_credentials": true,
        })),
        &[
            ("/host", json!({})),
            ("/route", cors(json!({ "allow_methods": "PUT" }))),
            ("/off", off("envoy.filters.http.cors")),
            (
                "/share",
                cors(json!({ "filter_enabled": { "default_value": { "numerator": 0 } } })),
            ),
        ],
    );
    for (path, methods, credentials) in [
        ("/host", Some("GET"), Some("true")),
        ("/route", Some("PUT"), Some("true")),
        ("/off", None, None),
        ("/share", None, None),
    ] {
        let seen = exchange(
            at,
            &format!(
                "OPTIONS {path} HTTP/1.1\r\nhost: h\r\norigin: https://a.test\r\n\
                 access-control-request-method: PUT\r\n\r\n"
            ),
        );
        let found = ["methods", "credentials"].map(|what| format!("access-control-allow-{what}"));
        let found = found.each_ref().map(|name| seen.header(name));
        assert_eq!(found, [methods, credentials], "{path}: {}", seen.head);
    }
}
