//! The bootstrap file: Envoy's bootstrap in JSON, of which the proxy honours what follows. What it
//! cannot honour is an error or a notice with its path, never silence.
//!
//! Static listeners and clusters become the same resources that discovery brings; they are
//! compiled by the same code.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lateen_proxy_config::Notice;
use lateen_xds::client::Target;
use lateen_xds::{Node, NodeId, VIRTUAL_HOSTS_BY_NAME};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::worker::Home;

/// A bootstrap that was read and understood.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub node: Node,
    /// `None`: no admin server.
    pub admin: Option<SocketAddr>,
    /// Where discovery comes from; `None`: everything is in the file.
    pub ads: Option<Target>,
    /// Proto3 JSON of the `TransportSocket` of that cluster; `None`: plaintext.
    pub ads_transport: Option<Value>,
    /// Clusters on a socket of this machine: agents that are asked for secrets.
    pub secret_sources: BTreeMap<Arc<str>, Target>,
    /// Proto3 JSON of `envoy.config.cluster.v3.Cluster`, without those that discovery uses.
    pub clusters: Vec<Value>,
    /// Which of them is the proxy's own service (`cluster_manager.local_cluster_name`).
    pub local_cluster: Option<Arc<str>>,
    /// Proto3 JSON of `envoy.config.listener.v3.Listener`.
    pub listeners: Vec<Value>,
    pub notices: Vec<Notice>,
    /// The whole file.
    pub raw: Value,
}

#[derive(Debug, Error)]
pub enum BootstrapError {
    #[error("cannot read the bootstrap {path}: {source}; name it with --config-path FILE")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: not JSON: {source}; the bootstrap is Envoy's, in its JSON form")]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path}: {field}: {reason}")]
    Field {
        path: PathBuf,
        field: String,
        reason: String,
    },
}

/// An error before the file's name is added.
type Fault = (String, String);

impl Bootstrap {
    pub fn read(path: &Path) -> Result<Self, BootstrapError> {
        let text = std::fs::read_to_string(path).map_err(|source| BootstrapError::Read {
            path: path.to_owned(),
            source,
        })?;
        let raw: Value = serde_json::from_str(&text).map_err(|source| BootstrapError::Json {
            path: path.to_owned(),
            source,
        })?;
        Self::from_json(raw).map_err(|(field, reason)| BootstrapError::Field {
            path: path.to_owned(),
            field,
            reason,
        })
    }

    fn from_json(raw: Value) -> Result<Self, Fault> {
        let file: File = serde_json::from_value(raw.clone()).map_err(|error| {
            (
                "bootstrap".to_owned(),
                format!("{error}; see Envoy's config.bootstrap.v3.Bootstrap"),
            )
        })?;
        let mut notices = Vec::new();
        note_unknown(&file.other, "", &mut notices);
        let resources = file.static_resources.unwrap_or_default();
        if resources.listeners.is_empty() && file.dynamic_resources.is_none() {
            return Err((
                "static_resources.listeners".to_owned(),
                "there is nothing to serve: neither listeners here nor dynamic_resources to get \
                 them from; `lateen bootstrap WORKLOAD` writes a file that has them"
                    .to_owned(),
            ));
        }
        note_unknown(&resources.other, "static_resources.", &mut notices);
        let (ads, ads_cluster) = match &file.dynamic_resources {
            None => (None, None),
            Some(dynamic) => ads_target(dynamic, &resources.clusters, &mut notices)?,
        };
        let local_cluster = local_cluster(file.cluster_manager, &resources.clusters, &mut notices)?;
        let ads_transport = resources
            .clusters
            .iter()
            .find(|cluster| ads_cluster.is_some() && name_of(cluster) == ads_cluster.as_deref())
            .and_then(|cluster| cluster.get("transport_socket").cloned());
        let secret_sources = secret_sources(&resources.clusters, ads_cluster.as_deref());
        let clusters = resources
            .clusters
            .into_iter()
            .filter(|cluster| {
                let name = name_of(cluster);
                let source = name.is_some_and(|name| secret_sources.contains_key(name));
                name != ads_cluster.as_deref() && !source
            })
            .collect();
        let admin = file
            .admin
            .map(|admin| admin_address(&admin, &mut notices))
            .transpose()?;
        Ok(Self {
            node: node(file.node, &mut notices),
            admin: admin.flatten(),
            ads,
            ads_transport,
            secret_sources,
            clusters,
            local_cluster,
            listeners: resources.listeners,
            notices,
            raw,
        })
    }

    /// What it says of the proxy's own service and place.
    pub(super) fn home(&self) -> Option<Home> {
        Some(Home {
            cluster: self.local_cluster.clone()?,
            locality: lateen_proxy_config::Locality {
                region: self.node.region.as_str().into(),
                zone: self.node.zone.as_str().into(),
                sub_zone: self.node.sub_zone.as_str().into(),
            },
        })
    }
}

#[derive(Deserialize)]
struct File {
    node: Option<NodeFields>,
    admin: Option<Admin>,
    dynamic_resources: Option<Dynamic>,
    static_resources: Option<Static>,
    cluster_manager: Option<ClusterManager>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Default, Deserialize)]
struct NodeFields {
    #[serde(default)]
    id: String,
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    metadata: Map<String, Value>,
    #[serde(default)]
    locality: Locality,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Locality {
    region: String,
    zone: String,
    sub_zone: String,
}

#[derive(Deserialize)]
struct Admin {
    address: Option<Address>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct Address {
    socket_address: Option<SocketAddress>,
    pipe: Option<Pipe>,
}

#[derive(Deserialize)]
struct SocketAddress {
    address: String,
    port_value: Option<u16>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct Pipe {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Dynamic {
    ads_config: Option<AdsConfig>,
    cds_config: Option<Value>,
    lds_config: Option<Value>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct AdsConfig {
    api_type: String,
    transport_api_version: Option<String>,
    #[serde(default)]
    grpc_services: Vec<GrpcService>,
    /// Always so here: one node per stream.
    #[serde(rename = "set_node_on_first_message_only")]
    _set_node_on_first_message_only: Option<bool>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct GrpcService {
    envoy_grpc: Option<EnvoyGrpc>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct EnvoyGrpc {
    cluster_name: String,
}

#[derive(Deserialize)]
struct ClusterManager {
    #[serde(default)]
    local_cluster_name: String,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Static {
    clusters: Vec<Value>,
    listeners: Vec<Value>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

fn note_unknown(other: &Map<String, Value>, prefix: &str, notices: &mut Vec<Notice>) {
    notices.extend(other.keys().map(|key| Notice {
        path: format!("{prefix}{key}"),
        what: "has no effect in this proxy".to_owned(),
    }));
}

fn node(fields: Option<NodeFields>, notices: &mut Vec<Notice>) -> Node {
    let fields = fields.unwrap_or_default();
    note_unknown(&fields.other, "node.", notices);
    Node {
        parsed: NodeId::parse(&fields.id),
        id: fields.id,
        cluster: fields.cluster,
        metadata: Value::Object(fields.metadata),
        region: fields.locality.region,
        zone: fields.locality.zone,
        sub_zone: fields.locality.sub_zone,
        user_agent: "lateen".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        client_features: vec![VIRTUAL_HOSTS_BY_NAME.to_owned()],
        identity: None,
        stream: 0,
        protocol: None,
    }
}

fn admin_address(admin: &Admin, notices: &mut Vec<Notice>) -> Result<Option<SocketAddr>, Fault> {
    note_unknown(&admin.other, "admin.", notices);
    let Some(address) = &admin.address else {
        return Ok(None);
    };
    let field = "admin.address.socket_address";
    let socket = address.socket_address.as_ref().ok_or_else(|| {
        fault(
            "admin.address",
            "only socket_address is supported for the admin server",
        )
    })?;
    note_unknown(&socket.other, "admin.address.socket_address.", notices);
    let ip: IpAddr = socket.address.parse().map_err(|_| {
        fault(
            &format!("{field}.address"),
            &format!("{:?} is not an IP address", socket.address),
        )
    })?;
    Ok(Some(SocketAddr::new(ip, socket.port_value.unwrap_or(0))))
}

/// The control plane's address and the static cluster it was found in.
fn ads_target(
    dynamic: &Dynamic,
    clusters: &[Value],
    notices: &mut Vec<Notice>,
) -> Result<(Option<Target>, Option<String>), Fault> {
    note_unknown(&dynamic.other, "dynamic_resources.", notices);
    for (name, config) in [
        ("cds_config", &dynamic.cds_config),
        ("lds_config", &dynamic.lds_config),
    ] {
        if config
            .as_ref()
            .is_some_and(|config| config.get("ads").is_none())
        {
            return Err(fault(
                &format!("dynamic_resources.{name}"),
                "only `ads` is supported as a source; write {\"ads\": {}, \
                 \"resource_api_version\": \"V3\"}",
            ));
        }
    }
    let Some(ads) = &dynamic.ads_config else {
        return Ok((None, None));
    };
    let at = "dynamic_resources.ads_config";
    note_unknown(&ads.other, &format!("{at}."), notices);
    match ads.api_type.as_str() {
        "DELTA_GRPC" => {}
        "GRPC" => notices.push(Notice {
            path: format!("{at}.api_type"),
            what: "this proxy asks with DELTA_GRPC".to_owned(),
        }),
        other => {
            let reason = format!("{other} is not supported; use DELTA_GRPC");
            return Err(fault(&format!("{at}.api_type"), &reason));
        }
    }
    if ads
        .transport_api_version
        .as_deref()
        .is_some_and(|v| v != "V3" && v != "AUTO")
    {
        return Err(fault(
            &format!("{at}.transport_api_version"),
            "only V3 is supported",
        ));
    }
    let service = ads.grpc_services.first().ok_or_else(|| {
        fault(
            &format!("{at}.grpc_services"),
            "empty; name the cluster of the control plane",
        )
    })?;
    if ads.grpc_services.len() > 1 {
        return Err(fault(
            &format!("{at}.grpc_services"),
            "more than one is not supported",
        ));
    }
    note_unknown(&service.other, &format!("{at}.grpc_services[0]."), notices);
    let name = service
        .envoy_grpc
        .as_ref()
        .map(|grpc| grpc.cluster_name.clone())
        .ok_or_else(|| {
            fault(
                &format!("{at}.grpc_services[0]"),
                "only envoy_grpc is supported",
            )
        })?;
    let index = clusters
        .iter()
        .position(|c| name_of(c) == Some(&name))
        .ok_or_else(|| {
            let reason = format!("static_resources.clusters has no cluster {name:?}");
            fault(
                &format!("{at}.grpc_services[0].envoy_grpc.cluster_name"),
                &reason,
            )
        })?;
    let target = cluster_target(&clusters[index], index)?;
    Ok((Some(target), Some(name)))
}

/// The cluster of the proxy's own service, which has to be in the file, as in Envoy.
fn local_cluster(
    manager: Option<ClusterManager>,
    clusters: &[Value],
    notices: &mut Vec<Notice>,
) -> Result<Option<Arc<str>>, Fault> {
    let Some(manager) = manager else {
        return Ok(None);
    };
    note_unknown(&manager.other, "cluster_manager.", notices);
    let name = manager.local_cluster_name.as_str();
    if name.is_empty() {
        return Ok(None);
    }
    if !clusters.iter().any(|one| name_of(one) == Some(name)) {
        return Err(fault(
            "cluster_manager.local_cluster_name",
            &format!("static_resources.clusters has no cluster {name:?}"),
        ));
    }
    Ok(Some(name.into()))
}

/// Clusters on Unix sockets. Nothing else is sent there: requests go to addresses.
fn secret_sources(clusters: &[Value], ads_cluster: Option<&str>) -> BTreeMap<Arc<str>, Target> {
    let named = clusters.iter().enumerate().filter_map(|(index, cluster)| {
        let name = name_of(cluster)?;
        match cluster_target(cluster, index) {
            Ok(target @ Target::Unix(_)) if Some(name) != ads_cluster => {
                Some((name.into(), target))
            }
            _ => None,
        }
    });
    named.collect()
}

/// Where the discovery cluster's first endpoint is. gRPC reconnects by itself, so of the cluster
/// only the address and its TLS matter.
fn cluster_target(cluster: &Value, index: usize) -> Result<Target, Fault> {
    let at = format!("static_resources.clusters[{index}]");
    let path = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
    let field = format!("{at}{}", path.replace("/0", "[0]").replace('/', "."));
    let address = cluster
        .pointer(path)
        .cloned()
        .ok_or_else(|| fault(&field, "missing"))?;
    let address: Address =
        serde_json::from_value(address).map_err(|error| fault(&field, &error.to_string()))?;
    match (address.socket_address, address.pipe) {
        (
            Some(SocketAddress {
                address,
                port_value: Some(port),
                ..
            }),
            None,
        ) => Ok(Target::Tcp {
            host: address,
            port,
        }),
        (None, Some(Pipe { path })) => Ok(Target::Unix(path)),
        _ => Err(fault(
            &field,
            "needs socket_address with address and port_value, or pipe",
        )),
    }
}

fn name_of(cluster: &Value) -> Option<&str> {
    cluster.get("name")?.as_str()
}

fn fault(field: &str, reason: &str) -> Fault {
    (field.to_owned(), reason.to_owned())
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.node.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({
            "node": {"id": "sidecar~127.0.0.1~a.b~c", "cluster": "a.b", "metadata": {"NAME": "a"}},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
                "cds_config": {"ads": {}, "resource_api_version": "V3"},
                "lds_config": {"ads": {}, "resource_api_version": "V3"},
            },
            "static_resources": {"clusters": [{
                "name": "xds-grpc",
                "load_assignment": {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                    "socket_address": {"address": "localhost", "port_value": 15010}
                }}}]}]},
            }, {"name": "other"}]},
        })
    }

    fn changed(pointer: &str, value: Value) -> Value {
        let mut file = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[key] = value;
        file
    }

    #[test]
    fn a_complete_bootstrap_is_understood() {
        let bootstrap = Bootstrap::from_json(good()).unwrap();
        assert_eq!(bootstrap.node.short_id(), "a.b");
        assert_eq!(bootstrap.admin, Some("127.0.0.1:15000".parse().unwrap()));
        let target = Target::Tcp {
            host: "localhost".into(),
            port: 15010,
        };
        assert_eq!(bootstrap.ads, Some(target));
        assert_eq!(bootstrap.clusters, [json!({"name": "other"})]);
        assert_eq!(bootstrap.notices, []);
    }

    #[test]
    fn the_proxys_own_service_and_place_are_understood() {
        assert_eq!(Bootstrap::from_json(good()).unwrap().home(), None);
        let mut file = changed("/cluster_manager", json!({"local_cluster_name": "other"}));
        file["node"]["locality"] = json!({"region": "r", "zone": "z"});
        let bootstrap = Bootstrap::from_json(file).unwrap();
        assert_eq!(bootstrap.notices, []);
        let home = bootstrap.home().unwrap();
        assert_eq!((&*home.cluster, &*home.locality.zone), ("other", "z"));
    }

    #[test]
    fn what_has_no_effect_is_reported_with_its_path() {
        let check = |pointer: &str, value: Value, expect: &str| {
            let bootstrap = Bootstrap::from_json(changed(pointer, value)).unwrap();
            let paths: Vec<_> = bootstrap.notices.iter().map(|n| n.path.as_str()).collect();
            assert_eq!(paths, [expect]);
        };
        check("/tracing", json!({}), "tracing");
        check(
            "/static_resources/secrets",
            json!([]),
            "static_resources.secrets",
        );
        check("/admin/access_log", json!([]), "admin.access_log");
        check(
            "/dynamic_resources/ads_config/api_type",
            json!("GRPC"),
            "dynamic_resources.ads_config.api_type",
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_an_error_with_its_path() {
        let check = |pointer: &str, value: Value, expect: &str| {
            let (field, reason) = Bootstrap::from_json(changed(pointer, value)).unwrap_err();
            assert!(
                format!("{field}: {reason}").starts_with(expect),
                "{field}: {reason}"
            );
        };
        check(
            "/dynamic_resources/ads_config/grpc_services",
            json!([{"envoy_grpc": {"cluster_name": "nope"}}]),
            "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: \
             static_resources.clusters has no cluster \"nope\"",
        );
        check(
            "/dynamic_resources/ads_config/api_type",
            json!("REST"),
            "dynamic_resources.ads_config.api_type: REST is not supported",
        );
        check(
            "/dynamic_resources/lds_config",
            json!({"path_config_source": {}}),
            "dynamic_resources.lds_config: only `ads`",
        );
        check(
            "/static_resources/clusters/0/load_assignment",
            json!({}),
            "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0]\
             .endpoint.address: missing",
        );
        check(
            "/admin/address",
            json!({"socket_address": {"address": "localhost", "port_value": 1}}),
            "admin.address.socket_address.address: \"localhost\" is not an IP address",
        );
        check(
            "/cluster_manager",
            json!({"local_cluster_name": "nope"}),
            "cluster_manager.local_cluster_name: static_resources.clusters has no cluster \"nope\"",
        );
        check("/node", json!(7), "bootstrap: invalid type");
        let (field, reason) = Bootstrap::from_json(json!({})).unwrap_err();
        assert_eq!(field, "static_resources.listeners");
        assert!(reason.starts_with("there is nothing to serve"), "{reason}");
    }
}
