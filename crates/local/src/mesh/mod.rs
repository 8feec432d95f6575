//! A mesh that runs on this machine: from a plan to processes and objects, and back to nothing.
//!
//! The order of things: every port is checked; the control plane and the applications start; as
//! soon as the control plane answers, the mesh's objects are put into it and the proxies start.
//! From then on a workload that is not ready is marked so in its WorkloadEntry, and traffic avoids
//! it. Nothing here knows how the demo differs from a person's own mesh: both are a mesh file.

mod api;
mod credentials;
mod launch;
mod publish;
mod rows;
mod seed;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use api::ApiError;
pub use rows::{Condition, Row, rows};
pub use seed::{Seed, SeedError};

use crate::capture::{CaptureError, Namespaces, Network};
use crate::http::Client;
use crate::identity::Identities;
use crate::plan::{Plan, TakenPort, check_free};
use crate::rundir::{RunDir, RunDirError};
use crate::supervise::{Killer, State, Status, Supervisor, Table};
use api::Api;
use credentials::Keeper;
use launch::Launcher;
use publish::Publisher;

/// How long the processes of a mesh that was killed may take to leave their ports.
const LEFTOVERS: Duration = Duration::from_secs(4);
/// Patience with the page behind a gateway while waiting for it.
const PAGE_PATIENCE: Duration = Duration::from_secs(2);
const PAGE_POLL: Duration = Duration::from_millis(20);
/// Longest wait for a page when everything else is ready.
const PAGE: Duration = Duration::from_secs(5);
/// Before the readiness of workloads is published for the first time.
const QUICK_START: Duration = Duration::from_secs(1);
/// Longest wait for every proxy to have accepted its configuration.
const DISTRIBUTION: Duration = Duration::from_secs(5);
/// Longest wait for everything to be ready: slow applications are given time, not eternity.
const SETTLE: Duration = Duration::from_secs(60);
/// A process that was started again this often before it was ever ready has failed.
const HOPELESS: u32 = 2;
/// Name of the control plane's process and log.
pub const CONTROL: &str = "control";

/// What to start.
#[derive(Debug)]
pub struct MeshOptions {
    /// The `lateen` binary, which is every process of ours.
    pub lateen: PathBuf,
    pub run_dir: RunDir,
    pub plan: Plan,
    /// Configuration of the first start in this run directory.
    pub seeds: Vec<Seed>,
    /// Directory of YAML that the control plane watches.
    pub watched: Option<PathBuf>,
    /// Stock Envoy in the place of our proxy.
    pub envoy: Option<PathBuf>,
}

/// Why a mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Port(#[from] TakenPort),
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("cannot write {path}: {source}; check the run directory")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the control plane does not start: {reason}; its log is {log}")]
    Control { reason: String, log: PathBuf },
    #[error("the control plane refused the mesh's own objects: {0}")]
    Objects(#[from] ApiError),
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is ready, and every gateway's readiness path answers through the mesh.
    Ready,
    /// Something fails again and again; it is being restarted, the rest serves.
    Failing,
    /// Everything runs, and the readiness path of a gateway does not answer 200.
    NoAnswer { url: String, reason: String },
}

/// A mesh that is running.
#[derive(Debug)]
pub struct Mesh {
    plan: Arc<Plan>,
    run_dir: RunDir,
    supervisor: Supervisor,
    table: watch::Receiver<Table>,
    publisher: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
    client: Client,
    seeds: Vec<Seed>,
    launcher: Launcher,
}

impl Mesh {
    /// Checks the ports and starts the control plane and the applications.
    pub async fn start(options: MeshOptions) -> Result<Self, StartError> {
        let MeshOptions {
            lateen,
            run_dir,
            plan,
            seeds,
            watched,
            envoy,
        } = options;
        check_ports(&plan, run_dir.was_killed()).await?;
        let identities = Identities::create(&run_dir, &plan);
        let identities = Arc::new(identities.map_err(|source| StartError::Write {
            path: run_dir.path().to_owned(),
            source,
        })?);
        launch::write_bootstraps(&plan, &run_dir, &identities)?;
        // Namespaces reach the control plane at this machine's address, not at its loopback.
        let host = plan.network.map_or(Ipv4Addr::LOCALHOST, Network::host);
        let authority = SocketAddr::from((host, plan.control.secure));
        let namespaces = match plan.network {
            Some(network) => Some(Namespaces::create(&run_dir, &plan, network)?),
            None => None,
        };
        let plan = Arc::new(plan);
        let launcher = Launcher {
            lateen,
            envoy,
            namespaces,
            identities,
            authority,
        };
        let mut supervisor = Supervisor::new(&run_dir.logs());
        supervisor.start(launcher.control(&plan, &run_dir, watched.as_deref()));
        for workload in &plan.workloads {
            supervisor.start(launcher.app(workload));
        }
        let table = supervisor.watch();
        let client = Client::direct();
        Ok(Self {
            plan,
            run_dir,
            supervisor,
            table,
            publisher: None,
            keeper: None,
            client,
            seeds,
            launcher,
        })
    }

    /// Puts the mesh's objects into the control plane, starts the proxies, and waits until
    /// everything is ready or something has failed for good.
    pub async fn settle(&mut self) -> Result<Outcome, StartError> {
        let api = Api::new(self.plan.control.api);
        tokio::select! {
            ready = api.wait(SETTLE) => {
                ready.map_err(|last| self.control_is_silent(&last))?;
            }
            failed = self.control_failed() => return Err(failed),
        }
        let publisher = Publisher::new(api.clone(), self.plan.clone(), self.table.clone());
        let identities = self.launcher.identities.clone();
        let mut keeper = Keeper::new(api.clone(), &self.plan, identities);
        tokio::try_join!(
            async { publisher.put_all().await.map_err(StartError::from) },
            keeper.put_all(),
        )?;
        self.keeper = Some(tokio::spawn(keeper.follow()));
        for gateway in &self.plan.gateways {
            for process in self.launcher.gateway(&self.run_dir, gateway) {
                self.supervisor.start(process);
            }
        }
        for workload in &self.plan.workloads {
            for process in self.launcher.sidecar(&self.run_dir, workload) {
                self.supervisor.start(process);
            }
        }
        if !self.run_dir.is_seeded() {
            seed::apply(&api, &self.seeds).await?;
            let path = self.run_dir.path().to_owned();
            self.run_dir
                .set_seeded()
                .map_err(|source| StartError::Write { path, source })?;
        }
        let unready = publisher.unready();
        self.publisher = Some(tokio::spawn(async move {
            // Most meshes are up by then, and need no second round of objects.
            tokio::time::sleep(QUICK_START).await;
            publisher.follow().await
        }));
        Ok(self.wait_until_settled(unready).await)
    }

    async fn wait_until_settled(&self, mut unready: watch::Receiver<usize>) -> Outcome {
        match tokio::time::timeout(SETTLE, self.all_ready()).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return Outcome::Failing,
        }
        // A proxy that rejects something never gets there; that is for `proxy-status` to show.
        let _ = tokio::time::timeout(DISTRIBUTION, async {
            let _ = unready.wait_for(|count| *count == 0).await;
            self.distributed().await;
        })
        .await;
        for gateway in &self.plan.gateways {
            let Some(path) = &gateway.readiness_path else {
                continue;
            };
            let url = format!("http://127.0.0.1:{}{path}", gateway.http);
            if let Err(reason) = self.page_answers(&url).await {
                return Outcome::NoAnswer { url, reason };
            }
        }
        Outcome::Ready
    }

    /// Waits until every process is ready; false when one has failed for good.
    async fn all_ready(&self) -> bool {
        let mut table = self.table.clone();
        let settled = table.wait_for(|table| {
            let done = |status: &Status| status.state == State::Ready || is_hopeless(status);
            table.iter().all(done)
        });
        settled
            .await
            .is_ok_and(|table| !table.iter().any(is_hopeless))
    }

    /// Waits until a page answers 200 through the whole mesh, but not for ever: the person may have
    /// changed the routes since the first start.
    async fn page_answers(&self, url: &str) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let reason = match self.client.get(url, PAGE_PATIENCE).await {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => format!("answers {}", response.status().as_u16()),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > PAGE {
                return Err(reason);
            }
            tokio::time::sleep(PAGE_POLL).await;
        }
    }

    /// Waits until every proxy has accepted everything that is in the control plane by now. A proxy
    /// is ready with its first configuration, which may be older than what was put last.
    async fn distributed(&self) {
        let proxies = self
            .plan
            .gateways
            .iter()
            .filter(|gateway| !gateway.external_proxy)
            .count()
            + self
                .plan
                .workloads
                .iter()
                .filter(|workload| !workload.external_proxy)
                .count();
        let url = format!(
            "http://127.0.0.1:{}/debug/pushz",
            self.plan.control.monitoring
        );
        loop {
            let state = match self.client.get(&url, PAGE_PATIENCE).await {
                Ok(response) => serde_json::from_slice(response.body()).unwrap_or_default(),
                Err(_) => Value::Null,
            };
            let connected = state["proxies"]
                .as_u64()
                .is_some_and(|n| n >= proxies as u64);
            let pushed = state["pushed"].as_u64() >= state["revision"].as_u64();
            let accepted = state["pending"].as_array().is_some_and(Vec::is_empty);
            if connected && pushed && accepted {
                return;
            }
            tokio::time::sleep(PAGE_POLL).await;
        }
    }

    /// Waits for the control plane to have failed for good.
    fn control_is_silent(&self, last: &str) -> StartError {
        let seconds = SETTLE.as_secs();
        StartError::Control {
            reason: format!("its API has not answered for {seconds} s ({last})"),
            log: self.run_dir.logs().join(format!("{CONTROL}.log")),
        }
    }

    async fn control_failed(&self) -> StartError {
        let mut table = self.table.clone();
        let failed = table.wait_for(|table| {
            table
                .iter()
                .any(|status| status.name == CONTROL && is_hopeless(status))
        });
        let reason = match failed.await.ok().and_then(|table| {
            table
                .iter()
                .find(|status| status.name == CONTROL)
                .map(|status| status.state.clone())
        }) {
            Some(State::Restarting {
                reason,
                last_line: Some(line),
            }) => format!("{reason}: {line}"),
            Some(State::Restarting { reason, .. }) => reason,
            _ => "it ends again and again".to_owned(),
        };
        StartError::Control {
            reason,
            log: self.run_dir.logs().join(format!("{CONTROL}.log")),
        }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// The state of every process, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Table> {
        self.table.clone()
    }

    /// Hurries a [`Mesh::stop`] that is under way.
    pub fn killer(&self) -> Killer {
        self.supervisor.killer()
    }

    /// Stops every process, gracefully at first.
    pub async fn stop(mut self) {
        if let Some(publisher) = self.publisher.take() {
            // Its workloads are about to be down, and their entries must not say so next time.
            publisher.abort();
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
            let _ = keeper.await;
        }
        self.supervisor.stop().await;
        drop(self.launcher);
        self.run_dir.close();
    }
}

/// Whether a process was restarted in vain.
fn is_hopeless(status: &Status) -> bool {
    matches!(status.state, State::Restarting { .. }) && status.restarts >= HOPELESS
}

async fn check_ports(plan: &Plan, was_killed: bool) -> Result<(), TakenPort> {
    let ports = plan.ports();
    let began = Instant::now();
    loop {
        match check_free(&ports) {
            // What a killed mesh left behind is about to notice that and leave.
            Err(_) if was_killed && began.elapsed() < LEFTOVERS => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}
