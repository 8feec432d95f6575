//! Supervision of processes: start, watch, restart with backoff, stop.
//!
//! Each process leads a process group of its own and holds the read end of a pipe from us as its
//! standard input; [`crate::exit_with_parent`] and [`run_child`] end a process when that pipe
//! closes. Invariant: whatever way this process ends, none of its children outlives it for long,
//! and when one child ends, the rest of its group is killed before it is started again.

mod backoff;
mod child;
mod log;
mod process;
mod ready;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

pub use child::{ChildError, run_child};
pub use process::{Spec, State, Status};
pub use ready::Readiness;

use crate::http::Client;

/// The state of every process, in the order in which they were added.
pub type Table = Vec<Status>;

/// How urgently everything has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    Run,
    /// SIGTERM, then SIGKILL after the deadline.
    Gracefully,
    /// SIGKILL at once.
    Now,
}

/// A set of supervised processes. Dropping it kills them without grace.
#[derive(Debug)]
pub struct Supervisor {
    logs: PathBuf,
    table: watch::Sender<Table>,
    stop: watch::Sender<Stop>,
    tasks: JoinSet<()>,
    client: Arc<Client>,
}

impl Supervisor {
    /// A supervisor that writes `NAME.log` files into a directory, which must exist.
    pub fn new(logs: &Path) -> Self {
        Self {
            logs: logs.to_owned(),
            table: watch::Sender::new(Table::new()),
            stop: watch::Sender::new(Stop::Run),
            tasks: JoinSet::new(),
            client: Arc::new(Client::direct()),
        }
    }

    /// Starts a process and keeps it running. Must be called within a tokio runtime.
    pub fn start(&mut self, spec: Spec) {
        let mut index = 0;
        self.table.send_modify(|table| {
            index = table.len();
            table.push(Status::new(&spec));
        });
        let cell = process::Cell {
            index,
            table: self.table.clone(),
        };
        let log = self.logs.join(format!("{}.log", spec.name));
        let stop = self.stop.subscribe();
        self.tasks.spawn(process::supervise(
            spec,
            log,
            cell,
            stop,
            self.client.clone(),
        ));
    }

    /// The state of every process, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// Stops everything: SIGTERM, then SIGKILL for what is left after each process's grace.
    pub async fn stop(&mut self) {
        self.stop.send_replace(Stop::Gracefully);
        while self.tasks.join_next().await.is_some() {}
    }

    /// Makes a [`Supervisor::stop`] that is under way impatient; cheap to clone and keep.
    pub fn killer(&self) -> Killer {
        Killer(self.stop.clone())
    }
}

/// Kills every process of a supervisor at once.
#[derive(Debug, Clone)]
pub struct Killer(watch::Sender<Stop>);

impl Killer {
    pub fn kill(&self) {
        self.0.send_replace(Stop::Now);
    }
}
