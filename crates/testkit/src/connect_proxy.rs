//! An HTTP proxy that opens tunnels, by CONNECT and by POST, over HTTP/1.1 and over HTTP/2 by prior
//! knowledge, and remembers who asked for what.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use ::http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::echo::{accept, listen, speaks_http2};

/// A proxy that stops when it is dropped. It answers 403 for what it has no address for.
pub struct ConnectProxy {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Where the names lead.
    targets: Mutex<HashMap<String, SocketAddr>>,
    /// `METHOD AUTHORITY` of each request, and `HTTP/2` where it came so.
    asked: Mutex<Vec<String>>,
}

impl ConnectProxy {
    /// A proxy that leads nowhere yet.
    pub async fn start() -> ConnectProxy {
        let (listener, address) = listen().await;
        let state = Arc::new(State::default());
        let shared = state.clone();
        let task = tokio::spawn(accept(listener, move |stream| {
            serve(stream, shared.clone())
        }));
        ConnectProxy {
            address,
            state,
            task,
        }
    }

    /// From now on `HOST:PORT` leads to an address, or nowhere.
    pub fn lead(&self, name: &str, to: Option<SocketAddr>) {
        let mut targets = self.state.targets.lock().expect("no request panicked");
        match to {
            Some(to) => targets.insert(name.to_owned(), to),
            None => targets.remove(name),
        };
    }

    /// `METHOD AUTHORITY` of the requests so far, and `HTTP/2` where one came so.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.state.asked.lock().expect("no request panicked");
        asked.clone()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| answer(state.clone(), request));
    if speaks_http2(&stream).await {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
        return;
    }
    let server = hyper::server::conn::http1::Builder::new();
    let serving = server.serve_connection(TokioIo::new(stream), service);
    // A connection that breaks is the client's to notice.
    let _ = serving.with_upgrades().await;
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Received>, Infallible> {
    let method = request.method().clone();
    let host = request.headers().get("host");
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => host.to_owned(),
    };
    let found = {
        let mut asked = state.asked.lock().expect("no request panicked");
        asked.push(match request.version() {
            Version::HTTP_2 => format!("{method} {name} HTTP/2"),
            _ => format!("{method} {name}"),
        });
        let targets = state.targets.lock().expect("no request panicked");
        targets.get(&name).copied()
    };
    let connected = match found {
        Some(target) => TcpStream::connect(target).await.ok(),
        None => None,
    };
    let (to_client, body) = mpsc::channel(4);
    let mut response = Response::new(Received(body));
    match connected {
        None => *response.status_mut() = StatusCode::FORBIDDEN,
        Some(target) if method == Method::CONNECT => {
            tokio::spawn(through_connect(request, target));
        }
        Some(target) => {
            tokio::spawn(through_post(request, target, to_client));
        }
    }
    Ok(response)
}

async fn through_connect(request: Request<Incoming>, mut target: TcpStream) {
    let Ok(client) = hyper::upgrade::on(request).await else {
        return;
    };
    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut target).await;
}

async fn through_post(
    request: Request<Incoming>,
    target: TcpStream,
    to_client: mpsc::Sender<Bytes>,
) {
    let (mut read, mut write) = target.into_split();
    let sending = async {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            let data = frame.into_data().unwrap_or_default();
            if write.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let receiving = async {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            let piece = Bytes::copy_from_slice(&buffer[..n]);
            if to_client.send(piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(sending, receiving);
}

/// A body as it comes from somewhere else.
struct Received(mpsc::Receiver<Bytes>);

impl Body for Received {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(cx);
        next.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
