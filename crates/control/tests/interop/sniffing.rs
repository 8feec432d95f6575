//! Ports that do not say what they speak, of a sidecar without interception: the first bytes decide
//! (facts 41 to 43).

use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::Call;
use lateen_testkit::{ports, settles};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mesh::{Mesh, loopback};

on_both!(an_undeclared_port_serves_http_and_everything_else);

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: any, namespace: default}
spec:
  selector: {app: any}
  ports: [{name: one, port: 7000}, {name: two, port: 7001}, {name: name, port: 53, protocol: UDP}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: any-v1, namespace: default}
spec:
  address: 127.0.0.1
  ports: {one: ONE, two: TWO}
  labels: {app: any}
";

async fn an_undeclared_port_serves_http_and_everything_else(plane: Plane) {
    let test = "an_undeclared_port_serves_http_and_everything_else";
    let mesh = Mesh::start().await;
    let Some(binary) = plane.binary(test) else {
        return;
    };
    let http = Echo::start("http").await;
    let tcp = TcpEcho::start("tcp").await;
    let (one, two) = (ports::reserve(), ports::reserve());
    let objects = OBJECTS
        .replace("ONE", &one.to_string())
        .replace("TWO", &two.to_string());
    mesh.create(&objects).await;
    let bootstrap = Bootstrap {
        kind: "sidecar",
        name: "any-v1".into(),
        namespace: "default".into(),
        metadata: json!({
            "LABELS": {"app": "any"},
            "INTERCEPTION_MODE": "NONE",
            "LATEEN_BIND": "127.0.0.1",
            "LATEEN_INBOUND": {one.to_string(): http.port(), two.to_string(): tcp.port()},
        }),
        xds: mesh.xds,
        admin: ports::reserve(),
        delta: true,
    };
    let proxy = Envoy::start(&binary, &bootstrap.to_json(), mesh.directory()).await;
    proxy.ready().await;
    mesh.distributed(1).await;
    settles("HTTP is read", async || {
        let answer = Call::get("any", "/x").send(loopback(one)).await?;
        match (answer.name().as_str(), answer.header("server").as_str()) {
            ("http", "istio-envoy") => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    for first in [&b"*1\r\n$4\r\nPING\r\n"[..], b"\0\0\0\x01binary"] {
        let mut stream = TcpStream::connect(loopback(two)).await.unwrap();
        stream.write_all(first).await.unwrap();
        let expected = [b"tcp\n", first].concat();
        let mut got = vec![0; expected.len()];
        let read = stream.read_exact(&mut got);
        tokio::time::timeout(lateen_testkit::PATIENCE, read)
            .await
            .expect("an answer")
            .unwrap();
        assert_eq!(got, expected);
    }
    let found = proxy.stat("http_inspector.http11_found").await;
    assert!(found > 0, "{found}");
    assert!(proxy.rejected().await.is_empty(), "{}", proxy.log());
}
