//! HTTP/1 through the proxy, byte for byte.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{Client, Proxy, Upstream, eventually, exchange, get, ok, read_message};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[test]
fn a_request_goes_through_and_the_connections_are_used_again() {
    let up = Upstream::fixed("hello");
    let (proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    for _ in 0..5 {
        let seen = client.get("/");
        assert_eq!((seen.status(), seen.text().as_str()), (200, "hello"));
        assert_eq!(seen.header("server"), Some("envoy"));
        assert!(seen.header("date").is_some());
        assert!(seen.header("x-envoy-upstream-service-time").is_some());
    }
    assert_eq!(up.connections(), 1);
    eventually("all are counted", || proxy.stat("upstream_rq_200") == 5);
    assert_eq!(proxy.stat("upstream_cx_active"), 1);
    eventually("the request is no longer active", || {
        proxy.stat("upstream_rq_active") == 0
    });
}

#[test]
fn what_the_upstream_sees() {
    let up = Upstream::echo();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let request = "GET /a?b=c HTTP/1.1\r\nHost: h:80\r\nX-CamelCase: Kept As Is\r\n\
        Connection: x-private, keep-alive\r\nX-Private: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\n\
        Proxy-Connection: x\r\nx-envoy-max-retries: 9\r\n\r\n";
    let seen = exchange(at, request).text();
    assert!(
        seen.starts_with("GET /a?b=c HTTP/1.1\r\nHost: h:80\r\nX-CamelCase: Kept As Is\r\n"),
        "{seen}"
    );
    assert!(seen.contains("\r\nx-forwarded-proto: http\r\n"), "{seen}");
    assert!(seen.contains("\r\nx-request-id: "), "{seen}");
    assert!(
        seen.contains("\r\nx-envoy-expected-rq-timeout-ms: 15000\r\n"),
        "{seen}"
    );
    for gone in [
        "X-Private",
        "Keep-Alive",
        "TE:",
        "Connection",
        "max-retries",
    ] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
}

#[test]
fn an_absolute_target_replaces_host() {
    let up = Upstream::echo();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let seen = exchange(
        at,
        "GET http://reviews:9080/x HTTP/1.1\r\nHost: other\r\n\r\n",
    )
    .text();
    assert!(
        seen.starts_with("GET /x HTTP/1.1\r\nHost: reviews:9080\r\n"),
        "{seen}"
    );
}

#[test]
fn bodies_by_length_and_in_chunks_in_both_directions() {
    let up = Upstream::http(|seen| {
        let mut out = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for part in seen.body.chunks(7) {
            out.extend_from_slice(format!("{:x};ext=1\r\n", part.len()).as_bytes());
            out.extend_from_slice(part);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\nX-Sum: 9\r\n\r\n");
        out
    });
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz");
    let seen = client.read();
    assert_eq!(seen.text(), "abcdefghijklmnopqrstuvwxyz");
    assert_eq!(seen.trailers, "X-Sum: 9\r\n");
    client.send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n");
    for part in [
        "5\r\nhello\r\n",
        "1",
        "\r\n \r\n5;x\r\nworld",
        "\r\n0\r\n",
        "\r\n",
    ] {
        client.send(part);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client.read().text(), "hello world");
    assert_eq!(up.connections(), 1);
}

#[test]
fn large_bodies_pass_both_ways() {
    let up = Upstream::http(|seen| {
        let sum: u64 = seen.body.iter().map(|b| u64::from(*b)).sum();
        let mut out = format!(
            "HTTP/1.1 200 OK\r\nx-sum: {sum}\r\ncontent-length: {}\r\n\r\n",
            seen.body.len()
        )
        .into_bytes();
        out.extend_from_slice(&seen.body);
        out
    });
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    let sum: u64 = body.iter().map(|b| u64::from(*b)).sum();
    let mut client = Client::new(at);
    client.send(&format!(
        "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        body.len()
    ));
    let mut writer = client.stream.try_clone().unwrap();
    let sent = body.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let seen = client.read();
    writing.join().unwrap();
    assert_eq!(seen.header("x-sum"), Some(sum.to_string().as_str()));
    assert!(seen.body == body);
}

#[test]
fn a_body_that_ends_with_the_connection_is_chunked_for_1_1_and_closes_for_1_0() {
    let up = Upstream::raw(|mut stream, _| {
        let _ = read_message(&mut stream, &mut Vec::new(), false);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the ")
            .unwrap();
        std::thread::sleep(Duration::from_millis(10));
        stream.write_all(b"end").unwrap();
    });
    let manager = json!({ "http_protocol_options": { "accept_http_10": true } });
    let (_proxy, at) = Proxy::with(
        manager,
        json!({ "cluster": "up" }),
        json!({}),
        &[up.address],
    );
    let mut client = Client::new(at);
    for _ in 0..2 {
        let seen = client.get("/");
        assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
        assert_eq!(seen.text(), "until the end");
    }
    let seen = exchange(
        at,
        "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
    );
    assert_eq!(seen.header("connection"), Some("close"));
    assert_eq!(seen.text(), "until the end");
}

#[test]
fn head_204_and_304_have_no_body() {
    let up = Upstream::http(|seen| {
        let path = seen.head.split(' ').nth(1).unwrap();
        match path {
            "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            "/304" => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n".to_vec(),
            _ if seen.head.starts_with("HEAD") => {
                b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n".to_vec()
            }
            _ => ok("content"),
        }
    });
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send("HEAD / HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(client.read_head().header("content-length"), Some("7"));
    assert_eq!(client.get("/204").status(), 204);
    assert_eq!(client.get("/304").header("content-length"), Some("7"));
    assert_eq!(client.get("/").text(), "content");
    assert_eq!(up.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let up = Upstream::echo();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    let mut all = String::new();
    for i in 0..20 {
        all.push_str(&format!(
            "POST /{i} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nxy"
        ));
    }
    client.send(&all);
    for i in 0..20 {
        let seen = client.read().text();
        assert!(
            seen.starts_with(&format!("POST /{i} ")) && seen.ends_with("xy"),
            "{seen}"
        );
    }
}

#[test]
fn a_request_that_comes_byte_by_byte_is_the_same() {
    let up = Upstream::echo();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    for byte in "GET /slow HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n".chars() {
        client.send(&byte.to_string());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(client.read().text().starts_with("GET /slow "));
}

#[test]
fn what_is_not_a_request_gets_its_status_and_the_connection_ends() {
    let up = Upstream::fixed("never");
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let long = format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    for (request, status) in [
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            400,
        ),
        ("GET / HTTP/1.1\nhost: h\n\n", 400),
        ("GET / HTTP/1.1\r\nhost : h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: h\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\n\r\n", 426),
        (long.as_str(), 431),
        ("\x16\x03\x01\x02\x00", 400),
    ] {
        let mut client = Client::new(at);
        // The proxy may answer and close before it has read everything.
        let _ = client.stream.write_all(request.as_bytes());
        let seen = client.read();
        assert_eq!(
            seen.status(),
            status,
            "{}",
            &request[..request.len().min(60)]
        );
        assert_eq!(seen.header("connection"), Some("close"));
        assert!(client.closed());
    }
    assert_eq!(up.connections(), 0);
}

#[test]
fn a_malformed_chunk_ends_the_request_and_the_next_one_is_not_smuggled() {
    let up = Upstream::echo();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send(
        "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n\
         5 x\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n",
    );
    let rest = client.rest();
    assert!(
        rest.starts_with("HTTP/1.1 400 ") && !rest.contains("smuggled"),
        "{rest}"
    );
}

#[test]
fn interim_responses_and_100_continue() {
    let up = Upstream::raw(|mut stream, _| {
        let seen = read_message(&mut stream, &mut Vec::new(), false).unwrap();
        stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
            .unwrap();
        stream.write_all(&ok(&seen.head)).unwrap();
    });
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    assert_eq!(client.read().status(), 100);
    client.send("xy");
    let hints = client.read();
    assert_eq!((hints.status(), hints.header("link")), (103, Some("</x>")));
    let seen = client.read();
    assert_eq!(seen.status(), 200);
    assert!(!seen.text().contains("\r\nexpect:"));
}

#[test]
fn an_upgrade_becomes_a_tunnel_with_half_close() {
    let up = Upstream::raw(|mut stream, _| {
        let mut left = Vec::new();
        let seen = read_message(&mut stream, &mut left, true).unwrap();
        assert_eq!(seen.header("upgrade"), Some("websocket"));
        assert_eq!(seen.header("connection"), Some("upgrade"));
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nfirst").unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        stream.write_all(all.to_uppercase().as_bytes()).unwrap();
    });
    let manager = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] });
    let (_proxy, at) = Proxy::with(
        manager,
        json!({ "cluster": "up" }),
        json!({}),
        &[up.address],
    );
    let mut client = Client::new(at);
    client
        .send("GET /chat HTTP/1.1\r\nhost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let seen = client.read();
    assert_eq!(
        (seen.status(), seen.header("upgrade")),
        (101, Some("websocket"))
    );
    client.send("ping");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "firstPING");
    let refused = exchange(
        at,
        "GET / HTTP/1.1\r\nhost: h\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
    );
    assert_eq!(refused.status(), 403);
}

#[test]
fn an_upgraded_connection_ends_with_the_upstreams_side() {
    let up = Upstream::raw(|mut stream, _| {
        read_message(&mut stream, &mut Vec::new(), true).unwrap();
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nbye").unwrap();
    });
    let manager = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] });
    let action = json!({ "cluster": "up" });
    let (proxy, at) = Proxy::with(manager, action, json!({}), &[up.address]);
    let mut client = Client::new(at);
    client.send("GET / HTTP/1.1\r\nhost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.read().status(), 101);
    assert_eq!(client.rest(), "bye");
    // The client does not close its side, and is not waited for.
    let scope = lateen_proxy::stats::Scope::Http("l".into());
    eventually("both connections are gone", || {
        proxy.workers.stats().value(&scope, "downstream_cx_active") == 0
            && proxy.stat("upstream_cx_active") == 0
    });
}

#[test]
fn an_early_response_reaches_a_client_that_is_still_sending() {
    let up = Upstream::raw(|mut stream, _| {
        let _ = read_message(&mut stream, &mut Vec::new(), true);
        stream
            .write_all(
                b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig",
            )
            .unwrap();
        // Until the proxy has had enough of it.
        while let Ok(1..) = stream.read(&mut [0; 4096]) {}
    });
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10000000\r\n\r\nstart");
    let seen = client.read();
    assert_eq!((seen.status(), seen.text().as_str()), (413, "big"));
    assert_eq!(seen.header("connection"), Some("close"));
}

#[test]
fn a_stale_pooled_connection_is_replaced_without_the_client_noticing() {
    // Each connection serves one request, keeps quiet about closing, and closes.
    let up = Upstream::raw(|mut stream, _| {
        let mut left = Vec::new();
        let _ = read_message(&mut stream, &mut left, false);
        stream.write_all(&ok("once")).unwrap();
        // The next request on this connection is read and dropped: the nasty case.
        let _ = read_message(&mut stream, &mut left, false);
    });
    let (proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    for _ in 0..4 {
        assert_eq!(client.get("/").text(), "once");
    }
    // A POST that the upstream may have seen is not sent twice.
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx");
    let seen = client.read();
    assert_eq!(seen.status(), 503);
    assert!(
        seen.text().contains("connection termination"),
        "{}",
        seen.text()
    );
    eventually("it is counted", || proxy.stat("upstream_rq_rx_reset") >= 1);
}

#[test]
fn an_idle_upstream_connection_that_closes_leaves_the_pool() {
    let up = Upstream::raw(|mut stream, _| {
        let _ = read_message(&mut stream, &mut Vec::new(), false);
        stream.write_all(&ok("bye")).unwrap();
    });
    let (proxy, at) = Proxy::simple(&[up.address]);
    assert_eq!(get(at, "/").text(), "bye");
    eventually("the connection is gone", || {
        proxy.stat("upstream_cx_active") == 0
    });
}

#[test]
fn a_truncated_response_is_not_passed_on_as_complete() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n");
        let up = Upstream::raw(move |mut stream, _| {
            let _ = read_message(&mut stream, &mut Vec::new(), false);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let (_proxy, at) = Proxy::simple(&[up.address]);
        let mut client = Client::new(at);
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
        assert!(client.try_read().is_none(), "{head}");
    }
}

#[test]
fn a_response_that_is_not_http_is_502() {
    for answer in [
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    ] {
        let up = Upstream::http(move |_| answer.as_bytes().to_vec());
        let (_proxy, at) = Proxy::simple(&[up.address]);
        let seen = get(at, "/");
        assert_eq!(seen.status(), 502, "{answer:?}");
        assert!(seen.text().contains("protocol error"));
    }
}

#[test]
fn a_slow_head_is_answered_408_and_an_idle_connection_is_closed() {
    let up = Upstream::fixed("x");
    let manager = json!({
        "request_headers_timeout": "0.2s",
        "common_http_protocol_options": { "idle_timeout": "1.5s" },
    });
    let (_proxy, at) = Proxy::with(
        manager,
        json!({ "cluster": "up" }),
        json!({}),
        &[up.address],
    );
    assert_eq!(exchange(at, "GET / HTTP/1.1\r\nhost").status(), 408);
    let started = Instant::now();
    let mut idle = Client::new(at);
    assert_eq!(idle.get("/").status(), 200);
    assert!(idle.closed());
    assert!(started.elapsed() >= Duration::from_millis(1400));
}

#[test]
fn the_idle_time_begins_when_the_connection_or_the_end_of_the_response_does() {
    let up = Upstream::raw(|mut stream, _| {
        let mut left = Vec::new();
        while read_message(&mut stream, &mut left, false).is_some() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na")
                .unwrap();
            std::thread::sleep(Duration::from_millis(2000));
            stream.write_all(b"b").unwrap();
        }
    });
    let manager = json!({ "common_http_protocol_options": { "idle_timeout": "1.5s" } });
    let (_proxy, at) = Proxy::with(
        manager,
        json!({ "cluster": "up" }),
        json!({}),
        &[up.address],
    );
    // Longer than the idle time after the last reading of the clock.
    std::thread::sleep(Duration::from_millis(2000));
    let mut client = Client::new(at);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(client.get("/").text(), "ab");
    }
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let up = Upstream::raw(|mut stream, _| {
        let _ = read_message(&mut stream, &mut Vec::new(), false);
        // Never answers; sees the proxy close.
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
    });
    let (proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    eventually("the request is at the upstream", || {
        proxy.stat("upstream_rq_active") == 1
    });
    drop(client);
    eventually("it is cancelled", || {
        proxy.stat("upstream_rq_cancelled") == 1
    });
    eventually("its connection is closed", || {
        proxy.stat("upstream_cx_active") == 0
    });
}

#[test]
fn a_slow_reader_does_not_make_the_proxy_buffer_the_response() {
    const BODY: usize = 64 * 1024 * 1024;
    let taken = Arc::new(AtomicUsize::new(0));
    let report = taken.clone();
    let up = Upstream::raw(move |mut stream, _| {
        let _ = read_message(&mut stream, &mut Vec::new(), false);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let mut sent = 0;
        while let Ok(n) = stream.write(&[b'x'; 65536]) {
            sent += n;
        }
        report.store(sent, SeqCst);
    });
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    eventually("the upstream has to wait", || taken.load(SeqCst) > 0);
    let taken = taken.load(SeqCst);
    assert!(
        taken < BODY,
        "all {taken} bytes were taken for a client that reads nothing"
    );
}

#[test]
fn a_thousand_idle_connections_are_held_and_all_still_work() {
    let up = Upstream::fixed("x");
    let (proxy, at) = Proxy::simple(&[up.address]);
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::new(at)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!(proxy.workers.active_connections(), 1000);
    assert_eq!(up.connections(), 1);
    drop(clients);
    eventually("all are gone", || proxy.workers.active_connections() == 0);
}

#[test]
fn a_local_reply_to_a_request_with_a_body_keeps_the_connection() {
    let proxy = Proxy::start(1);
    let table = common::route_table("none", json!([]));
    let at = proxy.listener(&common::http_listener(
        "l",
        json!({ "route_config": table }),
    ));
    let mut client = Client::new(at);
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello");
        assert_eq!(client.read().status(), 404);
    }
}

#[test]
fn bytes_after_a_half_close_are_not_waited_for() {
    let up = Upstream::fixed("x");
    let (proxy, at) = Proxy::simple(&[up.address]);
    let stream = TcpStream::connect(at).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    eventually("the connection ends", || {
        proxy.workers.active_connections() == 0
    });
}
