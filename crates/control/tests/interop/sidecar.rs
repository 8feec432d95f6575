//! Stock Envoy as the sidecar of one workload that sends its requests through it: the outbound
//! HTTP proxy, a listener for a TCP service, and the inbound listeners.

use std::net::SocketAddr;

use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{eventually, ports, settles};
use serde_json::json;
use tokio::net::TcpStream;

use crate::gateway::{assert_share, say_hello};
use crate::mesh::{Mesh, Reviews, loopback, service};

pub const SIDECAR: &str = "front-v1.default";

/// The workload `front-v1`: its application, and stock Envoy beside it.
pub struct Sidecar {
    pub envoy: Envoy,
    app: Echo,
    /// Where the application sends its requests.
    proxy: SocketAddr,
    /// Where others reach its HTTP port and its TCP port.
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    /// Stands for `database:3306`.
    pub database: SocketAddr,
    _tcp_app: TcpEcho,
}

impl Sidecar {
    pub async fn start(plane: Plane, mesh: &Mesh, test: &str) -> Option<Self> {
        Self::start_at(plane, mesh, test, ports::reserve()).await
    }

    /// The same with its HTTP port at this one.
    pub async fn start_at(plane: Plane, mesh: &Mesh, test: &str, http: u16) -> Option<Self> {
        let binary = plane.binary(test)?;
        let app = Echo::start("front").await;
        let tcp_app = TcpEcho::start("front-tcp").await;
        let [proxy, tcp, database] = std::array::from_fn(|_| ports::reserve());
        mesh.create(&front(http, tcp)).await;
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: "front-v1".into(),
            namespace: "default".into(),
            metadata: json!({
                "LABELS": {"app": "front", "version": "v1"},
                "INTERCEPTION_MODE": "NONE",
                "HTTP_PROXY_PORT": proxy.to_string(),
                "LATEEN_BIND": "127.0.0.1",
                "LATEEN_INBOUND": {
                    http.to_string(): app.port(),
                    tcp.to_string(): tcp_app.port(),
                },
                "LATEEN_OUTBOUND": {"database.default.svc.cluster.local:3306": database},
            }),
            xds: mesh.xds,
            admin: ports::reserve(),
            delta: true,
        };
        let bootstrap = bootstrap.to_json();
        if plane == Plane::StockEnvoy {
            Envoy::validate(&binary, &bootstrap, mesh.directory()).unwrap();
        }
        let envoy = Envoy::start(&binary, &bootstrap, mesh.directory()).await;
        envoy.ready().await;
        Some(Sidecar {
            envoy,
            app,
            proxy: loopback(proxy),
            http: loopback(http),
            tcp: loopback(tcp),
            database: loopback(database),
            _tcp_app: tcp_app,
        })
    }

    /// What the application gets for `GET http://HOST/PATH`.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        let call = Call::through_proxy(host, path);
        call.send(self.proxy).await.unwrap()
    }

    /// What the application gets for a request through its proxy.
    pub async fn send(&self, call: &Call) -> Result<Answer, String> {
        call.send(self.proxy).await
    }

    async fn answers(&self, host: &str, name: &str) {
        settles(&format!("{name} answers for {host}"), async || {
            let answer = Call::through_proxy(host, "/").send(self.proxy).await?;
            match answer.name() == name {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
}

fn front(http: u16, tcp: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: front, namespace: default}}
spec:
  selector: {{app: front}}
  ports: [{{name: http, port: 80}}, {{name: tcp-own, port: 7000}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: front-v1, namespace: default}}
spec:
  address: 127.0.0.1
  ports: {{http: {http}, tcp-own: {tcp}}}
  labels: {{app: front, version: v1}}
"
    )
}

async fn a_sidecar_takes_the_applications_requests_to_services(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "a_sidecar_takes_the_applications_requests_to_services";
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    let far = Echo::start("far").await;
    let external = Echo::start("external").await;
    mesh.apply(&elsewhere(far.port(), external.port())).await;
    mesh.distributed(1).await;
    sidecar.answers("api.example.com", "external").await;

    // Every name a client may use (fact 16).
    for host in [
        "reviews:9080",
        "reviews.default:9080",
        "reviews.default.svc:9080",
        "reviews.default.svc.cluster.local:9080",
    ] {
        let answer = sidecar.get(host, "/x?y").await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
        assert!(answer.name().starts_with('v'), "{host}: {answer:?}");
        assert_eq!(answer.json()["path"], "/x?y");
        assert_eq!(answer.got("host"), host);
    }
    for host in ["far.other", "far.other.svc.cluster.local:80"] {
        assert_eq!(sidecar.get(host, "/").await.name(), "far");
    }
    assert_eq!(
        sidecar.get("api.example.com:80", "/").await.name(),
        "external"
    );
    // A short name is of the client's own namespace; other ports are not the service's.
    for host in ["far", "reviews", "reviews:9081", "nobody.example"] {
        let answer = sidecar.get(host, "/").await;
        assert_eq!(answer.status, 502, "{host}: {answer:?}");
    }

    mesh.apply(JASON).await;
    mesh.distributed(1).await;
    let jason = Call::through_proxy("reviews:9080", "/").header("end-user", "jason");
    settles("the rule is in force", async || {
        match jason.send(sidecar.proxy).await?.header("x-rule") {
            rule if rule == "jason" => Ok(()),
            rule => Err(rule),
        }
    })
    .await;
    let mut v1 = 0;
    for _ in 0..20 {
        assert_eq!(jason.send(sidecar.proxy).await.unwrap().name(), "v2");
    }
    for _ in 0..400 {
        match sidecar.get("reviews:9080", "/").await.name().as_str() {
            "v1" => v1 += 1,
            "v3" => {}
            other => panic!("{other}"),
        }
    }
    assert_share(v1, 400, 0.7);
    mesh.delete(JASON).await;
    mesh.distributed(1).await;
    eventually("the default is back", async || {
        match sidecar.get("reviews:9080", "/").await.name().as_str() {
            "v2" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    mesh.synced(SIDECAR).await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

/// A service of another namespace, and a host outside of the mesh.
fn elsewhere(far: u16, external: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: far, namespace: other}}
spec:
  selector: {{app: far}}
  ports: [{{name: http, port: 80}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: far-v1, namespace: other}}
spec: {{address: 127.0.0.1, ports: {{http: {far}}}, labels: {{app: far}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: external, namespace: default}}
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {external}}}}}]
"
    )
}

const JASON: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    headers: {response: {set: {x-rule: jason}}}
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 70}
    - {destination: {host: reviews, subset: v3}, weight: 30}
";

async fn a_sidecar_serves_its_workload_and_tcp_services(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "a_sidecar_serves_its_workload_and_tcp_services";
    let database = [
        TcpEcho::start("first").await,
        TcpEcho::start("second").await,
    ];
    let mut objects = service("database", "tcp", 3306);
    for (version, echo) in ["v1", "v2"].iter().zip(&database) {
        objects += &crate::mesh::workload("database", version, "tcp", echo.port());
    }
    mesh.create(&objects).await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    mesh.distributed(1).await;

    let answer = eventually("the inbound listener answers", async || {
        let call = Call::get("front", "/in?a=b").header("x-request-id", "7");
        call.send(sidecar.http).await
    })
    .await;
    assert_eq!((answer.status, answer.name().as_str()), (200, "front"));
    assert_eq!(answer.json()["path"], "/in?a=b");
    assert_eq!(answer.header("server"), "istio-envoy");
    assert_eq!(sidecar.app.hits("/in"), 1);
    // The application's own errors come through as they are, and are not repeated.
    let error = Call::get("front", "/status/503").send(sidecar.http).await;
    assert_eq!(error.unwrap().status, 503);
    assert_eq!(sidecar.app.hits("/status/503"), 1);

    let stream = TcpStream::connect(sidecar.tcp).await.unwrap();
    assert_eq!(say_hello(stream).await.unwrap(), "front-tcp hello");

    // The workload's own service, out through its sidecar and in again.
    sidecar.answers("front", "front").await;

    let said = async || {
        let stream = TcpStream::connect(sidecar.database).await.unwrap();
        say_hello(stream).await
    };
    let mut seen = [false; 2];
    for _ in 0..40 {
        match said().await.unwrap().as_str() {
            "first hello" => seen[0] = true,
            "second hello" => seen[1] = true,
            other => panic!("{other}"),
        }
    }
    assert_eq!(seen, [true, true]);
    mesh.apply(DATABASE).await;
    mesh.distributed(1).await;
    eventually("all connections go to v2", async || {
        for _ in 0..10 {
            let found = said().await?;
            if found != "second hello" {
                return Err(found);
            }
        }
        Ok(())
    })
    .await;
    mesh.synced(SIDECAR).await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

const DATABASE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: database, namespace: default}
spec:
  host: database
  subsets: [{name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: database, namespace: default}
spec:
  hosts: [database]
  tcp:
  - route: [{destination: {host: database, subset: v2}}]
";

on_both!(
    a_sidecar_takes_the_applications_requests_to_services,
    a_sidecar_serves_its_workload_and_tcp_services,
);
