//! What a stranger sends, on either side, to have one message read as two or two as one, or to make
//! the proxy hold or do more than is good for it.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at what is not as expected"
)]

mod common;

use common::{Client, PATIENCE, Proxy, Upstream, eventually, http2_upstream, ok};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An upstream that keeps every byte it is sent, and answers each head it sees.
fn recorder() -> (Upstream, Arc<Mutex<Vec<u8>>>) {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let keep = bytes.clone();
    let up = Upstream::raw(move |mut stream, _| {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let mut all = keep.lock().unwrap();
            let before = all.len();
            all.extend_from_slice(&buffer[..n]);
            let from = before.saturating_sub(3);
            for _ in all[from..].windows(4).filter(|w| *w == b"\r\n\r\n") {
                let _ = stream.write_all(&ok("seen"));
            }
        }
    });
    (up, bytes)
}

fn text(bytes: &Arc<Mutex<Vec<u8>>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned()
}

#[test]
fn the_body_of_an_upgrade_request_does_not_become_a_request() {
    let upgrades = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] });
    let hidden = "GET /hidden HTTP/1.1\r\nhost: internal\r\n\r\n";
    let chunked = format!(
        "transfer-encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n",
        hidden.len()
    );
    let length = format!("content-length: {}\r\n\r\n{hidden}", hidden.len());
    for body in [chunked, length] {
        let (up, bytes) = recorder();
        let (_proxy, at) = Proxy::with(
            upgrades.clone(),
            json!({ "cluster": "up" }),
            json!({}),
            &[up.address],
        );
        let mut client = Client::new(at);
        client.send(&format!(
            "POST / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n{body}"
        ));
        assert_eq!(client.read().status(), 200);
        eventually("the body is there", || text(&bytes).contains("/hidden"));
        let seen = text(&bytes);
        let (head, _) = seen.split_once("\r\n\r\n").unwrap();
        let framed = head.contains("content-length") || head.contains("transfer-encoding");
        assert!(framed && !head.contains("upgrade"), "{seen}");
    }
}

#[test]
fn an_offer_of_http2_is_ignored_and_not_refused() {
    let up = Upstream::echo();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send(
        "GET /x HTTP/1.1\r\nhost: h\r\nconnection: Upgrade, HTTP2-Settings\r\n\
         upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
    );
    let seen = client.read();
    assert_eq!(seen.status(), 200);
    let text = seen.text().to_lowercase();
    assert!(
        !text.contains("upgrade") && !text.contains("settings"),
        "{text}"
    );
}

#[test]
fn a_malformed_end_of_a_body_is_not_forgotten() {
    for end in [
        "0\r\nx a: b\r\n\r\n",
        "0\r\nGET / HTTP/1.1\r\n\r\n",
        "ZZ\r\n",
    ] {
        let (up, _) = recorder();
        let (_proxy, at) = Proxy::simple(&[up.address]);
        let mut client = Client::new(at);
        client.send(&format!(
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n{end}\
             GET /next HTTP/1.1\r\nhost: h\r\n\r\n"
        ));
        let rest = client.rest();
        assert_eq!(rest.matches("HTTP/1.1").count(), 1, "{end:?}: {rest}");
        assert!(rest.starts_with("HTTP/1.1 400"), "{end:?}: {rest}");
    }
}

#[test]
fn trailers_of_requests_end_here() {
    let (up, bytes) = recorder();
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send(
        "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\
         X-Sum: 1\r\nHost: evil\r\nX-Forwarded-For: 6.6.6.6\r\nAuthorization: x\r\n\
         Content-Length: 9\r\n\r\n",
    );
    eventually("the body has ended", || {
        text(&bytes).contains("\r\n0\r\n\r\n")
    });
    let seen = text(&bytes).to_lowercase();
    for bad in [
        "x-sum",
        "evil",
        "6.6.6.6",
        "authorization",
        "content-length",
    ] {
        assert!(!seen.contains(bad), "{bad} in {seen}");
    }
}

#[test]
fn a_response_that_announces_a_body_it_cannot_have_is_502() {
    for head in [
        "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
    ] {
        let up = Upstream::http(move |_| head.as_bytes().to_vec());
        let (_proxy, at) = Proxy::simple(&[up.address]);
        assert_eq!(common::get(at, "/").status(), 502, "{head}");
    }
    let up = Upstream::http(|_| b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n".to_vec());
    let (_proxy, at) = Proxy::simple(&[up.address]);
    assert_eq!(common::get(at, "/").status(), 204);
}

/// HTTP/2 can carry a body with a 204, HTTP/1 cannot: a client would take it for the next response.
#[test]
fn a_body_that_http2_sends_with_a_204_does_not_reach_an_http1_client() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut conn = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = conn.accept().await {
            let response = http::Response::builder().status(204).body(()).unwrap();
            let mut send = respond.send_response(response, false).unwrap();
            let _ = send.send_data("HTTP/1.1 200 OK\r\n\r\n".into(), true);
        }
    });
    let (_proxy, at) = Proxy::with(
        json!({}),
        json!({ "cluster": "up" }),
        http2_upstream(),
        &[address],
    );
    let mut client = Client::new(at);
    for _ in 0..3 {
        assert_eq!(client.get("/").status(), 204);
    }
}

#[test]
fn interim_responses_without_end_do_not_fill_the_memory() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let interim = format!(
        "HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n",
        "x".repeat(1000)
    );
    let up = Upstream::raw(move |mut stream, _| {
        stream
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let _ = stream.read(&mut [0; 4096]);
        while count.load(SeqCst) < 200_000_000 && stream.write_all(interim.as_bytes()).is_ok() {
            count.fetch_add(interim.len(), SeqCst);
        }
    });
    let (proxy, at) = Proxy::with(
        json!({}),
        json!({ "cluster": "up", "timeout": "0s" }),
        json!({}),
        &[up.address],
    );
    let mut client = Client::new(at);
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    let passed = (0..1000).take_while(|_| client.read().status() == 103);
    assert!(passed.count() < 100);
    eventually("the request ends", || proxy.workers.active_requests() == 0);
    let sent = sent.load(SeqCst);
    assert!(
        sent < 20_000_000,
        "{sent} bytes were taken from the upstream"
    );
}

#[test]
fn permission_to_send_is_asked_for_in_any_case() {
    let up = Upstream::fixed("up");
    let (_proxy, at) = Proxy::simple(&[up.address]);
    let mut client = Client::new(at);
    client.send("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-Continue\r\ncontent-length: 1\r\n\r\n");
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.read().status(), 100);
    client.send("a");
    assert_eq!(client.read().status(), 200);
}

#[test]
fn a_head_that_never_ends_is_given_up_like_a_request_that_stands_still() {
    let up = Upstream::fixed("up");
    let (_proxy, at) = Proxy::with(
        json!({ "stream_idle_timeout": "0.3s" }),
        json!({ "cluster": "up" }),
        json!({}),
        &[up.address],
    );
    let mut client = Client::new(at);
    client.send("GET / HTTP/1.1\r\nhost: h\r\n");
    assert_eq!(client.read().status(), 408);
    assert!(client.closed());
}
