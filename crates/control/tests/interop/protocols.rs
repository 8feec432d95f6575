//! HTTP/1.0, counters of routes, and what a workload's own proxy tries again.

use std::net::SocketAddr;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gateway::{rule, served};
use crate::mesh::{Gateway, Mesh, Reviews, loopback, service, workload};
use crate::mesh_settings::config_map;
use crate::secure_gateway::{Secure, TO_REVIEWS, gateway, routes, secret};

on_both!(
    http_1_0_is_taken_where_the_proxy_asks_for_it,
    a_route_with_a_prefix_for_statistics_counts_apart,
    what_never_began_is_tried_again_by_the_workloads_own_proxy,
    a_connection_that_no_server_of_the_port_takes_is_logged,
);

/// Everything that comes back until the connection ends, or nothing more for a second.
async fn say(to: SocketAddr, bytes: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    // Envoy closes a second after its last word.
    let limit = std::time::Duration::from_secs(10);
    let closed = loop {
        match tokio::time::timeout(limit, stream.read_buf(&mut all)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(_)) => {}
            Err(_) => break false,
        }
    };
    (String::from_utf8_lossy(&all).into_owned(), closed)
}

async fn http_1_0_is_taken_where_the_proxy_asks_for_it(plane: Plane) {
    let test = "http_1_0_is_taken_where_the_proxy_asks_for_it";
    let route = "  - route: [{destination: {host: reviews, subset: v1}}]";
    let get = "GET /old HTTP/1.0\r\nHost: old.test\r\n\r\n";
    for asks in [true, false] {
        let mesh = Mesh::start().await;
        let more = if asks {
            json!({"HTTP10": "1"})
        } else {
            json!({})
        };
        let Some(gateway) = Gateway::start_with(plane, &mesh, test, true, more).await else {
            return;
        };
        let _reviews = Reviews::start(&mesh).await;
        mesh.apply(&rule("old.test", route)).await;
        mesh.distributed(1).await;
        served(&gateway, "old.test").await;
        let (answer, closed) = say(gateway.http, get).await;
        assert!(closed, "{answer}");
        if !asks {
            assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
            continue;
        }
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(
            answer.contains("\"name\":\"v1\"") || answer.contains("v1"),
            "{answer}"
        );
        assert!(
            !answer.to_ascii_lowercase().contains("transfer-encoding"),
            "{answer}"
        );
        let stays = get.replace("\r\n\r\n", "\r\nConnection: keep-alive\r\n\r\n");
        let (answer, closed) = say(gateway.http, &format!("{stays}{stays}{get}")).await;
        assert!(closed, "{answer}");
        assert_eq!(answer.matches("HTTP/1.0 200").count(), 3, "{answer}");
        let (answer, closed) = say(gateway.http, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 400") && closed, "{answer}");
        assert_eq!(gateway.envoy.rejected().await, Default::default());
    }
}

async fn a_route_with_a_prefix_for_statistics_counts_apart(plane: Plane) {
    let test = "a_route_with_a_prefix_for_statistics_counts_apart";
    let mesh = Mesh::start().await;
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    let failing = Echo::start("failing").await;
    failing.always(500);
    mesh.create(
        &(service("failing", "http", 80) + &workload("failing", "v1", "http", failing.port())),
    )
    .await;
    let rules = "
  - match: [{uri: {prefix: /fails}, statPrefix: fails}]
    retries: {attempts: 2, retryOn: 5xx}
    route: [{destination: {host: failing}}]
  - match: [{uri: {prefix: /counted}, statPrefix: coun.ted}]
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /nobody}, statPrefix: nobody}]
    route: [{destination: {host: reviews, subset: nobody}}]
  - route: [{destination: {host: reviews, subset: v1}}]";
    mesh.apply(&rule("stat.test", rules)).await;
    mesh.distributed(1).await;
    served(&gateway, "stat.test").await;
    for (path, status, times) in [
        ("/fails", 500, 1),
        ("/counted", 200, 3),
        ("/nobody", 503, 2),
    ] {
        for _ in 0..times {
            assert_eq!(
                gateway.get("stat.test", path).await.status,
                status,
                "{path}"
            );
        }
    }
    gateway.get("stat.test", "/").await;
    let of = |prefix: &str, names: &[(&str, u64)]| {
        // Virtual hosts that come by themselves are called after their table, too.
        let host = format!("http.{}/stat.test:80", gateway.http.port());
        let full = |name: &str| format!("vhost.{host}.route.{prefix}.upstream_rq_{name}");
        names
            .iter()
            .map(|(name, count)| (full(name), *count))
            .collect::<Vec<_>>()
    };
    let mut expect = of(
        "fails",
        &[
            ("500", 1),
            ("5xx", 1),
            ("completed", 1),
            ("retry", 2),
            ("retry_limit_exceeded", 1),
            ("total", 3),
        ],
    );
    expect.extend(of(
        "coun.ted",
        &[("200", 3), ("2xx", 3), ("completed", 3), ("total", 3)],
    ));
    expect.extend(of("nobody", &[("503", 2), ("5xx", 2), ("completed", 2)]));
    let expect: std::collections::BTreeMap<String, u64> = expect.into_iter().collect();
    eventually("all is counted", async || {
        let mut stats = gateway.envoy.stats().await;
        stats.retain(|name, count| {
            name.starts_with("vhost.") && name.contains(".route.") && *count > 0
        });
        match stats == expect {
            true => Ok(()),
            false => Err(format!("{stats:#?}")),
        }
    })
    .await;
    let text = gateway.envoy.get("/stats/prometheus").await.unwrap();
    // What the tag takes ends at the first point.
    let line = format!(
        "envoy_vhost_{}_stat_test_80_route_coun_ted_upstream_rq_total\
         {{envoy_virtual_host=\"http\"}} 3",
        gateway.http.port()
    );
    assert!(text.contains(&line), "{text}");
}

/// A workload of three ports where nobody listens, and its proxy.
struct Lone {
    envoy: Envoy,
    http: SocketAddr,
    grpc: SocketAddr,
}

async fn lone(plane: Plane, mesh: &Mesh, test: &str) -> Option<Lone> {
    let binary = plane.binary(test)?;
    let [http, grpc, http_app, grpc_app] = std::array::from_fn(|_| ports::reserve());
    mesh.create(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: lone, namespace: default}}\nspec:\n  \
         selector: {{app: lone}}\n  \
         ports: [{{name: http, port: 80}}, {{name: grpc, port: 7070}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: lone-v1, namespace: default}}\n\
         spec:\n  address: 127.0.0.1\n  ports: {{http: {http}, grpc: {grpc}}}\n  \
         labels: {{app: lone}}\n"
    ))
    .await;
    let bootstrap = Bootstrap {
        kind: "sidecar",
        name: "lone-v1".into(),
        namespace: "default".into(),
        metadata: json!({
            "LABELS": {"app": "lone"},
            "INTERCEPTION_MODE": "NONE",
            "LATEEN_BIND": "127.0.0.1",
            "LATEEN_INBOUND": {http.to_string(): http_app, grpc.to_string(): grpc_app},
        }),
        xds: mesh.xds,
        admin: ports::reserve(),
        delta: true,
    };
    let envoy = Envoy::start(&binary, &bootstrap.to_json(), mesh.directory()).await;
    envoy.ready().await;
    let (http, grpc) = (loopback(http), loopback(grpc));
    Some(Lone { envoy, http, grpc })
}

async fn what_never_began_is_tried_again_by_the_workloads_own_proxy(plane: Plane) {
    let test = "what_never_began_is_tried_again_by_the_workloads_own_proxy";
    let mesh = Mesh::start().await;
    let Some(lone) = lone(plane, &mesh, test).await else {
        return;
    };
    mesh.distributed(1).await;
    let retries = async |port: u16| {
        let name = format!("cluster.inbound|{port}||.upstream_rq_retry");
        lone.envoy.stat(&name).await
    };
    // The application is not there; a port that is declared as gRPC is not tried again.
    for (at, expect) in [(lone.http, 2), (lone.grpc, 0)] {
        let before = retries(at.port()).await;
        let call = Call::get("lone", "/").method("POST").body("x");
        let answer = eventually("the listener is there", async || call.send(at).await).await;
        assert_eq!(answer.status, 503);
        let after = retries(at.port()).await;
        assert_eq!(
            after - before,
            expect,
            "{at}: {:#?}",
            lone.envoy.stats().await
        );
    }
}

async fn a_connection_that_no_server_of_the_port_takes_is_logged(plane: Plane) {
    let test = "a_connection_that_no_server_of_the_port_takes_is_logged";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let file = secure.mesh.directory().join("access.log");
    let format = "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %REQUESTED_SERVER_NAME%";
    let on = format!(
        "accessLogFile: {}\naccessLogFormat: '{format}|'\n",
        file.display()
    );
    secure.mesh.apply(&config_map(&on)).await;
    let server = secure.authority.issue("server", &["known.test"]);
    let objects = [
        secret("web", "istio-system", &server),
        gateway(
            "known",
            443,
            "HTTPS",
            "known.test",
            "mode: SIMPLE, credentialName: web",
        ),
        routes("known.test", "known", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    secure
        .answers(secure.https, "known.test", &[], " 200 2")
        .await;
    let said = secure.curl(secure.https, "unknown.test", &[]).await;
    assert!(!said.success, "{said:?}");
    eventually("the connection is logged", async || {
        let log = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<&str> = log
            .split('|')
            .filter(|line| line.contains("unknown.test"))
            .collect();
        match lines[..] {
            ["NR filter_chain_not_found unknown.test"] => Ok(()),
            _ => Err(log),
        }
    })
    .await;
    // Connections that are taken have the lines of their requests, and no other; those of the first
    // came before there was a route.
    let of_a_request =
        |line: &&str| line.contains("via_upstream") || line.contains("route_not_found");
    eventually("a request is logged", async || {
        let log = std::fs::read_to_string(&file).unwrap();
        let known: Vec<&str> = log
            .split('|')
            .filter(|line| line.ends_with(" known.test"))
            .collect();
        assert!(known.iter().all(of_a_request), "{log}");
        match known.is_empty() {
            true => Err(log),
            false => Ok(()),
        }
    })
    .await;
    secure.rejected_nothing().await;
}
