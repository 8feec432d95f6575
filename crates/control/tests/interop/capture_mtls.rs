//! Mutual TLS where traffic is captured: who is let in by which mode on every kind of port of a
//! workload whose application knows of nothing (facts 44 to 46).
//!
//! The same matrix without capture is in `mtls.rs`.

use std::net::SocketAddr;

use lateen_agent::Agent;
use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::netns::{self, Network};
use lateen_testkit::settles;
use lateen_testkit::tls_client::Dial;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::callers::{ALL, Clients, check, http, is_let_in, tcp};
use crate::capture::relay_to;
use crate::member::{Secured, Who, arm};
use crate::mesh::loopback;

mod stock_envoy {
    #[test]
    fn each_mode_lets_in_whom_it_says_on_every_captured_port() {
        super::start(lateen_testkit::envoy::Plane::StockEnvoy);
    }
}

mod lateen {
    #[test]
    fn each_mode_lets_in_whom_it_says_on_every_captured_port() {
        super::start(lateen_testkit::envoy::Plane::Lateen);
    }
}

const TEST: &str = "each_mode_lets_in_whom_it_says_on_every_captured_port";

fn start(plane: Plane) {
    netns::run(TEST, async |network| {
        if let Some(scene) = Scene::new(plane, network).await {
            each_mode_lets_in_whom_it_says_on_every_captured_port(scene).await;
        }
    });
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: default}
spec:
  selector: {app: cart}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 7000, targetPort: 8081}
  - {name: something, port: 7001, targetPort: 8082}
";

/// `cart` in a namespace, with its proxy. The test's clients are outside of it.
struct Scene {
    mesh: Secured,
    /// Declared HTTP, declared TCP, declared as nothing, and of no service.
    http: SocketAddr,
    tcp: SocketAddr,
    sniffed: [SocketAddr; 2],
    envoy: Envoy,
    _agent: Option<Agent>,
    _apps: (Vec<Echo>, TcpEcho),
    /// Last: the namespaces go after what is in them.
    _network: Network,
}

impl Scene {
    async fn new(plane: Plane, mut network: Network) -> Option<Self> {
        let binary = plane.binary(TEST)?;
        let mesh = Secured::start().await;
        let cart = network.captured_workload();
        let (address, hub) = (cart.address, network.hub());
        let apps = [8080, 8082, 8090].map(|port| Echo::on(cart.listen(port), "cart"));
        let tcp_app = TcpEcho::on(cart.listen(8081), "cart-tcp");
        mesh.create(SERVICE).await;
        mesh.create(&format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: cart-v1, namespace: default}}\nspec:\n  address: {address}\n  \
             serviceAccount: cart\n  labels: {{app: cart, security.istio.io/tlsMode: istio}}\n"
        ))
        .await;
        let relay = TcpListener::bind((hub, mesh.secure)).await.unwrap();
        tokio::spawn(relay_to(relay, loopback(mesh.secure)));
        let socket = mesh.directory().join("cart.sds/socket");
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: "cart-v1".into(),
            namespace: "default".into(),
            metadata: json!({
                "LABELS": {"app": "cart", "security.istio.io/tlsMode": "istio"},
                "NAMESPACE": "default",
                "SERVICE_ACCOUNT": "cart",
                "INTERCEPTION_MODE": "REDIRECT",
            }),
            xds: mesh.xds,
            admin: netns::ADMIN,
            delta: true,
        };
        let mut bootstrap = bootstrap.secured(&socket, mesh.secure);
        let id = format!("sidecar~{address}~cart-v1.default~default.svc.cluster.local");
        bootstrap["node"]["id"] = json!(id);
        bootstrap["admin"]["address"]["socket_address"]["address"] = json!(address);
        *control_plane(&mut bootstrap) = json!(hub);
        let mut config = mesh.identity(&Who::named("cart")).await;
        if plane == Plane::Lateen {
            config.ca = SocketAddr::from((hub, mesh.secure)).to_string();
        }
        let mut command = cart.as_proxy(&binary);
        let agent = arm(plane, config, &socket, &mut command);
        let envoy = Envoy::start_by(command, &binary, &bootstrap, mesh.directory()).await;
        envoy.ready().await;
        mesh.distributed(1).await;
        Some(Scene {
            mesh,
            http: cart.at(8080),
            tcp: cart.at(8081),
            sniffed: [cart.at(8082), cart.at(8090)],
            envoy,
            _agent: agent,
            _apps: (apps.into(), tcp_app),
            _network: network,
        })
    }
}

/// The address of the control plane in a bootstrap.
fn control_plane(bootstrap: &mut Value) -> &mut Value {
    let path = "/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints/0/endpoint/\
                address/socket_address/address";
    bootstrap.pointer_mut(path).unwrap()
}

async fn each_mode_lets_in_whom_it_says_on_every_captured_port(scene: Scene) {
    let clients = Clients::new(&scene.mesh.authority);
    for mode in ["PERMISSIVE", "STRICT", "DISABLE"] {
        scene
            .mesh
            .apply(&format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: default, namespace: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
            ))
            .await;
        scene.mesh.distributed(1).await;
        settles(&format!("{mode} is in force"), async || {
            let found = http(scene.http, Dial::Plain).await;
            match found.is_ok() == (mode != "STRICT") {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        let alpn = ["istio-http/1.1", "istio"];
        for shows in ALL {
            let expected = is_let_in(mode, shows);
            let declared = http(scene.http, clients.dial(shows, &alpn)).await;
            check(mode, "http", shows, expected, &declared);
            let bytes = tcp(scene.tcp, clients.dial(shows, &["istio"])).await;
            let bytes = bytes.map(|said| assert!(said.starts_with("cart-tcp\n"), "{said}"));
            assert_eq!(bytes.is_ok(), expected, "{mode} tcp {shows:?} {bytes:?}");
            for to in scene.sniffed {
                let sniffed = http(to, clients.dial(shows, &alpn)).await;
                check(mode, &to.to_string(), shows, expected, &sniffed);
            }
        }
    }
    assert_eq!(scene.envoy.rejected().await, Default::default());
}
