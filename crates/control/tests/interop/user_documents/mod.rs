//! The user's own documents, each applied as it stands to a mesh with the services it names:
//! requests show that it does what Istio would do with it, and the warnings say the rest.
//!
//! A test is named after its file in crates/api/tests/user-documents. Documents about security and
//! installation have their tests elsewhere.

mod authorization;
mod balancing;
mod canary;
mod external;
mod faults;
mod gateways;
mod mutual_tls;
mod refused;
mod resilience;
mod routing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{ports, settles};
use serde_json::{Value, json};

use crate::mesh::{Mesh, loopback, object_path, service, workload};

/// A mesh with the services a document names, and a workload that calls them through its sidecar.
struct Scene {
    mesh: Mesh,
    envoy: Envoy,
    /// Where the client sends its requests.
    proxy: SocketAddr,
    servers: BTreeMap<String, Echo>,
}

impl Scene {
    /// None, with a loud word, when there is no such proxy.
    async fn start(plane: Plane, document: &str) -> Option<Scene> {
        let binary = plane.binary(document)?;
        let mesh = Mesh::start().await;
        let proxy = ports::reserve();
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: "client-v1".into(),
            namespace: "default".into(),
            metadata: json!({
                "LABELS": {"app": "client", "version": "v1"},
                "INTERCEPTION_MODE": "NONE",
                "HTTP_PROXY_PORT": proxy.to_string(),
                "LATEEN_BIND": "127.0.0.1",
            }),
            xds: mesh.xds,
            admin: ports::reserve(),
            delta: true,
        };
        mesh.create(&workload("client", "v1", "http", ports::reserve()))
            .await;
        let envoy = Envoy::start(&binary, &bootstrap.to_json(), mesh.directory()).await;
        envoy.ready().await;
        Some(Scene {
            mesh,
            envoy,
            proxy: loopback(proxy),
            servers: BTreeMap::new(),
        })
    }

    /// A service on port 80 with one server per version, which calls itself `NAME-VERSION`.
    async fn with_service(mut self, name: &str, versions: &[&str]) -> Scene {
        let mut objects = service(name, "http", 80);
        for version in versions {
            let full_name = format!("{name}-{version}");
            let echo = Echo::start(&full_name).await;
            objects += &workload(name, version, "http", echo.port());
            self.servers.insert(full_name, echo);
        }
        self.mesh.create(&objects).await;
        self
    }

    /// One version more of a service.
    async fn with_service_version(mut self, name: &str, version: &str) -> Scene {
        let full_name = format!("{name}-{version}");
        let echo = Echo::start(&full_name).await;
        let entry = workload(name, version, "http", echo.port());
        self.mesh.create(&entry).await;
        self.servers.insert(full_name, echo);
        self
    }

    /// Subsets of a service: name and `version` label.
    async fn with_subsets(self, host: &str, subsets: &[(&str, &str)]) -> Scene {
        let subsets = subsets
            .iter()
            .map(|(name, version)| format!("{{name: {name}, labels: {{version: {version}}}}}"));
        let subsets = subsets.collect::<Vec<_>>().join(", ");
        self.mesh
            .create(&format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                 metadata: {{name: {host}-subsets, namespace: default}}\n\
                 spec: {{host: {host}, subsets: [{subsets}]}}\n"
            ))
            .await;
        self
    }

    /// Applies one of the user's documents; the codes of what is found about it afterwards.
    async fn apply(&self, document: &str) -> BTreeSet<String> {
        let (_, text) = read(document);
        self.mesh.apply(&text).await;
        self.mesh.pushed().await;
        self.findings(&text).await
    }

    /// Codes of what is found about the objects of a text.
    async fn findings(&self, text: &str) -> BTreeSet<String> {
        let found = self.mesh.page("/debug/findings").await;
        let parsed = lateen_api::parse("document", text, lateen_api::Mode::AllowUnknown);
        let about = |finding: &&Value| {
            parsed.objects.iter().any(|parsed| {
                finding["subject"]["name"] == parsed.object.meta.name.as_str()
                    && finding["subject"]["kind"] == parsed.object.kind.info().name
            })
        };
        let found = found.as_array().unwrap().iter().filter(about);
        found
            .map(|finding| finding["code"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What the client gets for `GET http://HOST/PATH` with these headers.
    async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let call = Call::through_proxy(host, path);
        let add = |call: Call, (name, value): &(&str, &str)| call.header(name, value);
        let call = headers.iter().fold(call, add);
        call.send(self.proxy).await.unwrap()
    }

    /// Waits until `name` answers for the host.
    async fn answers(&self, host: &str, headers: &[(&str, &str)], name: &str) {
        settles(&format!("{name} answers for {host}"), async || {
            let answer = self.get(host, "/", headers).await;
            match answer.name() == name {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }

    /// Waits until the host answers with this status.
    async fn answers_status(&self, host: &str, status: u16) {
        settles(&format!("{status} for {host}"), async || {
            let answer = self.get(host, "/", &[]).await;
            match answer.status == status {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }

    /// Who answered `count` requests, on a few connections at a time.
    async fn shares(&self, host: &str, count: usize) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..8 {
            let (proxy, host) = (self.proxy, host.to_owned());
            tasks.spawn(async move {
                let call = Call::through_proxy(&host, "/");
                let mut client = lateen_testkit::http::Client::connect(proxy).await.unwrap();
                let mut names = Vec::new();
                for _ in (lane..count).step_by(8) {
                    let answer = client.send(&call).await.unwrap();
                    names.push(match answer.status {
                        200 => answer.name(),
                        status => status.to_string(),
                    });
                }
                names
            });
        }
        while let Some(names) = tasks.join_next().await {
            for name in names.unwrap() {
                *shares.entry(name).or_default() += 1;
            }
        }
        shares
    }
}

/// The file of a document by its number, and its text.
fn read(document: &str) -> (String, String) {
    let directory = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../api/tests/user-documents"
    ));
    let mut files = std::fs::read_dir(&directory).unwrap();
    let file = files.find_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.starts_with(&format!("{document}-")).then_some(name)
    });
    let file = file.unwrap_or_else(|| panic!("no document {document}"));
    let text = std::fs::read_to_string(directory.join(&file)).unwrap();
    (file, text)
}

/// What the API says to a document: its status and its words.
async fn offered(mesh: &Mesh, document: &str) -> (u16, String) {
    let (_, text) = read(document);
    let lenient = lateen_api::parse(document, &text, lateen_api::Mode::AllowUnknown);
    let path = match lenient.objects.first() {
        Some(one) => object_path(&one.object),
        // Kinds of security are not read with unknown fields.
        None => {
            let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name));
            let [version, kind, name] =
                ["apiVersion:", "kind:", "name:"].map(|f| field(f).unwrap());
            let plural = format!("{}s", kind.trim().to_lowercase());
            let (version, name) = (version.trim(), name.trim());
            format!("/apis/{version}/namespaces/default/{plural}/{name}")
        }
    };
    let call = Call::get("127.0.0.1", &path)
        .method("PATCH")
        .header("content-type", "application/apply-patch+yaml");
    let answer = call.body(text).send(mesh.api).await.unwrap();
    (answer.status, answer.body)
}

fn codes(codes: &[&str]) -> BTreeSet<String> {
    codes.iter().map(|code| (*code).to_owned()).collect()
}

/// Requests that a name answered.
fn of(shares: &BTreeMap<String, usize>, name: &str) -> usize {
    shares.get(name).copied().unwrap_or_default()
}
