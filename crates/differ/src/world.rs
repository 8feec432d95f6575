//! The world that all cases share: a control plane, the proxies of both planes, and upstreams.

mod objects;
mod proxy;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_control::{Control, Options};
use lateen_testkit::http::Call;
use lateen_testkit::ports;
use serde_json::{Value, json};

use crate::corpus::{Area, Corpus, EndpointSpec, Group, ServiceSpec, UpstreamKind, Via, attempts};
use crate::tokens::Tokens;
use crate::upstream::{Shared, Upstream};
use crate::{Failure, Result, failed};

use proxy::Proxy;
pub use proxy::{Binaries, LogLine};

/// A data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    Envoy,
    Lateen,
}

impl Plane {
    pub const ALL: [Plane; 2] = [Plane::Envoy, Plane::Lateen];

    pub fn name(self) -> &'static str {
        match self {
            Plane::Envoy => "envoy",
            Plane::Lateen => "lateen",
        }
    }

    /// Where its listeners are.
    pub fn address(self) -> IpAddr {
        IpAddr::V4(match self {
            Plane::Envoy => Ipv4Addr::new(127, 0, 0, 2),
            Plane::Lateen => Ipv4Addr::new(127, 0, 0, 3),
        })
    }
}

/// How long the world may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ports that both planes open at their own addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub gateway: u16,
    /// Out of the workload.
    pub outbound: u16,
    /// Into the workload.
    pub inbound: u16,
}

/// Everything that runs.
pub struct World {
    control: Control,
    api: SocketAddr,
    proxies: Vec<Proxy>,
    pub shared: Arc<Shared>,
    pub ports: Ports,
    /// What placeholders stand for.
    names: BTreeMap<String, u16>,
    /// By area.
    pub tokens: BTreeMap<String, Tokens>,
    _directory: tempfile::TempDir,
}

impl World {
    /// Starts everything, applies all rules of the chosen groups and waits until both planes have
    /// them.
    pub async fn start(
        binaries: &Binaries,
        corpus: &Corpus,
        chosen: impl Fn(&str, &str) -> bool,
    ) -> Result<World> {
        let directory = tempfile::tempdir().map_err(failed("a directory for the run"))?;
        let (control, xds) = start_control(directory.path()).await?;
        let mut world = World {
            api: control.addresses().api,
            control,
            proxies: Vec::new(),
            shared: Arc::default(),
            ports: Ports {
                gateway: ports::reserve(),
                outbound: ports::reserve(),
                inbound: ports::reserve(),
            },
            names: BTreeMap::new(),
            tokens: BTreeMap::new(),
            _directory: directory,
        };
        let app = {
            let front = EndpointSpec {
                fresh: true,
                ..EndpointSpec::default()
            };
            world.upstream("front", &front).await?
        };
        let mut all = objects::proxies(world.ports);
        for area in &corpus.areas {
            world.tokens.insert(area.name.clone(), Tokens::of(area)?);
            all.extend(world.area(area, &chosen).await?);
        }
        // As soon as its rule answers, so do all others.
        all.push(objects::virtual_service("zz-last", "last.test"));
        for object in &all {
            world.apply(object).await?;
        }
        for plane in Plane::ALL {
            for via in [Via::Gateway, Via::Sidecar] {
                let directory = world._directory.path();
                let started = Proxy::start(binaries, plane, via, world.ports, app, xds, directory);
                world.proxies.push(started.await?);
            }
        }
        world.ready().await?;
        Ok(world)
    }

    /// The objects of an area's chosen groups; their upstreams are started.
    async fn area(
        &mut self,
        area: &Area,
        chosen: &impl Fn(&str, &str) -> bool,
    ) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let groups: Vec<_> = area
            .groups
            .iter()
            .filter(|group| chosen(&area.name, &group.name))
            .collect();
        // Services of the base are everybody's.
        if groups.is_empty() && area.name != "base" {
            return Ok(all);
        }
        for (name, service) in &area.services {
            all.extend(self.service(name, service).await?);
        }
        for document in &area.documents {
            all.push(self.fill(area, document).await?);
        }
        for group in groups {
            for (name, service) in &group.services {
                all.extend(self.service(name, service).await?);
            }
            if !group.apart {
                all.extend(self.group(area, group).await?);
            }
        }
        Ok(all)
    }

    /// What a group applies.
    async fn group(&mut self, area: &Area, group: &Group) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for document in group.documents.iter().chain(&objects::rule(area, group)) {
            all.push(self.fill(area, document).await?);
        }
        Ok(all)
    }

    /// Applies what a group that stands apart applies; returned to be taken away with
    /// [`World::clear`].
    pub async fn stage(&mut self, area: &Area, group: &Group) -> Result<Vec<Value>> {
        let all = self.group(area, group).await?;
        for object in &all {
            self.apply(object).await?;
        }
        self.settled().await?;
        Ok(all)
    }

    /// Takes objects away again.
    pub async fn clear(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.call("DELETE", object).await?;
        }
        self.settled().await
    }

    /// Waits until all proxies have taken what was applied, and their workers have it.
    async fn settled(&self) -> Result<()> {
        let started = Instant::now();
        while let Err(problem) = self.distributed().await {
            self.accepted().await?;
            if started.elapsed() > PATIENCE {
                return Err(problem);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.accepted().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    async fn service(&mut self, name: &str, spec: &ServiceSpec) -> Result<Vec<Value>> {
        let mut all = vec![objects::service(name, spec)];
        for (number, endpoint) in spec.endpoints.iter().enumerate() {
            let port = self.upstream(name, endpoint).await?;
            all.push(objects::workload(name, number, spec, endpoint, port));
        }
        Ok(all)
    }

    async fn upstream(&mut self, service: &str, endpoint: &EndpointSpec) -> Result<u16> {
        let upstream = Upstream {
            name: format!("{service}-{}", endpoint.version),
            shared: self.shared.clone(),
            usual: match &endpoint.answers {
                Some(value) => attempts(value)?,
                None => Vec::new(),
            },
            fresh: endpoint.fresh,
        };
        upstream.start(endpoint.kind).await
    }

    /// `{port:NAME}` is a free port, the same wherever it is named; `{upstream:NAME}` is that of an
    /// HTTP upstream, `{tcp:NAME}` that of an echoing one.
    async fn fill(&mut self, area: &Area, value: &Value) -> Result<Value> {
        let value = match self.tokens.get(&area.name) {
            Some(tokens) => tokens.document(value)?,
            None => value.clone(),
        };
        let mut text = value.to_string();
        while let Some(start) = ["{port:", "{upstream:", "{tcp:"]
            .iter()
            .find_map(|kind| text.find(kind))
        {
            let Some(length) = text[start..].find('}') else {
                break;
            };
            let key = text[start + 1..start + length].to_owned();
            let port = match self.names.get(&key) {
                Some(port) => *port,
                None => self.named(&key).await?,
            };
            let quoted = format!("\"{{{key}}}\"");
            text = text.replace(&quoted, &port.to_string());
            text = text.replace(&format!("{{{key}}}"), &port.to_string());
        }
        serde_json::from_str(&text).map_err(failed(text))
    }

    async fn named(&mut self, key: &str) -> Result<u16> {
        let (kind, name) = key.split_once(':').unwrap_or((key, ""));
        let endpoint = EndpointSpec {
            kind: match kind {
                "tcp" => UpstreamKind::TcpEcho,
                _ => UpstreamKind::Http,
            },
            ..EndpointSpec::default()
        };
        let port = match kind {
            "port" => ports::reserve(),
            _ => self.upstream(name, &endpoint).await?,
        };
        self.names.insert(key.to_owned(), port);
        Ok(port)
    }

    /// Where a case goes on a plane.
    pub fn target(&self, plane: Plane, via: Via, port: Option<&str>) -> Result<SocketAddr> {
        let number = match (port, via) {
            (Some(name), _) => *self
                .names
                .get(&format!("port:{name}"))
                .ok_or_else(|| Failure(format!("no document names {{port:{name}}}")))?,
            (None, Via::Gateway) => self.ports.gateway,
            (None, Via::Sidecar) => self.ports.outbound,
            (None, Via::Inbound) => self.ports.inbound,
        };
        Ok(SocketAddr::from((plane.address(), number)))
    }

    async fn apply(&self, object: &Value) -> Result<()> {
        self.call("PATCH", object).await
    }

    async fn call(&self, method: &str, object: &Value) -> Result<()> {
        let yaml = lateen_api::to_yaml(object);
        let parsed = lateen_api::parse("corpus", &yaml, lateen_api::Mode::Strict);
        if parsed.has_errors() {
            return Err(Failure(parsed.render(&yaml, false)));
        }
        for one in parsed.objects {
            let path = objects::path(&one.object);
            let call = Call::get("127.0.0.1", &path)
                .method(method)
                .header("content-type", "application/apply-patch+yaml");
            let body = match method {
                "PATCH" => one.object.to_json().to_string(),
                _ => String::new(),
            };
            let answer = call.body(body).send(self.api).await.map_err(Failure)?;
            if answer.status >= 300 {
                return Err(Failure(format!("{path}: {}", answer.body)));
            }
        }
        Ok(())
    }

    /// Waits until every proxy has taken everything.
    async fn ready(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let problem = match self.distributed().await {
                Ok(()) => match self.served().await {
                    Ok(()) => return self.accepted().await,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if started.elapsed() > PATIENCE {
                self.accepted().await?;
                return Err(Failure(format!("not ready within {PATIENCE:?}: {problem}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn distributed(&self) -> Result<()> {
        let call = Call::get("127.0.0.1", "/debug/pushz");
        let push = call.send(self.api).await.map_err(Failure)?.json();
        let done = push["pushed"] == push["revision"]
            && push["pending"] == json!([])
            && push["proxies"] == self.proxies.len();
        match done {
            true => Ok(()),
            false => Err(Failure(push.to_string())),
        }
    }

    async fn served(&self) -> Result<()> {
        for plane in Plane::ALL {
            for _ in 0..16 {
                let gateway = self.target(plane, Via::Gateway, None)?;
                let answer = Call::get("last.test", "/").send(gateway).await;
                if answer.map_err(Failure)?.status != 200 {
                    return Err(Failure(format!(
                        "{}: the last rule is missing",
                        plane.name()
                    )));
                }
            }
            for via in [Via::Sidecar, Via::Inbound] {
                let target = self.target(plane, via, None)?;
                let answer = Call::through_proxy("front", "/").send(target).await;
                if answer.map_err(Failure)?.status != 200 {
                    return Err(Failure(format!(
                        "{}: the sidecar is not there",
                        plane.name()
                    )));
                }
            }
        }
        Ok(())
    }

    /// A configuration that a proxy refuses would make everything after it old.
    async fn accepted(&self) -> Result<()> {
        for proxy in &self.proxies {
            if let Some(refused) = proxy.refused().await {
                return Err(Failure(refused));
            }
        }
        Ok(())
    }

    /// All access log lines of a plane by the client's address.
    pub fn logs(&self, plane: Plane) -> BTreeMap<String, Vec<LogLine>> {
        let mut all: BTreeMap<String, Vec<LogLine>> = BTreeMap::new();
        for proxy in self.proxies.iter().filter(|proxy| proxy.plane == plane) {
            for line in proxy.log() {
                all.entry(line.client.clone()).or_default().push(line);
            }
        }
        all
    }

    /// Whether a proxy has ended, with its last words.
    pub fn ended(&mut self) -> Option<String> {
        self.proxies.iter_mut().find_map(Proxy::ended)
    }

    pub async fn stop(self) {
        drop(self.proxies);
        self.control.stop().await;
    }
}

async fn start_control(directory: &Path) -> Result<(Control, u16)> {
    let xds = ports::reserve();
    let options = Options {
        xds_port: xds,
        secure_port: 0,
        plaintext_credentials: true,
        api_port: 0,
        monitoring_port: 0,
        debounce_after: Duration::from_millis(50),
        ..Options::new(directory.join("control"))
    };
    let control = Control::start(options).await;
    Ok((control.map_err(failed("the control plane"))?, xds))
}

/// The directory of the corpus in the source tree.
pub fn corpus_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}
