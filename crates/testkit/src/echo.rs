//! Servers that tell what they were asked.
//!
//! | path | answer |
//! |---|---|
//! | `/status/CODE` | that status |
//! | `/slow/MILLISECONDS` | after that time |
//! | `/flaky/N/...` | 503 to the first N requests with this path, then 200 |
//! | anything else | 200 |
//!
//! The body is always `{"name", "method", "version", "tls", "path", "headers"}`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A server for HTTP/1.1, and for HTTP/2 in plaintext by prior knowledge, that stops when it is
/// dropped.
pub struct Echo {
    pub address: SocketAddr,
    hits: Hits,
    /// Answers every request with this status, unless it is zero.
    forced: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

/// Requests by path without query.
type Hits = Arc<Mutex<HashMap<String, u32>>>;

impl Echo {
    /// A server that calls itself `name`.
    pub async fn start(name: &str) -> Self {
        Self::with(listen().await, name, plain)
    }

    /// The same on a socket that listens already, which does not block.
    pub fn on(listener: std::net::TcpListener, name: &str) -> Self {
        Self::with(take_over(listener), name, plain)
    }

    /// The same over TLS. What was agreed on is in the body under `tls`: `sni`, `alpn`, and whether
    /// the client showed a `certificate`.
    pub async fn over_tls(name: &str, config: Arc<rustls::ServerConfig>) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        Self::with(listen().await, name, move |stream, state| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let agreed = stream.get_ref().1;
                let alpn = agreed.alpn_protocol().map(String::from_utf8_lossy);
                let http2 = alpn.as_deref() == Some("h2");
                let tls = json!({
                    "sni": agreed.server_name(),
                    "alpn": alpn,
                    "certificate": agreed.peer_certificates().is_some(),
                });
                serve(stream, http2, state, tls).await;
            }
        })
    }

    fn with<F: Future<Output = ()> + Send + 'static>(
        (listener, address): (TcpListener, SocketAddr),
        name: &str,
        serve: impl Fn(TcpStream, State) -> F + Send + 'static,
    ) -> Self {
        let state = State {
            name: name.into(),
            hits: Hits::default(),
            forced: Arc::default(),
        };
        let (hits, forced) = (state.hits.clone(), state.forced.clone());
        let task = tokio::spawn(accept(listener, move |stream| serve(stream, state.clone())));
        Echo {
            address,
            hits,
            forced,
            task,
        }
    }

    /// From now on every request is answered with this status; 0 ends it.
    pub fn always(&self, status: u16) {
        self.forced.store(status, Ordering::Relaxed);
    }

    /// How many requests came for any path.
    pub fn all_hits(&self) -> u32 {
        let hits = self.hits.lock().expect("no request panicked");
        hits.values().sum()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many requests came for a path.
    pub fn hits(&self, path: &str) -> u32 {
        let hits = self.hits.lock().expect("no request panicked");
        hits.get(path).copied().unwrap_or_default()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A TCP server that says `name` and a newline first, then returns what it gets.
pub struct TcpEcho {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl TcpEcho {
    pub async fn start(name: &str) -> Self {
        let (listener, address) = listen().await;
        Self::serve(listener, address, name)
    }

    /// The same on a socket that listens already, which does not block.
    pub fn on(listener: std::net::TcpListener, name: &str) -> Self {
        let (listener, address) = take_over(listener);
        Self::serve(listener, address, name)
    }

    fn serve(listener: TcpListener, address: SocketAddr, name: &str) -> Self {
        let greeting = format!("{name}\n");
        let task = tokio::spawn(accept(listener, move |mut stream| {
            let greeting = greeting.clone();
            async move {
                if stream.write_all(greeting.as_bytes()).await.is_err() {
                    return;
                }
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            }
        }));
        TcpEcho { address, task }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    (listener, address)
}

fn take_over(listener: std::net::TcpListener) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::from_std(listener).expect("a socket that does not block");
    let address = listener.local_addr().expect("a bound socket");
    (listener, address)
}

/// Serves every connection in a task of its own, all of which end with this one.
pub(crate) async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream));
            }
            // For want of descriptors, of which other tests of the process may have many.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Whether a connection begins with the preface of HTTP/2.
pub(crate) async fn speaks_http2(stream: &TcpStream) -> bool {
    let mut start = [0; 3];
    // `PRI` is no method of anything else.
    while let Ok(read @ 1..) = stream.peek(&mut start).await {
        if read == start.len() {
            break;
        }
    }
    start == *b"PRI"
}

/// What a server knows of itself.
#[derive(Clone)]
struct State {
    name: Arc<str>,
    hits: Hits,
    forced: Arc<AtomicU16>,
}

/// Serves one connection in plaintext.
async fn plain(stream: TcpStream, state: State) {
    let http2 = speaks_http2(&stream).await;
    serve(stream, http2, state, Value::Null).await;
}

/// Serves one connection to its end.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    state: State,
    tls: Value,
) {
    let service = service_fn(move |request| answer(state.clone(), tls.clone(), request));
    let io = TokioIo::new(stream);
    // A connection that breaks is the client's to notice.
    if http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(io, service).await;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(io, service).await;
    }
}

async fn answer(
    state: State,
    tls: Value,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let State { name, hits, forced } = state;
    let forced = forced.load(Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let hit = {
        let mut hits = hits.lock().expect("no request panicked");
        let count = hits.entry(path.clone()).or_default();
        *count += 1;
        *count
    };
    let mut words = path.split('/').skip(1);
    let (verb, number) = (words.next(), words.next().and_then(|n| n.parse().ok()));
    let status = match (verb, number) {
        _ if forced > 0 => forced,
        (Some("status"), Some(code)) => code,
        (Some("flaky"), Some(failures)) if hit <= u32::from(failures) => 503,
        (Some("slow"), Some(millis)) => {
            tokio::time::sleep(Duration::from_millis(u64::from(millis))).await;
            200
        }
        _ => 200,
    };
    let mut headers = Map::new();
    for header in request.headers().keys() {
        let values = request.headers().get_all(header).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(header.to_string(), Value::from(values.join(",")));
    }
    let body = json!({
        "name": &*name,
        "method": request.method().as_str(),
        "version": format!("{:?}", request.version()),
        "tls": tls,
        "path": request.uri().path_and_query().map(ToString::to_string),
        "headers": headers,
    });
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("x-echo", &*name)
        .header("x-secret", "of the application")
        .body(Full::from(body.to_string()));
    Ok(response.unwrap_or_default())
}
