//! The shim around a person's own command: `lateen run-child -- COMMAND`.
//!
//! A foreign command does not know that it should leave when its standard input ends. The shim
//! knows, and takes the command's whole process group along. It also passes SIGTERM on exactly
//! once: many servers take a second one as "now, without grace".

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp, getpid, setpgid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::parent::wait_for_parent_end;

/// How long the command has after SIGTERM when our parent is gone.
const GRACE: Duration = Duration::from_secs(3);

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {program}: {source}; check the workload's `command` and `workingDir`")]
    Start { program: String, source: io::Error },
    #[error("cannot watch {program}: {source}")]
    Watch { program: String, source: io::Error },
}

/// Runs a command to its end and returns its exit code, 128 + N when signal N ended it. Ends the
/// command, and this process, when standard input ends.
pub fn run_child(command: &[OsString]) -> Result<u8, ChildError> {
    let program = command.first().cloned().unwrap_or_default();
    let name = program.to_string_lossy().into_owned();
    let watch = |source| ChildError::Watch {
        program: name.clone(),
        source,
    };
    if getpgrp() != getpid() {
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(|errno| watch(errno.into()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(watch)?;
    runtime.block_on(async {
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        );
        let (mut terminate, mut interrupt) = (signals.0.map_err(watch)?, signals.1.map_err(watch)?);
        let child = Command::new(&program)
            .args(command.iter().skip(1))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|source| ChildError::Start {
                program: name.clone(),
                source,
            })?;
        let asked = async {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        };
        accompany(child, asked).await.map(exit_code).map_err(watch)
    })
}

/// Waits for the command's end, and brings it about when asked to or when our parent is gone.
async fn accompany(mut child: Child, asked: impl Future<Output = ()>) -> io::Result<ExitStatus> {
    let (gone, mut parent_gone) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        wait_for_parent_end();
        let _ = gone.send(());
    });
    tokio::select! {
        status = child.wait() => return status,
        _ = asked => {}
        _ = &mut parent_gone => return end_without_parent(child).await,
    }
    let _ = killpg(getpgrp(), Signal::SIGTERM);
    tokio::select! {
        status = child.wait() => status,
        _ = &mut parent_gone => end_without_parent(child).await,
    }
}

/// Nobody is left to kill the group after us: ask, wait a little, kill it.
async fn end_without_parent(mut child: Child) -> io::Result<ExitStatus> {
    let _ = killpg(getpgrp(), Signal::SIGTERM);
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
    // The group includes ourselves: nothing after this line runs.
    let _ = killpg(getpgrp(), Signal::SIGKILL);
    child.wait().await
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}
