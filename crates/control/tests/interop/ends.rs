//! How connections end while requests are on their way, and what others notice of it.

use std::sync::Arc;

use lateen_testkit::certificates::Authority;
use lateen_testkit::envoy::Plane;
use lateen_testkit::tls_client::Records;
use lateen_testkit::{PATIENCE, eventually};
use serde_json::json;
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::fixed::{Fixed, head, tls};
use crate::frames::{SETTINGS, frame, get};

on_both!(a_client_that_ends_its_side_gets_no_answer);

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";

/// An application that answers no request before it is told to.
struct Held {
    port: u16,
    answers: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Held {
    async fn start() -> Held {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(Semaphore::new(0));
        let may = answers.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let may = may.clone();
                tokio::spawn(async move {
                    while !head(&mut stream).await.is_empty() {
                        may.acquire().await.unwrap().forget();
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Held {
            port,
            answers,
            task,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a client says that nothing more will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// By the end of the TCP stream.
    End,
    /// By TLS.
    Notify,
    Both,
    /// It does not.
    Nothing,
}

/// What a client gets that ends its side with its request.
async fn encrypted(to: std::net::SocketAddr, says: Says) -> Vec<u8> {
    let mut client = Records::connect(to, &[]).await;
    match says {
        Says::Notify | Says::Both => client.send_last(GET).await,
        Says::End | Says::Nothing => client.send(GET).await,
    }
    if matches!(says, Says::End | Says::Both) {
        client.shutdown().await;
    }
    let received = client.receive(|all| all.ends_with(b"hello"));
    let received = tokio::time::timeout(PATIENCE, received).await;
    received.unwrap_or_else(|_| panic!("{says:?}: neither answer nor end"))
}

async fn plain(to: std::net::SocketAddr, bytes: &[u8], says: Says) -> Vec<u8> {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(bytes).await.unwrap();
    if says == Says::End {
        client.shutdown().await.unwrap();
    }
    let mut all = Vec::new();
    let reading = async {
        while !all.ends_with(b"hello") && client.read_buf(&mut all).await.is_ok_and(|n| n > 0) {}
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    read.unwrap_or_else(|_| panic!("{says:?}: neither answer nor end"));
    all
}

async fn a_client_that_ends_its_side_gets_no_answer(plane: Plane) {
    let test = "a_client_that_ends_its_side_gets_no_answer";
    let Some(binary) = plane.binary(test) else {
        return;
    };
    let app = Held::start().await;
    let pair = Authority::new("authority").issue("server.test", &["server.test"]);
    let start = async |chain| {
        let command = Command::new(&binary);
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]);
        let clusters = [("app", app.port)];
        Fixed::start_by(command, &binary, test, chain, json!({}), routes, &clusters).await
    };
    let (over_tls, open) = (start(tls(&pair, &[])).await, start(json!({})).await);
    // The application holds every answer back, so nothing but the proxy ends these connections.
    for says in [Says::End, Says::Notify, Says::Both] {
        let got = encrypted(over_tls.http, says).await;
        assert_eq!(String::from_utf8_lossy(&got), "", "{says:?}");
    }
    let got = plain(open.http, GET, Says::End).await;
    assert_eq!(String::from_utf8_lossy(&got), "");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let bytes = [&preface[..], &frame(SETTINGS, 0, 0, &[]), &get(1)].concat();
    let got = plain(open.http, &bytes, Says::End).await;
    // Settings and the like, but no first entry of `:status 200`.
    assert!(!got.windows(5).any(|part| part == b"hello"), "{got:?}");
    // Their requests have been given up.
    for proxy in [&over_tls, &open] {
        eventually("no request is left", async || {
            match proxy.proxy.stat("cluster.app.upstream_rq_active").await {
                0 => Ok(()),
                left => Err(left.to_string()),
            }
        })
        .await;
    }
    // One that keeps its side open gets its answer.
    app.answers.add_permits(1000);
    let got = encrypted(over_tls.http, Says::Nothing).await;
    assert!(got.ends_with(b"hello"), "{got:?}");
    let got = plain(open.http, GET, Says::Nothing).await;
    assert!(got.ends_with(b"hello"), "{got:?}");
}
