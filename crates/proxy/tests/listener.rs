//! What a listener finds out about a connection, and which filter chain and listener then take it,
//! through real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{Client, Proxy, Upstream, eventually, merged, static_cluster};
use lateen_proxy::stats::Scope;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// An upstream that names itself at once, and sends back what it gets.
fn server_first(name: &'static str) -> Upstream {
    Upstream::raw(move |mut stream, _| {
        stream.write_all(format!("{name}:").as_bytes()).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
    })
}

fn filter(kind: &str, config: Value) -> Value {
    let package = kind.to_lowercase();
    let of = match kind {
        "TlsInspector" => "tls_inspector",
        "HttpInspector" => "http_inspector",
        "ProxyProtocol" => "proxy_protocol",
        _ => &package,
    };
    let kind = format!("type.googleapis.com/envoy.extensions.filters.listener.{of}.v3.{kind}");
    let typed = merged(json!({ "@type": kind }), config);
    json!({ "name": format!("envoy.filters.listener.{of}"), "typed_config": typed })
}

fn tls_inspector() -> Value {
    filter("TlsInspector", json!({}))
}

fn http_inspector() -> Value {
    filter("HttpInspector", json!({}))
}

fn to_tcp(cluster: &str, matches: Value) -> Value {
    json!({ "filter_chain_match": matches, "filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster, "cluster": cluster,
        },
    }] })
}

/// Answers every request itself, with `name`.
fn to_http(name: &str, matches: Value) -> Value {
    let table = json!({ "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{
        "match": { "prefix": "/" },
        "direct_response": { "status": 200, "body": { "inline_string": name } },
    }] }] });
    json!({ "filter_chain_match": matches, "filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name, "route_config": table,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    }] })
}

fn listener(filters: Vec<Value>, chains: Vec<Value>, more: Value) -> Value {
    let base = json!({
        "name": "l",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "listener_filters": filters,
        "filter_chains": chains,
    });
    merged(base, more)
}

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

/// Reads as much as `expect` has.
fn expect(stream: &mut TcpStream, expect: &[u8]) {
    let mut have = vec![0; expect.len()];
    stream.read_exact(&mut have).unwrap();
    assert_eq!(
        have.escape_ascii().to_string(),
        expect.escape_ascii().to_string()
    );
}

fn is_closed(stream: &mut TcpStream) -> bool {
    !matches!(stream.read(&mut [0; 1]), Ok(1..))
}

fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let with_length = |content: &[u8]| {
        let mut out = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(content);
        out
    };
    let names = with_length(&[&[0], &*with_length(name.as_bytes())].concat());
    let protocols: Vec<u8> = alpn
        .iter()
        .flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat())
        .collect();
    let protocols = with_length(&protocols);
    let mut extensions = [&[0, 0], &*with_length(&names)].concat();
    extensions.extend_from_slice(&[&[0, 16], &*with_length(&protocols)].concat());
    let mut body = [&[3, 3], &[9; 32][..], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    body.extend_from_slice(&with_length(&extensions));
    let message = [&[1, 0], &*with_length(&body)].concat();
    [&[22, 3, 1], &*with_length(&message)].concat()
}

#[test]
fn tls_goes_by_its_server_name_and_arrives_from_its_first_byte_on() {
    let proxy = Proxy::start(1);
    let ups = ["exact", "wild", "plain", "h2"].map(|name| (name, server_first(name)));
    for (name, up) in &ups {
        proxy.cluster(&static_cluster(name, &[up.address]));
    }
    let at = proxy.listener(&listener(
        vec![tls_inspector()],
        vec![
            to_tcp("exact", json!({"server_names": ["www.example.com"]})),
            to_tcp(
                "wild",
                json!({"server_names": ["*.example.com"], "transport_protocol": "tls"}),
            ),
            to_tcp("h2", json!({"application_protocols": ["h2"]})),
            to_tcp("plain", json!({"transport_protocol": "raw_buffer"})),
        ],
        json!({}),
    ));
    for (first, name) in [
        (hello("WWW.example.com", &["h2"]), "exact"),
        (hello("a.b.example.com", &["h2"]), "wild"),
        (b"no tls at all".to_vec(), "plain"),
    ] {
        let mut stream = connect(at);
        // In pieces, the first of which says nothing yet.
        for piece in [&first[..1], &first[1..9], &first[9..]] {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        expect(&mut stream, &[name.as_bytes(), b":", &first].concat());
    }
    // No chain speaks of this name and of TLS without ALPN.
    let mut stream = connect(at);
    stream
        .write_all(&hello("other.org", &["http/1.1"]))
        .unwrap();
    assert!(is_closed(&mut stream));
    let stats = proxy.workers.stats();
    let tls = |name| stats.value(&Scope::TlsInspector, name);
    assert_eq!(
        (tls("tls_found"), tls("tls_not_found"), tls("sni_found")),
        (3, 1, 3)
    );
    let address = at.to_string().replace(':', "_");
    let listener = Scope::Listener(address.replace(&at.port().to_string(), "0").into());
    assert_eq!(stats.value(&listener, "no_filter_chain_match"), 1);
    // Its client may see the end first.
    eventually("nobody waits for a chain", || {
        let stats = proxy.workers.stats();
        stats.value(&listener, "downstream_pre_cx_active") == 0
    });
}

fn sniffing(more: Value) -> Value {
    listener(
        vec![tls_inspector(), http_inspector()],
        vec![
            to_http(
                "http",
                json!({"application_protocols": ["http/1.0", "http/1.1", "h2c"]}),
            ),
            to_tcp("up", json!({})),
        ],
        more,
    )
}

#[test]
fn http_is_told_from_other_bytes() {
    let proxy = Proxy::start(1);
    let up = server_first("tcp");
    proxy.cluster(&static_cluster("up", &[up.address]));
    let at = proxy.listener(&sniffing(json!({})));
    assert_eq!(common::get(at, "/").text(), "http");
    let mut slow = Client::new(at);
    slow.send("GET / HT");
    std::thread::sleep(Duration::from_millis(30));
    slow.send("TP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(slow.read().text(), "http");
    for first in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        &hello("a", &["h2"]),
        b"hello\n",
    ] {
        let mut stream = connect(at);
        stream.write_all(first).unwrap();
        expect(&mut stream, &[b"tcp:", first].concat());
    }
    // What ends before it says what it is is no HTTP.
    let mut stream = connect(at);
    stream.write_all(b"GET").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    expect(&mut stream, b"tcp:GET");
    let mut h2 = connect(at);
    h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    let mut frame = [0; 9];
    h2.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "SETTINGS");
    let stats = proxy.workers.stats();
    let http = |name| stats.value(&Scope::HttpInspector, name);
    assert_eq!(
        (
            http("http11_found"),
            http("http2_found"),
            http("http_not_found")
        ),
        (2, 1, 3)
    );
}

#[test]
fn a_silent_client_waits_as_long_as_the_listener_says() {
    let proxy = Proxy::start(1);
    let up = server_first("tcp");
    proxy.cluster(&static_cluster("up", &[up.address]));
    let at = proxy.listener(&sniffing(json!({
        "listener_filters_timeout": "0.1s", "continue_on_listener_filters_timeout": true,
    })));
    let mut stream = connect(at);
    expect(&mut stream, b"tcp:");
    // What came before the time was up is not lost.
    let mut half = connect(at);
    half.write_all(b"GET").unwrap();
    expect(&mut half, b"tcp:GET");

    let at = proxy.listener(&sniffing(json!({
        "name": "closing", "stat_prefix": "closing", "listener_filters_timeout": "0.1s",
    })));
    assert!(is_closed(&mut connect(at)));
    let scope = Scope::Listener("closing".into());
    eventually("the timeout is counted", || {
        let stats = proxy.workers.stats();
        stats.value(&scope, "downstream_pre_cx_timeout") == 1
    });

    let at = proxy.listener(&sniffing(json!({
        "name": "patient", "stat_prefix": "patient", "listener_filters_timeout": "0s",
    })));
    let mut waiting = connect(at);
    let scope = Scope::Listener("patient".into());
    eventually("the connection waits", || {
        proxy
            .workers
            .stats()
            .value(&scope, "downstream_pre_cx_active")
            == 1
    });
    waiting
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(waiting.read(&mut [0; 1]).is_err());
    waiting.write_all(b"\0").unwrap();
    waiting.set_read_timeout(Some(common::PATIENCE)).unwrap();
    expect(&mut waiting, b"tcp:\0");
}

#[test]
fn a_server_that_speaks_first_is_heard_where_no_filter_needs_bytes() {
    let proxy = Proxy::start(1);
    let up = server_first("tcp");
    proxy.cluster(&static_cluster("up", &[up.address]));
    let disabled = |filter| {
        let range = json!({"destination_port_range": {"start": 1, "end": 65535}});
        merged(
            filter,
            json!({"filter_disabled": {"or_match": {"rules": [range, range]}}}),
        )
    };
    let at = proxy.listener(&listener(
        vec![disabled(tls_inspector()), disabled(http_inspector())],
        vec![to_tcp("up", json!({}))],
        json!({"listener_filters_timeout": "0s"}),
    ));
    expect(&mut connect(at), b"tcp:");
}

#[test]
fn a_proxy_header_is_taken_away_and_names_the_source() {
    let proxy = Proxy::start(1);
    let (near, far) = (server_first("near"), server_first("far"));
    proxy.cluster(&static_cluster("near", &[near.address]));
    proxy.cluster(&static_cluster("far", &[far.address]));
    let chains = || {
        let range = json!([{"address_prefix": "10.1.0.0", "prefix_len": 16}]);
        vec![
            to_tcp("far", json!({"source_prefix_ranges": range})),
            to_tcp(
                "near",
                json!({"direct_source_prefix_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}),
            ),
        ]
    };
    let strict = vec![filter("ProxyProtocol", json!({})), tls_inspector()];
    let at = proxy.listener(&listener(strict, chains(), json!({})));
    let v2 =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x0a\x01\x00\x01\x0a\x02\x00\x01\x00\x01\x00\x50";
    for header in [&b"PROXY TCP4 10.1.0.1 10.2.0.1 5 80\r\n"[..], v2] {
        let mut stream = connect(at);
        for piece in [&header[..4], &header[4..]] {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        stream.write_all(b"xyz").unwrap();
        // The chain by the direct source stands before the one by the source in Envoy's order.
        expect(&mut stream, b"near:xyz");
    }
    for wrong in ["GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 a b c d\r\n"] {
        let mut stream = connect(at);
        stream.write_all(wrong.as_bytes()).unwrap();
        assert!(is_closed(&mut stream), "{wrong}");
    }
    let lenient = json!({"allow_requests_without_proxy_protocol": true});
    let at = proxy.listener(&listener(
        vec![filter("ProxyProtocol", lenient)],
        chains().into_iter().take(1).collect(),
        json!({"name": "lenient", "default_filter_chain": to_tcp("near", json!({}))}),
    ));
    for (first, expected) in [
        ("PROXY TCP4 10.1.0.1 10.2.0.1 5 80\r\nx", "far:x"),
        ("PROXY TCP4 10.3.0.1 10.2.0.1 5 80\r\nx", "near:x"),
        ("hello", "near:hello"),
    ] {
        let mut stream = connect(at);
        stream.write_all(first.as_bytes()).unwrap();
        expect(&mut stream, expected.as_bytes());
    }
}

#[test]
fn a_connection_goes_to_the_listener_of_its_destination() {
    let proxy = Proxy::start(1);
    let ups = ["exact", "port", "rest"].map(|name| (name, server_first(name)));
    for (name, up) in &ups {
        proxy.cluster(&static_cluster(name, &[up.address]));
    }
    let unbound = |name: &str, address: &str, port: u16, filters: Vec<Value>, chains| {
        let address = json!({ "socket_address": { "address": address, "port_value": port } });
        listener(
            filters,
            chains,
            json!({"name": name, "address": address, "bind_to_port": false}),
        )
    };
    let add = |json: &Value| {
        let bytes = common::message("envoy.config.listener.v3.Listener", json);
        let listener = lateen_proxy_config::compile::compile_listener(&bytes)
            .unwrap()
            .value;
        let update = lateen_proxy::worker::WorkerUpdate::Listener(listener);
        proxy.workers.update(update).unwrap();
        proxy.flush();
    };
    add(&unbound(
        "10.0.0.1_80",
        "10.0.0.1",
        80,
        vec![],
        vec![to_tcp("exact", json!({}))],
    ));
    add(&unbound(
        "0.0.0.0_80",
        "0.0.0.0",
        80,
        vec![http_inspector()],
        vec![
            to_http("http", json!({"application_protocols": ["http/1.1"]})),
            to_tcp("port", json!({})),
        ],
    ));
    // It has no socket, and is shown as any other.
    let shown = proxy.workers.listeners();
    let exact = shown
        .iter()
        .find(|l| &*l.listener == "10.0.0.1_80")
        .unwrap();
    let addresses: Vec<_> = exact.addresses.iter().map(|a| a.socket()).collect();
    assert_eq!(addresses, ["10.0.0.1:80".parse().ok()]);
    let at = proxy.listener(&listener(
        vec![filter("ProxyProtocol", json!({}))],
        vec![to_tcp("rest", json!({}))],
        json!({"name": "virtualOutbound", "use_original_dst": true}),
    ));
    let ask = |destination: &str, first: &str, expected: &str| {
        let mut stream = connect(at);
        let text = format!("PROXY TCP4 10.9.9.9 {destination}\r\n{first}");
        stream.write_all(text.as_bytes()).unwrap();
        expect(&mut stream, expected.as_bytes());
    };
    ask("10.0.0.1 5 80", "", "exact:");
    ask(
        "10.0.0.2 5 80",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "HTTP/1.1 200 OK",
    );
    ask("10.0.0.2 5 80", "x\n", "port:x\n");
    ask("10.0.0.1 5 81", "", "rest:");
    let update = lateen_proxy::worker::WorkerUpdate::RemoveListener("10.0.0.1_80".into());
    proxy.workers.update(update).unwrap();
    proxy.flush();
    ask("10.0.0.1 5 80", "x\n", "port:x\n");
}

/// Takes whatever the PROXY header names as its original destination.
fn to_destination(proxy: &Proxy, cluster: Value) -> SocketAddr {
    proxy.cluster(&merged(
        json!({
            "name": "passthrough", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "5s",
        }),
        cluster,
    ));
    let mut http = to_http("http", json!({"application_protocols": ["http/1.1"]}));
    let route = &mut http["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0];
    route["routes"][0] = json!({"match": {"prefix": "/"}, "route": {"cluster": "passthrough"}});
    proxy.listener(&listener(
        vec![filter("ProxyProtocol", json!({})), http_inspector()],
        vec![http, to_tcp("passthrough", json!({}))],
        json!({}),
    ))
}

fn proxied(to: SocketAddr) -> String {
    format!("PROXY TCP4 10.9.9.9 {} 5 {}\r\n", to.ip(), to.port())
}

#[test]
fn an_original_destination_is_where_the_client_was_going_or_what_a_header_says() {
    let proxy = Proxy::start(1);
    let (one, two) = (Upstream::fixed("one"), Upstream::fixed("two"));
    let at = to_destination(
        &proxy,
        json!({"original_dst_lb_config": {"use_http_header": true}}),
    );
    let mut client = Client::new(at);
    client.send(&proxied(one.address));
    assert_eq!(client.get("/").text(), "one");
    client.send(&format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx-envoy-original-dst-host: {}\r\n\r\n",
        two.address
    ));
    assert_eq!(client.read().text(), "two");
    // Nothing that is not an address leads anywhere else.
    client.send("GET / HTTP/1.1\r\nhost: h\r\nx-envoy-original-dst-host: two\r\n\r\n");
    assert_eq!(client.read().text(), "one");
    let endpoints = |proxy: &Proxy| {
        let scopes = proxy.workers.stats().scopes;
        let of_cluster = scopes
            .iter()
            .filter(|s| matches!(s.scope, Scope::Endpoint(..)));
        of_cluster.count()
    };
    assert_eq!(endpoints(&proxy), 2);
    // Without connections they are forgotten.
    let gone = server_first("x").address;
    let mut nowhere = connect(at);
    nowhere.write_all(proxied(gone).as_bytes()).unwrap();
    nowhere.write_all(b"x\n").unwrap();
    expect(&mut nowhere, b"x:x\n");
    assert_eq!(endpoints(&proxy), 3);
    drop(nowhere);
    eventually("it is forgotten", || endpoints(&proxy) == 2);
}

#[test]
fn connections_come_from_the_address_that_the_cluster_names() {
    let proxy = Proxy::start(1);
    let up = Upstream::raw(|mut stream, _| {
        let from = stream.peer_addr().unwrap().ip().to_string();
        stream.write_all(from.as_bytes()).unwrap();
        let _ = stream.read(&mut [0; 16]);
    });
    let source = json!({"source_address": {"address": "127.0.0.6", "port_value": 0}});
    let at = to_destination(&proxy, json!({"upstream_bind_config": source}));
    let mut stream = connect(at);
    stream.write_all(proxied(up.address).as_bytes()).unwrap();
    stream.write_all(b"x\n").unwrap();
    expect(&mut stream, b"127.0.0.6");
}
