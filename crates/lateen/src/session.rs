//! A mesh on this machine from start to Ctrl-C, as a person watches it: progress, the table, what
//! happens later. `lateen demo` and `lateen up` are both this.
//!
//! Progress and events go to stderr, the result to stdout, so that `--json` can be piped.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lateen_local::mesh::{Condition, Mesh, MeshOptions, Row, Seed, StartError, rows};
use lateen_local::plan::Plan;
use lateen_local::rundir::RunDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Failure, Outcome};
use crate::progress::Progress;
use crate::{summary, watched};

/// What to run and how to talk about it.
#[derive(Debug)]
pub struct Session {
    pub plan: Plan,
    pub run_dir: PathBuf,
    pub seeds: Vec<Seed>,
    pub watched: Option<PathBuf>,
    /// Stock Envoy in the place of our proxy.
    pub envoy: Option<PathBuf>,
    pub json: bool,
    /// What the address of a gateway is shown with, e.g. `/productpage`.
    pub page: &'static str,
    /// An example to write into the run directory and to suggest: file name and content.
    pub example: Option<(&'static str, &'static str)>,
}

/// The run directory that was asked for, or that of meshes with this name.
pub fn run_dir(asked: Option<PathBuf>, name: &str) -> Result<PathBuf, Failure> {
    match asked {
        Some(path) => Ok(path),
        None => RunDir::default_for(name).map_err(Failure::other),
    }
}

/// Runs the mesh until SIGINT, SIGTERM or SIGHUP.
pub fn run(session: Session) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start: {error}")))?;
    runtime.block_on(start(session))
}

async fn start(session: Session) -> Outcome {
    let began = Instant::now();
    // First of all, so that no signal finds a half-started mesh.
    let mut signals = Signals::new().map_err(Failure::other)?;
    let lateen = std::env::current_exe()
        .map_err(|error| Failure::other(format!("cannot find the lateen binary: {error}")))?;
    let run_dir = RunDir::open(&session.run_dir).map_err(Failure::other)?;
    let example = write_example(&session, &run_dir);
    let options = MeshOptions {
        lateen,
        run_dir,
        plan: session.plan,
        seeds: session.seeds,
        watched: session.watched,
        envoy: session.envoy,
    };
    let follows_files = options.watched.is_some();
    let mut mesh = Mesh::start(options).await.map_err(Failure::other)?;
    let logs = mesh.run_dir().logs();
    let progress = tokio::spawn(Progress::follow(mesh.plan().clone(), logs, mesh.watch()));
    let settled = tokio::select! {
        settled = mesh.settle() => Some(settled),
        _ = signals.any() => None,
    };
    progress.abort();
    let _ = progress.await;
    let outcome = match settled {
        None => Ok(()),
        Some(Err(error)) => Err(start_failure(&error)),
        Some(Ok(outcome)) => {
            let summary = summary::Summary {
                mesh: &mesh,
                took: began.elapsed(),
                outcome,
                page: session.page,
                example,
            };
            summary.print(session.json);
            let files = watched::follow(mesh.plan().control.api, say);
            tokio::select! {
                () = report_changes(&mesh, &mut signals) => {}
                () = files, if follows_files => {}
            }
            Ok(())
        }
    };
    stop(mesh, signals).await;
    outcome
}

fn start_failure(error: &StartError) -> Failure {
    match error {
        StartError::Seed(_) => Failure::data(error),
        _ => Failure::other(error),
    }
}

fn write_example(session: &Session, run_dir: &RunDir) -> Option<PathBuf> {
    let (name, content) = session.example?;
    let path = run_dir.path().join(name);
    std::fs::write(&path, content).ok()?;
    Some(path)
}

/// Says what changes after the start, until a signal comes.
async fn report_changes(mesh: &Mesh, signals: &mut Signals) {
    let mut table = mesh.watch();
    let mut events = Events::new(mesh.run_dir().logs());
    // The table that was printed has said how everything is now.
    events.of(&rows(mesh.plan(), &table.borrow_and_update()));
    loop {
        tokio::select! {
            _ = signals.any() => return,
            changed = table.changed() => if changed.is_err() { return },
        }
        let rows = rows(mesh.plan(), &table.borrow_and_update());
        events.of(&rows).iter().for_each(|event| say(event));
    }
}

/// Failures and recoveries, each said once: a process that fails in the same way again and again
/// is no news.
#[derive(Debug)]
pub struct Events {
    logs: PathBuf,
    failing: BTreeMap<String, String>,
}

impl Events {
    pub fn new(logs: PathBuf) -> Self {
        Self {
            logs,
            failing: BTreeMap::new(),
        }
    }

    /// What is new in these rows.
    pub fn of(&mut self, rows: &[Row]) -> Vec<String> {
        let mut news = Vec::new();
        for row in rows {
            if row.is_ready() && self.failing.remove(&row.workload).is_some() {
                news.push(format!("{} is ready again", row.workload));
            }
            let Condition::Failing { process, .. } = &row.condition else {
                continue;
            };
            let state = row.state();
            if self.failing.get(&row.workload) != Some(&state) {
                let log = self.logs.join(format!("{process}.log"));
                news.push(format!(
                    "{}: {state} (log: {})",
                    row.workload,
                    log.display()
                ));
                self.failing.insert(row.workload.clone(), state);
            }
        }
        news
    }
}

async fn stop(mesh: Mesh, mut signals: Signals) {
    say("stopping; press Ctrl-C again to kill");
    let killer = mesh.killer();
    let impatient = tokio::spawn(async move {
        signals.any().await;
        killer.kill();
    });
    mesh.stop().await;
    impatient.abort();
}

/// One line for the person; nobody listening is no reason to fail.
pub fn say(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// Whether stderr is a terminal that a list can be redrawn on.
pub fn is_interactive() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A duration as people say it.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// The signals that end a mesh.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
