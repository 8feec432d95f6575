//! `lateen up`: a mesh of the person's own services on this machine.

use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// Start a mesh of your own services, described in a file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The mesh file: workloads, their ports and commands (docs/mesh-file.md)
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        default_value = "mesh.yaml"
    )]
    pub file: PathBuf,

    /// First of the ports that proxies, applications and the control plane use
    #[arg(long, value_name = "PORT", default_value_t = 15000)]
    pub port_base: u16,

    /// Directory for configuration, state and logs [default: the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory of Istio YAML to apply and watch
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Print one JSON object on stdout when everything is ready
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Outcome {
    let _ = args;
    Err(Failure::other("up is not part of this build yet"))
}
