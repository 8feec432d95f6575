//! Connections of the control plane's ports, and the HTTP/1 servers: the configuration API and
//! monitoring.
//!
//! Invariant: who connects and says nothing, or not enough, holds a connection for a limited time,
//! and there are no more connections than so many.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::Service as _;

use crate::plane::gone;

/// TCP connections of one port at one time. Watches are among them.
const CONNECTIONS: usize = 20_000;

/// Accepts connections until `leaving`, and lets open requests end. The head of a request has to
/// be complete `patience` after the connection, or the request before it.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Duration,
    leaving: watch::Receiver<bool>,
) {
    let until = leaving.clone();
    accept(listener, leaving, |socket, _| {
        connection(socket, router.clone(), patience, gone(until.clone()))
    })
    .await;
}

/// Accepts connections until `leaving`, no more than [`CONNECTIONS`] at one time, and waits until all
/// are served.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    leaving: watch::Receiver<bool>,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    let mut left = std::pin::pin!(gone(leaving));
    loop {
        tokio::select! {
            () = &mut left => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => match connections.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let serving = serve(socket, peer);
                        open.spawn(async move {
                            serving.await;
                            drop(permit);
                        });
                    }
                    Err(_) => tracing::warn!(%peer, "too many connections; closed"),
                },
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to come back.
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn connection(
    socket: TcpStream,
    router: Router,
    patience: Duration,
    leaving: impl Future<Output = ()>,
) {
    let mut leaving = std::pin::pin!(leaving);
    let _ = socket.set_nodelay(true);
    // A clone of the router is always ready.
    let service = hyper::service::service_fn(move |request| router.clone().call(request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(socket), service);
    let mut serving = std::pin::pin!(serving);
    let mut told = false;
    loop {
        tokio::select! {
            outcome = &mut serving => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = &mut leaving, if !told => {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
