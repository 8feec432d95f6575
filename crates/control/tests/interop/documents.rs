//! Configuration as people have written it: whatever the API takes, the data planes take.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lateen_api::{Mode, Object};
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::ports;
use serde_json::{Value, json};

use crate::mesh::{GATEWAY, Gateway, Mesh, object_path};
use crate::sidecar::{SIDECAR, Sidecar};

fn documents() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/user-documents");
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    paths.sort();
    paths
}

/// The objects of a file that are taken as they are; a file may hold kinds that we do not have.
fn objects(path: &Path) -> Vec<Object> {
    let text = std::fs::read_to_string(path).unwrap();
    let parsed = lateen_api::parse("document", &text, Mode::Strict);
    parsed.objects.into_iter().map(|one| one.object).collect()
}

/// Hosts that a rule speaks of, where they are names of the rule's own namespace.
fn short_hosts(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(host) = map.get("host").and_then(Value::as_str)
                && !host.contains(['.', '*'])
            {
                found.insert(host.to_owned());
            }
            map.values().for_each(|value| short_hosts(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| short_hosts(value, found)),
        _ => {}
    }
}

/// A service with a port of each protocol.
fn service(name: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": name},
            "ports": [
                {"name": "http", "port": 80},
                {"name": "http-alt", "port": 8080},
                {"name": "grpc", "port": 50051},
                {"name": "tcp", "port": 3306},
                {"name": "undeclared", "port": 9999},
            ],
        },
    })
}

/// Of the gateway, with a port for each server of the documents: where it says none, a server's own
/// number is taken, and two tests that run at once would meet there.
fn gateway_service(gateway: &Gateway) -> String {
    let (http, tcp, https) = (gateway.http.port(), gateway.tcp.port(), ports::reserve());
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: istio-ingressgateway, namespace: istio-system}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  ports:\n  \
         - {{name: http2, port: 80, targetPort: {http}}}\n  \
         - {{name: https, port: 443, targetPort: {https}}}\n  \
         - {{name: tcp, port: 9000, targetPort: {tcp}}}\n"
    )
}

async fn apply(mesh: &Mesh, object: &Object) {
    let call = Call::get("127.0.0.1", &object_path(object)).method("PATCH");
    let call = call.header("content-type", "application/apply-patch+yaml");
    let answer = call.body(object.to_json().to_string()).send(mesh.api).await;
    let answer = answer.unwrap();
    assert!(answer.status < 300, "{}: {}", object.to_yaml(), answer.body);
}

on_both!(all_that_is_made_of_users_documents_is_accepted);

async fn all_that_is_made_of_users_documents_is_accepted(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "all_that_is_made_of_users_documents_is_accepted";
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let sidecar = Sidecar::start(plane, &mesh, test).await.unwrap();
    mesh.apply(&gateway_service(&gateway)).await;
    let mut applied = 0;
    for path in documents() {
        for object in objects(&path) {
            let namespace = match object.meta.namespace.as_str() {
                "" => "default",
                namespace => namespace,
            };
            let mut json = object.to_json();
            // These proxies have no identity; document 07 has a test with one.
            if json.to_string().contains("ISTIO_MUTUAL") {
                continue;
            }
            let mut hosts = BTreeSet::new();
            short_hosts(&json["spec"], &mut hosts);
            let mut all = vec![object.clone()];
            let services = hosts.iter().map(|host| service(host, namespace));
            all.extend(services.map(|one| Object::from_json(&one).unwrap()));
            if json["kind"] == "VirtualService" {
                json["metadata"]["name"] = json!(format!("{}-at-gateway", object.meta.name));
                json["spec"]["gateways"] = json!(["default/web"]);
                all.push(Object::from_json(&json).unwrap());
            }
            for one in &all {
                apply(&mesh, one).await;
            }
            applied += 1;
        }
        mesh.distributed(2).await;
        let rejected = [
            gateway.envoy.rejected().await,
            sidecar.envoy.rejected().await,
        ];
        let log = [gateway.envoy.log(), sidecar.envoy.log()];
        assert!(
            rejected.iter().all(|counters| counters.is_empty()),
            "{}: {rejected:?} {log:?}",
            path.display()
        );
    }
    assert!(applied > 30, "{applied} objects");
    mesh.synced(GATEWAY).await;
    mesh.synced(SIDECAR).await;
}
