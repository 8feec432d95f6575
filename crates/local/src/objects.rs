//! What a plan is in the mesh: Namespaces, Services and WorkloadEntries, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::plan::{Gateway, Plan, ROOT_NAMESPACE, Service, Workload};

/// Marks objects that follow the mesh file: those that it no longer has are deleted.
pub const MANAGED_BY: &str = "lateen/managed-by";
/// Istio's annotation for "the condition `Healthy` decides whether this endpoint is used".
const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";

/// One object and its path in the control plane's API.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub path: String,
    pub json: Value,
}

/// Everything of a plan except its workloads.
pub fn of_plan(plan: &Plan) -> Vec<Object> {
    let mut objects: Vec<Object> = namespaces(plan).into_iter().map(namespace).collect();
    objects.extend(plan.services.iter().map(service));
    for gateway in &plan.gateways {
        objects.push(gateway_service(gateway));
        objects.push(gateway_entry(gateway));
    }
    objects
}

fn namespaces(plan: &Plan) -> BTreeSet<&str> {
    let services = plan
        .services
        .iter()
        .map(|service| service.namespace.as_str());
    let workloads = plan
        .workloads
        .iter()
        .map(|workload| workload.namespace.as_str());
    let gateways = plan
        .gateways
        .iter()
        .map(|gateway| gateway.namespace.as_str());
    let always = ["default", ROOT_NAMESPACE];
    services
        .chain(workloads)
        .chain(gateways)
        .chain(always)
        .collect()
}

fn namespace(name: &str) -> Object {
    let labels = json!({"kubernetes.io/metadata.name": name});
    Object {
        path: format!("/api/v1/namespaces/{name}"),
        json: json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }),
    }
}

fn service(service: &Service) -> Object {
    let Service {
        name,
        namespace,
        ports,
        address,
    } = service;
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            json!({
                "name": port.name,
                "port": port.number,
                "targetPort": port.number,
                "protocol": "TCP",
                "appProtocol": port.protocol.as_str(),
            })
        })
        .collect();
    let mut spec = json!({"selector": {"app": name}, "ports": ports});
    if let Some(address) = address {
        spec["clusterIP"] = json!(address);
    }
    service_object(name, namespace, &json!({"app": name}), spec)
}

fn service_object(name: &str, namespace: &str, labels: &Value, spec: Value) -> Object {
    Object {
        path: format!("/api/v1/namespaces/{namespace}/services/{name}"),
        json: json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels,
                "annotations": {MANAGED_BY: "up"},
            },
            "spec": spec,
        }),
    }
}

/// The WorkloadEntry of a workload. `health` is why it should get no requests, if it should not.
pub fn workload(workload: &Workload, health: Result<(), String>) -> Object {
    let ports: Map<String, Value> = workload
        .ports
        .iter()
        .map(|port| (port.name.clone(), json!(port.inbound)))
        .collect();
    let Workload {
        name,
        namespace,
        labels,
        service_account,
        address,
        annotations,
        locality,
        ..
    } = workload;
    let mut json = entry(name, namespace, &json!(labels), ports, service_account);
    json["spec"]["address"] = json!(address);
    if let Some(locality) = locality {
        json["spec"]["locality"] = json!(locality);
    }
    for (name, value) in annotations {
        json["metadata"]["annotations"][name] = json!(value);
    }
    json["metadata"]["annotations"][HEALTH_CHECKS] = json!("true");
    let condition = match health {
        Ok(()) => json!({"type": "Healthy", "status": "True"}),
        Err(reason) => json!({
            "type": "Healthy", "status": "False", "reason": "NotReady", "message": reason,
        }),
    };
    json["status"] = json!({"conditions": [condition]});
    Object {
        path: entry_path(name, namespace),
        json,
    }
}

fn entry_path(name: &str, namespace: &str) -> String {
    format!("{}/{name}", entries_path(namespace))
}

/// The collection of WorkloadEntries of a namespace.
pub fn entries_path(namespace: &str) -> String {
    format!("/apis/networking.istio.io/v1/namespaces/{namespace}/workloadentries")
}

fn entry(
    name: &str,
    namespace: &str,
    labels: &Value,
    ports: Map<String, Value>,
    service_account: &str,
) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {MANAGED_BY: "up"},
        },
        "spec": {
            "address": "127.0.0.1",
            "ports": ports,
            "labels": labels,
            "serviceAccount": service_account,
        },
    })
}

/// The labels that an Istio `Gateway` selects a gateway's workload by.
pub fn gateway_labels(gateway: &Gateway) -> BTreeMap<String, String> {
    // Istio's own `istio-ingressgateway` has the label `istio: ingressgateway`.
    let istio = gateway.name.strip_prefix("istio-").unwrap_or(&gateway.name);
    [("app", gateway.name.as_str()), ("istio", istio)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn gateway_service(gateway: &Gateway) -> Object {
    let labels = json!(gateway_labels(gateway));
    let port = |name: &str, number: u16, target: u16| json!({"name": name, "port": number, "targetPort": target, "protocol": "TCP"});
    let spec = json!({
        "type": "LoadBalancer",
        "selector": labels,
        "ports": [port("http2", 80, gateway.http), port("https", 443, gateway.https)],
    });
    service_object(&gateway.name, &gateway.namespace, &labels, spec)
}

fn gateway_entry(gateway: &Gateway) -> Object {
    let ports: Map<String, Value> = [("http2", gateway.http), ("https", gateway.https)]
        .map(|(name, port)| (name.to_owned(), json!(port)))
        .into_iter()
        .collect();
    let Gateway {
        name, namespace, ..
    } = gateway;
    let account = gateway.service_account();
    let json = entry(
        name,
        namespace,
        &json!(gateway_labels(gateway)),
        ports,
        &account,
    );
    Object {
        path: entry_path(name, namespace),
        json,
    }
}
