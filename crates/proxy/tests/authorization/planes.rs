//! Both data planes from one static bootstrap.

use lateen_testkit::envoy::{Envoy, Plane};
use lateen_testkit::ports;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

pub const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";

/// A running proxy and where its listeners are.
pub struct Running {
    pub plane: Plane,
    pub envoy: Envoy,
    /// Of the listeners, in their order.
    pub ports: Vec<u16>,
    pub directory: tempfile::TempDir,
}

pub fn socket(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

/// A cluster with one endpoint.
pub fn cluster(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(port) } }] }],
        },
    })
}

pub fn filter(name: &str, kind: &str, config: Value) -> Value {
    let mut typed = json!({ "@type": format!("{TYPES}.{kind}") });
    let fields = typed.as_object_mut().unwrap();
    fields.extend(config.as_object().cloned().unwrap_or_default());
    json!({ "name": name, "typed_config": typed })
}

/// A connection manager with these filters in front of its router.
pub fn manager(filters: Vec<Value>, routes: Value, more: Value) -> Value {
    let router = filter(
        "envoy.filters.http.router",
        "http.router.v3.Router",
        json!({}),
    );
    let mut config = json!({
        "stat_prefix": "in",
        // These clients read to the end, which Envoy otherwise lingers a second for.
        "delayed_close_timeout": "0.05s",
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        "http_filters": filters.into_iter().chain([router]).collect::<Vec<_>>(),
        "route_config": { "validate_clusters": false, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
    });
    let fields = config.as_object_mut().unwrap();
    fields.extend(more.as_object().cloned().unwrap_or_default());
    filter(
        "envoy.filters.network.http_connection_manager",
        "network.http_connection_manager.v3.HttpConnectionManager",
        config,
    )
}

/// An access log in JSON, by file name.
pub fn log(path: &PathBuf, fields: Value) -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": { "json_format": fields },
        },
    }])
}

/// The planes that are there. Each gets its own ports and directory from `listeners`, which makes
/// the filter chains of each listener.
pub async fn both(
    test: &str,
    clusters: &[Value],
    listeners: impl Fn(&std::path::Path) -> Vec<Value>,
) -> Vec<Running> {
    let mut running = Vec::new();
    for plane in [Plane::StockEnvoy, Plane::Lateen] {
        let Some(binary) = plane.binary(test) else {
            continue;
        };
        let directory = tempfile::tempdir().unwrap();
        let chains = listeners(directory.path());
        let ports: Vec<u16> = chains.iter().map(|_| ports::reserve()).collect();
        let listeners: Vec<Value> = chains
            .into_iter()
            .zip(&ports)
            .map(|(chain, port)| {
                // Of the server name Envoy's rules only know what this filter saw.
                let inspector = match chain.get("transport_socket") {
                    Some(_) => json!([filter(
                        "envoy.filters.listener.tls_inspector",
                        "listener.tls_inspector.v3.TlsInspector",
                        json!({}),
                    )]),
                    None => json!([]),
                };
                json!({
                    "listener_filters": inspector,
                    "name": format!("l{port}"),
                    "address": socket(*port),
                    "filter_chains": [chain],
                })
            })
            .collect();
        let bootstrap = json!({
            "node": { "id": format!("sidecar~127.0.0.1~{test}.default~x"), "cluster": "c" },
            "admin": { "address": socket(ports::reserve()) },
            "static_resources": { "clusters": clusters, "listeners": listeners },
        });
        let envoy = Envoy::start(&binary, &bootstrap, directory.path()).await;
        envoy.ready().await;
        running.push(Running {
            plane,
            envoy,
            ports,
            directory,
        });
    }
    running
}

impl Running {
    pub fn at(&self, listener: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[listener]))
    }

    /// Bytes to a listener, and all that comes back until its end; [`None`] in place of an end that
    /// does not come.
    pub fn raw(&self, listener: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(self.at(listener)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .ok()?;
        // A proxy that refuses may have closed already.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => Some(answer),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            // A reset is an end.
            Err(_) => Some(answer),
        }
    }

    /// One request, written by hand; status and body of the answer.
    pub fn http(&self, listener: usize, request: &str) -> (u16, String) {
        let answer = self.raw(listener, request.as_bytes()).unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.unwrap_or(0), body.to_owned())
    }

    /// The lines of an access log, once there are as many.
    pub async fn lines(&self, file: &str, count: usize) -> Vec<Value> {
        let path = self.directory.path().join(file);
        lateen_testkit::eventually("lines in the access log", async || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines = text
                .lines()
                .map(|l| serde_json::from_str(l).unwrap_or_default());
            let lines: Vec<Value> = lines.collect();
            match lines.len() >= count {
                true => Ok(lines),
                false => Err(format!("{} lines of {count}", lines.len())),
            }
        })
        .await
    }
}
