//! A small mesh to translate, and short texts of what came out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::{self as route, RouteConfiguration};
use lateen_api::Object;
use lateen_model::{MeshSettings, MeshSnapshot, Proxy};
use lateen_translate::{Encoded, Translator, type_url};
use prost::Message;

/// Two services of the mesh on one machine, with their workloads, and a gateway.
pub const MESH: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: default}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}, {name: grpc, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: mysql, namespace: default}
spec: {selector: {app: mysql}, ports: [{name: tcp-mysql, port: 3306}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec: {address: 127.0.0.1, ports: {http: 15102}, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v2, namespace: default}
spec: {address: 127.0.0.1, ports: {http: 15112}, labels: {app: reviews, version: v2}, weight: 3}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec: {selector: {istio: ingressgateway}, ports: [{name: http2, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec: {address: 127.0.0.1, labels: {istio: ingressgateway}}
"#;

/// Objects of a text of documents.
pub fn objects(yaml: &str) -> Vec<Object> {
    let parsed = lateen_api::parse("test.yaml", yaml, lateen_api::Mode::Strict);
    let errors: Vec<String> = parsed
        .diagnostics
        .iter()
        .filter(|d| d.is_error())
        .map(|d| d.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    parsed
        .objects
        .into_iter()
        .map(|parsed| parsed.object)
        .collect()
}

/// [`MESH`] and more documents.
pub fn snapshot(more: &str) -> MeshSnapshot {
    next(more, None)
}

/// The snapshot after `previous`.
pub fn next(more: &str, previous: Option<&MeshSnapshot>) -> MeshSnapshot {
    let all = objects(&format!("{MESH}---\n{more}"));
    let settings =
        previous.map_or_else(|| Arc::new(MeshSettings::default()), |p| p.settings.clone());
    MeshSnapshot::build(all.iter(), 1, settings, previous)
}

/// The sidecar of reviews-v1.
pub fn sidecar() -> Proxy {
    let metadata = serde_json::json!({
        "INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": "15101", "LATEEN_BIND": "127.0.0.1",
        "LABELS": {"app": "reviews", "version": "v1"}, "LATEEN_INBOUND": {"15102": 15103},
        "LATEEN_OUTBOUND": {"mysql.default.svc.cluster.local:3306": 15104},
    });
    Proxy::from_node(
        "sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local",
        &metadata,
    )
    .unwrap()
}

/// The ingress gateway.
pub fn gateway() -> Proxy {
    let metadata =
        serde_json::json!({"LABELS": {"istio": "ingressgateway"}, "LATEEN_BIND": "127.0.0.1"});
    let id = "router~127.0.0.1~istio-ingressgateway.istio-system~istio-system.svc.cluster.local";
    Proxy::from_node(id, &metadata).unwrap()
}

/// A translator that keeps encoded resources as they are.
pub fn translator() -> Translator<Encoded> {
    Translator::new(|encoded| encoded)
}

pub fn clusters(snapshot: &MeshSnapshot, proxy: &Proxy) -> Vec<Cluster> {
    all(snapshot, proxy, type_url::CLUSTER)
}

pub fn listeners(snapshot: &MeshSnapshot, proxy: &Proxy) -> Vec<Listener> {
    all(snapshot, proxy, type_url::LISTENER)
}

pub fn endpoints(snapshot: &MeshSnapshot, proxy: &Proxy) -> Vec<ClusterLoadAssignment> {
    all(snapshot, proxy, type_url::ENDPOINT)
}

pub fn tables(snapshot: &MeshSnapshot, proxy: &Proxy) -> Vec<RouteConfiguration> {
    all(snapshot, proxy, type_url::ROUTE)
}

fn all<M: Message + Default>(snapshot: &MeshSnapshot, proxy: &Proxy, url: &str) -> Vec<M> {
    let made = translator().generate(snapshot, proxy, url, None);
    made.iter()
        .map(|one| M::decode(one.bytes.as_slice()).unwrap())
        .collect()
}

/// One resource by name.
pub fn one(snapshot: &MeshSnapshot, proxy: &Proxy, url: &str, name: &str) -> Option<Arc<Encoded>> {
    let names = BTreeSet::from([name.to_string()]);
    translator()
        .generate(snapshot, proxy, url, Some(&names))
        .pop()
}

/// The virtual host of a table whose domains include `domain`.
pub fn virtual_host(table: &RouteConfiguration, domain: &str) -> route::VirtualHost {
    let found = table
        .virtual_hosts
        .iter()
        .find(|host| host.domains.iter().any(|d| d == domain));
    found
        .unwrap_or_else(|| panic!("no virtual host for {domain}: {:?}", domains(table)))
        .clone()
}

pub fn domains(table: &RouteConfiguration) -> Vec<String> {
    table
        .virtual_hosts
        .iter()
        .flat_map(|host| host.domains.clone())
        .collect()
}

/// A line for each route of a virtual host.
pub fn routes(host: &route::VirtualHost) -> String {
    host.routes
        .iter()
        .map(|one| format!("{}\n", route_line(one)))
        .collect()
}

fn route_line(one: &route::Route) -> String {
    let matched = one.r#match.clone().unwrap_or_default();
    let mut line = match matched.path_specifier {
        Some(route::route_match::PathSpecifier::Prefix(p)) => format!("{p}*"),
        Some(route::route_match::PathSpecifier::Path(p)) => format!("={p}"),
        Some(route::route_match::PathSpecifier::SafeRegex(r)) => format!("~{}", r.regex),
        other => format!("{other:?}"),
    };
    if matched.case_sensitive.is_some_and(|c| !c.value) {
        line += " nocase";
    }
    for header in &matched.headers {
        line += &format!(
            " {}{}{}",
            if header.invert_match { "!" } else { "" },
            header.name,
            header_match(header)
        );
    }
    for query in &matched.query_parameters {
        line += &format!(" ?{}", query.name);
    }
    line + " -> " + &action(one)
}

fn header_match(header: &route::HeaderMatcher) -> String {
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    match &header.header_match_specifier {
        Some(Specifier::PresentMatch(_)) => String::new(),
        Some(Specifier::StringMatch(text)) => match &text.match_pattern {
            Some(MatchPattern::Exact(value)) => format!("={value}"),
            Some(MatchPattern::Prefix(value)) => format!("={value}*"),
            Some(MatchPattern::SafeRegex(value)) => format!("~{}", value.regex),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

fn action(one: &route::Route) -> String {
    use route::route_action::ClusterSpecifier;
    match &one.action {
        Some(route::route::Action::Route(action)) => match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => name.clone(),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                let part = |c: &route::weighted_cluster::ClusterWeight| {
                    format!("{}:{}", c.name, c.weight.unwrap_or_default().value)
                };
                weighted
                    .clusters
                    .iter()
                    .map(part)
                    .collect::<Vec<_>>()
                    .join(" ")
            }
            other => format!("{other:?}"),
        },
        Some(route::route::Action::Redirect(redirect)) => {
            format!(
                "redirect {} {:?}",
                redirect.response_code, redirect.path_rewrite_specifier
            )
        }
        Some(route::route::Action::DirectResponse(answer)) => format!("answer {}", answer.status),
        other => format!("{other:?}"),
    }
}
