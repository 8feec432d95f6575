//! Stock Envoy as the ingress gateway: where requests go.

use std::collections::BTreeMap;

use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call, Client};
use lateen_testkit::{eventually, ports, settles};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, service, workload};

/// A VirtualService of the gateway for one host.
pub fn rule(host: &str, http: &str) -> String {
    let name = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  hosts: [{host}]\n  gateways: [web]\n  http:\n{http}\n---\n"
    )
}

/// Waits until the gateway does not answer `host` with 404 any more.
pub async fn served(gateway: &Gateway, host: &str) {
    settles(&format!("{host} is served"), async || {
        let answer = Call::get(host, "/").send(gateway.http).await?;
        match answer.status {
            404 => Err(format!("{answer:?}")),
            _ => Ok(()),
        }
    })
    .await;
}

/// How many of `count` requests on one connection each version answered, by `v1`, `v2`, `v3`.
pub async fn split(gateway: &Gateway, call: &Call, count: usize) -> [usize; 3] {
    let mut counts = [0; 3];
    let mut client = Client::connect(gateway.http).await.unwrap();
    for _ in 0..count {
        let answer = client.send(call).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let version = ["v1", "v2", "v3"].iter().position(|v| *v == answer.name());
        counts[version.unwrap_or_else(|| panic!("{answer:?}"))] += 1;
    }
    counts
}

/// Five and a half standard deviations around the mean of `count` draws with probability `share`: a
/// right split is outside less than once in four million runs (a skewed one of few draws included).
pub fn assert_share(counted: usize, count: usize, share: f64) {
    let mean = count as f64 * share;
    let allowed = 5.5 * (mean * (1.0 - share)).sqrt();
    assert!(
        (counted as f64 - mean).abs() <= allowed,
        "{counted} of {count} is not within {allowed:.0} of {mean:.0}"
    );
}

async fn a_gateway_splits_as_the_rule_says_over_delta_ads(plane: Plane) {
    splits_as_the_rule_says(plane, true, "delta").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_envoy_as_gateway_splits_as_the_rule_says_over_state_of_the_world_ads() {
    splits_as_the_rule_says(Plane::StockEnvoy, false, "sotw").await;
}

async fn splits_as_the_rule_says(plane: Plane, delta: bool, protocol: &str) {
    let mesh = Mesh::start().await;
    let Some(gateway) =
        Gateway::start(plane, &mesh, "a_gateway_splits_as_the_rule_says", delta).await
    else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    // The port is open before any rule is there, and answers 404 (fact 19).
    eventually("the gateway's port is open", async || {
        let answer = Call::get("any.test", "/").send(gateway.http).await?;
        assert_eq!((answer.status, answer.body.as_str()), (404, ""));
        Ok(())
    })
    .await;

    let everywhere = "  - route: [{destination: {host: reviews}}]";
    let jason = "
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 70}
    - {destination: {host: reviews, subset: v3}, weight: 30}";
    mesh.apply(&(rule("default.test", everywhere) + &rule("jason.test", jason)))
        .await;
    mesh.distributed(1).await;
    served(&gateway, "default.test").await;
    served(&gateway, "jason.test").await;

    let counts = split(&gateway, &Call::get("default.test", "/"), 60).await;
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let any = Call::get("jason.test", "/");
    let [v1, v2, v3] = split(&gateway, &any, 1000).await;
    assert_eq!(v2, 0);
    assert_share(v1, 1000, 0.7);
    assert_share(v3, 1000, 0.3);
    let jason = any.clone().header("end-user", "jason");
    assert_eq!(split(&gateway, &jason, 100).await, [0, 100, 0]);
    let other = any.header("end-user", "jasonx");
    assert_eq!(split(&gateway, &other, 50).await[1], 0);

    mesh.distributed(1).await;
    mesh.synced(GATEWAY).await;
    let status = mesh.status_of(GATEWAY).await;
    assert_eq!(status["protocol"], protocol);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

async fn what_cannot_be_forwarded_is_answered_as_istio_does(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "what_cannot_be_forwarded_is_answered_as_istio_does";
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    // A service that nothing listens for.
    let closed = ports::reserve();
    let objects = service("closed", "http", 80) + &workload("closed", "v1", "http", closed);
    let subset =
        |name: &str| format!("  - route: [{{destination: {{host: reviews, subset: {name}}}}}]");
    let rules = [
        rule("nobody.test", &subset("nobody")),
        rule("missing.test", &subset("v7")),
        rule(
            "unknown.test",
            "  - route: [{destination: {host: nothing}}]",
        ),
        rule("closed.test", "  - route: [{destination: {host: closed}}]"),
        rule(
            "path.test",
            "  - match: [{uri: {exact: /here}}]\n    route: [{destination: {host: reviews}}]",
        ),
    ];
    mesh.apply(&(objects + &rules.concat() + SECURE)).await;
    mesh.distributed(1).await;
    served(&gateway, "closed.test").await;

    let mut seen = gateway.envoy.stats().await;
    let mut check = async |host: &str, path: &str, status: u16, body: &str, counter: &str| {
        let answer = gateway.get(host, path).await;
        let found = (answer.status, answer.body.as_str());
        assert_eq!(found, (status, body), "{host}{path}: {answer:?}");
        if !counter.is_empty() {
            // A request may be counted a moment after it is answered.
            seen = eventually(&format!("{host} counts for {counter}"), async || {
                let stats = gateway.envoy.stats().await;
                match (total(&stats, counter), total(&seen, counter) + 1) {
                    (found, expected) if found == expected => Ok(stats),
                    (found, expected) => Err(format!("{found}, not {expected}")),
                }
            })
            .await;
        }
        answer
    };
    // UH, NC, NC, NR, NR: what each flag's counter is called in Envoy.
    check(
        "nobody.test",
        "/",
        503,
        "no healthy upstream",
        ".upstream_cx_none_healthy",
    )
    .await;
    check("missing.test", "/", 503, "", ".no_cluster").await;
    check("unknown.test", "/", 503, "", ".no_cluster").await;
    check("path.test", "/elsewhere", 404, "", ".no_route").await;
    check("nowhere.test", "/", 404, "", ".no_route").await;
    let answer = gateway.get("closed.test", "/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("connection failure"), "{answer:?}");
    let cluster = "cluster.outbound|80||closed.default.svc.cluster.local;.upstream_rq_retry";
    let cluster = cluster.replace(';', "");
    eventually(
        "a request that cannot connect is retried twice",
        async || match gateway.envoy.stat(&cluster).await {
            retries if retries > 0 && retries % 2 == 0 => Ok(()),
            retries => Err(retries.to_string()),
        },
    )
    .await;

    let answer = gateway.get("secure.test", "/a?b=c").await;
    let location = answer.header("location");
    assert_eq!(
        (answer.status, location.as_str()),
        (301, "https://secure.test/a?b=c")
    );
    let host_with_port = gateway.get("path.test:8080", "/here").await;
    assert_eq!(host_with_port.status, 200);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

/// The sum of all counters of this name, whatever they belong to.
fn total(stats: &BTreeMap<String, u64>, counter: &str) -> u64 {
    let named = stats.iter().filter(|(name, _)| name.ends_with(counter));
    named.map(|(_, value)| value).sum()
}

/// A server that sends everybody to https.
const SECURE: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secure, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [secure.test]
    tls: {httpsRedirect: true}
";

async fn a_gateway_reaches_service_entries_and_tcp_services(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "a_gateway_reaches_service_entries_and_tcp_services";
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let (fixed, named) = (Echo::start("static").await, Echo::start("dns").await);
    let database = TcpEcho::start("database").await;
    let entries = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: static, namespace: default}}
spec:
  hosts: [static.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: dns, namespace: default}}
spec:
  hosts: [dns.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: localhost, ports: {{http: {}}}}}]
---
",
        fixed.port(),
        named.port(),
    );
    let to = |host: &str| format!("  - route: [{{destination: {{host: {host}}}}}]");
    let rules = [
        rule("static.test", &to("static.example.com")),
        rule("dns.test", &to("dns.example.com")),
    ];
    let tcp =
        service("database", "tcp", 3306) + &workload("database", "v1", "tcp", database.port());
    mesh.apply(&(entries + &rules.concat() + &tcp + TCP_GATEWAY))
        .await;
    mesh.distributed(1).await;

    for (host, expect) in [("static.test", "static"), ("dns.test", "dns")] {
        // A name is resolved after the cluster is accepted.
        let answer: Answer = eventually(host, async || {
            let answer = Call::get(host, "/").send(gateway.http).await?;
            match answer.status {
                200 => Ok(answer),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
        assert_eq!(answer.name(), expect);
    }
    let line = eventually("the TCP service answers", async || {
        let stream = TcpStream::connect(gateway.tcp)
            .await
            .map_err(|e| e.to_string())?;
        say_hello(stream).await
    })
    .await;
    assert_eq!(line, "database hello");
    mesh.synced(GATEWAY).await;
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

const TCP_GATEWAY: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: tcp, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 9000, name: tcp, protocol: TCP}
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: database, namespace: default}
spec:
  hosts: ['*']
  gateways: [tcp]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: database, port: {number: 3306}}}]
";

/// The greeting of a [`TcpEcho`] and what it returns, in one line.
pub async fn say_hello(stream: TcpStream) -> Result<String, String> {
    let mut stream = BufReader::new(stream);
    let (mut greeting, mut echoed) = (String::new(), String::new());
    let said = |error: std::io::Error| error.to_string();
    stream.read_line(&mut greeting).await.map_err(said)?;
    stream.write_all(b"hello\n").await.map_err(said)?;
    stream.read_line(&mut echoed).await.map_err(said)?;
    match greeting.is_empty() {
        true => Err("closed at once".to_owned()),
        false => Ok(format!("{} {}", greeting.trim(), echoed.trim())),
    }
}

async fn a_server_says_which_namespaces_may_serve_its_hosts(plane: Plane) {
    let test = "a_server_says_which_namespaces_may_serve_its_hosts";
    let mesh = Mesh::start().await;
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    // Instead of the host `*`, which serves everybody.
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {name: web, namespace: default}\n\
         spec:\n  selector: {istio: ingressgateway}\n  servers:\n  \
         - port: {number: 80, name: http, protocol: HTTP}\n    \
         hosts: [shop/*.shop.test, ./own.test, '*/all.test']\n",
    )
    .await;
    let mut rules = String::new();
    for (namespace, host) in [
        ("shop", "a.shop.test"),
        ("default", "b.shop.test"),
        ("default", "own.test"),
        ("shop", "all.test"),
    ] {
        rules += &format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{hosts: [{host}], gateways: [default/web], \
             http: [{{directResponse: {{status: 200}}}}]}}\n---\n",
            name = host.replace('.', "-")
        );
    }
    mesh.create(&rules).await;
    for host in ["a.shop.test", "own.test", "all.test"] {
        served(&gateway, host).await;
        assert_eq!(gateway.get(host, "/").await.status, 200, "{host}");
    }
    assert_eq!(gateway.get("b.shop.test", "/").await.status, 404);
    assert_eq!(gateway.get("other.test", "/").await.status, 404);
}

on_both!(
    a_server_says_which_namespaces_may_serve_its_hosts,
    a_gateway_splits_as_the_rule_says_over_delta_ads,
    what_cannot_be_forwarded_is_answered_as_istio_does,
    a_gateway_reaches_service_entries_and_tcp_services,
);
