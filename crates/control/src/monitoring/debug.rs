//! /debug: the control plane's state as JSON, under istiod's paths.
//!
//! Read-only. Served on the monitoring port as istiod does, and on the API's port, so that a client
//! needs one address.

use std::collections::HashMap;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lateen_xds::{ProxyStatus, Source, type_url};
use serde_json::{Value, json};

use super::Monitor;

/// Bytes of objects that somebody may propose: a large mesh, as JSON.
const MAX_PROPOSED: usize = 64 << 20;

pub(crate) fn router(monitor: Monitor) -> Router {
    Router::new()
        .route("/debug", get(index))
        .route("/debug/list", get(index))
        .route("/debug/syncz", get(syncz))
        .route("/debug/connections", get(connections))
        .route("/debug/pushz", get(pushz))
        .route("/debug/configz", get(configz))
        .route("/debug/registryz", get(registryz))
        .route("/debug/endpointz", get(endpointz))
        .route(
            "/debug/findings",
            get(findings)
                .post(findings_with)
                .layer(DefaultBodyLimit::max(MAX_PROPOSED)),
        )
        .route("/debug/root-cert.pem", get(root_certificates))
        .route("/debug/directoryz", get(directoryz))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/describe", get(describe))
        .route("/debug/versionz", get(|| async { Json(super::version()) }))
        // Everything is loaded before anything is served, so to answer is to be ready.
        .route("/ready", get(|| async { "" }))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .with_state(monitor)
}

async fn index() -> Json<Value> {
    Json(json!({
        "/debug/syncz": "each proxy and what it was sent and accepted",
        "/debug/connections": "connected proxies with the metadata they sent",
        "/debug/pushz": "the revision of the store and the one that proxies were given",
        "/debug/configz": "all configuration objects",
        "/debug/registryz": "services",
        "/debug/endpointz": "endpoints by service",
        "/debug/findings": "what does not fit together, with Istio's message codes (POST a list of objects: as if they were applied)",
        "/debug/root-cert.pem": "the roots that workloads trust",
        "/debug/directoryz": "files of the configuration directory, with errors and warnings",
        "/debug/describe?workload=NAME.NAMESPACE": "what holds for a workload: services, mTLS, policies, rules",
        "/debug/describe?service=NAME.NAMESPACE": "what holds for a service: ports, workloads, rules, policies, gateways",
        "/debug/config_dump?proxyID=NAME.NAMESPACE": "the resources a proxy is given",
    }))
}

/// What `lateen x describe` tells.
async fn describe(
    State(monitor): State<Monitor>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let of = |what: &str| query.get(what).map(String::as_str);
    let (what, name) = match of("service") {
        Some(name) => ("service", name),
        None => ("workload", of("workload").unwrap_or_default()),
    };
    let (name, namespace) = name.rsplit_once('.').unwrap_or((name, "default"));
    let snapshot = monitor.mesh.refresh();
    let found = match what {
        "service" => lateen_analysis::describe_service(&snapshot, namespace, name)
            .map(|found| Json(found).into_response()),
        _ => lateen_analysis::describe(&snapshot, namespace, name)
            .map(|found| Json(found).into_response()),
    };
    found.unwrap_or_else(|| {
        let text = format!("there is no {what} {name:?} in namespace {namespace:?}");
        (StatusCode::NOT_FOUND, text).into_response()
    })
}

async fn syncz(State(monitor): State<Monitor>) -> Json<Value> {
    Json(proxies(&monitor).iter().map(ProxyStatus::to_json).collect())
}

/// Connected proxies. A DNS server beside a stock Envoy has the Envoy's node and asks for nothing
/// but names: it is no proxy.
fn proxies(monitor: &Monitor) -> Vec<ProxyStatus> {
    let mut all = monitor.server.status();
    let only_names = |proxy: &ProxyStatus| {
        !proxy.types.is_empty() && proxy.types.keys().all(|url| url == type_url::NAME_TABLE)
    };
    all.retain(|proxy| !only_names(proxy));
    all
}

async fn connections(State(monitor): State<Monitor>) -> Json<Value> {
    let connection = |proxy: &ProxyStatus| {
        json!({
            "connection": proxy.connection,
            "proxy": proxy.node.short_id(),
            "id": proxy.node.id,
            "cluster": proxy.node.cluster,
            "peer": proxy.peer,
            "identity": proxy.node.identity,
            "metadata": proxy.node.metadata,
        })
    };
    Json(monitor.server.status().iter().map(connection).collect())
}

/// What `lateen wait --for=distribution` asks: whether a revision has been pushed, and who has not
/// yet accepted everything.
async fn pushz(State(monitor): State<Monitor>) -> Json<Value> {
    let pushed: u64 = monitor.server.version().parse().unwrap_or_default();
    let proxies = proxies(&monitor);
    let behind =
        |p: &&ProxyStatus| !p.synced() || p.version.parse::<u64>().unwrap_or_default() < pushed;
    let pending = proxies.iter().filter(behind).map(|p| p.node.short_id());
    Json(json!({
        "revision": monitor.mesh.store().revision(),
        "pushed": pushed,
        "proxies": proxies.len(),
        "pending": pending.collect::<Vec<_>>(),
    }))
}

async fn configz(State(monitor): State<Monitor>) -> Json<Value> {
    let (_, objects) = monitor.mesh.store().list(|_| true);
    let document = |object: &std::sync::Arc<lateen_store::Stored>| {
        let mut document = object.document();
        document["source"] = json!(object.source);
        lateen_api::secret::redact(&mut document);
        document
    };
    Json(objects.iter().map(document).collect())
}

async fn registryz(State(monitor): State<Monitor>) -> Json<Value> {
    let snapshot = monitor.mesh.snapshot();
    let service = |service: &std::sync::Arc<lateen_model::Service>| {
        let ports = service.ports.iter().map(|port| {
            json!({
                "name": port.name,
                "port": port.number,
                "protocol": format!("{:?}", port.protocol),
            })
        });
        json!({
            "hostname": &*service.hostname,
            "name": service.name,
            "namespace": service.namespace,
            "resolution": format!("{:?}", service.resolution),
            "ports": ports.collect::<Vec<_>>(),
        })
    };
    Json(snapshot.services().map(service).collect())
}

async fn endpointz(State(monitor): State<Monitor>) -> Json<Value> {
    let snapshot = monitor.mesh.snapshot();
    let services = snapshot.services().map(|service| {
        let endpoints = snapshot.endpoints(&service.hostname);
        let by_port = endpoints.by_port.iter().map(|(port, endpoints)| {
            let endpoint = |endpoint: &lateen_model::Endpoint| {
                json!({
                    "address": format!("{}:{}", endpoint.workload.address, endpoint.port),
                    "workload": endpoint.workload.name,
                    "namespace": endpoint.workload.namespace,
                    "labels": endpoint.workload.labels,
                    "healthy": endpoint.ready,
                    "weight": endpoint.workload.weight,
                })
            };
            let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
            json!({"svc": format!("{}:{port}", service.hostname), "ep": endpoints})
        });
        by_port.collect::<Vec<_>>()
    });
    Json(services.flatten().collect())
}

/// What is wrong between the objects that are in the store now.
async fn findings(State(monitor): State<Monitor>) -> Response {
    let mesh = monitor.mesh;
    let found = tokio::task::spawn_blocking(move || lateen_analysis::findings(&mesh.refresh()));
    match found.await {
        Ok(found) => Json(json!(found)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What would be wrong if the objects of the body (a JSON list) were applied, and what stored
/// objects have to say about themselves. Changes nothing.
async fn findings_with(
    State(monitor): State<Monitor>,
    Json(proposed): Json<Vec<Value>>,
) -> Response {
    let found = tokio::task::spawn_blocking(move || {
        let (_, stored) = monitor.mesh.store().list(|_| true);
        let stored: Vec<Value> = stored.iter().map(|object| object.document()).collect();
        crate::analyze::findings(&stored, &proposed)
    });
    match found.await {
        Ok(found) => Json(json!(found)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn root_certificates(State(monitor): State<Monitor>) -> Response {
    let type_ = [(axum::http::header::CONTENT_TYPE, "application/x-pem-file")];
    (type_, monitor.trust.authority().roots_pem()).into_response()
}

async fn directoryz(State(monitor): State<Monitor>) -> Json<Value> {
    Json(json!(monitor.directory.map(|directory| directory.status())))
}

/// What the control plane would send a connected proxy now, by type. The proxy's own
/// `/config_dump` says what it uses.
async fn config_dump(
    State(monitor): State<Monitor>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let wanted = query.get("proxyID").or_else(|| query.get("proxy_id"));
    let Some(wanted) = wanted else {
        let text = "say which proxy: /debug/config_dump?proxyID=NAME.NAMESPACE\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let proxies = monitor.server.status();
    let Some(proxy) = proxies
        .iter()
        .find(|p| p.node.short_id() == *wanted || p.node.id == *wanted)
    else {
        let text = format!("the proxy {wanted:?} is not connected; see /debug/connections\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let snapshot = monitor.mesh.snapshot();
    let types = type_url::PUSH_ORDER.iter().filter_map(|url| {
        let status = proxy.types.get(*url)?;
        // What it asked for by name is what it was sent so far.
        let names = (!status.wildcard).then(|| status.resources.keys().cloned().collect());
        let resources = monitor
            .discovery
            .generate(&snapshot, &proxy.node, url, names.as_ref());
        let resources: Vec<Value> = resources
            .iter()
            .map(|r| json!({"name": r.name(), "version": r.version(), "bytes": r.value.len()}))
            .collect();
        Some((type_url::short(url).to_owned(), json!(resources)))
    });
    Json(Value::Object(types.collect())).into_response()
}
