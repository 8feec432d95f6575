//! Workloads that have an identity, on either data plane: what tests of mutual TLS, authorization
//! and JWT start from.
//!
//! ```ignore
//! let mesh = Secured::start().await;                       // a mesh with an authority
//! let Some(cart) = mesh.member(plane, test, "cart").await else { return };
//! let Some(shop) = mesh.member(plane, test, "shop").await else { return };
//! shop.get("cart", "/").await;          // shop's application -> shop's proxy -> cart's proxy -> cart
//! cart.http                             // cart's proxy for everybody else: port 80 of the service
//! mesh.authority.issue("x", &["spiffe://..."])             // a certificate for a client of yours
//! ```
//!
//! A member is a Service (`http` 80, `tcp` 7000, `undeclared` has no Service), a WorkloadEntry with
//! the label `security.istio.io/tlsMode: istio` and a service account of its own name, an application
//! (an echo that answers with its name) and a proxy. The identity of `cart` is
//! `spiffe://cluster.local/ns/default/sa/cart`, which the control plane certifies. Stock Envoy gets
//! its certificate from an agent on a Unix socket (`sds-grpc`), our proxy has the agent built in; both
//! ask the control plane over mutual TLS. [`Who`] says what is different from that.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lateen_agent::{Agent, Backoff, Config, KeyKind, sds};
use lateen_control::Compliance;
use lateen_testkit::certificates::{Authority, file};
use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{eventually, ports};
use serde_json::json;
use tokio::runtime::Handle;

use crate::mesh::{Mesh, loopback};

pub const TRUST_DOMAIN: &str = "cluster.local";

/// A mesh whose control plane gives its workloads certificates. It is the [`Mesh`] besides.
pub struct Secured {
    pub mesh: Mesh,
    /// What the control plane signs with (plugged in); signs whatever a test wants signed, too.
    pub authority: Authority,
    /// Where agents beside stock Envoys run, to end with it; else in the test's own runtime.
    pub agents: Option<Handle>,
}

impl DerefMut for Secured {
    fn deref_mut(&mut self) -> &mut Mesh {
        &mut self.mesh
    }
}

impl Deref for Secured {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        &self.mesh
    }
}

/// Who a member is.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Of its Service; the WorkloadEntry (or Pod) and the proxy are called `NAME-v1`.
    pub name: &'a str,
    pub namespace: &'a str,
    pub account: &'a str,
    /// Without one its proxy has no certificate, and others are not told to expect one.
    pub identity: bool,
    /// How long its certificates are valid; they are renewed at half of it.
    pub lifetime: Duration,
    /// A Pod in the place of the WorkloadEntry.
    pub pod: bool,
}

impl<'a> Who<'a> {
    /// In `default`, with a service account of its own name.
    pub fn named(name: &'a str) -> Self {
        Who {
            name,
            namespace: "default",
            account: name,
            identity: true,
            lifetime: Duration::from_secs(24 * 3600),
            pod: false,
        }
    }

    pub fn spiffe_id(&self) -> String {
        let (namespace, account) = (self.namespace, self.account);
        format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
    }
}

/// A workload of the mesh: its application, and its proxy.
pub struct Member {
    pub envoy: Envoy,
    pub app: Echo,
    pub tcp_app: TcpEcho,
    /// Where its proxy takes connections for the Service's ports 80 (`http`) and 7000 (`tcp`).
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    /// The same for the application's HTTP port that no Service has.
    pub undeclared: SocketAddr,
    /// Where its application sends its requests.
    pub proxy: SocketAddr,
    pub spiffe_id: String,
    /// `NAME-v1.NAMESPACE`, as the control plane knows its proxy.
    pub id: String,
    _agent: Option<Agent>,
}

impl Secured {
    pub async fn start() -> Self {
        Self::complying(None).await
    }

    /// With TLS that complies with a policy.
    pub async fn complying(policy: Option<Compliance>) -> Self {
        Self::signed_by(Authority::new("mesh"), policy).await
    }

    /// With this authority plugged in.
    pub async fn signed_by(authority: Authority, policy: Option<Compliance>) -> Self {
        let mesh = Mesh::with_authority(&authority, policy).await;
        Secured {
            mesh,
            authority,
            agents: None,
        }
    }

    /// A member in `default` with a service account of its own name; none, with a loud word, when
    /// there is no such proxy.
    pub async fn member(&self, plane: Plane, test: &str, name: &str) -> Option<Member> {
        self.member_as(plane, test, Who::named(name)).await
    }

    pub async fn member_as(&self, plane: Plane, test: &str, who: Who<'_>) -> Option<Member> {
        let binary = plane.binary(test)?;
        let app = Echo::start(who.name).await;
        let tcp_app = TcpEcho::start(&format!("{}-tcp", who.name)).await;
        let [proxy, http, tcp, undeclared] = std::array::from_fn(|_| ports::reserve());
        self.create(&objects(&who, http, tcp)).await;
        let id = format!("{}-v1.{}", who.name, who.namespace);
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: format!("{}-v1", who.name),
            namespace: who.namespace.into(),
            metadata: json!({
                "LABELS": labels(&who),
                "NAMESPACE": who.namespace,
                "SERVICE_ACCOUNT": who.account,
                "INTERCEPTION_MODE": "NONE",
                "HTTP_PROXY_PORT": proxy.to_string(),
                "LATEEN_BIND": "127.0.0.1",
                "LATEEN_INBOUND": {
                    http.to_string(): app.port(),
                    tcp.to_string(): tcp_app.port(),
                    undeclared.to_string(): app.port(),
                },
            }),
            xds: self.xds,
            admin: ports::reserve(),
            delta: true,
        };
        let mut command = Command::new(&binary);
        let (bootstrap, agent) = match who.identity {
            false => (bootstrap.to_json(), None),
            true => {
                let config = self.identity(&who).await;
                let socket = self.sds_socket(&who);
                let _runs = self.agents.as_ref().map(Handle::enter);
                let secured = bootstrap.secured(&socket, self.secure);
                (secured, arm(plane, config, &socket, &mut command))
            }
        };
        let envoy = Envoy::start_by(command, &binary, &bootstrap, self.directory()).await;
        envoy.ready().await;
        Some(Member {
            envoy,
            app,
            tcp_app,
            http: loopback(http),
            tcp: loopback(tcp),
            undeclared: loopback(undeclared),
            proxy: loopback(proxy),
            spiffe_id: who.spiffe_id(),
            id,
            _agent: agent,
        })
    }

    /// What an agent of a workload must know, for stock Envoy or for a client of a test's own: its
    /// token is made, and written beside the roots.
    pub async fn identity(&self, who: &Who<'_>) -> Config {
        let (namespace, account) = (who.namespace, who.account);
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let call = Call::get("127.0.0.1", &path).method("POST");
        let call = call.header("content-type", "application/json");
        let request = json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 3600}});
        let answer = call.body(request.to_string()).send(self.api).await.unwrap();
        let token = answer.json()["status"]["token"].as_str().map(str::to_owned);
        let token = token.unwrap_or_else(|| panic!("no token: {answer:?}"));
        let name = format!("{}.{namespace}.token", who.name);
        Config {
            ca: loopback(self.secure).to_string(),
            ca_name: "istiod.istio-system.svc".into(),
            roots: self.roots(),
            revoked: Some(self.directory().join("ca-crl.pem")),
            token: Some(file(self.directory(), &name, &token)),
            spiffe_id: Some(who.spiffe_id()),
            key: KeyKind::Ecdsa,
            lifetime: who.lifetime,
            grace_ratio: 0.5,
            grace_jitter: 0.01,
            output: None,
            backoff: Backoff {
                base: Duration::from_millis(50),
                max: Duration::from_secs(1),
            },
        }
    }

    /// Where the agent of a workload answers.
    pub fn sds_socket(&self, who: &Who<'_>) -> PathBuf {
        let (name, namespace) = (who.name, who.namespace);
        self.directory()
            .join(format!("{name}-v1.{namespace}.sds/socket"))
    }

    /// The file of the roots that members trust.
    pub fn roots(&self) -> PathBuf {
        self.directory().join("root-cert.pem")
    }
}

impl Member {
    /// What the application gets for `GET http://HOST/PATH` through its proxy.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        self.send(&Call::through_proxy(host, path)).await.unwrap()
    }

    /// What the application gets for a request (made with [`Call::through_proxy`]).
    pub async fn send(&self, call: &Call) -> Result<Answer, String> {
        call.send(self.proxy).await
    }

    /// Waits until a request of the application gets this status.
    pub async fn gets(&self, host: &str, path: &str, status: u16) -> Answer {
        eventually(&format!("{status} for {host}{path}"), async || {
            let answer = self.send(&Call::through_proxy(host, path)).await?;
            match answer.status == status {
                true => Ok(answer),
                false => Err(format!("{answer:?}")),
            }
        })
        .await
    }
}

/// Lets a proxy have its identity: beside a stock Envoy an agent answers on the socket, which stops
/// when it is dropped; our proxy is told by arguments.
pub fn arm(plane: Plane, config: Config, socket: &Path, command: &mut Command) -> Option<Agent> {
    match plane {
        Plane::StockEnvoy => {
            let agent = Agent::start(config);
            let listener = sds::bind(socket).unwrap();
            tokio::spawn(sds::serve(listener, agent.watch()));
            Some(agent)
        }
        Plane::Lateen => {
            command.args(["--ca-address", &config.ca]);
            command.arg("--ca-root").arg(config.roots);
            if let Some(revoked) = config.revoked {
                command.arg("--ca-crl").arg(revoked);
            }
            command.arg("--token").arg(config.token.unwrap());
            let lifetime = format!("{}s", config.lifetime.as_secs());
            command.args(["--certificate-lifetime", &lifetime]);
            None
        }
    }
}

fn labels(who: &Who<'_>) -> serde_json::Value {
    let mut labels = json!({"app": who.name, "version": "v1"});
    if who.identity {
        labels["security.istio.io/tlsMode"] = json!("istio");
    }
    labels
}

fn objects(who: &Who<'_>, http: u16, tcp: u16) -> String {
    let Who {
        name,
        namespace,
        account,
        ..
    } = who;
    let labels = labels(who);
    if who.pod {
        return pod(who, &labels, http, tcp);
    }
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80}}, {{name: tcp, port: 7000}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}-v1, namespace: {namespace}}}
spec:
  address: 127.0.0.1
  serviceAccount: {account}
  ports: {{http: {http}, tcp: {tcp}}}
  labels: {labels}
"
    )
}

/// The same as a Pod, whose ports have names of its own.
fn pod(who: &Who<'_>, labels: &serde_json::Value, http: u16, tcp: u16) -> String {
    let Who {
        name,
        namespace,
        account,
        ..
    } = who;
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: web}}, {{name: tcp, port: 7000, targetPort: bytes}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-v1, namespace: {namespace}, labels: {labels}}}
spec:
  serviceAccountName: {account}
  containers:
  - name: app
    ports: [{{name: web, containerPort: {http}}}, {{name: bytes, containerPort: {tcp}}}]
status:
  podIP: 127.0.0.1
  conditions: [{{type: Ready, status: 'True'}}]
"
    )
}
