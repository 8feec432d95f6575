//! grpcio as a client that is its own data plane: `xds:///echo.default.svc.cluster.local:7070`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use lateen_testkit::child::Child;
use lateen_testkit::envoy::Plane;
use lateen_testkit::{eventually, ports, tools};
use serde_json::{Value, json};

use crate::mesh::{Gateway, Mesh, service, workload};

const CLIENT: &str = "client-v1.default";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/python")
        .join(name)
}

/// The service `echo` (port 7070, gRPC) whose workloads tell their version.
struct Servers<'a> {
    mesh: &'a Mesh,
    python: &'a Path,
    running: BTreeMap<&'static str, Child>,
}

impl Servers<'_> {
    /// Starts a server and enters its workload.
    async fn add(&mut self, version: &'static str) {
        let port = ports::reserve();
        let mut command = Command::new(self.python);
        command
            .arg(script("grpc_echo.py"))
            .args([&port.to_string(), version]);
        let log = self.mesh.directory().join(format!("{version}.log"));
        let child = Child::start(&command, &log);
        eventually("the server serves", async || match child.log().as_str() {
            "serving\n" => Ok(()),
            log => Err(log.to_owned()),
        })
        .await;
        self.running.insert(version, child);
        let objects = workload("echo", version, "grpc", port);
        self.mesh.create(&objects).await;
    }

    /// Removes the workload; its server lives on.
    async fn remove(&mut self, version: &str) {
        self.mesh
            .delete(&workload("echo", version, "grpc", 1))
            .await;
    }
}

/// A client that calls `target` in rounds of this many calls.
struct Client {
    child: Child,
    metadata: PathBuf,
}

const ROUND: usize = 50;

impl Client {
    /// `target` is `xds:///NAME:PORT`, or an address to call with the authority `echo.test`.
    fn start(mesh: &Mesh, python: &Path, target: &str) -> Self {
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": format!("127.0.0.1:{}", mesh.xds),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            "node": {
                "id": "sidecar~127.0.0.1~client-v1.default~default.svc.cluster.local",
                "metadata": {
                    "GENERATOR": "grpc",
                    "NAMESPACE": "default",
                    "LABELS": {"app": "client", "version": "v1"},
                },
            },
        });
        let file = mesh.directory().join("grpc-bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let metadata = mesh.directory().join("metadata.json");
        let mut command = Command::new(python);
        command
            .arg(script("grpc_client.py"))
            .args([target, &ROUND.to_string()])
            .env("GRPC_XDS_BOOTSTRAP", file)
            .env("METADATA", &metadata);
        let log = format!("client-{}.log", target.replace(['/', ':'], "-"));
        let log = mesh.directory().join(log);
        Client {
            child: Child::start(&command, &log),
            metadata,
        }
    }

    /// All rounds so far.
    fn rounds(&self) -> Vec<BTreeMap<String, usize>> {
        let log = self.child.log();
        let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let rounds = complete.lines();
        rounds
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for a round in which exactly these versions answered.
    async fn answered_by(&self, versions: &[&str]) {
        eventually(&format!("{versions:?} answer"), async || {
            let rounds = self.rounds();
            let last = rounds.last().cloned().unwrap_or_default();
            match last.keys().eq(versions) {
                true => Ok(()),
                false => Err(format!("{last:?}; {}", self.child.log())),
            }
        })
        .await;
    }

    /// Sends this metadata with all calls from the next round on.
    fn send(&self, metadata: Value) {
        let new = self.metadata.with_extension("new");
        std::fs::write(&new, metadata.to_string()).unwrap();
        std::fs::rename(new, &self.metadata).unwrap();
    }
}

/// A VirtualService `echo` with these HTTP routes, and the subsets of `v1` to `v3`.
fn rule(http: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo, namespace: default}}
spec:
  host: echo
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
  - {{name: v3, labels: {{version: v3}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo, namespace: default}}
spec:
  hosts: [echo]
  http:
{http}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_clients_resolve_a_service_and_follow_its_endpoints_and_rules() {
    let test = "grpc_clients_resolve_a_service_and_follow_its_endpoints_and_rules";
    let Some(python) = tools::python_with_grpc() else {
        return tools::skip(test, "Python with grpcio");
    };
    let mesh = Mesh::start().await;
    mesh.create(&service("echo", "grpc", 7070)).await;
    let mut servers = Servers {
        mesh: &mesh,
        python: &python,
        running: BTreeMap::new(),
    };
    servers.add("v1").await;
    servers.add("v2").await;
    mesh.distributed(0).await;
    let client = Client::start(&mesh, &python, "xds:///echo.default.svc.cluster.local:7070");
    client.answered_by(&["v1", "v2"]).await;
    mesh.synced(CLIENT).await;
    // The shorter names that a pod may use.
    for name in ["xds:///echo:7070", "xds:///echo.default.svc:7070"] {
        let other = Client::start(&mesh, &python, name);
        other.answered_by(&["v1", "v2"]).await;
    }

    servers.add("v3").await;
    client.answered_by(&["v1", "v2", "v3"]).await;
    servers.remove("v1").await;
    client.answered_by(&["v2", "v3"]).await;

    mesh.apply(&rule(
        "  - route: [{destination: {host: echo, subset: v3}}]",
    ))
    .await;
    client.answered_by(&["v3"]).await;
    let weighted = "
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - route:
    - {destination: {host: echo, subset: v2}, weight: 80}
    - {destination: {host: echo, subset: v3}, weight: 20}";
    mesh.apply(&rule(weighted)).await;
    client.answered_by(&["v2", "v3"]).await;
    let first = client.rounds().len();
    let rounds = eventually("twelve rounds", async || {
        let rounds = client.rounds().split_off(first);
        match rounds.len() {
            12.. => Ok(rounds),
            few => Err(few.to_string()),
        }
    })
    .await;
    let v2 = rounds.iter().map(|round| round["v2"]).sum();
    crate::gateway::assert_share(v2, rounds.len() * ROUND, 0.8);
    client.send(json!({"end-user": "jason"}));
    client.answered_by(&["v2"]).await;
    mesh.synced(CLIENT).await;

    // No call failed at any time.
    for round in client.rounds() {
        assert!(round.keys().all(|name| name.starts_with('v')), "{round:?}");
    }
}

on_both!(grpc_calls_go_through_a_gateway);

async fn grpc_calls_go_through_a_gateway(plane: Plane) {
    let test = "grpc_calls_go_through_a_gateway";
    let Some(python) = tools::python_with_grpc() else {
        return tools::skip(test, "Python with grpcio");
    };
    let mesh = Mesh::start().await;
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    mesh.create(&service("echo", "grpc", 7070)).await;
    let mut servers = Servers {
        mesh: &mesh,
        python: &python,
        running: BTreeMap::new(),
    };
    servers.add("v1").await;
    servers.add("v2").await;
    let route = "  - route: [{destination: {host: echo}}]";
    mesh.apply(&crate::gateway::rule("echo.test", route)).await;
    mesh.distributed(1).await;
    crate::gateway::served(&gateway, "echo.test").await;
    let client = Client::start(&mesh, &python, &gateway.http.to_string());
    client.answered_by(&["v1", "v2"]).await;
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}
