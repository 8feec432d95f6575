//! What stands for namespaces on systems that have none: clear refusals.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{CaptureError, Network};
use crate::plan::Plan;
use crate::rundir::RunDir;

/// Never made here.
#[derive(Debug)]
pub struct Namespaces {}

impl Namespaces {
    pub fn create(
        _run_dir: &RunDir,
        _plan: &Plan,
        _network: Network,
    ) -> Result<Self, CaptureError> {
        Err(CaptureError::NotLinux)
    }

    pub fn path(&self, _workload: &str) -> PathBuf {
        PathBuf::new()
    }

    pub fn resolv_conf(&self, _namespace: &str) -> PathBuf {
        PathBuf::new()
    }
}

pub fn choose_network(_run_dir: &Path) -> Result<Network, CaptureError> {
    Err(CaptureError::NotLinux)
}

/// Where and as whom a command runs.
#[derive(Debug)]
pub struct Entry {
    pub net: PathBuf,
    pub resolv_conf: Option<PathBuf>,
    pub user: Option<u32>,
    pub keep: Vec<PathBuf>,
    pub command: Vec<OsString>,
}

/// Why a command could not be run in a namespace.
#[derive(Debug, thiserror::Error)]
#[error("network namespaces need Linux")]
pub struct EnterError;

pub fn enter(_entry: &Entry) -> EnterError {
    EnterError
}
