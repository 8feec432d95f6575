//! Handshakes that clients begin and do not finish.

use std::net::SocketAddr;
use std::time::Duration;

use lateen_testkit::envoy::Plane;
use lateen_testkit::tls_client::{Records, hello};
use lateen_testkit::{PATIENCE, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::member::Secured;
use crate::mesh::Mesh;
use crate::secure_gateway::{Secure, TO_REVIEWS, gateway, routes};

on_both!(
    a_gateway_closes_clients_that_do_not_finish_their_handshake,
    a_sidecar_closes_clients_that_do_not_finish_their_handshake,
);

/// Far below [`PATIENCE`], far above what a handshake takes.
const LIMIT: Duration = Duration::from_secs(3);

/// Sends these bytes and no more, and waits for the end of the connection.
async fn is_closed(to: SocketAddr, bytes: &[u8], what: &str) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let reading = async {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    };
    let ended = tokio::time::timeout(PATIENCE, reading).await;
    ended.unwrap_or_else(|_| panic!("{what} is still open"));
}

async fn a_gateway_closes_clients_that_do_not_finish_their_handshake(plane: Plane) {
    let test = "a_gateway_closes_clients_that_do_not_finish_their_handshake";
    let mut mesh = Mesh::start().await;
    mesh.handshake_timeout = LIMIT;
    mesh.restart().await;
    let Some(secure) = Secure::start_in(mesh, plane, test).await else {
        return;
    };
    let pair = secure.authority.issue("server.test", &["server.test"]);
    secure.secret("server", &pair).await;
    let tls = "mode: SIMPLE, credentialName: server";
    let server = gateway("https", 443, "HTTPS", "server.test", tls);
    let all = server + &routes("server.test", "https", TO_REVIEWS);
    secure.mesh.create(&all).await;
    let curl = ["--http1.1"];
    secure
        .answers(secure.https, "server.test", &curl, "200 1.1")
        .await;
    // Who has shaken hands may take his time.
    let mut patient = Records::connect(secure.https, &["http/1.1"]).await;
    is_closed(secure.https, &hello(&["http/1.1"]), "a hello").await;
    if plane == Plane::Lateen {
        is_closed(secure.https, &hello(&[])[..50], "half a hello").await;
    }
    patient
        .send(b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n")
        .await;
    let got = patient
        .receive(|all| all.windows(4).any(|part| part == b"\r\n\r\n"))
        .await;
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    eventually("it is counted", async || {
        let counter = "downstream_cx_transport_socket_connect_timeout";
        match secure.gateway.envoy.stats_ending(counter).await {
            0 => Err("it is not".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

async fn a_sidecar_closes_clients_that_do_not_finish_their_handshake(plane: Plane) {
    let test = "a_sidecar_closes_clients_that_do_not_finish_their_handshake";
    let mut mesh = Secured::start().await;
    mesh.handshake_timeout = LIMIT;
    mesh.restart().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    mesh.distributed(1).await;
    for (to, alpn) in [(cart.http, "istio-http/1.1"), (cart.tcp, "istio")] {
        is_closed(to, &hello(&[alpn]), alpn).await;
        // Envoy waits for the rest for ever, as it does under Istio.
        if plane == Plane::Lateen {
            is_closed(to, &hello(&[alpn])[..50], "half a hello").await;
        }
    }
    cart.gets("cart", "/", 200).await;
}
