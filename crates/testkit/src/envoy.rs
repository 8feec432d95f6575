//! Stock Envoy as a child process, and our proxy in its place: both start from the same bootstrap
//! and answer on the same admin pages.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::child::Child;
use crate::eventually;
use crate::http::Call;

/// What a proxy says about itself, and where its control plane is: enough for Envoy's bootstrap.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// `sidecar` or `router`.
    pub kind: &'static str,
    pub name: String,
    pub namespace: String,
    /// Node metadata.
    pub metadata: Value,
    pub xds: u16,
    pub admin: u16,
    /// Whether Envoy speaks delta ADS or state of the world.
    pub delta: bool,
}

impl Bootstrap {
    /// The bootstrap file. The tests of the `lateen` binary use the one that it writes instead.
    pub fn to_json(&self) -> Value {
        let Bootstrap {
            kind,
            name,
            namespace,
            ..
        } = self;
        let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
        let address =
            |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let xds = json!({"lb_endpoints": [{"endpoint": {"address": address(self.xds)}}]});
        json!({
            "node": {
                "id": format!("{kind}~127.0.0.1~{name}.{namespace}~{namespace}.svc.cluster.local"),
                "cluster": format!("{name}.{namespace}"),
                "metadata": self.metadata,
            },
            "admin": {"address": address(self.admin)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": if self.delta { "DELTA_GRPC" } else { "GRPC" },
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": {"clusters": [{
                "name": "xds-grpc",
                "type": "STATIC",
                "connect_timeout": "1s",
                "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [xds]},
                "typed_extension_protocol_options": {http2: {
                    "@type": format!("type.googleapis.com/{http2}"),
                    "explicit_http_config": {"http2_protocol_options": {}},
                }},
            }]},
        })
    }

    /// The same with an identity: an agent for secrets behind a socket (the cluster `sds-grpc`, as
    /// Istio names it), and mutual TLS to the control plane at another port.
    pub fn secured(&self, socket: &Path, port: u16) -> Value {
        let mut bootstrap = self.to_json();
        let clusters = &mut bootstrap["static_resources"]["clusters"];
        let mut agent = clusters[0].clone();
        agent["name"] = json!("sds-grpc");
        agent["load_assignment"] = json!({
            "cluster_name": "sds-grpc",
            "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"pipe": {"path": socket}},
            }}]}],
        });
        let secret = |name: &str| {
            json!({"name": name, "sds_config": {
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0s",
                "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                },
            }})
        };
        let name = "istiod.istio-system.svc";
        let tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
        clusters[0].pointer_mut(address).expect("an address")["port_value"] = json!(port);
        clusters[0]["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("type.googleapis.com/{tls}"),
                "sni": name,
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_params": {
                    "tls_maximum_protocol_version": "TLSv1_3",
                    "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256"],
                },
                    "tls_certificate_sds_secret_configs": [secret("default")],
                    "combined_validation_context": {
                        "default_validation_context": {"match_typed_subject_alt_names": [
                            {"san_type": "DNS", "matcher": {"exact": name}},
                        ]},
                        "validation_context_sds_secret_config": secret("ROOTCA"),
                    },
                },
            },
        });
        if let Some(clusters) = clusters.as_array_mut() {
            clusters.push(agent);
        }
        bootstrap
    }
}

/// Says in a bootstrap that the proxy runs at `region/zone`, and has it ask for the endpoints of its
/// own service.
pub fn settle(bootstrap: &mut Value, region: &str, zone: &str) {
    let node = &mut bootstrap["node"];
    node["locality"] = json!({"region": region, "zone": zone});
    node["metadata"]["ENABLE_SELF_DISCOVERY"] = json!("true");
    bootstrap["cluster_manager"] = json!({"local_cluster_name": "local_cluster"});
    let cluster = json!({
        "name": "local_cluster",
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
    });
    let clusters = bootstrap["static_resources"]["clusters"].as_array_mut();
    clusters.expect("clusters").push(cluster);
}

/// Which data plane a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    StockEnvoy,
    Lateen,
}

impl Plane {
    /// The program, or `None` with a loud word when it is not there.
    pub fn binary(self, test: &str) -> Option<PathBuf> {
        match self {
            Plane::StockEnvoy => {
                let binary = crate::tools::envoy();
                if binary.is_none() {
                    crate::tools::skip(test, "Envoy");
                }
                binary
            }
            Plane::Lateen => {
                let binary = crate::tools::built("lateen-proxy");
                if binary.is_none() {
                    crate::tools::skip(test, "lateen-proxy (cargo build -p lateen-proxy)");
                }
                binary
            }
        }
    }
}

/// A running Envoy.
pub struct Envoy {
    child: Child,
    admin: SocketAddr,
}

impl Envoy {
    /// Whether Envoy takes the bootstrap file; its reasons if not.
    pub fn validate(binary: &Path, bootstrap: &Value, directory: &Path) -> Result<(), String> {
        let file = write(bootstrap, directory, "validate");
        let output = Command::new(binary)
            .args(["--mode", "validate", "-c"])
            .arg(file)
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Starts Envoy and waits until its admin page answers.
    pub async fn start(binary: &Path, bootstrap: &Value, directory: &Path) -> Self {
        Self::start_by(Command::new(binary), binary, bootstrap, directory).await
    }

    /// The same with a command that runs the program in some place of its own.
    pub async fn start_by(
        mut command: Command,
        binary: &Path,
        bootstrap: &Value,
        directory: &Path,
    ) -> Self {
        let node = bootstrap["node"]["id"].as_str().unwrap_or("envoy");
        let name = node.split('~').nth(2).unwrap_or(node);
        let file = write(bootstrap, directory, name);
        command
            .arg("-c")
            .arg(file)
            // Two workers show what is per worker.
            .args(["--concurrency", "2"])
            .args(["--log-level", "warning", "--drain-time-s", "1"]);
        if !binary.ends_with("lateen-proxy") {
            // A shared memory region would be per machine.
            command.arg("--disable-hot-restart");
            // Access logs are read by tests.
            command.args(["--file-flush-interval-msec", "50"]);
        }
        let child = Child::start(&command, &directory.join(format!("{name}.log")));
        let admin = &bootstrap["admin"]["address"]["socket_address"];
        let port = admin["port_value"].as_u64();
        let port = port.and_then(|port| u16::try_from(port).ok());
        let ip = admin["address"].as_str().and_then(|ip| ip.parse().ok());
        let ip: IpAddr = ip.expect("an admin address");
        let admin = SocketAddr::from((ip, port.expect("an admin port")));
        let mut envoy = Envoy { child, admin };
        eventually("Envoy's admin page", async || {
            if let Some(status) = envoy.child.ended() {
                panic!("Envoy ended with {status}: {}", envoy.child.log());
            }
            Call::get("envoy", "/server_info").send(admin).await
        })
        .await;
        envoy
    }

    /// Waits until Envoy has its first configuration and serves.
    pub async fn ready(&self) {
        eventually("Envoy is ready", async || {
            let answer = self.get("/ready").await?;
            match answer.as_str() {
                "LIVE\n" => Ok(()),
                other => Err(format!("{other}; {}", self.child.log())),
            }
        })
        .await;
    }

    /// Body of an admin page.
    pub async fn get(&self, path: &str) -> Result<String, String> {
        let answer = Call::get("envoy", path).send(self.admin).await?;
        Ok(answer.body)
    }

    /// All counters and gauges.
    pub async fn stats(&self) -> BTreeMap<String, u64> {
        let text = self.get("/stats").await.expect("Envoy's statistics");
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// One counter or gauge; 0 when there is none of this name.
    pub async fn stat(&self, name: &str) -> u64 {
        self.stats().await.get(name).copied().unwrap_or_default()
    }

    /// All counters or gauges whose names end so, together.
    pub async fn stats_ending(&self, ending: &str) -> u64 {
        let stats = self.stats().await;
        let named = stats.iter().filter(|(name, _)| name.ends_with(ending));
        named.map(|(_, value)| value).sum()
    }

    /// Updates of any type that Envoy refused: name of the counter and its value.
    pub async fn rejected(&self) -> BTreeMap<String, u64> {
        let mut stats = self.stats().await;
        stats.retain(|name, value| name.ends_with("update_rejected") && *value > 0);
        stats
    }

    /// Memory it has now, in bytes.
    pub fn resident(&self) -> u64 {
        self.child.resident()
    }

    /// What Envoy logged.
    pub fn log(&self) -> String {
        self.child.log()
    }
}

fn write(bootstrap: &Value, directory: &Path, name: &str) -> PathBuf {
    let file = directory.join(format!("{name}.json"));
    std::fs::write(&file, bootstrap.to_string()).expect("the bootstrap can be written");
    file
}
