//! The configuration API: Kubernetes' REST conventions over the store.
//!
//! Paths, verbs, media types, errors and watches are those of a Kubernetes API server, so that
//! `lateen`, kubectl and client libraries can talk to it. It decides nothing about configuration:
//! the `api` crate says whether an object is right, the store whether a write is.

mod answer;
mod discovery;
mod document;
mod guard;
mod object_status;
mod patch;
mod path;
mod query;
mod resources;
mod selector;
mod status;
mod table;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lateen_api::{Diagnostic, Object};
use lateen_model::MeshSnapshot;
use lateen_store::Store;

pub(crate) use guard::guard;
use status::ApiError;

/// Largest request body; Kubernetes' API server takes 3 MiB.
const MAX_BODY: usize = 3 << 20;

/// What is worth saying about an object that was just written, beside the other objects.
pub(crate) type Advice = Arc<dyn Fn(&Object) -> Vec<Diagnostic> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Api {
    pub store: Arc<Store>,
    pub advice: Advice,
    /// The mesh as the store has it now.
    pub view: Arc<dyn Fn() -> Arc<MeshSnapshot> + Send + Sync>,
    /// Turns true when the process is to leave; ends watches.
    pub leaving: tokio::sync::watch::Receiver<bool>,
}

/// The routes of the API; `healthy` says whether the control plane serves.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route(
            "/version",
            get(|| async { axum::Json(discovery::version()) }),
        )
        .fallback(serve)
        .with_state(api)
        .layer(middleware::from_fn(guard))
}

async fn serve(State(api): State<Api>, request: Request) -> Response {
    let found = match path::parse(request.uri().path()) {
        Some(target) => resources::serve(&api, target, request).await,
        None => discovery(&request),
    };
    found.unwrap_or_else(IntoResponse::into_response)
}

fn discovery(request: &Request) -> Result<Response, ApiError> {
    let document = discovery::document(request.uri().path());
    match (document, request.method()) {
        (None, _) => Err(ApiError::path_not_found()),
        (Some(document), &Method::GET | &Method::HEAD) => {
            Ok(answer::ok(&document, request.headers()))
        }
        (Some(_), _) => Err(ApiError::method_not_allowed()),
    }
}
