//! The monitoring port: /metrics, /ready, /version and /debug, as istiod serves them on 15014.

pub(crate) mod debug;
mod metrics;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use lateen_store::Directory;
use lateen_xds::Server;
use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::secure::Counters;
use crate::source::Discovery;
use crate::trust::Trust;

/// What can be looked at.
#[derive(Clone)]
pub(crate) struct Monitor {
    pub mesh: Arc<Mesh>,
    pub server: Server<Discovery>,
    pub discovery: Arc<Discovery>,
    pub directory: Option<Arc<Directory>>,
    pub started: Instant,
    pub trust: Arc<Trust>,
    pub certificates: Arc<Counters>,
}

pub(crate) fn router(monitor: Monitor) -> Router {
    let metrics = move || {
        let text = metrics::render(&monitor);
        async {
            (
                [(
                    header::CONTENT_TYPE,
                    "text/plain; version=0.0.4; charset=utf-8",
                )],
                text,
            )
        }
    };
    Router::new().route("/metrics", get(metrics)).route(
        "/version",
        get(|| async { axum::Json(version()).into_response() }),
    )
}

/// istiod's version document, which `istioctl version` reads.
pub(crate) fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": "",
        "golang_version": "",
        "status": "Clean",
        "tag": env!("CARGO_PKG_VERSION"),
        "component": "lateen",
    })
}
