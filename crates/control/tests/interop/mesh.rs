//! A control plane of our own with the objects of a mesh, and proxies that are not ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lateen_api::{Mode, Object};
use lateen_control::{Compliance, Control, KeyOptions, KeysFetchedBy, Options};
use lateen_store::{Author, Change, Draft, Limits, ObjectKey, Source, Store, Write};
use lateen_testkit::certificates::{Authority, Said, file, run};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{eventually, ports};
use serde_json::{Value, json};

/// A control plane. Its xDS port stays the same when it is started again.
pub struct Mesh {
    control: Option<Control>,
    directory: tempfile::TempDir,
    pub xds: u16,
    /// Certificates, and discovery over TLS.
    pub secure: u16,
    pub api: SocketAddr,
    /// The authority of the control plane, as files; none: it makes one itself.
    plugged: Option<PathBuf>,
    compliance: Option<Compliance>,
    wildcard_tls_at_gateways: bool,
    tls_at_sidecars: bool,
    keys_fetched_by: KeysFetchedBy,
    /// What a client may take for a TLS handshake, from the next start on.
    pub handshake_timeout: Duration,
}

impl Mesh {
    pub async fn start() -> Self {
        let mut mesh = Self::new();
        mesh.restart().await;
        mesh
    }

    /// With TLS that complies with a policy.
    pub async fn complying(policy: Compliance) -> Self {
        let mut mesh = Self::new();
        mesh.compliance = Some(policy);
        mesh.restart().await;
        mesh
    }

    /// With gateways that go to whatever a server name leads to.
    pub async fn with_wildcard_tls_at_gateways() -> Self {
        let mut mesh = Self::new();
        mesh.wildcard_tls_at_gateways = true;
        mesh.restart().await;
        mesh
    }

    /// With sidecars that end TLS of clients outside the mesh.
    pub async fn with_tls_at_sidecars() -> Self {
        let mut mesh = Self::new();
        mesh.tls_at_sidecars = true;
        mesh.restart().await;
        mesh
    }

    /// With proxies that fetch the keys of tokens themselves, and use them for a second.
    pub async fn with_keys_fetched_by(who: KeysFetchedBy) -> Self {
        let mut mesh = Self::new();
        mesh.keys_fetched_by = who;
        mesh.restart().await;
        mesh
    }

    /// With an authority that is plugged in; its root is in `root-cert.pem`.
    pub async fn with_authority(authority: &Authority, policy: Option<Compliance>) -> Self {
        let mut mesh = Self::new();
        mesh.compliance = policy;
        let directory = mesh.directory().join("cacerts");
        std::fs::create_dir(&directory).unwrap();
        file(&directory, "ca-cert.pem", &authority.pem);
        file(&directory, "ca-key.pem", &authority.key);
        file(&directory, "cert-chain.pem", &authority.above);
        file(&directory, "root-cert.pem", &authority.root);
        file(mesh.directory(), "root-cert.pem", &authority.root);
        mesh.plugged = Some(directory);
        mesh.restart().await;
        mesh
    }

    fn new() -> Self {
        Mesh {
            control: None,
            directory: tempfile::tempdir().unwrap(),
            xds: ports::reserve(),
            secure: ports::reserve(),
            api: loopback(0),
            plugged: None,
            compliance: None,
            wildcard_tls_at_gateways: false,
            tls_at_sidecars: false,
            keys_fetched_by: KeysFetchedBy::default(),
            handshake_timeout: Duration::from_secs(15),
        }
    }

    /// Stops the control plane if it runs, and starts it on the same store.
    pub async fn restart(&mut self) {
        self.stop().await;
        let options = Options {
            xds_port: self.xds,
            secure_port: self.secure,
            plugged_ca: self.plugged.clone(),
            plaintext_credentials: true,
            compliance: self.compliance,
            wildcard_tls_at_gateways: self.wildcard_tls_at_gateways,
            tls_at_sidecars: self.tls_at_sidecars,
            handshake_timeout: self.handshake_timeout,
            api_port: 0,
            monitoring_port: 0,
            debounce_after: Duration::from_millis(20),
            keys: KeyOptions {
                refresh: Duration::from_millis(200),
                retry: Duration::from_millis(50),
                fetched_by: self.keys_fetched_by,
                proxy_cache: Duration::from_secs(1),
                ..KeyOptions::default()
            },
            ..Options::new(self.directory().join("data"))
        };
        let control = Control::start(options).await.unwrap();
        self.api = control.addresses().api;
        self.control = Some(control);
    }

    /// Puts a document into the store as another version may have left it there: unread. Then the
    /// control plane starts on it.
    pub async fn restart_with(&mut self, document: Value) {
        self.stop().await;
        let path = self.directory().join("data/store.redb");
        let text = |pointer| document.pointer(pointer).unwrap().as_str().unwrap();
        let (group, _) = text("/apiVersion").split_once('/').unwrap_or_default();
        let key = ObjectKey {
            group: group.to_owned(),
            kind: text("/kind").to_owned(),
            namespace: text("/metadata/namespace").to_owned(),
            name: text("/metadata/name").to_owned(),
        };
        let change = Change {
            author: Author::default(),
            id: String::new(),
            source: Source::Api,
        };
        let draft = Draft {
            key,
            body: document,
            expected: None,
            file: None,
        };
        let store = Store::open(&path, Limits::default()).unwrap();
        store.commit(&change, vec![Write::Apply(draft)]).unwrap();
        drop(store);
        self.restart().await;
    }

    pub async fn stop(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }

    /// Lists of revoked certificates, among the files of its authority.
    pub fn revoke(&self, lists: &str) {
        let directory = self.plugged.as_deref().unwrap();
        file(directory, "ca-crl.pem", lists);
    }

    /// What a kubectl without configuration of its own says to the control plane.
    pub async fn kubectl(&self, arguments: &[&str]) -> Said {
        let server = format!("--server=http://{}", self.api);
        let cache = format!("--cache-dir={}", self.directory().join("cache").display());
        let mut all = vec![server.as_str(), "--kubeconfig=/dev/null", cache.as_str()];
        all.extend(arguments);
        run("kubectl", &all).await
    }

    /// For the files of this mesh.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Applies every document through the API.
    pub async fn apply(&self, yaml: &str) {
        for object in parse(yaml) {
            let call = Call::get("127.0.0.1", &object_path(&object)).method("PATCH");
            let call = call.header("content-type", "application/apply-patch+yaml");
            let document = object.to_json().to_string();
            let answer = call.body(document).send(self.api).await.unwrap();
            assert!(
                answer.status < 300,
                "{}: {}",
                object_path(&object),
                answer.body
            );
        }
    }

    /// Applies every document, each of which is new, with `kubectl create`'s request.
    pub async fn create(&self, yaml: &str) {
        for object in parse(yaml) {
            let path = object_path(&object);
            let (collection, _) = path.rsplit_once('/').unwrap();
            let call = Call::get("127.0.0.1", collection).method("POST");
            let call = call.header("content-type", "application/json");
            let call = call.body(object.to_json().to_string());
            let answer = call.send(self.api).await.unwrap();
            assert_eq!(answer.status, 201, "{path}: {}", answer.body);
        }
    }

    /// Deletes every document's object.
    pub async fn delete(&self, yaml: &str) {
        for object in parse(yaml) {
            let call = Call::get("127.0.0.1", &object_path(&object)).method("DELETE");
            let answer = call.send(self.api).await.unwrap();
            assert_eq!(
                answer.status,
                200,
                "{}: {}",
                object_path(&object),
                answer.body
            );
        }
    }

    /// A page of the control plane.
    pub async fn page(&self, path: &str) -> Value {
        let answer = Call::get("127.0.0.1", path).send(self.api).await.unwrap();
        answer.json()
    }

    /// Waits until `proxies` proxies are connected and have accepted the newest revision.
    pub async fn distributed(&self, proxies: usize) {
        eventually("everything is distributed", async || {
            let push = self.page("/debug/pushz").await;
            let done = push["pushed"] == push["revision"]
                && push["pending"] == json!([])
                && push["proxies"] == proxies;
            match done {
                true => Ok(()),
                false => Err(format!("{push} {:#}", self.page("/debug/syncz").await)),
            }
        })
        .await;
    }

    /// Waits until every proxy has answered all that it was sent of the newest revision, be it with
    /// a rejection.
    pub async fn pushed(&self) {
        eventually("everything is answered", async || {
            let push = self.page("/debug/pushz").await;
            let status = self.page("/debug/syncz").await;
            let mut types = Vec::new();
            let mut current = push["pushed"] == push["revision"];
            for proxy in status.as_array().unwrap() {
                current &= proxy["version"] == json!(push["pushed"].to_string());
                types.extend(proxy["types"].as_object().unwrap().values().cloned());
            }
            match current && types.iter().all(|of_type| of_type["outstanding"] == 0) {
                true => Ok(()),
                false => Err(format!("{push} {status:#}")),
            }
        })
        .await;
    }

    /// What the control plane knows of `NAME.NAMESPACE`.
    pub async fn status_of(&self, proxy: &str) -> Value {
        let all = self.page("/debug/syncz").await;
        let found = all.as_array().unwrap().iter().find(|p| p["proxy"] == proxy);
        found
            .unwrap_or_else(|| panic!("{proxy} is not connected: {all:#}"))
            .clone()
    }

    /// Waits until a proxy has asked for all four types and accepted everything of them. One that
    /// has just connected asks for one after the other.
    pub async fn synced(&self, proxy: &str) {
        eventually(&format!("{proxy} is SYNCED"), async || {
            let all = self.page("/debug/syncz").await;
            let found = all.as_array().unwrap().iter().find(|p| p["proxy"] == proxy);
            let synced = |kind: &&str| {
                found.is_some_and(|status| status["types"][*kind]["state"] == "SYNCED")
            };
            match ["cds", "eds", "lds", "rds"].iter().all(synced) {
                true => Ok(()),
                false => Err(format!("{all:#}")),
            }
        })
        .await;
    }

    /// A counter of the control plane's metrics, by its whole name with labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let monitoring = self.control.as_ref().unwrap().addresses().monitoring;
        let answer = Call::get("127.0.0.1", "/metrics").send(monitoring).await;
        let text = answer.unwrap().body;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse().ok())
            .unwrap_or_default()
    }
}

fn parse(yaml: &str) -> Vec<Object> {
    let parsed = lateen_api::parse("test.yaml", yaml, Mode::Strict);
    assert!(!parsed.has_errors(), "{}", parsed.render(yaml, false));
    parsed.objects.into_iter().map(|one| one.object).collect()
}

/// Where the API has an object.
pub fn object_path(object: &Object) -> String {
    let info = object.kind.info();
    let root = match info.group {
        "" => format!("/api/{}", object.api_version),
        _ => format!("/apis/{}", object.api_version),
    };
    let namespace = match object.meta.namespace.as_str() {
        _ if !info.namespaced => String::new(),
        "" => "/namespaces/default".to_owned(),
        namespace => format!("/namespaces/{namespace}"),
    };
    format!("{root}{namespace}/{}/{}", info.plural, object.meta.name)
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A Service with one port that selects `app: NAME`.
pub fn service(name: &str, port_name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         selector: {{app: {name}}}\n  ports: [{{name: {port_name}, port: {port}}}]\n---\n"
    )
}

/// A workload of a service: `APP-VERSION`, at `port` for the service's port `port_name`.
pub fn workload(app: &str, version: &str, port_name: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {app}-{version}, namespace: default}}\n\
         spec:\n  address: 127.0.0.1\n  ports: {{{port_name}: {port}}}\n  \
         labels: {{app: {app}, version: {version}}}\n---\n"
    )
}

/// The service `reviews` (port 9080) with three versions, which answer as `v1`, `v2` and `v3`.
pub struct Reviews {
    pub v1: Echo,
    pub v2: Echo,
    pub v3: Echo,
}

impl Reviews {
    pub async fn start(mesh: &Mesh) -> Self {
        let reviews = Reviews {
            v1: Echo::start("v1").await,
            v2: Echo::start("v2").await,
            v3: Echo::start("v3").await,
        };
        let mut objects = service("reviews", "http", 9080);
        for (version, echo) in reviews.all() {
            objects += &workload("reviews", version, "http", echo.port());
        }
        mesh.create(&(objects + REVIEWS_RULE)).await;
        reviews
    }

    pub fn all(&self) -> [(&'static str, &Echo); 3] {
        [("v1", &self.v1), ("v2", &self.v2), ("v3", &self.v3)]
    }
}

/// `nobody` selects no workload.
const REVIEWS_RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
  - {name: nobody, labels: {version: v9}}
";

/// An ingress gateway, and the ports it was told.
pub struct Gateway {
    pub envoy: Envoy,
    /// Behind port 80 of its service.
    pub http: SocketAddr,
    /// Behind port 9000.
    pub tcp: SocketAddr,
}

pub const GATEWAY: &str = "istio-ingressgateway.istio-system";

impl Gateway {
    /// None, with a loud word, when there is no such proxy.
    pub async fn start(plane: Plane, mesh: &Mesh, test: &str, delta: bool) -> Option<Self> {
        Self::start_with(plane, mesh, test, delta, json!({})).await
    }

    /// One with more node metadata.
    pub async fn start_with(
        plane: Plane,
        mesh: &Mesh,
        test: &str,
        delta: bool,
        more: Value,
    ) -> Option<Self> {
        let binary = plane.binary(test)?;
        let (http, tcp) = (ports::reserve(), ports::reserve());
        mesh.create(&gateway_objects(http, tcp)).await;
        let labels = json!({"app": "istio-ingressgateway", "istio": "ingressgateway"});
        let mut metadata = json!({"LABELS": labels, "LATEEN_BIND": "127.0.0.1"});
        for (name, value) in more.as_object().unwrap() {
            metadata[name] = value.clone();
        }
        let bootstrap = Bootstrap {
            kind: "router",
            name: "istio-ingressgateway".into(),
            namespace: "istio-system".into(),
            metadata,
            xds: mesh.xds,
            admin: ports::reserve(),
            delta,
        };
        let bootstrap = bootstrap.to_json();
        let envoy = Envoy::start(&binary, &bootstrap, mesh.directory()).await;
        envoy.ready().await;
        Some(Gateway {
            envoy,
            http: loopback(http),
            tcp: loopback(tcp),
        })
    }

    /// `GET http://HOST/PATH` through the gateway.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        self.send(&Call::get(host, path)).await
    }

    pub async fn send(&self, call: &Call) -> Answer {
        call.send(self.http).await.unwrap()
    }
}

fn gateway_objects(http: u16, tcp: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: istio-ingressgateway, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  ports:
  - {{name: http2, port: 80, targetPort: {http}}}
  - {{name: tcp, port: 9000, targetPort: {tcp}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: istio-ingressgateway, namespace: istio-system}}
spec:
  address: 127.0.0.1
  ports: {{http2: {http}, tcp: {tcp}}}
  labels: {{app: istio-ingressgateway, istio: ingressgateway}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: web, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: ['*']
"
    )
}
