//! What all contestants share: programs, ports, cores, the backend and the xDS server.
//!
//! Everything listens on 127.0.0.1. The proxy under test has the last core to itself, load and
//! backend have the others, so that a figure does not depend on who was moved where; with one
//! core, or on request, the scheduler decides and the table says so.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::ads::Ads;
use crate::backend::Backend;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::process::{Running, kill_all};

/// For the signal handler.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

pub struct Ground {
    directory: TempDir,
    /// Where the release `lateen-proxy` and `lateen` are.
    pub binaries: PathBuf,
    pub backend: Backend,
    pub ads: Ads,
    pub credentials: Arc<Credentials>,
    cores: Option<Cores>,
    /// Cores that the run may use.
    pub core_count: usize,
    /// Descriptors a process may have.
    pub descriptors: u64,
}

/// Who runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    pub proxy: usize,
    pub load: Vec<usize>,
}

impl Ground {
    pub fn prepare(binaries: &Path, pin: bool) -> Result<Self> {
        if !Path::new("/proc/self/schedstat").exists() {
            return Err(Error::Unsuitable(
                "CPU time per thread is read from /proc/PID/task/*/schedstat, which this system \
                 does not have; run the benchmark on Linux"
                    .into(),
            ));
        }
        let directory = tempfile::Builder::new()
            .prefix("lateen-bench-")
            .tempdir()
            .map_err(|source| Error::io("make a temporary directory", source))?;
        // There is one ground per program.
        let _ = DIRECTORY.set(directory.path().to_owned());
        let descriptors = raise_descriptor_limit()?;
        // Asked first: afterwards it is the cores of the load alone.
        let core_count = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = if pin { pin_load(core_count) } else { None };
        // Threads of backend and xDS server inherit the cores of this one.
        let backend = Backend::start()?;
        let credentials = Arc::new(Credentials::make(directory.path().to_owned())?);
        let ads = Ads::start(&backend, credentials.clone())?;
        Ok(Self {
            directory,
            binaries: binaries.to_owned(),
            backend,
            ads,
            credentials,
            cores,
            core_count,
            descriptors,
        })
    }

    /// Files of this run: configurations and logs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn cores(&self) -> Option<&Cores> {
        self.cores.as_ref()
    }

    /// Starts a proxy on the core that proxies have.
    pub fn start_proxy(&self, name: &str, command: &mut Command) -> Result<Running> {
        let Some(cores) = &self.cores else {
            return Running::start(name, command, self.directory());
        };
        // A child starts with the affinity of the thread that makes it, so none of its threads
        // ever runs elsewhere.
        pin(&[cores.proxy]);
        let started = Running::start(name, command, self.directory());
        pin(&cores.load);
        started
    }

    /// Writes a file of this run and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory().join(name);
        std::fs::write(&path, text)
            .map_err(|source| Error::io(format!("write {}", path.display()), source))?;
        Ok(path)
    }
}

/// A free port below the range that the kernel takes for outgoing connections (from 32768 on
/// Linux), or one of the ten thousand clients of the memory test might sit on it.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two runs beside each other begin in different places.
    let offset = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + offset.wrapping_add(step) % COUNT;
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::Unsuitable(format!(
        "no port between {FIRST} and {} is free",
        FIRST + COUNT
    )))
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Finds a program: by an environment variable that names it, on the path, or in the directories
/// that hold servers and are not on a plain user's path.
pub fn program(name: &str, variable: Option<&str>, remedy: &str) -> Result<PathBuf> {
    let named = variable.and_then(std::env::var_os).map(PathBuf::from);
    if let Some(path) = named.filter(|path| path.is_file()) {
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::Missing {
            program: name.into(),
            remedy: remedy.into(),
        })
}

/// The first line a program says of its version, on whichever stream.
pub fn version_line(path: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text)
        .lines()
        .map(str::trim)
        .find(|line| line.chars().any(|c| c.is_ascii_digit()))
        .map(str::to_owned)
}

/// Ends the run cleanly on a signal; called on the thread of the xDS server.
pub async fn end_on_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    for kind in kinds {
        let Ok(mut signals) = signal(kind) else {
            continue;
        };
        tokio::spawn(async move {
            signals.recv().await;
            kill_all();
            if let Some(directory) = DIRECTORY.get() {
                // It holds only logs and configurations of this run.
                let _ = std::fs::remove_dir_all(directory);
            }
            eprintln!("bench: stopped; every process it had started is killed");
            std::process::exit(130);
        });
    }
}

fn raise_descriptor_limit() -> Result<u64> {
    let fail = |error: nix::Error| Error::io("raise the limit of open files", error.into());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fail)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(fail)?;
    Ok(hard)
}

/// Moves this thread, and so all that it starts, off the core that proxies get.
fn pin_load(count: usize) -> Option<Cores> {
    let cores = Cores {
        proxy: count.checked_sub(1)?,
        load: (0..count - 1).collect(),
    };
    // The second fails where the cores we may use do not begin at 0 (a container's cpuset).
    (count > 1 && pin(&[cores.proxy]) && pin(&cores.load)).then_some(cores)
}

#[cfg(target_os = "linux")]
fn pin(cores: &[usize]) -> bool {
    use nix::sched::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    cores.iter().all(|core| set.set(*core).is_ok())
        && sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn pin(_cores: &[usize]) -> bool {
    false
}
