//! One proxy of a plane as a child process, with its access log.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lateen_testkit::child::Child;
use lateen_testkit::envoy::Bootstrap;
use lateen_testkit::http::Call;
use lateen_testkit::{ports, tools};
use serde_json::{Value, json};

use super::{Plane, Ports};
use crate::corpus::Via;
use crate::{Failure, Result, failed};

/// Relative, so that each proxy writes its own.
pub const ACCESS_LOG: &str = "access.log";

/// What both proxies are asked to say of a request, in the order of [`LogLine`].
pub const LOG_FORMAT: &str = concat!(
    "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%\t%REQ(X-CASE)%\t%PROTOCOL%\t%RESPONSE_CODE%\t",
    "%RESPONSE_FLAGS%\t%RESPONSE_CODE_DETAILS%\t%CONNECTION_TERMINATION_DETAILS%\t",
    "%UPSTREAM_TRANSPORT_FAILURE_REASON%\t%UPSTREAM_REQUEST_ATTEMPT_COUNT%\t",
    "%UPSTREAM_CLUSTER%\t%ROUTE_NAME%\t%BYTES_RECEIVED%\t%BYTES_SENT%\n"
);

/// Names of the fields after the client's address.
const LOG_FIELDS: [&str; 12] = [
    "case",
    "protocol",
    "code",
    "flags",
    "details",
    "termination",
    "transport-failure",
    "attempts",
    "cluster",
    "route",
    "bytes-received",
    "bytes-sent",
];

/// One line of an access log.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// Address that the client connected from.
    pub client: String,
    pub fields: Value,
}

/// The programs of the two planes.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub envoy: PathBuf,
    pub lateen: PathBuf,
}

impl Binaries {
    /// Stock Envoy as tests find it, and `lateen-proxy` beside this program; or what is missing.
    pub fn find() -> Result<Binaries, &'static str> {
        let lateen = match std::env::var_os("LATEEN_DIFF_PROXY") {
            Some(path) => Some(PathBuf::from(path)),
            None => built("lateen-proxy"),
        };
        Ok(Binaries {
            envoy: tools::envoy().ok_or("Envoy (cargo xtask setup)")?,
            lateen: lateen.ok_or("lateen-proxy (cargo build -p lateen-proxy)")?,
        })
    }

    fn of(&self, plane: Plane) -> &Path {
        match plane {
            Plane::Envoy => &self.envoy,
            Plane::Lateen => &self.lateen,
        }
    }
}

/// In the directory of this program, or above it where a test runs.
fn built(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let mut directories = own.ancestors().skip(1).take(2);
    directories.find_map(|directory| {
        let path = directory.join(name);
        path.is_file().then_some(path)
    })
}

/// One running proxy.
pub struct Proxy {
    pub plane: Plane,
    name: String,
    child: Child,
    admin: SocketAddr,
    directory: PathBuf,
}

impl Proxy {
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a different thing to be told"
    )]
    pub async fn start(
        binaries: &Binaries,
        plane: Plane,
        via: Via,
        ports_of: Ports,
        app: u16,
        xds: u16,
        parent: &Path,
    ) -> Result<Proxy> {
        let admin = ports::reserve();
        let role = match via {
            Via::Gateway => "gateway",
            Via::Sidecar | Via::Inbound => "front",
        };
        let name = format!("{role}-{}", plane.name());
        let directory = parent.join(&name);
        std::fs::create_dir_all(&directory).map_err(failed(directory.display()))?;
        let bootstrap = bootstrap(plane, via, &name, ports_of, app, xds, admin);
        let file = directory.join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).map_err(failed(file.display()))?;
        let mut command = Command::new(binaries.of(plane));
        command.current_dir(&directory).arg("-c").arg(&file).args([
            "--concurrency",
            "2",
            "--log-level",
            "warning",
        ]);
        if plane == Plane::Envoy {
            command.args(["--disable-hot-restart", "--file-flush-interval-msec", "50"]);
        }
        let mut proxy = Proxy {
            plane,
            child: Child::start(&command, &directory.join("output.log")),
            name,
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, admin)),
            directory,
        };
        proxy.ready().await?;
        Ok(proxy)
    }

    async fn ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(words) = self.ended() {
                return Err(Failure(words));
            }
            let answer = Call::get("proxy", "/ready").send(self.admin).await;
            if answer.is_ok_and(|answer| answer.body == "LIVE\n") {
                return Ok(());
            }
            if started.elapsed() > super::PATIENCE {
                let words = format!("{} is not ready: {}", self.name, self.child.log());
                return Err(Failure(words));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.ended()?;
        Some(format!(
            "{} ended with {status}: {}",
            self.name,
            self.child.log()
        ))
    }

    /// Which updates it refused, and why.
    pub async fn refused(&self) -> Option<String> {
        let answer = Call::get("proxy", "/stats").send(self.admin).await.ok()?;
        let refused = answer.body.lines().any(|line| {
            line.split_once("update_rejected: ")
                .is_some_and(|(_, count)| count != "0")
        });
        refused.then(|| {
            let log = self.child.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            format!("{} refused an update: {}", self.name, last.join("\n"))
        })
    }

    /// Its access log so far.
    pub fn log(&self) -> Vec<LogLine> {
        let text = std::fs::read(self.directory.join(ACCESS_LOG)).unwrap_or_default();
        let text = crate::wire::text(&text);
        text.lines().filter_map(read_line).collect()
    }
}

fn read_line(line: &str) -> Option<LogLine> {
    let mut parts = line.split('\t');
    let client = parts.next()?.to_owned();
    let fields = LOG_FIELDS.iter().zip(parts);
    let fields = fields.map(|(name, value)| ((*name).to_owned(), Value::from(value)));
    Some(LogLine {
        client,
        fields: fields.collect(),
    })
}

fn bootstrap(
    plane: Plane,
    via: Via,
    name: &str,
    ports_of: Ports,
    app: u16,
    xds: u16,
    admin: u16,
) -> Value {
    let bind = plane.address().to_string();
    let (kind, namespace, metadata) = match via {
        Via::Gateway => (
            "router",
            "istio-system",
            json!({"LABELS": {"istio": "ingressgateway"}, "LATEEN_BIND": bind}),
        ),
        Via::Sidecar | Via::Inbound => (
            "sidecar",
            "default",
            json!({
                "LABELS": {"app": "front"},
                "INTERCEPTION_MODE": "NONE",
                "HTTP_PROXY_PORT": ports_of.outbound.to_string(),
                "LATEEN_BIND": bind,
                "LATEEN_INBOUND": {ports_of.inbound.to_string(): app},
            }),
        ),
    };
    let bootstrap = Bootstrap {
        kind,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        metadata,
        xds,
        admin,
        delta: true,
    };
    let mut json = bootstrap.to_json();
    if plane == Plane::Envoy {
        // Upstreams tell the planes apart by where connections come from.
        json["cluster_manager"] = json!({
            "upstream_bind_config": {"source_address": {"address": bind, "port_value": 0}},
        });
    }
    json
}
