//! A running `lateen-proxy`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{envoy, eventually, ports};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub struct Proxy {
    child: Child,
    pub admin: SocketAddr,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A bootstrap that takes everything from the control plane at `xds`.
pub fn bootstrap(xds: u16) -> Value {
    let bootstrap = envoy::Bootstrap {
        kind: "sidecar",
        name: "app".into(),
        namespace: "default".into(),
        metadata: json!({"CLUSTER_ID": "Kubernetes"}),
        xds,
        admin: ports::reserve(),
        delta: true,
    };
    bootstrap.to_json()
}

/// A bootstrap without control plane.
pub fn static_bootstrap(resources: Value) -> Value {
    let admin = json!({"socket_address": {"address": "127.0.0.1", "port_value": ports::reserve()}});
    json!({
        "node": {"id": "standalone", "cluster": "standalone"},
        "admin": {"address": admin},
        "static_resources": resources,
    })
}

pub fn command(bootstrap: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lateen-proxy"));
    command
        .arg("-c")
        .arg(bootstrap)
        .args(["--concurrency", "1"]);
    command
}

impl Proxy {
    pub fn start(bootstrap: &Value) -> Self {
        Self::with(bootstrap, &[])
    }

    pub fn with(bootstrap: &Value, args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let log = directory.path().join("log");
        let child = command(&file)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let port = &bootstrap["admin"]["address"]["socket_address"]["port_value"];
        let admin = address(u16::try_from(port.as_u64().unwrap()).unwrap());
        Self {
            child,
            admin,
            log,
            _directory: directory,
        }
    }

    pub async fn ready(&self) {
        eventually("the proxy is ready", async || {
            let answer = self.get("/ready").await?;
            match answer.status {
                200 => Ok(()),
                _ => Err(format!("{}: {}", answer.body, self.log())),
            }
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Result<Answer, String> {
        Call::get("admin", path).send(self.admin).await
    }

    pub async fn post(&self, path: &str) -> Result<Answer, String> {
        Call::get("admin", path)
            .method("POST")
            .send(self.admin)
            .await
    }

    pub fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }

    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; fails when it does not within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                started.elapsed() < limit,
                "still running after {limit:?}: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the proxy's log\n{}---", self.log());
        }
    }
}

/// Repeats a request until this server answers it.
pub async fn answered_by(entry: SocketAddr, name: &str) {
    eventually(&format!("an answer of {name}"), async || {
        let answer = Call::get("anything", "/").send(entry).await?;
        match answer.status == 200 && answer.name() == name {
            true => Ok(()),
            false => Err(format!("{} {}", answer.status, answer.body)),
        }
    })
    .await;
}
