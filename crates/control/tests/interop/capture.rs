//! Transparent capture in network namespaces: the traffic of an unmodified application goes through
//! its proxy by packet filter rules, outbound and inbound.
//!
//! `front` calls, `web` serves; both have a proxy. `outside` has none and is in no registry.

use std::net::SocketAddr;

use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::{Answer, Call, Client};
use lateen_testkit::netns::{self, Network, Workload};
use lateen_testkit::{eventually, settles};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::Mesh;

macro_rules! in_namespaces {
    ($($name:ident),* $(,)?) => {
        mod stock_envoy {
            $(
                #[test]
                fn $name() {
                    super::start(stringify!($name), lateen_testkit::envoy::Plane::StockEnvoy, super::$name);
                }
            )*
        }

        mod lateen {
            $(
                #[test]
                fn $name() {
                    super::start(stringify!($name), lateen_testkit::envoy::Plane::Lateen, super::$name);
                }
            )*
        }
    };
}

in_namespaces!(
    http_to_a_service_goes_by_its_rules_whatever_name_the_client_uses,
    tcp_to_a_service_reaches_it_even_when_the_server_speaks_first,
    unknown_destinations_are_reached,
    unknown_destinations_are_refused_where_only_the_registry_counts,
    inbound_connections_reach_the_application_on_every_port,
    a_connection_to_a_capture_port_itself_goes_nowhere,
    services_outside_are_found_by_address_range_and_by_server_name,
    tcp_and_tls_routes_choose_by_address_and_server_name,
    a_sidecar_resource_leads_a_port_elsewhere,
);

/// Virtual addresses of the services.
const WEB: [u8; 4] = [10, 96, 0, 10];
const DATABASE: [u8; 4] = [10, 96, 0, 11];
const MIXED: [u8; 4] = [10, 96, 0, 12];

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: database, namespace: default}
spec:
  clusterIP: 10.96.0.11
  selector: {app: web}
  ports: [{name: tcp-sql, port: 3306, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: mixed, namespace: default}
spec:
  clusterIP: 10.96.0.12
  selector: {app: web}
  ports: [{name: something, port: 7000, targetPort: 8082}, {name: other, port: 7001, targetPort: 8083}]
---
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: default}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: tcp-pods, port: 8081}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /teapot}}]
    directResponse: {status: 418}
  - route: [{destination: {host: web}}]
---
";

const REGISTRY_ONLY: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
";

/// Everything a test has.
pub struct Scene {
    pub mesh: Mesh,
    pub front: Workload,
    pub web: Workload,
    pub outside: Workload,
    proxies: Vec<Envoy>,
    _http: Vec<Echo>,
    _tcp: Vec<TcpEcho>,
    /// Last: the namespaces go after what is in them.
    _network: Network,
}

pub fn start<F: Future<Output = ()>>(
    test: &str,
    plane: Plane,
    body: impl FnOnce(Scene) -> F + Send,
) {
    netns::run(test, async |network| {
        if let Some(scene) = Scene::new(test, plane, network).await {
            body(scene).await;
        }
    });
}

impl Scene {
    async fn new(test: &str, plane: Plane, mut network: Network) -> Option<Self> {
        let binary = plane.binary(test)?;
        let mesh = Mesh::start().await;
        let front = network.captured_workload();
        let web = network.captured_workload();
        let outside = network.workload();
        let http = vec![
            Echo::on(web.listen(8080), "web"),
            Echo::on(web.listen(8082), "mixed"),
            Echo::on(web.listen(8090), "undeclared"),
            Echo::on(outside.listen(80), "outside"),
            Echo::on(outside.listen(8080), "outside"),
        ];
        let tcp = vec![
            TcpEcho::on(web.listen(8081), "database"),
            TcpEcho::on(web.listen(8083), "mixed"),
            TcpEcho::on(outside.listen(9000), "outside"),
            TcpEcho::on(outside.listen(9443), "secure"),
        ];
        mesh.create(SERVICES).await;
        let relay = TcpListener::bind((network.hub(), mesh.xds)).await.unwrap();
        tokio::spawn(relay_to(relay, crate::mesh::loopback(mesh.xds)));
        let mut proxies = Vec::new();
        for (name, workload) in [("front", &front), ("web", &web)] {
            let address = workload.address;
            mesh.create(&format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{name: {name}-v1, namespace: default}}\n\
                 spec:\n  address: {address}\n  labels: {{app: {name}, version: v1}}\n"
            ))
            .await;
            let bootstrap = Bootstrap {
                kind: "sidecar",
                name: format!("{name}-v1"),
                namespace: "default".into(),
                metadata: json!({
                    "LABELS": {"app": name, "version": "v1"},
                    "INTERCEPTION_MODE": "REDIRECT",
                }),
                xds: mesh.xds,
                admin: netns::ADMIN,
                delta: true,
            };
            let mut bootstrap = bootstrap.to_json();
            let id = format!("sidecar~{address}~{name}-v1.default~default.svc.cluster.local");
            bootstrap["node"]["id"] = json!(id);
            bootstrap["admin"]["address"]["socket_address"]["address"] = json!(address);
            let xds = bootstrap
                .pointer_mut("/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/address")
                .unwrap();
            *xds = json!(network.hub());
            let command = workload.as_proxy(&binary);
            let proxy = Envoy::start_by(command, &binary, &bootstrap, mesh.directory()).await;
            proxy.ready().await;
            proxies.push(proxy);
        }
        mesh.distributed(2).await;
        Some(Scene {
            mesh,
            front,
            web,
            outside,
            proxies,
            _http: http,
            _tcp: tcp,
            _network: network,
        })
    }

    /// What the proxy of `web` has counted.
    pub async fn web_stats(&self) -> std::collections::BTreeMap<String, u64> {
        self.proxies[1].stats().await
    }

    /// Nothing that was sent was refused.
    pub async fn accepted(&self) {
        for proxy in &self.proxies {
            assert!(proxy.rejected().await.is_empty(), "{}", proxy.log());
        }
    }
}

pub async fn relay_to(listener: TcpListener, to: SocketAddr) {
    while let Ok((mut near, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

/// What an application gets for `GET http://HOST/PATH`, having looked the host up.
pub async fn get(
    from: &Workload,
    to: SocketAddr,
    host: &str,
    path: &str,
) -> Result<Answer, String> {
    let stream = connect(from, to)?;
    Client::over(stream)
        .await?
        .send(&Call::get(host, path))
        .await
}

pub fn connect(from: &Workload, to: SocketAddr) -> Result<TcpStream, String> {
    let stream = from.connect(to).map_err(|e| format!("{to}: {e}"))?;
    TcpStream::from_std(stream).map_err(|e| e.to_string())
}

/// Reads as much as `expected` has, and says what came if it is something else.
pub async fn hears(stream: &mut TcpStream, expected: &[u8]) -> Result<(), String> {
    let mut have = Vec::new();
    let mut limited = stream.take(expected.len() as u64);
    let read = limited.read_to_end(&mut have);
    let read = tokio::time::timeout(lateen_testkit::PATIENCE, read).await;
    match read {
        Ok(Ok(_)) if have == expected => Ok(()),
        other => Err(format!("{other:?}: {}", have.escape_ascii())),
    }
}

/// Whether a connection ends without a byte.
async fn is_closed(mut stream: TcpStream) -> bool {
    let _ = stream.write_all(b"hello\n").await;
    let mut byte = [0; 1];
    let read = stream.read(&mut byte);
    match tokio::time::timeout(lateen_testkit::PATIENCE, read).await {
        Ok(Ok(read)) => read == 0,
        Ok(Err(_)) => true,
        Err(_) => false,
    }
}

async fn http_to_a_service_goes_by_its_rules_whatever_name_the_client_uses(scene: Scene) {
    let web = SocketAddr::from((WEB, 80));
    for host in [
        "web",
        "web.default",
        "web.default.svc.cluster.local:80",
        "10.96.0.10",
    ] {
        settles(&format!("web answers for {host}"), async || {
            let answer = get(&scene.front, web, host, "/x").await?;
            match (
                answer.status,
                answer.name().as_str(),
                answer.header("server").as_str(),
            ) {
                (200, "web", "envoy") => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    let answer = get(&scene.front, web, "web", "/teapot").await.unwrap();
    assert_eq!(answer.status, 418);
    // The sidecar of web has seen the request as well.
    let answer = get(&scene.front, web, "web", "/x").await.unwrap();
    assert_eq!(answer.got("x-envoy-attempt-count"), "1");
    let stats = scene.proxies[1].stats().await;
    let name = "http.inbound_0.0.0.0_8080.downstream_rq_2xx";
    let seen = stats
        .iter()
        .find(|(key, _)| key.replace(';', "").starts_with(name));
    assert!(seen.is_some_and(|(_, count)| *count > 0), "{seen:?}");
    // What the port does not declare is told by its first bytes.
    let mixed = SocketAddr::from((MIXED, 7000));
    let answer = get(&scene.front, mixed, "whatever", "/x").await.unwrap();
    assert_eq!(
        (answer.name().as_str(), answer.header("server").as_str()),
        ("mixed", "envoy")
    );
    if let Some(curl) = curl_with_http2() {
        let mut curl = scene.front.command(&curl);
        let curl = curl.args(["-s", "--http2-prior-knowledge", "-w", " %{http_version}"]);
        let output = curl.arg("http://10.96.0.10/h2c").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\"/h2c\"") && text.ends_with(" 2"), "{text}");
    }
    scene.accepted().await;
}

fn curl_with_http2() -> Option<String> {
    let version = std::process::Command::new("curl").arg("-V").output().ok()?;
    let http2 = String::from_utf8_lossy(&version.stdout).contains("HTTP2");
    http2.then(|| "curl".to_owned())
}

async fn tcp_to_a_service_reaches_it_even_when_the_server_speaks_first(scene: Scene) {
    let database = SocketAddr::from((DATABASE, 3306));
    settles("the database speaks", async || {
        let mut stream = connect(&scene.front, database)?;
        hears(&mut stream, b"database\n").await?;
        stream.write_all(b"select\n").await.unwrap();
        hears(&mut stream, b"select\n").await
    })
    .await;
    let stats = scene.proxies[0].stats().await;
    let name = "cluster.outbound|3306||database.default.svc.cluster.local";
    let seen = stats
        .iter()
        .find(|(key, _)| key.replace(';', "") == format!("{name}.upstream_cx_total"));
    assert!(seen.is_some_and(|(_, count)| *count > 0), "{seen:?}");
    // A headless service: the client goes to a workload it chose.
    let mut stream = connect(&scene.front, scene.web.at(8081)).unwrap();
    hears(&mut stream, b"database\n").await.unwrap();
    // TLS, and whatever else is not HTTP, passes an undeclared port as it is.
    for first in [
        &b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"[..],
        b"*1\r\n$4\r\nPING\r\n",
    ] {
        let mut stream = connect(&scene.front, SocketAddr::from((MIXED, 7001))).unwrap();
        stream.write_all(first).await.unwrap();
        hears(&mut stream, &[b"mixed\n", first].concat())
            .await
            .unwrap();
    }
    scene.accepted().await;
}

async fn unknown_destinations_are_reached(scene: Scene) {
    for port in [80, 8080] {
        settles(&format!("outside answers on {port}"), async || {
            let to = scene.outside.at(port);
            let answer = get(&scene.front, to, "nobody.example.com", "/x").await?;
            match answer.name().as_str() {
                "outside" => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    // Port 80 has HTTP services, so a stranger's HTTP is read there too.
    let answer = get(
        &scene.front,
        scene.outside.at(80),
        "nobody.example.com",
        "/",
    )
    .await;
    assert_eq!(answer.unwrap().header("server"), "envoy");
    let mut stream = connect(&scene.front, scene.outside.at(9000)).unwrap();
    hears(&mut stream, b"outside\n").await.unwrap();
    scene.accepted().await;
}

async fn unknown_destinations_are_refused_where_only_the_registry_counts(scene: Scene) {
    scene.mesh.apply(REGISTRY_ONLY).await;
    eventually("HTTP to a stranger is refused", async || {
        let to = scene.outside.at(80);
        let answer = get(&scene.front, to, "nobody.example.com", "/x").await?;
        match answer.status {
            502 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    scene.mesh.distributed(2).await;
    settles("TCP to a stranger is refused", async || {
        match is_closed(connect(&scene.front, scene.outside.at(8080))?).await {
            true => Ok(()),
            false => Err("an answer came".to_owned()),
        }
    })
    .await;
    let web = SocketAddr::from((WEB, 80));
    let answer = get(&scene.front, web, "web", "/x").await.unwrap();
    assert_eq!(answer.name(), "web");
    scene.accepted().await;
}

async fn inbound_connections_reach_the_application_on_every_port(scene: Scene) {
    let outside = &scene.outside;
    // Declared, undeclared in a service, and of no service at all: HTTP is read on all of them.
    for (port, name) in [(8080, "web"), (8082, "mixed"), (8090, "undeclared")] {
        settles(&format!("{name} answers"), async || {
            let answer = get(outside, scene.web.at(port), "web", "/x").await?;
            match (answer.name(), answer.header("server").as_str()) {
                (got, "istio-envoy") if got == name => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    let mut stream = connect(outside, scene.web.at(8081)).unwrap();
    hears(&mut stream, b"database\n").await.unwrap();
    // Where the first bytes decide, the server is heard once they have come.
    let mut stream = connect(outside, scene.web.at(8083)).unwrap();
    let early = tokio::time::timeout(
        std::time::Duration::from_millis(300),
        hears(&mut stream, b"m"),
    );
    assert!(early.await.is_err());
    stream
        .write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03")
        .await
        .unwrap();
    hears(&mut stream, b"mixed\n\x16\x03\x01").await.unwrap();
    // Declared HTTP that gets something else says so.
    let mut stream = connect(outside, scene.web.at(8080)).unwrap();
    stream.write_all(b"hello\r\n\r\n").await.unwrap();
    hears(&mut stream, b"HTTP/1.1 400 Bad Request\r\n")
        .await
        .unwrap();
    // An application that calls its own address is called through its proxy.
    let answer = get(&scene.web, SocketAddr::from((WEB, 80)), "web", "/x")
        .await
        .unwrap();
    assert_eq!(answer.name(), "web");
    scene.accepted().await;
}

async fn a_connection_to_a_capture_port_itself_goes_nowhere(scene: Scene) {
    let web = SocketAddr::from((WEB, 80));
    settles("the mesh works", async || {
        get(&scene.front, web, "web", "/").await.map(|_| ())
    })
    .await;
    for port in [15001, 15006] {
        let stream = connect(&scene.outside, scene.web.at(port)).unwrap();
        assert!(is_closed(stream).await, "from outside to {port}");
        let stream = connect(&scene.front, SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        assert!(is_closed(stream).await, "on loopback to {port}");
    }
    eventually("no connection is left", async || {
        let stats = scene.proxies[0].stats().await;
        let open = stats
            .iter()
            .find(|(key, _)| key.replace(';', "") == "listener.0.0.0.0_15001.downstream_cx_active");
        match open.map(|(_, count)| *count) {
            Some(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// `secure.test` has no address: only the server name of its TLS leads to it. `range.test` is known
/// by its addresses, and goes where the client was going.
const OUTSIDE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: secure, namespace: default}
spec:
  hosts: [secure.test]
  ports: [{number: 443, name: tls, protocol: TLS, targetPort: 9443}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.4}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: range, namespace: default}
spec:
  hosts: [range.test]
  addresses: [10.77.0.4/30]
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  resolution: NONE
---
";

async fn services_outside_are_found_by_address_range_and_by_server_name(scene: Scene) {
    scene.mesh.apply(REGISTRY_ONLY).await;
    scene.mesh.apply(OUTSIDE).await;
    scene.mesh.distributed(2).await;
    let hello = client_hello("secure.test");
    // Whatever address a client has found for the name.
    let any = SocketAddr::from(([10, 99, 0, 1], 443));
    settles("the server name leads there", async || {
        let mut stream = connect(&scene.front, any)?;
        stream.write_all(&hello).await.unwrap();
        hears(&mut stream, &[b"secure\n", &*hello].concat()).await
    })
    .await;
    let mut other = connect(&scene.front, any).unwrap();
    other.write_all(&client_hello("other.test")).await.unwrap();
    assert!(is_closed(other).await);
    assert_eq!(scene.outside.address.octets(), [10, 77, 0, 4]);
    settles("an address of the range is passed on", async || {
        let mut stream = connect(&scene.front, scene.outside.at(9000))?;
        hears(&mut stream, b"outside\n").await
    })
    .await;
    let other = connect(&scene.front, scene.web.at(9000)).unwrap();
    assert!(is_closed(other).await);
    scene.accepted().await;
}

/// To the database instead.
const ROUTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secure, namespace: default}
spec:
  hosts: [secure.test]
  tls:
  - match: [{port: 443, sniHosts: [secure.test], sourceLabels: {app: front}}]
    route: [{destination: {host: database, port: {number: 3306}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: range, namespace: default}
spec:
  hosts: [range.test]
  tcp:
  - match: [{destinationSubnets: [SUBNET]}]
    route: [{destination: {host: database, port: {number: 3306}}}]
---
";

async fn tcp_and_tls_routes_choose_by_address_and_server_name(scene: Scene) {
    let hello = client_hello("secure.test");
    scene.mesh.apply(OUTSIDE).await;
    scene
        .mesh
        .apply(&ROUTES.replace("SUBNET", "10.77.0.7"))
        .await;
    scene.mesh.distributed(2).await;
    settles("the route of the server name is taken", async || {
        let mut stream = connect(&scene.front, SocketAddr::from(([10, 99, 0, 1], 443)))?;
        stream.write_all(&hello).await.unwrap();
        hears(&mut stream, b"database\n").await
    })
    .await;
    // A route for other addresses, or for other clients, is not taken.
    let mut stream = connect(&scene.front, scene.outside.at(9000)).unwrap();
    hears(&mut stream, b"outside\n").await.unwrap();
    let mut stream = connect(&scene.web, SocketAddr::from(([10, 99, 0, 1], 443))).unwrap();
    stream.write_all(&hello).await.unwrap();
    hears(&mut stream, b"secure\n").await.unwrap();
    scene
        .mesh
        .apply(&ROUTES.replace("SUBNET", "10.77.0.4/32"))
        .await;
    scene.mesh.distributed(2).await;
    settles("the route of the address is taken", async || {
        let mut stream = connect(&scene.front, scene.outside.at(9000))?;
        hears(&mut stream, b"database\n").await
    })
    .await;
    scene.accepted().await;
}

/// A TLS ClientHello that asks for a server name.
fn client_hello(name: &str) -> Vec<u8> {
    let with_length = |content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&length[..], content].concat()
    };
    let entry = [&[0], &*with_length(name.as_bytes())].concat();
    let names = [&[0, 0], &*with_length(&with_length(&entry))].concat();
    // X25519 and Ed25519: without any, BoringSSL does not take it for a ClientHello.
    let groups = [0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 8, 4];
    let versions = [0, 43, 0, 3, 2, 3, 4];
    let key_share = [&[0, 51, 0, 38, 0, 36, 0, 29, 0, 32], &[9; 32][..]].concat();
    let extensions = [&*names, &groups, &versions, &key_share].concat();
    let body = [
        &[3, 3],
        &[7; 32][..],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &*with_length(&extensions),
    ]
    .concat();
    let message = [&[1, 0], &*with_length(&body)].concat();
    [&[22, 3, 1], &*with_length(&message)].concat()
}

const INGRESS: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: default}
spec:
  workloadSelector: {labels: {app: web}}
  ingress:
  - port: {number: 8080, name: http, protocol: HTTP}
    defaultEndpoint: 127.0.0.1:8090
";

async fn a_sidecar_resource_leads_a_port_elsewhere(scene: Scene) {
    let web = SocketAddr::from((WEB, 80));
    let answered_by = async |expected: &str| {
        settles(&format!("{expected} answers"), async || {
            let answer = get(&scene.front, web, "web", "/x").await?;
            match answer.name() == expected {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    };
    answered_by("web").await;
    scene.mesh.apply(INGRESS).await;
    scene.mesh.distributed(2).await;
    answered_by("undeclared").await;
    // Ports that the Sidecar does not name are still reached.
    let mut stream = connect(&scene.outside, scene.web.at(8081)).unwrap();
    stream.write_all(b"x\r\n\r\n").await.unwrap();
    hears(&mut stream, b"database\n").await.unwrap();
    scene.accepted().await;
}
