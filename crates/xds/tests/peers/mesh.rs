//! A control plane whose resources are written down as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use lateen_proto::Descriptors;
use lateen_xds::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use lateen_xds::{Changed, Limits, Node, Push, Resource, Server, Source};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub type World = BTreeMap<(String, String), Arc<Resource>>;

/// A resource that has not been encoded yet.
#[derive(Clone)]
pub struct Draft {
    pub url: &'static str,
    pub json: Value,
}

impl Draft {
    /// Sets fields; `null` takes one away.
    pub fn merge(&mut self, fields: Value) {
        for (name, value) in fields.as_object().unwrap() {
            match value.is_null() {
                true => drop(self.json.as_object_mut().unwrap().remove(name)),
                false => self.json[name] = value.clone(),
            }
        }
    }

    fn resource(&self) -> ((String, String), Arc<Resource>) {
        static DESCRIPTORS: OnceLock<Descriptors> = OnceLock::new();
        let descriptors = DESCRIPTORS.get_or_init(|| Descriptors::load().unwrap());
        let type_name = self.url.rsplit('/').next().unwrap();
        let bytes = descriptors.json_to_message(type_name, &self.json).unwrap();
        let name = self.json["name"]
            .as_str()
            .or(self.json["cluster_name"].as_str())
            .unwrap();
        let resource = Resource::from_bytes(name, self.url, bytes);
        ((self.url.to_owned(), name.to_owned()), Arc::new(resource))
    }
}

pub fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

/// `revision` changes the cluster without changing what it does.
pub fn cluster(name: &str, revision: u32) -> Draft {
    let json = json!({
        "name": name, "type": "EDS", "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": ads(), "service_name": name},
        "metadata": {"filter_metadata": {"test": {"revision": revision}}},
    });
    Draft { url: CLUSTER, json }
}

pub fn endpoints(cluster: &str, ports: &[u16]) -> Draft {
    let endpoints: Vec<Value> = ports
        .iter()
        .map(|port| {
            let address = json!({"address": "127.0.0.1", "port_value": port});
            json!({"endpoint": {"address": {"socket_address": address}}})
        })
        .collect();
    let locality = json!({
        "locality": {"region": "r"}, "load_balancing_weight": 1, "lb_endpoints": endpoints,
    });
    Draft {
        url: ENDPOINT,
        json: json!({"cluster_name": cluster, "endpoints": [locality]}),
    }
}

pub fn route_table(name: &str, clusters: &[(&str, u32)]) -> Draft {
    let clusters: Vec<Value> = clusters
        .iter()
        .map(|(name, weight)| json!({"name": name, "weight": weight}))
        .collect();
    let route = json!({
        "match": {"prefix": ""}, "route": {"weighted_clusters": {"clusters": clusters}},
    });
    let host = json!({"name": "all", "domains": ["*"], "routes": [route]});
    Draft {
        url: ROUTE,
        json: json!({"name": name, "virtual_hosts": [host]}),
    }
}

/// An HTTP connection manager whose routes come by RDS under the listener's name.
pub fn http_manager(table: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.\
                  http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": table,
        "rds": {"config_source": ads(), "route_config_name": table},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    })
}

pub fn listener(name: &str, port: u16) -> Draft {
    let filter = json!({
        "name": "envoy.filters.network.http_connection_manager", "typed_config": http_manager(name),
    });
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let json = json!({"name": name, "address": address, "filter_chains": [{"filters": [filter]}]});
    Draft {
        url: LISTENER,
        json,
    }
}

pub struct Truth;

impl Source for Truth {
    type Snapshot = World;

    fn connect(&self, _node: &Node) -> Result<(), String> {
        Ok(())
    }

    fn disconnect(&self, _node: &Node) {}

    fn generate(
        &self,
        snapshot: &World,
        _node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>> {
        // Of virtual hosts, `TABLE/` is all of a table.
        let whole = |name: &str, names: &BTreeSet<String>| {
            let table = name.rsplit_once('/').map(|(table, _)| format!("{table}/"));
            table.is_some_and(|table| names.contains(&table))
        };
        let wanted = |name: &String| names.is_none_or(|all| all.contains(name) || whole(name, all));
        snapshot
            .iter()
            .filter(|((url, name), _)| url == type_url && wanted(name))
            .map(|(_, resource)| resource.clone())
            .collect()
    }
}

pub struct Mesh {
    pub server: Server<Truth>,
    address: SocketAddr,
    world: Mutex<World>,
    task: Option<JoinHandle<()>>,
}

impl Mesh {
    pub async fn start() -> Self {
        let mut mesh = Self {
            server: new_server(World::new()),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            world: Mutex::default(),
            task: None,
        };
        mesh.listen().await;
        mesh
    }

    async fn listen(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        };
        self.address = listener.local_addr().unwrap();
        let server = self.server.clone();
        self.task = Some(tokio::spawn(async move {
            server.serve(listener, std::future::pending()).await;
        }));
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// As after kill -9: the sockets go without a word.
    pub fn kill(&mut self) {
        self.server.stop();
        self.task.take().unwrap().abort();
    }

    pub async fn restart(&mut self) {
        self.server = new_server(self.world.lock().unwrap().clone());
        self.listen().await;
    }

    /// Replaces everything.
    pub fn set(&self, version: &str, drafts: &[Draft]) {
        self.world.lock().unwrap().clear();
        self.change(drafts);
        self.push(version, Changed::All);
    }

    /// Adds or replaces, without telling anybody yet.
    pub fn change(&self, drafts: &[Draft]) {
        self.world
            .lock()
            .unwrap()
            .extend(drafts.iter().map(Draft::resource));
    }

    pub fn push(&self, version: &str, changed: Changed) {
        let world = Arc::new(self.world.lock().unwrap().clone());
        self.server.push(Push::new(version, world, changed));
    }
}

fn new_server(world: World) -> Server<Truth> {
    let push = Push::new("0", Arc::new(world), Changed::All);
    Server::new(Arc::new(Truth), push, Limits::default())
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
