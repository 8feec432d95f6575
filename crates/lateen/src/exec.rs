//! `lateen exec`: a command inside a workload's network namespace.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lateen_local::capture::{self, Entry};
use lateen_local::rundir::RunDir;
use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// Run a command where a workload runs, in a mesh started with --transparent
///
/// The command has the workload's network and names, and its traffic is captured like the
/// workload's: `lateen exec productpage-v1 -- curl -s http://reviews:9080/reviews/0`. It needs root
/// as the mesh does, and runs as root.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the workload, e.g. productpage-v1
    pub workload: String,

    /// Run directory of the mesh [default: that of any mesh that runs and has the workload]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// The command and its arguments
    #[arg(required = true, last = true)]
    pub command: Vec<OsString>,
}

pub fn run(args: Args) -> Outcome {
    let places = match &args.run_dir {
        Some(directory) => vec![directory.clone()],
        None => run_dirs()?,
    };
    let mut known = Vec::new();
    for directory in places {
        let Some(workloads) = read(&directory) else {
            continue;
        };
        match workloads.get(&args.workload) {
            Some(place) => return enter(place, args.command),
            None => known.extend(
                workloads
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(k, _)| k.clone()),
            ),
        }
    }
    let message = match known.as_slice() {
        [] => "no mesh with network namespaces runs here; start one with --transparent, or name \
               its run directory with --run-dir"
            .to_owned(),
        _ => format!(
            "there is no workload {:?}; there are {}",
            args.workload,
            known.join(", ")
        ),
    };
    Err(Failure::usage(message))
}

/// The run directories of all meshes that named none.
fn run_dirs() -> Result<Vec<PathBuf>, Failure> {
    let one = RunDir::default_for("demo").map_err(Failure::other)?;
    let all = one.parent().map(std::fs::read_dir);
    let entries = all.into_iter().flatten().flatten().flatten();
    Ok(entries.map(|entry| entry.path()).collect())
}

/// The workloads of a mesh that runs.
fn read(run_dir: &Path) -> Option<Value> {
    let text = std::fs::read(run_dir.join(capture::DIRECTORY)).ok()?;
    let mut directory: Value = serde_json::from_slice(&text).ok()?;
    let pid = directory["pid"].as_u64()?;
    // A mesh that was killed leaves its file behind.
    let workloads = directory["workloads"].take();
    Path::new(&format!("/proc/{pid}"))
        .exists()
        .then_some(workloads)
}

fn enter(place: &Value, command: Vec<OsString>) -> Outcome {
    let path = |key: &str| place[key].as_str().map(PathBuf::from);
    let net = path("net").unwrap_or_default();
    if let Err(error) = std::fs::File::open(&net)
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        let message = "entering a workload's namespace needs root, as the mesh does: use sudo";
        return Err(Failure::other(message));
    }
    let entry = Entry {
        net,
        resolv_conf: path("resolvConf"),
        user: None,
        keep: Vec::new(),
        command,
    };
    Err(Failure::other(capture::enter(&entry)))
}
