//! Objects of the mesh, as JSON, that cases need and do not want to spell out.

use lateen_api::Object;
use serde_json::{Value, json};

use super::{Plane, Ports};
use crate::corpus::{Area, EndpointSpec, Group, ServiceSpec, Via};

/// Region and zone of the proxies; those of endpoints are the corpus's.
const LOCALITY: &str = "north/one";

/// The mesh's settings, the gateways and sidecars of both planes with their services, and the
/// Gateway `web`.
pub fn proxies(ports: Ports) -> Vec<Value> {
    let settings = json!({
        "accessLogFile": super::proxy::ACCESS_LOG,
        "accessLogFormat": super::proxy::LOG_FORMAT,
        // Decides for the area `authorization`.
        "extensionProviders": [{"name": "judge", "envoyExtAuthzHttp": {
            "service": "judge.default.svc.cluster.local", "port": 80, "timeout": "1s",
            "pathPrefix": "/check",
            "includeRequestHeadersInCheck": ["x-case", "x-token"],
            "headersToUpstreamOnAllow": ["x-user"],
            "headersToDownstreamOnDeny": ["x-why"],
        }}],
    });
    let mut all = vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": settings.to_string()},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "istio-ingressgateway", "namespace": "istio-system"},
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "ports": [{"name": "http2", "port": 80, "targetPort": ports.gateway}],
            },
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "servers": [{
                    "port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"],
                }],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "front", "namespace": "default"},
            "spec": {"selector": {"app": "front"}, "ports": [{"name": "http", "port": 80}]},
        }),
    ];
    for plane in Plane::ALL {
        let address = plane.address().to_string();
        all.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {
                "name": format!("gateway-{}", plane.name()), "namespace": "istio-system",
            },
            "spec": {
                "address": address, "ports": {"http2": ports.gateway}, "locality": LOCALITY,
                "labels": {"istio": "ingressgateway"},
            },
        }));
        all.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": format!("front-{}", plane.name()), "namespace": "default"},
            "spec": {
                "address": address, "ports": {"http": ports.inbound}, "locality": LOCALITY,
                "labels": {"app": "front"},
            },
        }));
    }
    all
}

/// The VirtualService of a group; none when it has no rules.
pub fn rule(area: &Area, group: &Group) -> Option<Value> {
    if group.http.is_none() && group.spec.is_none() {
        return None;
    }
    let hosts = match (group.hosts.is_empty(), group.via) {
        (false, _) => group.hosts.clone(),
        (true, _) => vec![format!("*.{}.{}.test", group.name, area.name)],
    };
    let mut spec = json!({"hosts": hosts});
    if group.via == Via::Gateway {
        spec["gateways"] = json!(["web"]);
    }
    if let Some(http) = &group.http {
        spec["http"] = http.clone();
    }
    for (key, value) in group.spec.iter().filter_map(Value::as_object).flatten() {
        spec[key] = value.clone();
    }
    Some(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": format!("{}-{}", area.name, group.name), "namespace": "default"},
        "spec": spec,
    }))
}

/// A rule that answers everything on a host.
pub fn virtual_service(name: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hosts": [host], "gateways": ["web"],
            "http": [{"directResponse": {"status": 200}}],
        },
    })
}

pub fn service(name: &str, spec: &ServiceSpec) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": spec.protocol, "port": spec.port}],
        },
    })
}

pub fn workload(
    service: &str,
    number: usize,
    spec: &ServiceSpec,
    endpoint: &EndpointSpec,
    port: u16,
) -> Value {
    let mut labels = json!({"app": service, "version": endpoint.version});
    for (name, value) in &endpoint.labels {
        labels[name] = json!(value);
    }
    let mut ports = json!({});
    ports[&spec.protocol] = json!(port);
    let mut entry = json!({"address": "127.0.0.1", "ports": ports, "labels": labels});
    if !endpoint.locality.is_empty() {
        entry["locality"] = json!(endpoint.locality);
    }
    if endpoint.weight > 0 {
        entry["weight"] = json!(endpoint.weight);
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": format!("{service}-{number}"), "namespace": "default"},
        "spec": entry,
    })
}

/// Where the API has an object.
pub fn path(object: &Object) -> String {
    let info = object.kind.info();
    let root = match info.group {
        "" => format!("/api/{}", object.api_version),
        _ => format!("/apis/{}", object.api_version),
    };
    let namespace = match object.meta.namespace.as_str() {
        _ if !info.namespaced => String::new(),
        "" => "/namespaces/default".to_owned(),
        namespace => format!("/namespaces/{namespace}"),
    };
    format!("{root}{namespace}/{}/{}", info.plural, object.meta.name)
}
