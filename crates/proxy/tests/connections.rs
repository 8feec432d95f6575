//! Which connections to endpoints requests get, share and wait for, through real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{
    Client, Gate, PATIENCE, Proxy, Seen, Upstream, eds_cluster, eventually, exchange, get,
    http_listener, http2_upstream, merged, ok, read_message, route_table, static_cluster,
    tcp_listener,
};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

/// Answers `/held` when the gate opens, and everything else at once.
fn holding(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::http(move |seen| {
        if seen.head.starts_with("GET /held") {
            gate.pass();
        }
        match &*seen.text() {
            "" => ok("answered"),
            body => ok(body),
        }
    })
}

fn max_connections(max: u32) -> Value {
    json!({ "circuit_breakers": { "thresholds": [{ "max_connections": max }] } })
}

/// A listener whose requests say themselves which endpoint they go to.
fn by_header(cluster: Value) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(1);
    let base = json!({
        "name": "up", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s", "original_dst_lb_config": { "use_http_header": true },
    });
    proxy.cluster(&merged(base, cluster));
    let table = route_table(
        "all",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    );
    let at = proxy.listener(&http_listener("l", json!({ "route_config": table })));
    (proxy, at)
}

fn ask(at: SocketAddr, path: &str, endpoint: SocketAddr) -> JoinHandle<Seen> {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: h\r\nx-envoy-original-dst-host: {endpoint}\r\n\r\n");
    spawn(move || exchange(at, &request))
}

#[test]
fn who_waits_for_a_connection_is_woken_by_one_of_the_same_endpoint() {
    let (hold_a, hold_b) = (Gate::default(), Gate::default());
    let (a, b) = (holding(&hold_a), holding(&hold_b));
    let (proxy, at) = by_header(max_connections(2));
    let first = ask(at, "/held", a.address);
    let second = ask(at, "/held", b.address);
    eventually("both are busy", || a.connections() + b.connections() == 2);
    let waiting = |n| {
        eventually("it waits", || proxy.stat("upstream_rq_pending_active") == n);
    };
    waiting(0);
    let for_a = ask(at, "/", a.address);
    waiting(1);
    let for_b = ask(at, "/", b.address);
    waiting(2);
    hold_b.open();
    assert_eq!(second.join().unwrap().status(), 200);
    // The other one, which waits longer, cannot use what has become free.
    assert_eq!(for_b.join().unwrap().status(), 200);
    hold_a.open();
    assert_eq!(first.join().unwrap().status(), 200);
    assert_eq!(for_a.join().unwrap().status(), 200);
    assert_eq!((a.connections(), b.connections()), (1, 1));
}

#[test]
fn who_waits_is_woken_by_a_request_from_before_the_cluster_changed() {
    let gate = Gate::default();
    let up = holding(&gate);
    let limited = max_connections(1);
    let action = json!({ "cluster": "up" });
    let (proxy, at) = Proxy::with(json!({}), action, limited.clone(), &[up.address]);
    let first = spawn(move || get(at, "/held"));
    eventually("the first has its connection", || {
        up.connections() == 1 && proxy.stat("upstream_rq_pending_active") == 0
    });
    let changed = merged(limited, json!({ "connect_timeout": "6s" }));
    proxy.cluster(&merged(static_cluster("up", &[up.address]), changed));
    let second = spawn(move || get(at, "/"));
    eventually("the second waits", || {
        proxy.stat("upstream_rq_pending_active") == 1
    });
    gate.open();
    assert_eq!(first.join().unwrap().status(), 200);
    assert_eq!(second.join().unwrap().status(), 200);
    assert_eq!(up.connections(), 1);
}

#[test]
fn who_leaves_while_waiting_is_noticed_before_the_body_is_complete() {
    let gate = Gate::default();
    let up = holding(&gate);
    let action = json!({ "cluster": "up" });
    let (proxy, at) = Proxy::with(json!({}), action, max_connections(1), &[up.address]);
    let first = spawn(move || get(at, "/held"));
    eventually("the first is there", || up.connections() == 1);
    let waiting = |n| {
        eventually("who waits", || {
            proxy.stat("upstream_rq_pending_active") == n
        });
    };
    for body in ["", "part", &"x".repeat(4096)] {
        waiting(0);
        let mut client = Client::new(at);
        client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10000\r\n\r\n");
        waiting(1);
        client.send(body);
        drop(client);
        waiting(0);
    }
    // What comes of a body in the meantime is not lost.
    let mut client = Client::new(at);
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nabc");
    waiting(1);
    client.send("def");
    std::thread::sleep(std::time::Duration::from_millis(50));
    gate.open();
    assert_eq!(first.join().unwrap().status(), 200);
    client.send("ghi");
    let answer = client.read();
    assert_eq!((answer.status(), &*answer.text()), (200, "abcdefghi"));
}

#[test]
fn who_waits_fails_with_the_connection_that_could_not_be_made() {
    let tls = json!({ "transport_socket": {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        },
    }});
    // The one is there for all, or is the only one that may be.
    for cluster in [
        merged(tls.clone(), http2_upstream()),
        merged(tls, max_connections(1)),
    ] {
        // Whoever connects gets no TLS, but has to wait for that.
        let gate = Gate::default();
        let held = gate.clone();
        let up = Upstream::raw(move |_, _| held.pass());
        let cluster = merged(cluster, json!({ "connect_timeout": "60s" }));
        let action = json!({ "cluster": "up" });
        let (proxy, at) = Proxy::with(json!({}), action, cluster, &[up.address]);
        let requests: Vec<_> = (0..5).map(|_| spawn(move || get(at, "/"))).collect();
        eventually("all wait", || {
            proxy.stat("upstream_rq_pending_active") == 5 && up.connections() == 1
        });
        gate.open();
        for request in requests {
            let answer = request.join().unwrap();
            assert_eq!(answer.status(), 503);
            let text = answer.text();
            assert!(text.contains("remote connection failure"), "{text}");
        }
        assert_eq!(up.connections(), 1);
    }
}

/// Serves HTTP behind a PROXY header; `/held` when the gate opens.
fn behind_proxy_header(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::raw(move |mut stream, _| {
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        let mut left = Vec::new();
        while let Some(seen) = read_message(&mut stream, &mut left, false) {
            if seen.head.starts_with("GET /held") {
                gate.pass();
            }
            stream.write_all(&ok("answered")).unwrap();
        }
    })
}

#[test]
fn connections_of_other_clients_do_not_keep_a_client_from_its_first() {
    let gate = Gate::default();
    let up = behind_proxy_header(&gate);
    let socket = json!({ "transport_socket": {
        "name": "envoy.transport_sockets.upstream_proxy_protocol",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": { "version": "V1" },
            "transport_socket": { "name": "envoy.transport_sockets.raw_buffer" },
        },
    }});
    let cluster = merged(socket, max_connections(1));
    let action = json!({ "cluster": "up" });
    let (proxy, at) = Proxy::with(json!({}), action, cluster, &[up.address]);
    // One connection idles, another one is busy.
    let mut idle = Client::new(at);
    assert_eq!(idle.get("/").status(), 200);
    let busy = spawn(move || get(at, "/held"));
    eventually("it is busy", || up.connections() == 2);
    let mut third = Client::new(at);
    assert_eq!(third.get("/").status(), 200);
    assert_eq!(idle.get("/").status(), 200);
    assert_eq!(third.get("/").status(), 200);
    assert_eq!(up.connections(), 3);
    assert_eq!(proxy.stat("upstream_cx_overflow"), 2);
    gate.open();
    assert_eq!(busy.join().unwrap().status(), 200);
}

#[test]
fn the_limit_of_connections_holds_for_tcp_over_all_endpoints() {
    let ups: Vec<Upstream> = (0..3)
        .map(|_| {
            Upstream::raw(|mut stream, _| {
                stream.write_all(b"x").unwrap();
                let _ = stream.read(&mut [0; 1]);
            })
        })
        .collect();
    let addresses: Vec<SocketAddr> = ups.iter().map(|up| up.address).collect();
    let proxy = Proxy::start(1);
    proxy.cluster(&merged(
        static_cluster("up", &addresses),
        max_connections(1),
    ));
    let at = proxy.listener(&tcp_listener("t", json!({ "cluster": "up" })));
    let connect = || {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let first_byte = |stream: &mut TcpStream| stream.read(&mut [0; 1]).unwrap_or(0);
    let mut first = connect();
    assert_eq!(first_byte(&mut first), 1);
    for overflows in 1..=4 {
        assert_eq!(first_byte(&mut connect()), 0);
        assert_eq!(proxy.stat("upstream_cx_overflow"), overflows);
    }
    drop(first);
    eventually("there is room again", || {
        proxy.stat("upstream_cx_active") == 0
    });
    assert_eq!(first_byte(&mut connect()), 1);
}

#[test]
fn an_endpoint_that_is_named_twice_is_one_endpoint() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let up = Upstream::raw(move |mut stream, _| {
        let mut left = Vec::new();
        while read_message(&mut stream, &mut left, false).is_some() {
            stream.write_all(&ok("one")).unwrap();
        }
        count.fetch_add(1, SeqCst);
    });
    let other = Upstream::fixed("other");
    let proxy = Proxy::start(1);
    proxy.cluster(&eds_cluster("up"));
    let table = route_table(
        "all",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    );
    let at = proxy.listener(&http_listener("l", json!({ "route_config": table })));
    let twice = [up.address, up.address];
    for _ in 0..3 {
        proxy.endpoints("up", &twice);
        for _ in 0..4 {
            assert_eq!(get(at, "/").text(), "one");
        }
    }
    assert_eq!(up.connections(), 1, "it keeps its connections");
    proxy.endpoints("up", &[other.address]);
    assert_eq!(get(at, "/").text(), "other");
    eventually("its connection is closed", || closed.load(SeqCst) == 1);
}
