//! The listening half: TCP connections with a bound on their number, HTTP/2 with keepalive.
//! Plaintext; TLS is wrapped around it by the control plane.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Service;

use super::{Server, Source};

/// Who opened a connection. Whoever serves [`Server::service`] puts it among the extensions of
/// every request; [`Server::serve`] does.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: SocketAddr,
    /// The SPIFFE id that was proved; none on a connection without TLS.
    pub identity: Option<String>,
    /// Until when that proof holds: streams end then, and whoever comes again proves itself anew.
    pub until: Option<SystemTime>,
}

/// Streams per TCP connection. A proxy opens one ADS stream; gRPC clients share a connection
/// among a few channels.
const STREAMS_PER_CONNECTION: u32 = 100;

/// How long streams may take to end after `shutdown`.
const GRACE: Duration = Duration::from_secs(2);

pub(super) async fn serve<S: Source>(
    server: &Server<S>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) {
    let permits = Arc::new(Semaphore::new(server.inner.limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => match permits.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let server = server.clone();
                        connections.spawn(async move {
                            connection(server, socket, peer).await;
                            drop(permit);
                        });
                    }
                    Err(_) => tracing::warn!(%peer, "too many connections; closed"),
                },
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to come back.
                    tracing::error!(%error, "cannot accept discovery connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    server.stop();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::debug!("discovery connections cut after {GRACE:?}");
    }
}

async fn connection<S: Source>(server: Server<S>, socket: TcpStream, peer: SocketAddr) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    let limits = &server.inner.limits;
    let service = server.service();
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<_>| {
        asks.store(true, Relaxed);
        request.extensions_mut().insert(Caller {
            address: peer,
            identity: None,
            until: None,
        });
        // A clone of the tonic service is always ready.
        service.clone().call(request)
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(limits.keepalive))
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let mut stopping = server.inner.shutdown.subscribe();
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    let mut silent = std::pin::pin!(tokio::time::sleep(limits.first_request));
    let mut waited = false;
    let mut told = false;
    loop {
        tokio::select! {
            outcome = &mut serving => {
                if let Err(error) = outcome {
                    tracing::debug!(%peer, %error, "discovery connection ended");
                }
                return;
            }
            () = &mut silent, if !waited => {
                waited = true;
                if !asked.load(Relaxed) {
                    tracing::debug!(%peer, "nothing was asked for; closed");
                    return;
                }
            }
            _ = stopping.wait_for(|stop| *stop), if !told => {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
