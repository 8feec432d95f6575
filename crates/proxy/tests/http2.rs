//! HTTP/2 and gRPC through real sockets, in all combinations with HTTP/1.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use bytes::Bytes;
use common::{Proxy, Upstream, eventually, http2_upstream};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// What a message's body came to.
struct Whole {
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

async fn collect(mut recv: h2::RecvStream) -> Result<Whole, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        recv.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(Whole {
        body,
        trailers: recv.trailers().await?,
    })
}

async fn send_all(mut send: h2::SendStream<Bytes>, body: &[u8], trailers: Option<HeaderMap>) {
    let mut rest = Bytes::copy_from_slice(body);
    while !rest.is_empty() {
        send.reserve_capacity(rest.len());
        let Some(Ok(n)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else {
            return;
        };
        let part = rest.split_to(n.min(rest.len()));
        let last = rest.is_empty() && trailers.is_none();
        if send.send_data(part, last).is_err() {
            return;
        }
    }
    if let Some(trailers) = trailers {
        let _ = send.send_trailers(trailers);
    }
}

/// An HTTP/2 server that echoes the request's body, with its own trailers when it was gRPC.
async fn h2_upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            count.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut conn = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, respond))) = conn.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    (address, connections)
}

async fn answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, recv) = request.into_parts();
    if parts.uri.path() == "/refuse" {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        return;
    }
    if parts.uri.path() == "/hang" {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let grpc = parts
        .headers
        .get("content-type")
        .is_some_and(|v| v == "application/grpc");
    let Ok(whole) = collect(recv).await else {
        return;
    };
    let mut response = Response::builder()
        .status(200)
        .header("x-path", parts.uri.path());
    if let Some(authority) = parts.uri.authority() {
        response = response.header("x-authority", authority.as_str());
    }
    if let Some(sum) = whole.trailers.as_ref().and_then(|t| t.get("x-sum")) {
        response = response.header("x-sum", sum);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let end = whole.body.is_empty() && !grpc;
    let Ok(send) = respond.send_response(response.body(()).unwrap(), end) else {
        return;
    };
    if !end {
        send_all(send, &whole.body, grpc.then_some(trailers)).await;
    }
}

async fn client(at: SocketAddr) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(at).await.unwrap();
    let (send, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    send
}

async fn call(
    send: &SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<(Response<()>, Whole), h2::Error> {
    let mut send = send.clone().ready().await?;
    let end = body.is_empty() && trailers.is_none();
    let (response, stream) = send.send_request(request, end)?;
    if !end {
        let body = body.to_vec();
        tokio::spawn(async move { send_all(stream, &body, trailers).await });
    }
    let (parts, recv) = response.await?.into_parts();
    Ok((Response::from_parts(parts, ()), collect(recv).await?))
}

fn get(path: &str) -> Request<()> {
    Request::builder()
        .uri(format!("http://host.example{path}"))
        .body(())
        .unwrap()
}

fn grpc(path: &str) -> Request<()> {
    Request::builder()
        .method("POST")
        .uri(format!("http://host.example{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

async fn proxy_to_http2() -> (Proxy, SocketAddr, Arc<AtomicUsize>) {
    let (up, connections) = h2_upstream().await;
    let (proxy, at) = tokio::task::spawn_blocking(move || {
        Proxy::with(
            json!({}),
            json!({ "cluster": "up" }),
            http2_upstream(),
            &[up],
        )
    })
    .await
    .unwrap();
    (proxy, at, connections)
}

/// `Proxy` waits for its threads when dropped, which must not block the runtime.
async fn done(proxy: Proxy) {
    tokio::task::spawn_blocking(move || drop(proxy))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_to_http2_with_trailers_both_ways() {
    let (proxy, at, connections) = proxy_to_http2().await;
    let send = client(at).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let (head, whole) = call(&send, grpc("/s/M"), b"message", Some(trailers))
        .await
        .unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["x-sum"], "7");
    assert_eq!(head.headers()["x-authority"], "host.example");
    assert_eq!(whole.body, b"message");
    assert_eq!(whole.trailers.unwrap()["grpc-status"], "0");
    let calls = (0..50).map(|i| {
        let send = send.clone();
        tokio::spawn(async move {
            call(&send, get(&format!("/{i}")), b"", None)
                .await
                .unwrap()
                .0
        })
    });
    for (i, call) in calls.enumerate() {
        assert_eq!(call.await.unwrap().headers()["x-path"], format!("/{i}"));
    }
    assert_eq!(connections.load(SeqCst), 1);
    done(proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_to_http2() {
    let (proxy, at, _) = proxy_to_http2().await;
    let (plain, large) = tokio::task::spawn_blocking(move || {
        let plain = common::exchange(
            at,
            "POST /a HTTP/1.1\r\nHost: h:1\r\nConnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
        );
        let body = "x".repeat(1_000_000);
        let large = common::exchange(
            at,
            &format!("POST /a HTTP/1.1\r\nHost: h\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        );
        (plain, large)
    })
    .await
    .unwrap();
    assert_eq!((plain.status(), plain.text().as_str()), (200, "hello"));
    assert_eq!(plain.header("x-authority"), Some("h:1"));
    assert_eq!(plain.header("transfer-encoding"), Some("chunked"));
    assert_eq!(large.body.len(), 1_000_000);
    // An empty body has to be said in HTTP/1, or the client waits for the end of the connection.
    let empty = tokio::task::spawn_blocking(move || {
        let mut client = common::Client::new(at);
        (
            client.get("/a").header("content-length") == Some("0"),
            client.get("/b").status(),
        )
    });
    assert_eq!(empty.await.unwrap(), (true, 200));
    done(proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_to_http1() {
    let up = Upstream::echo();
    let (proxy, at) = tokio::task::spawn_blocking(move || Proxy::simple(&[up.address]))
        .await
        .unwrap();
    let send = client(at).await;
    let (head, whole) = call(&send, get("/x?y=z"), b"", None).await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["server"], "envoy");
    let text = String::from_utf8(whole.body).unwrap();
    assert!(
        text.starts_with("GET /x?y=z HTTP/1.1\r\nhost: host.example\r\n"),
        "{text}"
    );
    let request = Request::builder()
        .method("POST")
        .uri("http://h/")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(())
        .unwrap();
    let (_, whole) = call(&send, request, b"body of unknown length", None)
        .await
        .unwrap();
    let text = String::from_utf8(whole.body).unwrap();
    assert!(
        text.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{text}"
    );
    assert!(text.contains("\r\ncookie: a=1; b=2\r\n"), "{text}");
    assert!(text.ends_with("body of unknown length"), "{text}");
    done(proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_within_the_windows() {
    let (proxy, at, _) = proxy_to_http2().await;
    let send = client(at).await;
    let body: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let (_, whole) = call(&send, get("/"), &body, None).await.unwrap();
    assert!(whole.body == body);
    done(proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_errors_of_the_proxy_are_trailers_only() {
    let (proxy, at, _) = proxy_to_http2().await;
    let send = client(at).await;
    let (head, whole) = call(&send, grpc("/refuse"), b"m", None).await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["grpc-status"], "14");
    assert!(
        head.headers()["grpc-message"]
            .to_str()
            .unwrap()
            .contains("refused stream")
    );
    assert!(whole.body.is_empty() && whole.trailers.is_none());
    let (head, _) = call(&send, get("/refuse"), b"", None).await.unwrap();
    assert_eq!(head.status(), 503);
    done(proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_client_cancels_the_upstream_request() {
    let (proxy, at, _) = proxy_to_http2().await;
    let mut send = client(at).await.ready().await.unwrap();
    let (response, mut stream) = send.send_request(get("/hang"), true).unwrap();
    lateen_testkit::eventually("the request is at the upstream", async || {
        let counted = ["active", "pending_active"].map(|n| proxy.stat(&format!("upstream_rq_{n}")));
        match counted {
            [1, 0] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    let proxy = tokio::task::spawn_blocking(move || {
        eventually("it is cancelled", || {
            proxy.stat("upstream_rq_cancelled") == 1
        });
        eventually("nothing is active", || proxy.workers.active_requests() == 0);
        proxy
    })
    .await
    .unwrap();
    done(proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_sends_goaway_and_lets_streams_finish() {
    let (proxy, at, _) = proxy_to_http2().await;
    let tcp = TcpStream::connect(at).await.unwrap();
    let (mut send, connection) = h2::client::handshake(tcp).await.unwrap();
    let ended = tokio::spawn(connection);
    send = send.ready().await.unwrap();
    let (response, mut stream) = send.send_request(get("/"), false).unwrap();
    lateen_testkit::eventually("the request is there", async || {
        match proxy.workers.active_requests() {
            1 => Ok(()),
            other => Err(format!("{other} requests")),
        }
    })
    .await;
    proxy.workers.set_draining(true);
    proxy.workers.flush().await;
    // Time for the word to get to the client, without which the test proves less.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.send_data(Bytes::from_static(b"late"), true).unwrap();
    let whole = collect(response.await.unwrap().into_body()).await.unwrap();
    assert_eq!(whole.body, b"late");
    // The connection ends by itself although the client still holds it.
    tokio::time::timeout(common::PATIENCE, ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(send.ready().await.is_err());
    done(proxy).await;
}

#[test]
fn a_client_that_says_nothing_is_not_waited_for_longer_than_it_may_idle() {
    let manager = json!({
        "codec_type": "HTTP2",
        "common_http_protocol_options": { "idle_timeout": "0.2s" },
    });
    let (_proxy, at) = Proxy::with(manager, json!({ "cluster": "up" }), json!({}), &[]);
    for said in ["", "PRI * HTTP/2.0\r\n"] {
        let mut client = common::Client::new(at);
        client.send(said);
        // What comes are settings at most, and then the end.
        let _ = client.rest();
        assert!(client.closed(), "{said:?}");
    }
}
