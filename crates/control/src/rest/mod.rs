//! The configuration API: Kubernetes' REST conventions over the store.
//!
//! Paths, verbs, media types, errors and watches are those of a Kubernetes API server, so that
//! `lateen`, kubectl and client libraries can talk to it. It decides nothing about configuration:
//! the `api` crate says whether an object is right, the store whether a write is.

mod answer;
mod bulk;
mod discovery;
mod document;
mod guard;
mod object_status;
mod patch;
mod path;
mod pod_cells;
mod query;
mod resources;
mod root_secret;
mod selector;
mod status;
mod table;
mod token;
mod trust_maps;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use lateen_api::{Diagnostic, Object};
use lateen_model::MeshSnapshot;
use lateen_store::Store;

use crate::trust::Trust;
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
    pub trust: Arc<Trust>,
    /// Whether this API may make tokens for workloads.
    pub issues_tokens: bool,
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
        .route("/openid/v1/jwks", get(jwks))
        .route("/lateen/v1/apply", post(bulk::apply))
        .fallback(serve)
        .with_state(api)
        .layer(middleware::from_fn(guard))
}

async fn serve(State(api): State<Api>, request: Request) -> Response {
    if let Some(account) = token::target(request.uri().path()) {
        let answered = token::serve(&api, account, request).await;
        return answered.unwrap_or_else(IntoResponse::into_response);
    }
    let found = match path::parse(request.uri().path()) {
        Some(target) => resources::serve(&api, target, request).await,
        None => discovery(&request),
    };
    found.unwrap_or_else(IntoResponse::into_response)
}

/// The keys of the local tokens, where Kubernetes' API server has those of its own.
async fn jwks(State(api): State<Api>) -> Response {
    let type_ = [(axum::http::header::CONTENT_TYPE, "application/jwk-set+json")];
    (type_, api.trust.tokens().jwks().to_string()).into_response()
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
