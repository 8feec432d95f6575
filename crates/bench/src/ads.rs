//! The xDS server of the run: the same resources for our proxy and for Envoy, over our own ADS
//! server. It keeps no state: what a proxy gets follows from the metadata it connects with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use lateen_xds::{Changed, Limits, Node, Push, Resource, Server, Source};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::ground::{end_on_signal, loopback};
use crate::resources::{self, Chain, Wanted};

const CHAIN: &str = "BENCH_CHAIN";
const HTTP_PORT: &str = "BENCH_HTTP_PORT";
const TCP_PORT: &str = "BENCH_TCP_PORT";
const PAIR_PORT: &str = "BENCH_PAIR_PORT";
const MTLS_PORT: &str = "BENCH_MTLS_PORT";

/// The server, on a thread of its own until the program ends.
pub struct Ads {
    server: Server<Bench>,
    address: SocketAddr,
}

/// A proxy that takes its configuration from here.
pub struct Client {
    pub name: &'static str,
    pub chain: Chain,
    pub http: u16,
    pub tcp: u16,
    pub pair: u16,
    pub mtls: u16,
    pub admin: u16,
}

impl Ads {
    pub fn start(backend: &Backend, credentials: Arc<Credentials>) -> Result<Self> {
        let io = |source| Error::io("start the xDS server", source);
        let source = Bench {
            http: backend.http,
            tcp: backend.tcp,
            credentials,
        };
        let first = Push::new("1", Arc::new(()), Changed::All);
        let server = Server::new(Arc::new(source), first, Limits::default());
        let listener = std::net::TcpListener::bind(loopback(0)).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io)?;
        let serving = server.clone();
        std::thread::Builder::new()
            .name("ads".into())
            .spawn(move || {
                runtime.block_on(async move {
                    end_on_signal().await;
                    if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                        serving.serve(listener, std::future::pending()).await;
                    }
                });
            })
            .map_err(io)?;
        Ok(Self { server, address })
    }

    /// What a proxy of this name said against its configuration.
    pub fn rejection(&self, client: &Client) -> Option<String> {
        let id = node_id(client);
        let status = self.server.status();
        let proxy = status.iter().find(|proxy| proxy.node.id == id)?;
        proxy
            .types
            .values()
            .find_map(|kind| kind.nack.as_ref())
            .map(|nack| nack.message.clone())
    }

    /// Envoy's bootstrap: this server, and nothing static besides.
    pub fn bootstrap(&self, client: &Client) -> String {
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        let bootstrap = json!({
            "node": {
                "id": node_id(client),
                "cluster": "bench",
                "metadata": {
                    CHAIN: client.chain.as_str(),
                    HTTP_PORT: client.http.to_string(),
                    TCP_PORT: client.tcp.to_string(),
                    PAIR_PORT: client.pair.to_string(),
                    MTLS_PORT: client.mtls.to_string(),
                },
            },
            "admin": {"address": socket_address(client.admin)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": {"clusters": [xds_cluster(self.address.port())]},
        });
        bootstrap.to_string()
    }
}

/// The form of Istio's node ids; the name tells proxies of the run apart.
fn node_id(client: &Client) -> String {
    format!(
        "router~127.0.0.1~{}-{}.bench~bench.svc.cluster.local",
        client.name.to_lowercase().replace(' ', "-"),
        client.http
    )
}

fn xds_cluster(port: u16) -> Value {
    json!({
        "name": "xds-grpc",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "xds-grpc",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/\
                    envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
    })
}

fn socket_address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// Where the backend is; all else comes from the node.
struct Bench {
    http: SocketAddr,
    tcp: SocketAddr,
    credentials: Arc<Credentials>,
}

impl Source for Bench {
    type Snapshot = ();

    fn connect(&self, node: &Node) -> std::result::Result<(), String> {
        self.wanted(node)
            .map(drop)
            .ok_or_else(|| format!("metadata must have {CHAIN} and the four ports"))
    }

    fn disconnect(&self, _node: &Node) {}

    fn generate(
        &self,
        _snapshot: &(),
        node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>> {
        let Some(wanted) = self.wanted(node) else {
            return Vec::new();
        };
        resources::of_type(&wanted, type_url)
            .into_iter()
            .filter(|resource| names.is_none_or(|names| names.contains(resource.name())))
            .map(Arc::new)
            .collect()
    }
}

impl Bench {
    fn wanted(&self, node: &Node) -> Option<Wanted<'_>> {
        let port = |key| node.metadata_str(key)?.parse::<u16>().ok();
        Some(Wanted {
            chain: Chain::named(node.metadata_str(CHAIN)?)?,
            http: loopback(port(HTTP_PORT)?),
            tcp: loopback(port(TCP_PORT)?),
            pair: loopback(port(PAIR_PORT)?),
            mtls: loopback(port(MTLS_PORT)?),
            credentials: &self.credentials,
            backend_http: self.http,
            backend_tcp: self.tcp,
        })
    }
}
