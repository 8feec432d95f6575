//! gRPC's own xDS client (`xds:///`): grpcio resolves a service through our server and balances
//! over its endpoints.

use std::path::Path;
use std::process::Command;

use lateen_testkit::child::Child;
use lateen_testkit::{eventually, ports, tools};
use lateen_xds::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use lateen_xds::{Changed, Protocol};
use serde_json::{Value, json};

use crate::mesh::{Draft, Mesh, cluster, endpoints, http_manager, route_table};

/// Starts a backend on each port given after the target, then prints per line how many of 20
/// calls each backend answered.
const CLIENT: &str = r#"
import json, sys, time
from concurrent import futures
import grpc

def backend(port):
    def answer(request, context):
        return port.encode()
    handler = grpc.method_handlers_generic_handler("test.Echo", {
        "Who": grpc.unary_unary_rpc_method_handler(answer)})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((handler,))
    assert server.add_insecure_port("127.0.0.1:" + port) == int(port)
    server.start()
    return server

target, backends = sys.argv[1], [backend(port) for port in sys.argv[2:]]
channel = grpc.insecure_channel(target)
who = channel.unary_unary("/test.Echo/Who")
while True:
    counts = {}
    for _ in range(20):
        try:
            name = who(b"", timeout=5, wait_for_ready=True).decode()
        except grpc.RpcError as error:
            name = str(error.code()) + " " + error.details()
        counts[name] = counts.get(name, 0) + 1
    print(json.dumps(counts), flush=True)
    time.sleep(0.05)
"#;

fn bootstrap(xds: u16) -> Value {
    json!({
        "xds_servers": [{
            "server_uri": format!("127.0.0.1:{xds}"),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": "sidecar~127.0.0.1~client.default~default.svc.cluster.local",
            "metadata": {"GENERATOR": "grpc"},
        },
    })
}

/// gRPC asks for a listener under the target's name and finds an HTTP connection manager in it.
fn api_listener(name: &str, table: &str) -> Draft {
    let json = json!({"name": name, "api_listener": {"api_listener": http_manager(table)}});
    Draft {
        url: LISTENER,
        json,
    }
}

fn last_counts(log: &str) -> Result<Value, String> {
    let line = log.lines().rfind(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_default()).map_err(|_| log.to_owned())
}

async fn answered_by(child: &Child, names: &[u16]) {
    eventually(&format!("answers of {names:?}"), async || {
        let counts = last_counts(&child.log())?;
        let object = counts.as_object().ok_or("no object")?;
        let expected = names
            .iter()
            .all(|name| object.contains_key(&name.to_string()));
        match expected && object.len() == names.len() {
            true => Ok(()),
            false => Err(counts.to_string()),
        }
    })
    .await;
}

fn start(python: &Path, directory: &Path, xds: u16, backends: &[u16]) -> Child {
    let script = directory.join("client.py");
    std::fs::write(&script, CLIENT).unwrap();
    let mut command = Command::new(python);
    command
        .arg(script)
        .arg("xds:///echo.default:7070")
        .args(backends.iter().map(ToString::to_string))
        .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(xds).to_string())
        // A proxy of the surroundings is none of our business.
        .env("no_proxy", "127.0.0.1");
    Child::start(&command, &directory.join("client.log"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_resolves_a_service_and_balances_over_its_endpoints() {
    let Some(python) = tools::python_with_grpc() else {
        return tools::skip("gRPC's xDS client", "grpcio");
    };
    let mut mesh = Mesh::start().await;
    let (one, two) = (ports::reserve(), ports::reserve());
    mesh.set(
        "1",
        &[
            api_listener("echo.default:7070", "echo"),
            route_table("echo", &[("echo", 1)]),
            cluster("echo", 1),
            endpoints("echo", &[one, two]),
            // Nobody asks for these, so nobody gets them.
            api_listener("other.default:7070", "other"),
            cluster("other", 1),
        ],
    );
    let directory = tempfile::tempdir().unwrap();
    let child = start(&python, directory.path(), mesh.port(), &[one, two]);
    answered_by(&child, &[one, two]).await;
    let status = mesh.server.status();
    assert_eq!(status[0].protocol, Protocol::Sotw);
    for url in [LISTENER, ROUTE, CLUSTER, ENDPOINT] {
        assert_eq!(status[0].types[url].resources.len(), 1, "{url}");
    }

    mesh.change(&[endpoints("echo", &[two])]);
    mesh.push("2", Changed::names(ENDPOINT, ["echo"]));
    answered_by(&child, &[two]).await;

    mesh.kill();
    mesh.change(&[endpoints("echo", &[one])]);
    mesh.restart().await;
    answered_by(&child, &[one]).await;
}
