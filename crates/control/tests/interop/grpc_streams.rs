//! gRPC calls of every kind through a gateway and through the proxy of a workload: messages as they
//! come in both directions, trailers, errors without a body, deadlines.

use std::path::{Path, PathBuf};
use std::process::Command;

use lateen_testkit::child::Child;
use lateen_testkit::envoy::Plane;
use lateen_testkit::{eventually, ports, tools};
use serde_json::{Value, json};

use crate::fixed::Fixed;
use crate::gateway::{rule, served};
use crate::mesh::{Gateway, Mesh, service, workload};

on_both!(
    grpc_streams_pass_a_gateway_with_their_trailers,
    grpc_streams_pass_a_proxy_that_speaks_what_its_client_speaks,
);

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/grpc_streams.py")
}

async fn server(python: &Path, directory: &Path) -> (Child, u16) {
    let port = ports::reserve();
    let mut command = Command::new(python);
    command.arg(script()).args(["serve", &port.to_string()]);
    let child = Child::start(&command, &directory.join("server.log"));
    eventually("the server serves", async || match child.log().as_str() {
        "serving\n" => Ok(()),
        log => Err(log.to_owned()),
    })
    .await;
    (child, port)
}

/// What came of all calls to an address.
async fn calls(python: &Path, address: &str, authority: &str) -> Value {
    let mut command = tokio::process::Command::new(python);
    command.arg(script()).args(["call", address, authority]);
    let output = command.kill_on_drop(true).output();
    let limit = std::time::Duration::from_secs(60);
    let output = tokio::time::timeout(limit, output).await;
    let output = output.expect("the calls end").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"))
}

/// All calls, and what must come of them. `late` is what the server had of the call with 20 s.
fn check(made: &Value) {
    let end = json!({"x-trailer": "end", "x-bytes-bin": "00ff"});
    let ok = |mut first: Vec<Value>| {
        first.extend([json!("OK"), json!(""), end.clone()]);
        Value::Array(first)
    };
    let five: Vec<String> = (0..5).map(|n| format!("re: {n}")).collect();
    let sizes: Vec<usize> = (0..50).map(|n: u32| n.to_string().len() * 1000).collect();
    for (name, expect) in [
        ("unary", ok(vec![json!("hello"), json!(5)])),
        ("empty", ok(vec![json!(""), json!(0)])),
        ("large", ok(vec![json!("x".repeat(20)), json!(3_000_000)])),
        (
            "fail",
            json!([null, 0, "NOT_FOUND", "nothing of \u{fc} here", end]),
        ),
        ("in time", ok(vec![json!("late, had 20"), json!(12)])),
        ("download", ok(vec![json!(sizes)])),
        ("none", ok(vec![json!([])])),
        (
            "broken",
            json!([vec![1000; 7], "DATA_LOSS", "in the middle", end]),
        ),
        ("upload", ok(vec![json!("4000000")])),
        ("both", ok(vec![json!("yes"), json!(five)])),
        (
            "refused",
            json!(["yes", five, "RESOURCE_EXHAUSTED", "enough", {}]),
        ),
        ("cancelled", json!("CANCELLED")),
        ("after that", ok(vec![json!("hello"), json!(5)])),
        ("missing", json!("UNIMPLEMENTED")),
    ] {
        assert_eq!(made[name], expect, "{name}: {made:#}");
    }
    // The proxy's timer and the client's own end at the same moment; whichever is first is heard.
    let deadline = (&made["deadline"][2], &made["deadline"][3]);
    let of_the_proxy = (&json!("UNAVAILABLE"), &json!("upstream request timeout"));
    assert!(
        deadline.0 == "DEADLINE_EXCEEDED" || deadline == of_the_proxy,
        "{made:#}"
    );
}

async fn grpc_streams_pass_a_gateway_with_their_trailers(plane: Plane) {
    let test = "grpc_streams_pass_a_gateway_with_their_trailers";
    let Some(python) = tools::python_with_grpc() else {
        return tools::skip(test, "Python with grpcio");
    };
    let mesh = Mesh::start().await;
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let (_server, port) = server(&python, mesh.directory()).await;
    let objects = service("streams", "grpc", 7070) + &workload("streams", "v1", "grpc", port);
    mesh.create(&objects).await;
    let route = "  - route: [{destination: {host: streams}}]";
    mesh.apply(&rule("streams.test", route)).await;
    mesh.apply(&rule(
        "nobody.test",
        "  - route: [{destination: {host: gone}}]",
    ))
    .await;
    mesh.distributed(1).await;
    served(&gateway, "streams.test").await;
    served(&gateway, "nobody.test").await;
    check(&calls(&python, &gateway.http.to_string(), "streams.test").await);
    // The proxy's own errors are gRPC's too.
    let made = calls_fail(&python, &gateway, "nobody.test").await;
    assert_eq!(made[2], "UNAVAILABLE", "{made}");
    let made = calls_fail(&python, &gateway, "unknown.test").await;
    assert_eq!(made[2], "UNIMPLEMENTED", "{made}");
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

/// What comes of a call that the gateway answers itself.
async fn calls_fail(python: &Path, gateway: &Gateway, authority: &str) -> Value {
    let script = "import grpc, json, sys\n\
         options = (('grpc.default_authority', sys.argv[2]),)\n\
         channel = grpc.insecure_channel(sys.argv[1], options=options)\n\
         try: channel.unary_unary('/test.Streams/Unary')(b'')\n\
         except grpc.RpcError as e: print(json.dumps([None, 0, e.code().name, e.details()]))\n";
    let output = tokio::process::Command::new(python)
        .args(["-c", script, &gateway.http.to_string(), authority])
        .output();
    let output = output.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

/// As the inbound side of a workload is set up: what the client speaks is spoken to the application.
async fn grpc_streams_pass_a_proxy_that_speaks_what_its_client_speaks(plane: Plane) {
    let test = "grpc_streams_pass_a_proxy_that_speaks_what_its_client_speaks";
    let Some(python) = tools::python_with_grpc() else {
        return tools::skip(test, "Python with grpcio");
    };
    let directory = tempfile::tempdir().unwrap();
    let (_server, port) = server(&python, directory.path()).await;
    let routes = json!([{"match": {"prefix": "/"}, "route": {
        "cluster": "app-h2", "timeout": "0s", "max_stream_duration": {"max_stream_duration": "0s"},
    }}]);
    let clusters = [("app-h2", port)];
    let Some(proxy) = Fixed::start(plane, test, json!({}), routes, &clusters).await else {
        return;
    };
    check(&calls(&python, &proxy.http.to_string(), "any.test").await);
}
