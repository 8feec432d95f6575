//! CONNECT and upgrades, over HTTP/1.1 and HTTP/2: passed on, ended at the proxy, refused.

use lateen_testkit::envoy::Plane;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixed::{Fixed, answers, head};

on_both!(
    a_connect_ends_at_the_proxy_where_the_route_says_so,
    a_connect_is_passed_on_to_a_proxy_that_takes_it,
    a_websocket_over_http2_becomes_an_upgrade_of_http1,
    a_websocket_over_http1_becomes_an_extended_connect_of_http2,
    an_offer_of_http2_is_ignored,
);

fn connect_route(cluster: &str, connect_config: Option<Value>) -> Value {
    let mut upgrade = json!({"upgrade_type": "CONNECT"});
    if let Some(config) = connect_config {
        upgrade["connect_config"] = config;
    }
    json!({
        "match": {"connect_matcher": {}},
        "route": {"cluster": cluster, "upgrade_configs": [upgrade]},
    })
}

async fn connect_over_http1(proxy: &Fixed, rest: &str) -> (TcpStream, String) {
    let mut stream = proxy.connect().await;
    let request = format!("CONNECT db.test:3306 HTTP/1.1\r\nHost: db.test:3306\r\n\r\n{rest}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await;
    (stream, answer)
}

/// Sends three rounds through a tunnel that returns what it gets.
async fn echoes(stream: &mut TcpStream) {
    let mut back = vec![0; 100_000];
    for round in 1..4u8 {
        let sent = vec![round; back.len()];
        let (mut read, mut write) = stream.split();
        let (wrote, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        wrote.unwrap();
        got.unwrap();
        assert!(back == sent);
    }
}

async fn a_connect_ends_at_the_proxy_where_the_route_says_so(plane: Plane) {
    let test = "a_connect_ends_at_the_proxy_where_the_route_says_so";
    let (port, task) = answers("").await;
    let routes = |route: Value| json!([route, {"match": {"prefix": "/"}, "direct_response": {"status": 200}}]);
    let h2 = json!({"http2_protocol_options": {"allow_connect": true}});
    let route = routes(connect_route("raw", Some(json!({}))));
    let Some(proxy) = Fixed::start(plane, test, h2.clone(), route, &[("raw", port)]).await else {
        return;
    };
    // `answers` reads up to an empty line first, then returns what it gets.
    let (mut stream, answer) = connect_over_http1(&proxy, "early\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("content-length"), "{answer}");
    echoes(&mut stream).await;
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_or(0), 0);

    let mut client = proxy.http2().await;
    let mut tunnel = client.tunnel("db.test:3306", None).await.unwrap();
    assert_eq!(tunnel.status, 200);
    tunnel.write(b"early\r\n\r\nhello", false);
    assert_eq!(tunnel.read(5).await, b"hello");
    tunnel.write(b"more", true);
    assert_eq!(tunnel.read(4).await, b"more");
    task.abort();

    // A route that is there for it but does not allow it; a cluster where nobody listens; no route.
    let mut refusing = connect_route("raw", Some(json!({})));
    refusing["route"]["upgrade_configs"][0]["enabled"] = json!(false);
    let closed = lateen_testkit::ports::reserve();
    for (route, status) in [
        (refusing, "HTTP/1.1 403"),
        (connect_route("closed", Some(json!({}))), "HTTP/1.1 503"),
        (
            json!({"match": {"path": "/x"}, "route": {"cluster": "raw"}}),
            "HTTP/1.1 404",
        ),
    ] {
        let clusters = [("raw", port), ("closed", closed)];
        let proxy = Fixed::start(plane, test, h2.clone(), routes(route), &clusters)
            .await
            .unwrap();
        let (mut stream, answer) =
            connect_over_http1(&proxy, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with(status), "{status}: {answer}");
        // What came behind it is no request.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(
            !String::from_utf8_lossy(&rest).contains("HTTP/1.1"),
            "{status}"
        );
        let mut client = proxy.http2().await;
        let answer = client.tunnel("db.test:3306", None).await.unwrap();
        assert_eq!(answer.status.to_string(), status[9..]);
    }
}

async fn a_connect_is_passed_on_to_a_proxy_that_takes_it(plane: Plane) {
    let test = "a_connect_is_passed_on_to_a_proxy_that_takes_it";
    let (yes, yes_task) = answers("HTTP/1.1 200 OK\r\nx-got: {got}\r\n\r\n").await;
    let no =
        "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\nx-got: {got}\r\n\r\nno";
    let (no, no_task) = answers(no).await;
    let h2 = json!({"http2_protocol_options": {"allow_connect": true}});
    let routes = |cluster| json!([connect_route(cluster, None)]);
    let clusters = [("yes", yes), ("no", no)];
    let Some(proxy) = Fixed::start(plane, test, h2.clone(), routes("yes"), &clusters).await else {
        return;
    };
    let (mut stream, answer) = connect_over_http1(&proxy, "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("x-got: CONNECT db.test:3306 HTTP/1.1|"),
        "{answer}"
    );
    echoes(&mut stream).await;
    let mut client = proxy.http2().await;
    let mut tunnel = client.tunnel("db.test:3306", None).await.unwrap();
    assert_eq!(tunnel.status, 200);
    tunnel.write(b"hello", false);
    assert_eq!(tunnel.read(5).await, b"hello");

    let proxy = Fixed::start(plane, test, h2, routes("no"), &clusters)
        .await
        .unwrap();
    let (_, answer) = connect_over_http1(&proxy, "").await;
    assert!(answer.starts_with("HTTP/1.1 407"), "{answer}");
    let mut client = proxy.http2().await;
    let mut tunnel = client.tunnel("db.test:3306", None).await.unwrap();
    assert_eq!(tunnel.status, 407);
    assert_eq!(tunnel.read(2).await, b"no");
    yes_task.abort();
    no_task.abort();
}

const SWITCHES: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
     connection: upgrade\r\nx-got: {got}\r\n\r\n";

async fn a_websocket_over_http2_becomes_an_upgrade_of_http1(plane: Plane) {
    let test = "a_websocket_over_http2_becomes_an_upgrade_of_http1";
    let (port, task) = answers(SWITCHES).await;
    let manager = |connect: bool| {
        json!({
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http2_protocol_options": {"allow_connect": connect},
        })
    };
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]);
    let clusters = [("app", port)];
    let Some(proxy) = Fixed::start(plane, test, manager(true), routes.clone(), &clusters).await
    else {
        return;
    };
    let mut client = proxy.http2().await;
    let mut tunnel = client
        .tunnel("http://app.test/chat?room=1", Some("websocket"))
        .await
        .unwrap();
    assert_eq!(tunnel.status, 200);
    let got = tunnel.headers["x-got"]
        .to_str()
        .unwrap()
        .to_ascii_lowercase();
    for part in [
        "get /chat?room=1 http/1.1|",
        "upgrade: websocket",
        "connection: upgrade",
        "x-tunnel: yes",
    ] {
        assert!(got.contains(part), "{part}: {got}");
    }
    assert!(
        !got.contains("content-length") && !got.contains("transfer-encoding"),
        "{got}"
    );
    for gone in ["upgrade", "connection", "content-length"] {
        assert!(
            !tunnel.headers.contains_key(gone),
            "{gone}: {:?}",
            tunnel.headers
        );
    }
    for round in 0..3u8 {
        let sent = vec![round; 10_000];
        tunnel.write(&sent, false);
        assert_eq!(tunnel.read(sent.len()).await, sent);
    }
    // What is no websocket is not let through.
    let refused = client
        .tunnel("http://app.test/chat", Some("irc"))
        .await
        .unwrap();
    assert_eq!(refused.status, 403);
    // And where it is not switched on, the stream is malformed.
    let proxy = Fixed::start(plane, test, manager(false), routes, &clusters)
        .await
        .unwrap();
    let mut client = proxy.http2().await;
    let refused = client
        .tunnel("http://app.test/chat", Some("websocket"))
        .await;
    assert!(refused.is_err(), "{}", refused.unwrap().status);
    task.abort();
}

/// An HTTP/2 server that takes extended CONNECT and returns what it gets.
async fn http2_server(extended: bool) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                if extended {
                    builder.enable_connect_protocol();
                }
                let Ok(mut connection) = builder.handshake::<_, bytes::Bytes>(stream).await else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let protocol = request.extensions().get::<h2::ext::Protocol>();
                        let protocol = protocol.map_or("none", |p| p.as_str());
                        let got = format!("{} {} {protocol}", request.method(), request.uri());
                        let response = http::Response::builder()
                            .header("x-got", got)
                            .body(())
                            .unwrap();
                        let mut send = respond.send_response(response, false).unwrap();
                        let mut recv = request.into_body();
                        while let Some(Ok(data)) = recv.data().await {
                            let _ = recv.flow_control().release_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        let _ = send.send_data(bytes::Bytes::new(), true);
                    });
                }
            });
        }
    });
    (port, task)
}

async fn a_websocket_over_http1_becomes_an_extended_connect_of_http2(plane: Plane) {
    let test = "a_websocket_over_http1_becomes_an_extended_connect_of_http2";
    let (takes, takes_task) = http2_server(true).await;
    let (refuses, refuses_task) = http2_server(false).await;
    let manager = json!({
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http2_protocol_options": {"allow_connect": true},
    });
    let routes = json!([
        {"match": {"prefix": "/no"}, "route": {"cluster": "refuses-h2"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "takes-h2"}},
    ]);
    let clusters = [("takes-h2", takes), ("refuses-h2", refuses)];
    let Some(proxy) = Fixed::start(plane, test, manager, routes, &clusters).await else {
        return;
    };
    let ask = async |path: &str| {
        let mut stream = proxy.connect().await;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = head(&mut stream).await.to_ascii_lowercase();
        (stream, answer)
    };
    let (mut stream, answer) = ask("/chat").await;
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    for part in [
        "upgrade: websocket",
        "connection: upgrade",
        "app.test/chat websocket",
    ] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    assert!(answer.contains("x-got: connect "), "{answer}");
    echoes(&mut stream).await;
    let mut client = proxy.http2().await;
    let mut tunnel = client
        .tunnel("http://app.test/two", Some("websocket"))
        .await
        .unwrap();
    assert_eq!(tunnel.status, 200);
    tunnel.write(b"hello", true);
    assert_eq!(tunnel.read(5).await, b"hello");

    let (_, answer) = ask("/no").await;
    assert!(answer.starts_with("http/1.1 50"), "{answer}");
    takes_task.abort();
    refuses_task.abort();
}

/// As Envoy: `Upgrade: h2c` is taken off the request, which is answered in HTTP/1.1.
async fn an_offer_of_http2_is_ignored(plane: Plane) {
    let test = "an_offer_of_http2_is_ignored";
    let (port, task) = answers(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\nx-got: {got}\r\n\r\n",
    )
    .await;
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]);
    let upgrades = json!({"upgrade_configs": [{"upgrade_type": "websocket"}]});
    let Some(proxy) = Fixed::start(plane, test, upgrades, routes, &[("app", port)]).await else {
        return;
    };
    let mut stream = proxy.connect().await;
    let request = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = head(&mut stream).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        for gone in ["upgrade", "http2-settings"] {
            assert!(!answer.contains(gone), "{gone}: {answer}");
        }
    }
    task.abort();
}
