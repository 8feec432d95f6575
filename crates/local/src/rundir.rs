//! The run directory: where a mesh on this machine keeps its configuration, state and logs.
//!
//! `store/` belongs to the control plane, `bootstrap/` and `logs/` hold one file per process,
//! `seeded` says that the first start's configuration has been applied, `lock` is locked while the
//! mesh runs. Invariant: at most one process uses a run directory; the lock is the kernel's, so it
//! ends with its holder however that ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error(
        "no directory for state is known: HOME and XDG_STATE_HOME are not set; \
         choose one with --run-dir"
    )]
    NoHome,
    #[error("cannot use run directory {path}: {source}; choose another with --run-dir")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "a mesh already runs in {path} (process {pid}); stop it, or run a second one beside it \
         with another --run-dir and --port-base"
    )]
    InUse { path: PathBuf, pid: String },
}

/// A run directory that is locked by this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
    unclean: bool,
}

impl RunDir {
    /// The default run directory of a mesh with this name: below `$XDG_STATE_HOME/lateen` or
    /// `~/.local/state/lateen` (XDG Base Directory Specification), on macOS below
    /// `~/Library/Application Support/lateen`.
    pub fn default_for(name: &str) -> Result<PathBuf, RunDirError> {
        let absolute = |variable: &str| {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let state = match absolute("XDG_STATE_HOME") {
            Some(state) => state,
            None => {
                let home = absolute("HOME").ok_or(RunDirError::NoHome)?;
                if cfg!(target_os = "macos") {
                    home.join("Library/Application Support")
                } else {
                    home.join(".local/state")
                }
            }
        };
        Ok(state.join("lateen").join(name))
    }

    /// Creates the directory if needed and locks it.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let fail = |source| RunDirError::Io {
            path: path.to_owned(),
            source,
        };
        for part in ["logs", "bootstrap", "store"] {
            fs::create_dir_all(path.join(part)).map_err(fail)?;
        }
        let path = path.canonicalize().map_err(fail)?;
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join("lock"))
            .map_err(fail)?;
        let mut holder = String::new();
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let _ = lock.read_to_string(&mut holder);
                let pid = match holder.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                };
                return Err(RunDirError::InUse { path, pid });
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let _ = lock.read_to_string(&mut holder);
        let unclean = !holder.trim().is_empty();
        lock.set_len(0).map_err(fail)?;
        io::Seek::rewind(&mut lock).map_err(fail)?;
        writeln!(lock, "{}", std::process::id()).map_err(fail)?;
        Ok(Self {
            path,
            _lock: lock,
            unclean,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The bootstrap file of one proxy.
    pub fn bootstrap(&self, proxy: &str) -> PathBuf {
        self.path.join("bootstrap").join(format!("{proxy}.json"))
    }

    /// Whether the previous mesh here was killed: its processes may take a moment to leave.
    pub fn was_killed(&self) -> bool {
        self.unclean
    }

    /// Whether the configuration of the first start has been applied here.
    pub fn is_seeded(&self) -> bool {
        self.path.join("seeded").exists()
    }

    pub fn set_seeded(&self) -> io::Result<()> {
        fs::write(self.path.join("seeded"), b"")
    }

    /// Notes that the mesh was stopped in good order.
    pub fn close(self) {
        let _ = self._lock.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_used_by_one_mesh_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er");
        let first = RunDir::open(&path).unwrap();
        assert!(!first.was_killed());
        let message = RunDir::open(&path).unwrap_err().to_string();
        assert!(
            message.contains(&format!("(process {})", std::process::id())),
            "{message}"
        );
        assert!(
            message.contains("--run-dir") && message.contains("--port-base"),
            "{message}"
        );
        first.close();
        assert!(!RunDir::open(&path).unwrap().was_killed());
        // That one was dropped without `close`, as a kill would do it.
        assert!(RunDir::open(&path).unwrap().was_killed());
    }
}
