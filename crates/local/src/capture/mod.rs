//! Transparent capture on one machine: workloads in network namespaces of their own, whose traffic
//! packet filter rules lead through the sidecar, as Istio does it in a pod.
//!
//! | file | what it is |
//! |---|---|
//! | `parameters.rs` | what is captured: Istio's annotations |
//! | `rules.rs` | the packet filter rules of a namespace, a pure function |
//! | `network.rs` | the address range of a mesh, a pure function of what is taken |
//! | `names.rs` | what `/etc/resolv.conf` says in a namespace |
//! | `namespaces.rs` | makes and removes all of it (Linux) |
//! | `enter.rs` | starts a process in a namespace (Linux) |
//!
//! Namespaces have no names: they end with the processes in them, and those end with the mesh. All
//! that a killed mesh can leave behind is an interface and a table of rules on the machine itself,
//! both named after the run directory, and removed at its next start.

mod names;
mod network;
pub mod parameters;
pub mod rules;

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod enter;
#[cfg(target_os = "linux")]
mod namespaces;

#[cfg(not(target_os = "linux"))]
use elsewhere as namespaces;
#[cfg(not(target_os = "linux"))]
use elsewhere as enter;

use std::path::{Path, PathBuf};

pub use enter::{EnterError, Entry, enter};
pub use namespaces::{Namespaces, choose_network};
pub use network::Network;
pub use parameters::Parameters;

/// File of the run directory that says where the namespaces are, for `lateen exec`.
pub const DIRECTORY: &str = "namespaces.json";

/// Why traffic cannot be captured on this machine.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "--transparent needs Linux, whose network namespaces it uses; without it the same mesh \
         runs here too"
    )]
    NotLinux,
    #[error(
        "--transparent needs root, to make network namespaces and packet filter rules; run it \
         with sudo, or leave the flag out"
    )]
    NotRoot,
    #[error(
        "--transparent needs the program {program:?}, which is not on the path; install it \
         (Debian and Ubuntu: apt-get install {package})"
    )]
    Program {
        program: &'static str,
        package: &'static str,
    },
    #[error(
        "this machine refuses to make a network namespace: {0}; in a container, allow it \
         (docker run --privileged)"
    )]
    Namespace(std::io::Error),
    #[error(
        "every range of private addresses that --transparent could use (10.77.0.0/16 to \
         10.126.0.0/16) is in use here; remove a route of these"
    )]
    NoRange,
    #[error("`{command}` failed: {reason}")]
    Command { command: String, reason: String },
    #[error("cannot use {path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Where the proxies of a mesh find their tokens and roots: as their own user they do not get into
/// the run directory.
pub fn identity_directory(run_dir: &Path) -> PathBuf {
    PathBuf::from(format!("/run/lateen-identity-{}", tag(run_dir)))
}

/// A short name that only this run directory has.
fn tag(run_dir: &Path) -> String {
    let path = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    // FNV-1a: the same in every process and release.
    let hash = path.as_os_str().as_encoded_bytes().iter();
    let hash = hash.fold(0x811c_9dc5u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}
