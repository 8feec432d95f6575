//! The admin port: what the proxy knows, and a few levers, in Envoy's shapes.
//!
//! | file | answers |
//! |---|---|
//! | `config_dump.rs` | `/config_dump` |
//! | `certs.rs` | `/certs` |
//! | `clusters.rs`, `listeners.rs` | `/clusters`, `/listeners` |
//! | `stats.rs` | `/stats`, `/stats/prometheus` |
//! | `server.rs` | `/ready`, `/server_info`, `/logging`, drain, quit |
//! | `help.rs` | `/`, `/help` |
//!
//! It runs on the main thread and reads [`ProxyState`]; it never touches a worker.
//!
//! Invariants: what changes the process is POST only; a request that a browser sends on behalf of
//! another site is refused.

mod certs;
mod clusters;
mod config_dump;
mod help;
mod listeners;
mod query;
mod server;
mod stats;

use crate::main_thread::ProxyState;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use query::Query;
use server::LogLevels;
use std::net::SocketAddr;
use std::sync::Arc;

/// One path of the admin port.
pub(crate) struct Endpoint {
    pub path: &'static str,
    pub help: &'static str,
    /// Changes the process: POST only.
    pub mutates: bool,
}

const fn reads(path: &'static str, help: &'static str) -> Endpoint {
    Endpoint {
        path,
        help,
        mutates: false,
    }
}

const fn changes(path: &'static str, help: &'static str) -> Endpoint {
    Endpoint {
        path,
        help,
        mutates: true,
    }
}

/// Everything that is served, in the order of `/help`.
pub(crate) const ENDPOINTS: &[Endpoint] = &[
    reads("/", "admin home page"),
    reads("/certs", "print certs on machine"),
    reads("/clusters", "upstream cluster status (?format=json)"),
    reads(
        "/config_dump",
        "dump current configs (?resource=, ?mask=, ?name_regex=, ?include_eds, ?unsupported)",
    ),
    changes("/drain_listeners", "drain listeners (?graceful)"),
    changes(
        "/healthcheck/fail",
        "cause the server to fail health checks",
    ),
    changes("/healthcheck/ok", "cause the server to pass health checks"),
    reads("/help", "print out list of admin commands"),
    reads("/init_dump", "print what the server waits for"),
    reads("/listeners", "print listener info (?format=json)"),
    reads(
        "/logging",
        "query (GET) or change (POST ?level=, ?name=level, ?paths=) logging levels",
    ),
    changes("/quitquitquit", "exit the server"),
    reads(
        "/ready",
        "print server state, return 200 if LIVE, otherwise return 503",
    ),
    changes("/reopen_logs", "reopen access logs"),
    reads("/server_info", "print server version/status information"),
    reads(
        "/stats",
        "print server stats (?filter=, ?usedonly, ?format=json|prometheus, ?type=)",
    ),
    reads(
        "/stats/prometheus",
        "print server stats in prometheus format",
    ),
];

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Admin {
    pub proxy: Arc<ProxyState>,
    pub levels: Arc<LogLevels>,
}

/// Binds the admin port and serves it until the runtime ends.
pub(crate) fn start(address: SocketAddr, proxy: Arc<ProxyState>) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let bound = listener.local_addr()?;
    let levels = Arc::new(LogLevels::new(&proxy.options.log_level));
    let router = Router::new()
        .fallback(handle)
        .with_state(Admin { proxy, levels });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin port stopped");
        }
    });
    Ok(bound)
}

async fn handle(State(admin): State<Admin>, request: Request<Body>) -> Response {
    if let Some(origin) = foreign_origin(request.headers()) {
        let message = format!("requests from the site {origin} are not allowed\n");
        return (StatusCode::FORBIDDEN, message).into_response();
    }
    let path = request.uri().path().trim_end_matches('/');
    let path = if path.is_empty() { "/" } else { path };
    let Some(endpoint) = ENDPOINTS.iter().find(|e| e.path == path) else {
        let message = format!("invalid path. {}", help::text());
        return (StatusCode::NOT_FOUND, message).into_response();
    };
    let post = *request.method() == Method::POST;
    if endpoint.mutates && !post {
        let message = format!("Method {} not allowed, POST required.", request.method());
        return (StatusCode::METHOD_NOT_ALLOWED, message).into_response();
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    answer(&admin, path, &query, post).await
}

async fn answer(admin: &Admin, path: &str, query: &Query, post: bool) -> Response {
    let proxy = &admin.proxy;
    match path {
        "/certs" => certs::show(proxy),
        "/clusters" => clusters::show(proxy, query),
        "/config_dump" => config_dump::show(proxy.clone(), query.clone()).await,
        "/drain_listeners" => server::drain_listeners(proxy, query),
        "/healthcheck/fail" => server::healthcheck(proxy, true),
        "/healthcheck/ok" => server::healthcheck(proxy, false),
        "/help" => help::text().into_response(),
        "/init_dump" => server::init_dump(proxy),
        "/listeners" => listeners::show(proxy, query),
        "/logging" => server::logging(admin, query, post),
        "/quitquitquit" => server::quit(proxy),
        "/ready" => server::ready(proxy),
        "/reopen_logs" => server::reopen_logs(proxy),
        "/server_info" => server::server_info(proxy),
        "/stats" => stats::show(proxy, query),
        "/stats/prometheus" => stats::prometheus(proxy, query),
        _ => help::home().into_response(),
    }
}

/// The site a browser sends this request for, when it is not this admin port itself. Without this a
/// page anywhere could reach an admin port on the reader's machine.
fn foreign_origin(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    if text(header::HeaderName::from_static("sec-fetch-site")) == Some("cross-site") {
        return Some(text(header::ORIGIN).unwrap_or("unknown").to_owned());
    }
    let origin = headers.get(header::ORIGIN)?;
    let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
    let host = text(header::HOST).unwrap_or_default();
    let same = origin
        .split_once("://")
        .is_some_and(|(_, authority)| authority == host);
    (!same).then_some(origin)
}

/// Pretty JSON, as Envoy prints it.
fn json(value: &serde_json::Value) -> Response {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// A wrong parameter.
fn bad_request(message: impl std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response()
}
