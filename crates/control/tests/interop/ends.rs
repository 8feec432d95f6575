//! How connections end while requests are on their way, and what others notice of it.

use std::sync::Arc;

use lateen_testkit::certificates::Authority;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::tls_client::Records;
use lateen_testkit::{PATIENCE, eventually, settles};
use serde_json::json;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::fixed::{Fixed, head, tls};
use crate::frames::{SETTINGS, WINDOW_UPDATE, frame, get, get_path};

on_both!(
    a_client_that_ends_its_side_gets_no_answer,
    unfinished_requests_hold_nobody_up,
    slow_readers_of_large_answers_cost_little_and_hold_nobody_up,
    clients_that_reset_their_connections_leave_nothing_behind,
);

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

/// Bytes of a large answer.
const LARGE: usize = 32 << 20;
/// Slow readers over each protocol.
const SLOW: u32 = 24;

/// An application that reads requests to their end, and whose answer to `/large` is large.
async fn generous() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                loop {
                    let asked = head(&mut stream).await;
                    let lower = asked.to_lowercase();
                    let mut lines = lower.lines();
                    let body = lines.find_map(|line| line.strip_prefix("content-length: "));
                    let body = body.map_or(0, |length| length.parse().unwrap());
                    if stream.read_exact(&mut vec![0; body]).await.is_err() {
                        return;
                    }
                    let length = match asked.split(' ').nth(1) {
                        None => return,
                        Some("/large") => LARGE,
                        Some(_) => 5,
                    };
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    let piece = [b'x'; 65_536];
                    let mut left = length;
                    while left > 0 {
                        let next = left.min(piece.len());
                        if stream.write_all(&piece[..next]).await.is_err() {
                            return;
                        }
                        left -= next;
                    }
                }
            });
        }
    });
    (port, task)
}

async fn unfinished_requests_hold_nobody_up(plane: Plane) {
    let test = "unfinished_requests_hold_nobody_up";
    let (port, app) = generous().await;
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}]);
    let Some(proxy) = Fixed::start(plane, test, json!({}), routes, &[("app", port)]).await else {
        return;
    };
    let call = Call::get("app.test", "/");
    assert_eq!(call.send(proxy.http).await.unwrap().status, 200);
    let before = proxy.proxy.resident();
    let half = b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 10000\r\n\r\n";
    let half = [&half[..], &[b'x'; 5000]].concat();
    let mut unfinished = Vec::new();
    for _ in 0..500 {
        let mut stream = proxy.connect().await;
        stream.write_all(&half).await.unwrap();
        unfinished.push(stream);
    }
    for _ in 0..30 {
        let answer = call.send(proxy.http).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let grown = proxy.proxy.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    // One that goes on after all is answered.
    let mut late = unfinished.pop().unwrap();
    late.write_all(&[b'x'; 5000]).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, head(&mut late))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop((unfinished, late));
    nothing_is_left(&proxy).await;
    app.abort();
}

/// Asks for many large answers on one connection, with all the window that there is.
async fn ask_over_http2(proxy: &Fixed) -> TcpStream {
    const WINDOW: u32 = 0x7fff_0000;
    let mut stream = proxy.connect().await;
    let window = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &window));
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes()));
    for number in 0..SLOW {
        bytes.extend(get_path(2 * number + 1, "/large"));
    }
    stream.write_all(&bytes).await.unwrap();
    stream
}

async fn slow_readers_of_large_answers_cost_little_and_hold_nobody_up(plane: Plane) {
    let test = "slow_readers_of_large_answers_cost_little_and_hold_nobody_up";
    let (port, app) = generous().await;
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}]);
    let Some(proxy) = Fixed::start(plane, test, json!({}), routes, &[("app", port)]).await else {
        return;
    };
    let call = Call::get("app.test", "/");
    assert_eq!(call.send(proxy.http).await.unwrap().status, 200);
    let before = proxy.proxy.resident();
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = proxy.connect().await;
        let request = b"GET /large HTTP/1.1\r\nHost: app.test\r\n\r\n";
        stream.write_all(request).await.unwrap();
        slow.push(stream);
    }
    let over_http2 = ask_over_http2(&proxy).await;
    eventually("all of them are asked", async || {
        match proxy.proxy.stat("cluster.app.upstream_rq_active").await {
            all if all >= u64::from(2 * SLOW) => Ok(()),
            some => Err(some.to_string()),
        }
    })
    .await;
    for _ in 0..30 {
        assert_eq!(call.send(proxy.http).await.unwrap().status, 200);
    }
    let grown = proxy.proxy.resident().saturating_sub(before);
    // Of 1.5 GB that are asked for. Envoy keeps up to two MB for an answer.
    assert!(grown < 160 << 20, "{grown} bytes more");
    // One that reads on after all gets everything.
    let mut reader = slow.pop().unwrap();
    let mut got = 0;
    let mut buffer = vec![0; 65_536];
    while got < LARGE {
        let read = tokio::time::timeout(PATIENCE, reader.read(&mut buffer)).await;
        match read.expect("more of the answer").unwrap() {
            0 => break,
            n => got += n,
        }
    }
    assert!(got >= LARGE, "{got} bytes");
    drop((slow, over_http2, reader));
    nothing_is_left(&proxy).await;
    app.abort();
}

async fn nothing_is_left(proxy: &Fixed) {
    eventually("no request is left", async || {
        let stats = proxy.proxy.stats().await;
        let left = |name: &str| stats.get(name).copied().unwrap_or_default();
        let requests = left("cluster.app.upstream_rq_active");
        match (requests, left("http.fixed.downstream_cx_active")) {
            (0, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn clients_that_reset_their_connections_leave_nothing_behind(plane: Plane) {
    let test = "clients_that_reset_their_connections_leave_nothing_behind";
    let app = Held::start().await;
    let routes = json!([
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 200}},
        {"match": {"prefix": "/"}, "route": {"cluster": "app"}},
    ]);
    let Some(proxy) = Fixed::start(plane, test, json!({}), routes, &[("app", app.port)]).await
    else {
        return;
    };
    let call = Call::get("app.test", "/direct");
    assert_eq!(call.send(proxy.http).await.unwrap().status, 200);
    let before = proxy.proxy.resident();
    let beginnings = [&b""[..], &GET[..20], GET, &[GET, GET].concat()];
    for round in 0..100 {
        let mut streams = Vec::new();
        for bytes in beginnings {
            let mut stream = proxy.connect().await;
            stream.set_zero_linger().unwrap();
            stream.write_all(bytes).await.unwrap();
            streams.push(stream);
        }
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(streams);
        if round % 10 == 0 {
            assert_eq!(call.send(proxy.http).await.unwrap().status, 200);
        }
    }
    nothing_is_left(&proxy).await;
    let grown = proxy.proxy.resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more");
}

/// Stock Envoy aborts where it gets no descriptor for a connection to an upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_our_proxy_waits_and_then_serves_again() {
    let test = "without_descriptors_our_proxy_waits_and_then_serves_again";
    let Some(binary) = Plane::Lateen.binary(test) else {
        return;
    };
    let app = Held::start().await;
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 96; exec \"$0\" \"$@\""]);
    command.arg(&binary);
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]);
    let clusters = [("app", app.port)];
    let chain = json!({});
    let proxy = Fixed::start_by(command, &binary, test, chain, json!({}), routes, &clusters).await;
    let mut held = Vec::new();
    for _ in 0..150 {
        let mut stream = proxy.connect().await;
        stream.write_all(GET).await.unwrap();
        held.push(stream);
    }
    // Some are refused for want of a connection to the application, or wait to be accepted.
    eventually("descriptors are missing", async || {
        let log = proxy.proxy.log();
        match log.contains("cannot accept a connection") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    drop(held);
    app.answers.add_permits(100_000);
    let call = Call::get("app.test", "/");
    settles("requests are served again", async || {
        let answered = tokio::time::timeout(Duration::from_secs(5), call.send(proxy.http)).await;
        match answered.map_err(|_| "no answer".to_owned())??.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    nothing_is_left(&proxy).await;
}
