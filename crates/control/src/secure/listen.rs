//! Connections of the secure port, each bounded in time until it has proved something, and the
//! way of a request to its service.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tower::Service as _;

use super::caller::{Purpose, Shown, authenticate};
use super::certificates::{Caller, Counters};
use super::{Services, Tls};
use crate::listen;
use crate::plane::gone;

/// From the TCP connection to the end of the handshake. There is no smaller bound on handshakes
/// than on connections: whoever opened that many and said nothing would keep all others out.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams per connection.
const STREAMS: u32 = 100;
/// Bytes of the headers of a request: a token, mostly.
const MAX_HEADERS: u32 = 32 << 10;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections until `leaving`. Who shook hands has to have asked for something `patience`
/// later.
pub(crate) async fn serve(
    services: Services,
    tls: Arc<Tls>,
    listener: TcpListener,
    patience: Duration,
    leaving: watch::Receiver<bool>,
) {
    let until = leaving.clone();
    listen::accept(listener, leaving, |socket, peer| {
        let (services, tls) = (services.clone(), tls.clone());
        let leaving = gone(until.clone());
        async move { connection(services, &tls, socket, peer, patience, leaving).await }
    })
    .await;
}

async fn connection(
    services: Services,
    tls: &Tls,
    socket: TcpStream,
    peer: SocketAddr,
    patience: Duration,
    leaving: impl Future<Output = ()>,
) {
    let mut leaving = std::pin::pin!(leaving);
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    let handshake = async {
        match TlsAcceptor::from(tls.config()).accept(socket).await {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::debug!(%peer, %error, "no TLS");
                None
            }
        }
    };
    let stream = tokio::select! {
        stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => match stream {
            Ok(Some(stream)) => stream,
            Ok(None) | Err(_) => return,
        },
        () = &mut leaving => return,
    };
    let shown = Arc::new(Shown::of(stream.get_ref().1.peer_certificates()));
    let mut expired = std::pin::pin!(lateen_xds::passed(shown.until()));
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let service = hyper::service::service_fn(move |request| {
        asks.store(true, Relaxed);
        let (services, shown) = (services.clone(), shown.clone());
        async move { Ok::<_, Infallible>(answer(services, &shown, peer, request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEPALIVE))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(STREAMS);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut silent = std::pin::pin!(tokio::time::sleep(patience));
    let mut waited = false;
    let mut told = false;
    loop {
        tokio::select! {
            outcome = &mut serving => {
                if let Err(error) = outcome {
                    tracing::debug!(%peer, %error, "connection ended");
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
            () = &mut leaving, if !told => {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
            // Discovery streams end then, and the next connection shows a newer certificate.
            () = &mut expired, if !told => {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Finds out who asks, and hands the request to the service it is for.
async fn answer(
    mut services: Services,
    shown: &Shown,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let service = request
        .uri()
        .path()
        .rsplit_once('/')
        .map(|(service, _)| service);
    let purpose = match service {
        Some("/istio.v1.auth.IstioCertificateService") => Purpose::Certificate,
        Some("/envoy.service.discovery.v3.AggregatedDiscoveryService") => Purpose::Discovery,
        _ => return Status::unimplemented("there is no such service here").into_http(),
    };
    let counters = services.counters.clone();
    if purpose == Purpose::Certificate {
        Counters::add(&counters.requests);
    }
    let proved = match authenticate(&services.trust, shown, request.headers(), purpose) {
        Ok(proved) => proved,
        Err(reason) => {
            Counters::add(&counters.unauthenticated);
            tracing::debug!(%peer, reason, "refused");
            return Status::unauthenticated(reason).into_http();
        }
    };
    let answered = match purpose {
        Purpose::Certificate => {
            if let Err(reason) = services.trust.is_known() {
                return Status::unavailable(reason).into_http();
            }
            request.extensions_mut().insert(Caller(proved.id));
            services.certificates.call(request).await
        }
        Purpose::Discovery => {
            request.extensions_mut().insert(lateen_xds::Caller {
                address: peer,
                identity: Some(proved.id.to_string()),
                until: Some(proved.until),
            });
            services.discovery.service().call(request).await
        }
    };
    match answered {
        Ok(response) => response,
        Err(impossible) => match impossible {},
    }
}
