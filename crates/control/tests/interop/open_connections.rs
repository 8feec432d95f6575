//! What becomes of connections that are open when something changes that they were let in by: a
//! policy, or the certificate of a proxy that has asked for its configuration.

use std::time::Duration;

use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::authorization::{Guarded, policy};
use crate::member::{Secured, Who};

/// A connection to the TCP port of `front` that has been served.
async fn open(guarded: &Guarded) -> TcpStream {
    let mut stream = TcpStream::connect(guarded.sidecar.tcp).await.unwrap();
    assert_eq!(echoed(&mut stream, "front-tcp\n").await, Ok(()));
    stream
}

/// Whether bytes still come back; `before` is what the server says first.
async fn echoed(stream: &mut TcpStream, before: &str) -> Result<(), String> {
    let expected = format!("{before}hello\n");
    let said = |error: std::io::Error| error.to_string();
    stream.write_all(b"hello\n").await.map_err(said)?;
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).await.map_err(said)?;
    match got == expected.as_bytes() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&got).into_owned()),
    }
}

/// The proxies of tests drain for one second.
const DRAINED: Duration = Duration::from_secs(4);

async fn connections_that_a_new_policy_refuses_end_after_the_drain_time(plane: Plane) {
    let test = "connections_that_a_new_policy_refuses_end_after_the_drain_time";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let denied = "action: DENY, rules: [{to: [{operation: {ports: ['7000']}}]}]";
    guarded.apply("").await;
    let mut kept = open(&guarded).await;
    // What is about others changes nothing here.
    let others = policy("others", denied).replace("app: front", "app: back");
    guarded.mesh.apply(&others).await;
    guarded.mesh.distributed(1).await;
    tokio::time::sleep(DRAINED).await;
    assert_eq!(echoed(&mut kept, "").await, Ok(()));

    guarded.apply(&policy("denied", denied)).await;
    guarded.mesh.distributed(1).await;
    assert!(!guarded.connects().await);
    // Nobody says anything on it: it ends by itself.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), kept.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is still open");
    assert_eq!(rest, b"");

    guarded.mesh.delete(&policy("denied", denied)).await;
    eventually("connections are let in again", async || {
        match guarded.connects().await {
            true => Ok(()),
            false => Err(String::new()),
        }
    })
    .await;
}

/// In our proxy nothing is opened for a client that is refused; Envoy decides at the client's first
/// byte, and a server that speaks first has spoken by then (docs/differences.md).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_client_hears_nothing_of_a_server_that_speaks_first() {
    let test = "a_refused_client_hears_nothing_of_a_server_that_speaks_first";
    let Some(guarded) = Guarded::start(Plane::Lateen, test).await else {
        return;
    };
    let heard = async || {
        let mut stream = TcpStream::connect(guarded.sidecar.tcp).await.unwrap();
        let mut greeting = [0; 10];
        let read = stream.read_exact(&mut greeting).await;
        read.is_ok().then(|| greeting.to_vec())
    };
    // Before its listener knows that the port is TCP, it waits for the client to speak.
    guarded.apply("").await;
    guarded.mesh.distributed(1).await;
    assert_eq!(heard().await, Some(b"front-tcp\n".to_vec()));
    let denied = "action: DENY, rules: [{to: [{operation: {ports: ['7000']}}]}]";
    guarded.apply(&policy("denied", denied)).await;
    guarded.mesh.distributed(1).await;
    assert_eq!(heard().await, None);
}

/// A proxy's stream to the control plane ends with the certificate that it was opened with; the next
/// one shows the certificate that followed, and the proxy goes on being configured.
async fn discovery_streams_end_with_the_certificate_they_were_opened_with(plane: Plane) {
    let test = "discovery_streams_end_with_the_certificate_they_were_opened_with";
    let mesh = Secured::start().await;
    let brief = Who {
        lifetime: Duration::from_secs(8),
        ..Who::named("cart")
    };
    let Some(cart) = mesh.member_as(plane, test, brief).await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    mesh.distributed(2).await;
    let stream_of = async |id: &str| {
        let all = mesh.page("/debug/connections").await;
        let mut all = all.as_array().unwrap().iter();
        let found = all.find(|one| one["proxy"] == id);
        found.map(|one| one["connection"].as_str().unwrap().to_owned())
    };
    let [first, lasting] = eventually("both have a stream", async || {
        let streams = [stream_of(&cart.id).await, stream_of(&shop.id).await];
        match streams.iter().all(Option::is_some) {
            true => Ok(streams),
            false => Err(format!("{streams:?}")),
        }
    })
    .await;
    eventually("another stream of cart", async || {
        match stream_of(&cart.id).await {
            now if now.is_some() && now != first => Ok(()),
            now => Err(format!("{now:?}")),
        }
    })
    .await;
    assert_eq!(stream_of(&shop.id).await, lasting);
    let denied = policy("denied", "action: DENY, rules: [{}]").replace("app: front", "app: cart");
    mesh.apply(&denied).await;
    shop.gets("cart", "/", 403).await;
    mesh.delete(&denied).await;
    shop.gets("cart", "/", 200).await;
}

on_both!(
    connections_that_a_new_policy_refuses_end_after_the_drain_time,
    discovery_streams_end_with_the_certificate_they_were_opened_with,
);
