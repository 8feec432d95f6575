//! One supervised process: from start to exit and to its next start.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::log::{self, LastLine, Log};
use super::ready::Readiness;
use super::{Stop, Table};
use crate::http::Client;

/// What to run and when it is ready.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Names the process in tables and its log file; unique within a supervisor.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Added to our own environment.
    pub env: Vec<(String, String)>,
    /// Removed from our own environment.
    pub env_remove: Vec<String>,
    pub directory: Option<PathBuf>,
    pub readiness: Readiness,
    /// What a person may have to do when it runs and does not become ready.
    pub hint: Option<String>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// What a process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Runs and has not been ready yet.
    Starting,
    Ready,
    /// Runs, and its readiness check says why it is not ready.
    Unready(String),
    /// Has ended, or could not be started; is started again, and has not been ready since.
    Restarting {
        reason: String,
        last_line: Option<String>,
    },
    Stopped,
}

/// A process and its state, for tables and decisions.
#[derive(Debug, Clone)]
pub struct Status {
    pub name: String,
    pub pid: Option<u32>,
    pub state: State,
    /// How often it was started again.
    pub restarts: u32,
}

impl Status {
    pub(super) fn new(spec: &Spec) -> Self {
        Self {
            name: spec.name.clone(),
            pid: None,
            state: State::Starting,
            restarts: 0,
        }
    }
}

/// The place of one process in the table.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub index: usize,
    pub table: watch::Sender<Table>,
}

impl Cell {
    fn set(&self, change: impl FnOnce(&mut Status)) {
        self.table.send_modify(|table| {
            if let Some(status) = table.get_mut(self.index) {
                change(status);
            }
        });
    }
}

/// Keeps one process running until asked to stop.
pub(super) async fn supervise(
    spec: Spec,
    log_path: PathBuf,
    cell: Cell,
    mut stop: watch::Receiver<Stop>,
    client: Arc<Client>,
) {
    let mut backoff = Backoff::new();
    while *stop.borrow_and_update() == Stop::Run {
        let (reason, last_line, ready_for) = match Running::start(&spec, &log_path) {
            Err(error) => (error.to_string(), None, Duration::ZERO),
            Ok(mut running) => {
                // One that was started again shows why, until it is ready or says why it is not.
                cell.set(|status| status.pid = running.pid);
                let mut ready_since = None;
                let status = tokio::select! {
                    status = running.child.wait() => status,
                    never = spec.readiness.watch(&client, |ready| {
                        ready_since = ready.is_ok().then(Instant::now);
                        cell.set(|status| status.state = match ready {
                            Ok(()) => State::Ready,
                            Err(reason) => State::Unready(match &spec.hint {
                                Some(hint) => format!("{reason}; {hint}"),
                                None => reason,
                            }),
                        });
                    }) => match never {},
                    _ = reached(&mut stop, Stop::Gracefully) => {
                        running.terminate(spec.grace, &mut stop).await;
                        break;
                    }
                };
                let last_line = running.clean_up().await;
                // What it printed before somebody killed it says nothing about its end.
                let killed = status
                    .as_ref()
                    .is_ok_and(|status| status.signal() == Some(9));
                let last_line = last_line.filter(|_| !killed);
                let ready_for = ready_since.map_or(Duration::ZERO, |since| since.elapsed());
                (describe_exit(status), last_line, ready_for)
            }
        };
        let delay = backoff.after(ready_for);
        tracing::debug!(process = spec.name, reason, ?delay, "restart");
        cell.set(|status| {
            status.pid = None;
            status.restarts += 1;
            status.state = State::Restarting { reason, last_line };
        });
        tokio::select! {
            _ = tokio::time::sleep(delay) => {}
            _ = reached(&mut stop, Stop::Gracefully) => {}
        }
    }
    cell.set(|status| (status.pid, status.state) = (None, State::Stopped));
}

/// Waits until everything has to stop, at least this urgently. A supervisor that is gone counts.
async fn reached(stop: &mut watch::Receiver<Stop>, urgency: Stop) {
    let _ = stop.wait_for(|stop| *stop >= urgency).await;
}

/// A process that was started and its belongings.
struct Running {
    child: Child,
    /// Our end of the child's standard input, which ends when we do. Kept here because waiting
    /// for a `Child` closes the one in it.
    _tie: Option<ChildStdin>,
    pid: Option<u32>,
    last: LastLine,
    pump: JoinHandle<()>,
}

impl Running {
    fn start(spec: &Spec, log_path: &Path) -> io::Result<Self> {
        let fail =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        let log = Log::open(log_path)
            .map_err(|error| fail(&format!("cannot open {}", log_path.display()), error))?;
        let log = Arc::new(Mutex::new(log));
        // One pipe for both streams keeps what the process printed in its order.
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::from(writer.try_clone()?))
            .stderr(Stdio::from(writer))
            .process_group(0)
            .kill_on_drop(true);
        for name in &spec.env_remove {
            command.env_remove(name);
        }
        if let Some(directory) = &spec.directory {
            command.current_dir(directory);
        }
        let mut child = command
            .spawn()
            .map_err(|error| fail(&format!("cannot start {}", spec.program.display()), error))?;
        // The command holds our copies of the pipe's write end.
        drop(command);
        let pid = child.id();
        let note = format!(
            "--- lateen started {} as process {}\n",
            spec.name,
            pid.unwrap_or(0)
        );
        let _ = log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(note.as_bytes());
        let last = LastLine::default();
        let output = Receiver::from_owned_fd(OwnedFd::from(reader))?;
        let pump = tokio::spawn(log::pump(output, log, last.clone()));
        let tie = child.stdin.take();
        Ok(Self {
            child,
            _tie: tie,
            pid,
            last,
            pump,
        })
    }

    /// SIGTERM to the process (not to its group: a shim passes it on, once), SIGKILL to the whole
    /// group after the grace or when told to hurry.
    async fn terminate(&mut self, grace: Duration, stop: &mut watch::Receiver<Stop>) {
        if let Some(pid) = self.raw_pid() {
            let _ = kill(pid, Signal::SIGTERM);
        }
        tokio::select! {
            _ = self.child.wait() => {}
            _ = tokio::time::sleep(grace) => {}
            _ = reached(stop, Stop::Now) => {}
        }
        self.clean_up().await;
    }

    /// Kills what is left of the group, and returns the last line that was printed.
    async fn clean_up(&mut self) -> Option<String> {
        if let Some(group) = self.raw_pid() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.child.wait().await;
        self.pid = None;
        // Everything in the group is dead; only a process that left the group keeps the pipe open.
        if tokio::time::timeout(Duration::from_secs(1), &mut self.pump)
            .await
            .is_err()
        {
            self.pump.abort();
        }
        self.last.get()
    }

    fn raw_pid(&self) -> Option<Pid> {
        self.pid
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw)
    }
}

impl Drop for Running {
    /// A supervisor that is dropped without having been stopped leaves nothing behind either.
    fn drop(&mut self) {
        if let Some(group) = self.raw_pid() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn describe_exit(status: io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("lost: {error}"),
    };
    let signal = status.signal().or_else(|| {
        // A shell, and our shim, report a command that a signal ended as 128 + signal.
        status
            .code()
            .filter(|code| (129..160).contains(code))
            .map(|code| code - 128)
    });
    match (
        signal.and_then(|number| Signal::try_from(number).ok()),
        status.code(),
    ) {
        (Some(signal), _) => format!("killed by {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}
