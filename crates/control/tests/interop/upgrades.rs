//! Protocol upgrades through a gateway: WebSocket on every route, nothing else.

use std::net::SocketAddr;

use lateen_testkit::envoy::Plane;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::mesh::{service, workload};
use crate::requests::gateway_with;

/// A server that agrees to every upgrade of `/yes`, then returns what it gets.
async fn upgrading() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let head = head(&mut stream).await;
                if !head.contains("upgrade: websocket") || !head.contains("/yes") {
                    let no = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
                    let _ = stream.write_all(no.as_bytes()).await;
                    return;
                }
                let yes = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                     connection: Upgrade\r\nsec-websocket-accept: abc\r\n\r\n";
                stream.write_all(yes.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, task)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

async fn ask(to: SocketAddr, path: &str, upgrade: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: upgrade.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {upgrade}\r\n\
         Sec-WebSocket-Key: dGVzdA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    (stream, head)
}

async fn websockets_pass_on_every_route_and_other_upgrades_on_none(plane: Plane) {
    let test = "websockets_pass_on_every_route_and_other_upgrades_on_none";
    let rules = "
  - match: [{uri: {prefix: /split}}]
    rewrite: {uri: /}
    route: [{destination: {host: upgrading}, weight: 1}, {destination: {host: upgrading}, weight: 1}]
  - timeout: 3s
    route: [{destination: {host: upgrading}}]";
    let Some((mesh, gateway, _reviews)) =
        gateway_with(plane, test, &[("upgrade.test", rules)]).await
    else {
        return;
    };
    let (address, task) = upgrading().await;
    let objects = service("upgrading", "http", 80);
    mesh.create(&(objects + &workload("upgrading", "v1", "http", address.port())))
        .await;
    mesh.distributed(1).await;
    lateen_testkit::settles("the service is there", async || {
        match gateway.get("upgrade.test", "/").await.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;

    for path in ["/yes", "/split/yes"] {
        let (mut stream, head) = ask(gateway.http, path, "websocket").await;
        assert!(head.starts_with("http/1.1 101"), "{path}: {head}");
        for name in [
            "upgrade: websocket",
            "connection: upgrade",
            "sec-websocket-accept: abc",
        ] {
            assert!(head.contains(name), "{path}: {head}");
        }
        // Longer than the route's timeout, which ends with the upgrade.
        if path == "/yes" {
            tokio::time::sleep(std::time::Duration::from_millis(3300)).await;
        }
        let mut back = vec![0; 100_000];
        for round in 0..3u8 {
            let sent = vec![round; back.len()];
            let (mut read, mut write) = stream.split();
            let (wrote, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
            wrote.unwrap();
            got.unwrap();
            assert!(back == sent, "{path}");
        }
        // Half-closing one side ends the tunnel when the other side has closed too.
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut back).await.unwrap_or(0), 0, "{path}");
    }
    // The service declines: an ordinary answer.
    let (_, declined) = ask(gateway.http, "/no", "websocket").await;
    assert!(declined.starts_with("http/1.1 200"), "{declined}");
    let (_, refused) = ask(gateway.http, "/yes", "irc").await;
    assert!(refused.starts_with("http/1.1 403"), "{refused}");
    task.abort();
}

/// A tunnel is served by what let it in, and not for ever when that is no more.
async fn a_websocket_ends_after_the_drain_time_when_a_policy_has_come(plane: Plane) {
    let test = "a_websocket_ends_after_the_drain_time_when_a_policy_has_come";
    let rules = "\n  - route: [{destination: {host: upgrading}}]";
    let Some((mesh, gateway, _reviews)) =
        gateway_with(plane, test, &[("upgrade.test", rules)]).await
    else {
        return;
    };
    let (address, task) = upgrading().await;
    let objects = service("upgrading", "http", 80);
    mesh.create(&(objects + &workload("upgrading", "v1", "http", address.port())))
        .await;
    mesh.distributed(1).await;
    lateen_testkit::settles("the service is there", async || {
        match gateway.get("upgrade.test", "/").await.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let echoes = async |stream: &mut TcpStream| {
        let mut back = [0; 5];
        stream.write_all(b"hello").await.is_ok()
            && stream.read_exact(&mut back).await.is_ok()
            && &back == b"hello"
    };
    let policy = |selector: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: denied, namespace: istio-system}}\n\
             spec: {{selector: {{matchLabels: {{istio: {selector}}}}}, action: DENY, \
             rules: [{{to: [{{operation: {{paths: [/denied]}}}}]}}]}}\n"
        )
    };
    let (mut stream, head) = ask(gateway.http, "/yes", "websocket").await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    // What is about others ends nothing.
    mesh.apply(&policy("another")).await;
    mesh.distributed(1).await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert!(echoes(&mut stream).await);

    mesh.apply(&policy("ingressgateway")).await;
    let mut rest = Vec::new();
    let limit = std::time::Duration::from_secs(30);
    let ended = tokio::time::timeout(limit, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is still open");
    assert_eq!(rest, b"");
    // Another is let in by what counts now.
    let (mut stream, head) = ask(gateway.http, "/yes", "websocket").await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(echoes(&mut stream).await);
    task.abort();
}

on_both!(
    websockets_pass_on_every_route_and_other_upgrades_on_none,
    a_websocket_ends_after_the_drain_time_when_a_policy_has_come,
);
