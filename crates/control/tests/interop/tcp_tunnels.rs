//! `tunnel` of DestinationRules: TCP that reaches its destination through an HTTP proxy.

use std::time::Duration;

use lateen_testkit::connect_proxy::ConnectProxy;
use lateen_testkit::echo::TcpEcho;
use lateen_testkit::envoy::Plane;
use lateen_testkit::settles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mesh::{Mesh, service, workload};
use crate::sidecar::Sidecar;

on_both!(
    tcp_goes_through_an_http_proxy,
    tcp_goes_through_an_http_proxy_that_speaks_http2,
    a_subset_has_a_tunnel_of_its_own_or_none,
);

const TARGET: &str = "db.internal:5432";

fn rule(spec: &str) -> String {
    rule_for("database", spec)
}

fn rule_for(host: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {host}, namespace: default}}\nspec: {{host: {host}, {spec}}}\n"
    )
}

fn tunnel(protocol: &str) -> String {
    format!(
        "trafficPolicy: {{tunnel: {{protocol: {protocol}, targetHost: db.internal, targetPort: 5432}}}}"
    )
}

/// What the server behind `database` says first, after `hello` was sent and came back.
async fn talk(sidecar: &Sidecar) -> Result<String, String> {
    let talk = async {
        let failed = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(sidecar.database).await.map_err(failed)?;
        stream.write_all(b"hello").await.map_err(failed)?;
        let mut text = String::new();
        while !text.ends_with("hello") {
            let mut buffer = [0; 256];
            match stream.read(&mut buffer).await.map_err(failed)? {
                0 => return Err(format!("closed after {text:?}")),
                n => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            }
        }
        // More than fits into one piece, in both directions.
        let large = vec![b'x'; 300_000];
        let (mut read, mut write) = stream.split();
        let mut back = vec![0; large.len()];
        let (wrote, got) = tokio::join!(write.write_all(&large), read.read_exact(&mut back));
        wrote.map_err(failed)?;
        got.map_err(failed)?;
        Ok(text.replace("hello", ""))
    };
    let limit = tokio::time::timeout(Duration::from_secs(10), talk);
    limit.await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

async fn talks_to(sidecar: &Sidecar, name: &str) {
    settles(&format!("{name} answers"), async || {
        match talk(sidecar).await?.trim() {
            found if found == name => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}

/// The proxy is asked for the target and leads there; one that refuses ends the connection.
async fn tunnels_to_the_database(
    sidecar: &Sidecar,
    proxy: &ConnectProxy,
    echo: &TcpEcho,
    asked: &str,
) {
    settles(&format!("{asked} is asked for"), async || {
        talk(sidecar).await?;
        match proxy.asked().last() {
            Some(last) if last == asked => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    talks_to(sidecar, "db").await;

    proxy.lead(TARGET, None);
    let refusals = proxy.asked().len();
    let error = talk(sidecar).await.unwrap_err();
    let ended = ["closed after \"\"", "reset", "Broken pipe"];
    assert!(
        ended.iter().any(|words| error.contains(words)),
        "{asked}: {error}"
    );
    assert!(proxy.asked().len() > refusals);
    proxy.lead(TARGET, Some(echo.address));
}

async fn tcp_goes_through_an_http_proxy(plane: Plane) {
    let test = "tcp_goes_through_an_http_proxy";
    let mesh = Mesh::start().await;
    let (proxy, echo) = (ConnectProxy::start().await, TcpEcho::start("db").await);
    proxy.lead(TARGET, Some(echo.address));
    mesh.create(&service("database", "tcp", 3306)).await;
    mesh.create(&workload("database", "v1", "tcp", proxy.port()))
        .await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    // Without a tunnel the proxy gets bytes that are no request.
    talk(&sidecar).await.unwrap_err();
    assert_eq!(proxy.asked(), [""; 0]);
    for protocol in ["CONNECT", "POST"] {
        mesh.apply(&rule(&tunnel(protocol))).await;
        mesh.distributed(1).await;
        tunnels_to_the_database(&sidecar, &proxy, &echo, &format!("{protocol} {TARGET}")).await;
    }
}

/// The tunnel is that of the service which the connections are led to.
async fn tcp_goes_through_an_http_proxy_that_speaks_http2(plane: Plane) {
    let test = "tcp_goes_through_an_http_proxy_that_speaks_http2";
    let mesh = Mesh::start().await;
    let (proxy, echo) = (ConnectProxy::start().await, TcpEcho::start("db").await);
    proxy.lead(TARGET, Some(echo.address));
    let objects = [
        service("database", "tcp", 3306),
        service("egress", "http2", 3128),
        workload("egress", "v1", "http2", proxy.port()),
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {name: database, namespace: default}\nspec:\n  hosts: [database]\n  \
         tcp: [{route: [{destination: {host: egress, port: {number: 3128}}}]}]\n"
            .to_owned(),
    ];
    mesh.create(&objects.concat()).await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    for protocol in ["CONNECT", "POST"] {
        mesh.apply(&rule_for("egress", &tunnel(protocol))).await;
        mesh.distributed(1).await;
        let asked = format!("{protocol} {TARGET} HTTP/2");
        tunnels_to_the_database(&sidecar, &proxy, &echo, &asked).await;
    }
}

async fn a_subset_has_a_tunnel_of_its_own_or_none(plane: Plane) {
    let test = "a_subset_has_a_tunnel_of_its_own_or_none";
    let mesh = Mesh::start().await;
    let (proxy, echo) = (ConnectProxy::start().await, TcpEcho::start("db").await);
    let direct = TcpEcho::start("direct").await;
    proxy.lead(TARGET, Some(echo.address));
    mesh.create(&service("database", "tcp", 3306)).await;
    mesh.create(&workload("database", "proxy", "tcp", proxy.port()))
        .await;
    mesh.create(&workload("database", "direct", "tcp", direct.port()))
        .await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let subsets = format!(
        "{}, subsets: [{{name: direct, labels: {{version: direct}}}}, \
         {{name: proxy, labels: {{version: proxy}}, {}}}]",
        tunnel("POST"),
        tunnel("CONNECT"),
    );
    mesh.apply(&rule(&subsets)).await;
    for (subset, name) in [("proxy", "db"), ("direct", "direct")] {
        let route = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: database, namespace: default}}\nspec:\n  hosts: [database]\n  \
             tcp: [{{route: [{{destination: {{host: database, subset: {subset}}}}}]}}]\n"
        );
        mesh.apply(&route).await;
        mesh.distributed(1).await;
        talks_to(&sidecar, name).await;
    }
    assert!(proxy.asked().contains(&format!("CONNECT {TARGET}")));
}
