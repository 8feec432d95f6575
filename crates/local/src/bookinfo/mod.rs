//! Bookinfo: the four small applications of the demo, with the HTTP API of Istio's sample of the
//! same name, in our own code and texts.
//!
//! Each application is one process. It knows nothing of the mesh: it calls `http://reviews:9080`
//! through the proxy that `HTTP_PROXY` names, and passes on the headers that tracing and routing
//! by user need. Invariant: a neighbour that fails never makes a page fail.

mod details;
mod forward;
mod page;
mod productpage;
mod ratings;
mod reviews;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::map_response;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::http::Client;

/// Response header that names the workload which made the response.
const WORKLOAD_HEADER: HeaderName = HeaderName::from_static("x-bookinfo-workload");
/// How long requests in flight may take once the application was asked to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// One of the applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    Productpage,
    Details,
    Ratings,
    Reviews,
}

impl App {
    /// The name of its service.
    pub fn name(self) -> &'static str {
        match self {
            Self::Productpage => "productpage",
            Self::Details => "details",
            Self::Ratings => "ratings",
            Self::Reviews => "reviews",
        }
    }
}

/// What an application is and where its neighbours are.
#[derive(Debug)]
pub struct Settings {
    pub app: App,
    /// `v1`, `v2` or `v3`; it matters to `reviews` only.
    pub version: String,
    /// The name this workload reports as `podname`, e.g. `reviews-v2`.
    pub workload: String,
    pub client: Client,
}

impl Settings {
    /// Settings from the environment: `LATEEN_WORKLOAD` names the workload, `HTTP_PROXY` is the way
    /// to the neighbours.
    pub fn from_environment(app: App, version: &str) -> Self {
        let workload = std::env::var("LATEEN_WORKLOAD")
            .unwrap_or_else(|_| format!("{}-{version}", app.name()));
        Self {
            app,
            version: version.to_owned(),
            workload,
            client: Client::from_environment(),
        }
    }
}

/// Why an application could not run.
#[derive(Debug, thiserror::Error)]
pub enum BookinfoError {
    #[error("{app} cannot listen on {address}: {source}; choose another port with --port")]
    Listen {
        app: &'static str,
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("{app} stopped serving: {source}")]
    Serve {
        app: &'static str,
        source: std::io::Error,
    },
}

/// Serves one application until SIGTERM or SIGINT.
pub fn run(settings: Settings, address: SocketAddr) -> Result<(), BookinfoError> {
    let app = settings.app.name();
    let serve = |source| BookinfoError::Serve { app, source };
    // One thread is plenty for a demo application, and keeps six of them small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(serve)?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(address)
                .await
                .map_err(|source| BookinfoError::Listen {
                    app,
                    address,
                    source,
                })?;
        let mut terminate = signal(SignalKind::terminate()).map_err(serve)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(serve)?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, router(settings)).with_graceful_shutdown(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            let _ = stop.send(());
        });
        tokio::select! {
            ended = server => ended.map_err(serve),
            _ = async { let _ = stopped.await; tokio::time::sleep(DRAIN).await } => Ok(()),
        }
    })
}

/// The routes of one application.
pub fn router(settings: Settings) -> Router {
    let workload = HeaderValue::from_str(&settings.workload)
        .unwrap_or_else(|_| HeaderValue::from_static("unnamed"));
    let app = settings.app;
    let settings = Arc::new(settings);
    let routes = match app {
        App::Productpage => productpage::routes(settings),
        App::Details => details::routes(),
        App::Ratings => ratings::routes(),
        App::Reviews => reviews::routes(settings),
    };
    routes.layer(map_response(
        move |mut response: axum::response::Response| {
            response
                .headers_mut()
                .insert(WORKLOAD_HEADER, workload.clone());
            std::future::ready(response)
        },
    ))
}
