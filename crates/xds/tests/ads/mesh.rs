//! A control plane whose whole truth is a map, and a proxy that applies whatever it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use lateen_xds::client::{Backoff, Client, Config, Event, Target, Update};
use lateen_xds::{Changed, Limits, Node, NodeId, Push, Rejection, Resource, Server, Source};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Type, name, content.
pub type Entry<'a> = (&'static str, &'a str, u32);
pub type World = BTreeMap<(&'static str, String), u32>;

pub fn world(entries: &[Entry<'_>]) -> World {
    entries
        .iter()
        .map(|(url, name, content)| ((*url, (*name).to_owned()), *content))
        .collect()
}

pub struct Truth;

impl Source for Truth {
    type Snapshot = World;

    fn connect(&self, node: &Node) -> Result<(), String> {
        match node.short_id().starts_with("stranger") {
            true => Err(format!("no workload {} in this mesh", node.short_id())),
            false => Ok(()),
        }
    }

    fn disconnect(&self, _node: &Node) {}

    fn generate(
        &self,
        snapshot: &World,
        _node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>> {
        snapshot
            .iter()
            .filter(|((url, name), _)| {
                *url == type_url && names.is_none_or(|names| names.contains(name))
            })
            .map(|((url, name), content)| {
                let message = Cluster {
                    name: name.clone(),
                    ..Default::default()
                };
                Arc::new(Resource::with_version(
                    name.as_str(),
                    content.to_string(),
                    url,
                    &message,
                ))
            })
            .collect()
    }
}

pub struct Mesh {
    pub server: Server<Truth>,
    address: SocketAddr,
    limits: Limits,
    current: Mutex<Arc<World>>,
    serving: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Mesh {
    pub async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        let mut mesh = Self {
            server: new_server(&limits, World::new()),
            address: "127.0.0.1:0".parse().unwrap(),
            limits,
            current: Mutex::default(),
            serving: None,
        };
        mesh.listen().await;
        mesh
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn listen(&mut self) {
        // The port of a server just stopped is free at once, but not always in the same instant.
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        self.address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = self.server.clone();
        let task = tokio::spawn(async move {
            server.serve(listener, async { drop(stopped.await) }).await;
        });
        self.serving = Some((stop, task));
    }

    pub async fn stop(&mut self) {
        let (stop, task) = self.serving.take().unwrap();
        drop(stop);
        task.await.unwrap();
    }

    /// As after kill -9: the sockets go without a word.
    pub fn kill(&mut self) {
        let (_stop, task) = self.serving.take().unwrap();
        task.abort();
    }

    pub async fn restart(&mut self, entries: &[Entry<'_>]) {
        self.server = new_server(&self.limits, world(entries));
        *self.current.lock().unwrap() = Arc::new(world(entries));
        self.listen().await;
    }

    pub fn set(&self, entries: &[Entry<'_>]) {
        self.replace(entries);
        self.push(Changed::All);
    }

    pub fn replace(&self, entries: &[Entry<'_>]) {
        *self.current.lock().unwrap() = Arc::new(world(entries));
    }

    pub fn push(&self, changed: Changed) {
        self.push_since(Instant::now(), changed);
    }

    /// A push for a change that came at this time.
    pub fn push_since(&self, since: Instant, changed: Changed) {
        let snapshot = self.current.lock().unwrap().clone();
        let push = Push::new("v", snapshot, changed);
        self.server.push(Push { since, ..push });
    }

    pub fn config(&self, name: &str) -> Config {
        let id = format!("sidecar~127.0.0.1~{name}~default.svc.cluster.local");
        let node = Node {
            parsed: NodeId::parse(&id),
            id,
            ..Node::default()
        };
        let target = Target::Tcp {
            host: "127.0.0.1".into(),
            port: self.address.port(),
        };
        Config {
            backoff: Backoff {
                base: Duration::from_millis(5),
                max: Duration::from_millis(50),
            },
            ..Config::new(target, node)
        }
    }
}

fn new_server(limits: &Limits, world: World) -> Server<Truth> {
    let push = Push::new("0", Arc::new(world), Changed::All);
    Server::new(Arc::new(Truth), push, limits.clone())
}

/// Refuses content 666 and applies the rest.
pub struct Proxy {
    pub client: Client,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    holds: World,
    removed: BTreeSet<(String, String)>,
    received: usize,
    disconnects: usize,
}

impl Proxy {
    pub fn connect(mesh: &Mesh, name: &str) -> Self {
        let (client, mut events) = Client::start(mesh.config(name));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Connected => {}
                    Event::Disconnected { .. } => shared.lock().unwrap().disconnects += 1,
                    Event::Update(update) => apply(&mut shared.lock().unwrap(), update),
                }
            }
        });
        Self { client, seen }
    }

    pub fn holds(&self, entries: &[Entry<'_>]) -> bool {
        self.seen.lock().unwrap().holds == world(entries)
    }

    pub fn was_removed(&self, url: &str, name: &str) -> bool {
        self.seen
            .lock()
            .unwrap()
            .removed
            .contains(&(url.to_owned(), name.to_owned()))
    }

    pub fn received(&self) -> usize {
        self.seen.lock().unwrap().received
    }

    pub fn disconnects(&self) -> usize {
        self.seen.lock().unwrap().disconnects
    }
}

fn apply(seen: &mut Seen, update: Update) {
    use lateen_xds::type_url::PUSH_ORDER;
    let url = PUSH_ORDER
        .into_iter()
        .find(|url| *url == update.type_url)
        .unwrap();
    let mut rejections = Vec::new();
    for resource in update.resources {
        seen.received += 1;
        let content: u32 = resource.version.parse().unwrap();
        if content == 666 {
            let reason = "666 is refused".to_owned();
            rejections.push(Rejection {
                name: resource.name,
                reason,
            });
        } else {
            seen.holds.insert((url, resource.name), content);
        }
    }
    for name in update.removed {
        seen.holds.remove(&(url, name.clone()));
        seen.removed.insert((url.to_owned(), name));
    }
    update.reply.reject(rejections);
}

pub async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "not reached: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
