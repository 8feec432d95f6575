//! Routes, rewrites, header operations, retries, timeouts and limits through real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{
    Client, Closed, Gate, Proxy, Seen, Upstream, eventually, exchange, get, http_listener, merged,
    ok, read_message, route_table, static_cluster,
};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn proxy_with_routes(routes: Value, clusters: &[(&str, SocketAddr)]) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(1);
    for (name, address) in clusters {
        proxy.cluster(&static_cluster(name, &[*address]));
    }
    let manager = json!({ "route_config": route_table("t", routes) });
    let at = proxy.listener(&http_listener("l", manager));
    (proxy, at)
}

#[test]
fn how_requests_end_without_an_upstream() {
    let (up, closed) = (Upstream::echo(), Closed::port());
    let (_proxy, at) = proxy_with_routes(
        json!([
            { "match": { "path": "/direct" }, "direct_response": { "status": 418, "body": { "inline_string": "tea" } } },
            { "match": { "path": "/redirect" }, "redirect": { "host_redirect": "other", "path_redirect": "/new" } },
            { "match": { "path": "/nc" }, "route": { "cluster": "missing" } },
            { "match": { "path": "/uh" }, "route": { "cluster": "empty" } },
            { "match": { "path": "/uf" }, "route": { "cluster": "closed" } },
            { "match": { "prefix": "/up" }, "route": { "cluster": "up" } },
        ]),
        &[("up", up.address), ("closed", closed.address)],
    );
    _proxy.cluster(&static_cluster("empty", &[]));
    let mut client = Client::new(at);
    let check = |client: &mut Client, path: &str, status: u16, body: &str| {
        let seen = client.get(path);
        assert_eq!(seen.status(), status, "{path}");
        assert!(seen.text().contains(body), "{path}: {}", seen.text());
        assert_eq!(seen.header("server"), Some("envoy"), "{path}");
        seen
    };
    check(&mut client, "/direct", 418, "tea");
    let seen = check(&mut client, "/redirect", 301, "");
    assert_eq!(seen.header("location"), Some("http://other/new"));
    check(&mut client, "/nowhere", 404, "");
    check(&mut client, "/nc", 503, "");
    check(&mut client, "/uh", 503, "no healthy upstream");
    check(&mut client, "/uf", 503, "connection failure");
    check(&mut client, "/up", 200, "GET /up");
}

#[test]
fn grpc_requests_get_their_errors_in_grpc() {
    let (_proxy, at) = proxy_with_routes(json!([]), &[]);
    let seen = exchange(
        at,
        "POST /s/M HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    );
    assert_eq!(seen.status(), 200);
    assert_eq!(seen.header("grpc-status"), Some("12"));
    assert_eq!(seen.header("content-length"), Some("0"));
    assert_eq!(seen.header("content-type"), Some("application/grpc"));
}

#[test]
fn rewrites_and_header_operations_in_envoys_order() {
    let up = Upstream::echo();
    let header = |value: &str| json!({ "header": { "key": "x-order", "value": value }, "append_action": "APPEND_IF_EXISTS_OR_ADD" });
    let proxy = Proxy::start(1);
    proxy.cluster(&static_cluster("up", &[up.address]));
    let table = json!({
        "name": "t",
        "request_headers_to_add": [header("table")],
        "virtual_hosts": [{
            "name": "v", "domains": ["*"],
            "request_headers_to_add": [header("host")],
            "response_headers_to_add": [{ "header": { "key": "x-resp", "value": "%RESPONSE_CODE%" } }],
            "response_headers_to_remove": ["x-gone"],
            "include_request_attempt_count": true,
            "routes": [{
                "match": { "prefix": "/old/" },
                "request_headers_to_add": [header("route")],
                "request_headers_to_remove": ["x-secret"],
                "decorator": { "operation": "op" },
                "route": {
                    "weighted_clusters": { "clusters": [{ "name": "up", "weight": 1, "request_headers_to_add": [header("cluster")] }] },
                    "prefix_rewrite": "/new/",
                    "host_rewrite_literal": "internal",
                    "timeout": "2s",
                },
            }],
        }],
    });
    let at = proxy.listener(&http_listener("l", json!({ "route_config": table })));
    let seen = exchange(
        at,
        "GET /old/x?q=1 HTTP/1.1\r\nHost: public\r\nX-Secret: s\r\n\r\n",
    );
    let up = seen.text();
    assert!(
        up.starts_with("GET /new/x?q=1 HTTP/1.1\r\nHost: internal\r\n"),
        "{up}"
    );
    let order: Vec<_> = up
        .lines()
        .filter_map(|l| l.strip_prefix("x-order: "))
        .collect();
    assert_eq!(order, ["cluster", "route", "host", "table"]);
    assert!(!up.contains("X-Secret"));
    assert!(
        up.contains("\r\nx-envoy-original-path: /old/x?q=1\r\n"),
        "{up}"
    );
    assert!(up.contains("\r\nx-envoy-original-host: public\r\n"), "{up}");
    assert!(!up.contains("x-envoy-decorator-operation"), "{up}");
    assert!(up.contains("\r\nx-envoy-attempt-count: 1\r\n"), "{up}");
    assert!(
        up.contains("\r\nx-envoy-expected-rq-timeout-ms: 2000\r\n"),
        "{up}"
    );
    assert_eq!(seen.header("x-resp"), Some("200"));
}

#[test]
fn weights_split_traffic_and_header_matches_win_by_order() {
    let (one, two) = (Upstream::fixed("one"), Upstream::fixed("two"));
    let (_proxy, at) = proxy_with_routes(
        json!([
            { "match": { "prefix": "/", "headers": [{ "name": "end-user", "string_match": { "exact": "jason" } }] }, "route": { "cluster": "two" } },
            { "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [{ "name": "one", "weight": 70 }, { "name": "two", "weight": 30 }] } } },
        ]),
        &[("one", one.address), ("two", two.address)],
    );
    let mut client = Client::new(at);
    let ones = (0..1000)
        .filter(|_| client.get("/").text() == "one")
        .count();
    // Expected are 700; a correct proxy is outside once in 30 million runs.
    assert!((620..780).contains(&ones), "{ones}");
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nhost: h\r\nend-user: jason\r\n\r\n");
        assert_eq!(client.read().text(), "two");
    }
}

/// An upstream that answers 503 to the first `failures` requests.
fn flaky(failures: usize) -> (Upstream, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let up = Upstream::http(move |seen: &Seen| {
        if counter.fetch_add(1, SeqCst) < failures {
            b"HTTP/1.1 503 Unavailable\r\ncontent-length: 4\r\n\r\nfail".to_vec()
        } else {
            ok(&format!(
                "{}|{}",
                seen.header("x-envoy-attempt-count").unwrap_or("-"),
                seen.text()
            ))
        }
    });
    (up, count)
}

fn retrying(policy: Value) -> Value {
    merged(
        json!({ "cluster": "up" }),
        json!({ "retry_policy": merged(json!({ "retry_back_off": { "base_interval": "0.001s" } }), policy) }),
    )
}

#[test]
fn retries_until_a_try_succeeds_with_the_same_body() {
    let (up, count) = flaky(2);
    let action = retrying(json!({ "retry_on": "5xx", "num_retries": 3 }));
    let (proxy, at) = Proxy::with(json!({}), action, json!({}), &[up.address]);
    let seen = exchange(
        at,
        "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody",
    );
    assert_eq!((seen.status(), seen.text().as_str()), (200, "-|body"));
    assert_eq!(count.load(SeqCst), 3);
    // A refused response that was complete leaves its connection usable.
    assert_eq!(up.connections(), 1);
    eventually("counted", || {
        proxy.stat("upstream_rq_retry") == 2 && proxy.stat("upstream_rq_retry_success") == 1
    });
}

#[test]
fn the_last_answer_is_passed_on_when_retries_are_used_up_and_without_policy_there_are_none() {
    for (policy, tries) in [
        (json!({ "retry_on": "5xx", "num_retries": 2 }), 3),
        (
            json!({ "retry_on": "connect-failure,refused-stream", "num_retries": 2 }),
            1,
        ),
        (
            json!({ "retry_on": "retriable-status-codes", "retriable_status_codes": [503], "num_retries": 1 }),
            2,
        ),
    ] {
        let (up, count) = flaky(100);
        let (_proxy, at) = Proxy::with(json!({}), retrying(policy), json!({}), &[up.address]);
        let seen = get(at, "/");
        assert_eq!((seen.status(), seen.text().as_str()), (503, "fail"));
        assert_eq!(count.load(SeqCst), tries);
    }
}

#[test]
fn a_connect_failure_is_retried_on_another_endpoint() {
    let up = Upstream::fixed("alive");
    let action = retrying(json!({
        "retry_on": "connect-failure", "num_retries": 3,
        "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" } }],
        "host_selection_retry_max_attempts": 5,
    }));
    let closed = Closed::port();
    let endpoints = [closed.address, up.address];
    let (_proxy, at) = Proxy::with(json!({}), action, json!({}), &endpoints);
    let mut client = Client::new(at);
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "alive");
    }
}

#[test]
fn timeouts_of_route_and_try() {
    let up = Upstream::raw(|mut stream, number| {
        let mut left = Vec::new();
        while read_message(&mut stream, &mut left, false).is_some() {
            if number < 2 {
                std::thread::sleep(Duration::from_secs(5));
            }
            if stream.write_all(&ok("late")).is_err() {
                return;
            }
        }
    });
    let action = json!({ "cluster": "up", "timeout": "0.2s" });
    let (proxy, at) = Proxy::with(json!({}), action, json!({}), &[up.address]);
    let started = Instant::now();
    let seen = get(at, "/");
    assert_eq!(
        (seen.status(), seen.text().as_str()),
        (504, "upstream request timeout")
    );
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(190), "{took:?}");
    eventually("counted", || proxy.stat("upstream_rq_timeout") == 1);
    drop(proxy);
    let action = merged(
        retrying(json!({ "retry_on": "5xx", "num_retries": 2, "per_try_timeout": "1s" })),
        json!({ "timeout": "15s" }),
    );
    let (_proxy, at) = Proxy::with(json!({}), action, json!({}), &[up.address]);
    assert_eq!(get(at, "/").text(), "late");
}

#[test]
fn a_response_that_takes_longer_than_the_timeout_is_cut_off() {
    let up = Upstream::raw(|mut stream, _| {
        let _ = read_message(&mut stream, &mut Vec::new(), false);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf.")
            .unwrap();
        // Until the proxy has had enough of it.
        while let Ok(1..) = stream.read(&mut [0; 16]) {}
    });
    // Long enough for the head to come: after it there can be no other answer.
    let action = json!({ "cluster": "up", "timeout": "3s" });
    let (_proxy, at) = Proxy::with(json!({}), action, json!({}), &[up.address]);
    let started = Instant::now();
    let mut client = Client::new(at);
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    assert!(client.try_read().is_none());
    // Earlier than the client would have given up.
    assert!(started.elapsed() < common::PATIENCE / 2);
}

#[test]
fn circuit_breakers_overflow_with_503() {
    let gate = Gate::default();
    let held = gate.clone();
    let up = Upstream::http(move |_| {
        held.pass();
        ok("done")
    });
    let limits = json!({ "circuit_breakers": { "thresholds": [{ "max_connections": 1, "max_pending_requests": 1 }] } });
    let (proxy, at) = Proxy::with(json!({}), json!({ "cluster": "up" }), limits, &[up.address]);
    // A request counts as pending until it has a connection, so the first must have its own.
    let mut threads = vec![std::thread::spawn(move || get(at, "/"))];
    eventually("the first is at the upstream", || {
        up.connections() == 1 && proxy.stat("upstream_rq_pending_active") == 0
    });
    threads.extend((0..4).map(|_| std::thread::spawn(move || get(at, "/"))));
    eventually("one waits and the others are turned away", || {
        proxy.stat("upstream_rq_pending_overflow") == 3
            && proxy.stat("upstream_rq_pending_active") == 1
    });
    gate.open();
    let mut seen: Vec<u16> = threads
        .into_iter()
        .map(|t| t.join().unwrap().status())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [200, 200, 503, 503, 503]);
    assert_eq!(proxy.stat("upstream_rq_pending_overflow"), 3);
    assert_eq!(up.connections(), 1);
}

#[test]
fn round_robin_over_endpoints_and_pools_of_endpoints_that_stay() {
    let ups: Vec<Upstream> = (0..3).map(|i| Upstream::fixed(&i.to_string())).collect();
    let all: Vec<SocketAddr> = ups.iter().map(|u| u.address).collect();
    let proxy = Proxy::start(1);
    proxy.cluster(&common::eds_cluster("up"));
    proxy.endpoints("up", &all);
    let table = route_table(
        "t",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    );
    let at = proxy.listener(&http_listener("l", json!({ "route_config": table })));
    let mut client = Client::new(at);
    let mut count = [0; 3];
    for _ in 0..30 {
        count[client.get("/").text().parse::<usize>().unwrap()] += 1;
    }
    assert_eq!(count, [10, 10, 10]);
    proxy.endpoints("up", &all[..2]);
    for _ in 0..10 {
        assert_ne!(client.get("/").text(), "2");
    }
    eventually("the pool of the endpoint that went is closed", || {
        proxy.stat("upstream_cx_active") == 2
    });
    assert_eq!(ups[0].connections(), 1);
    proxy.endpoints("up", &[]);
    assert_eq!(client.get("/").text(), "no healthy upstream");
}

#[test]
fn max_requests_per_connection_upstream_and_downstream() {
    let up = Upstream::fixed("x");
    let manager = json!({ "common_http_protocol_options": { "max_requests_per_connection": 2 } });
    let cluster = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": { "max_requests_per_connection": 1 },
        "explicit_http_config": { "http_protocol_options": {} },
    }}});
    let (_proxy, at) = Proxy::with(manager, json!({ "cluster": "up" }), cluster, &[up.address]);
    let mut client = Client::new(at);
    assert_eq!(client.get("/").header("connection"), None);
    assert_eq!(client.get("/").header("connection"), Some("close"));
    assert!(client.closed());
    assert_eq!(up.connections(), 2);
}

#[test]
fn lines_of_the_access_log() {
    let up = Upstream::fixed("hello");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let manager = json!({ "access_log": [{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path.to_str().unwrap(),
            "log_format": { "text_format_source": { "inline_string":
                "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_SENT% %UPSTREAM_CLUSTER%\n" } },
        },
    }]});
    let (_proxy, at) = Proxy::with(
        manager,
        json!({ "cluster": "up" }),
        json!({}),
        &[up.address],
    );
    get(at, "/x");
    drop(up);
    let mut text = String::new();
    eventually("the line is written", || {
        text = std::fs::read_to_string(&path).unwrap_or_default();
        text.contains('\n')
    });
    assert_eq!(text, "GET /x HTTP/1.1 200 - via_upstream 5 up\n");
}
