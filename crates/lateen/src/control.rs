//! `lateen control`: the control plane as a process of its own.

use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// Run the control plane: configuration API, xDS server and monitoring
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory where configuration is kept, with its history
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Directory of Istio and Kubernetes YAML to watch, besides what is applied over the API
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub bind: std::net::IpAddr,

    /// Port of the xDS server (plaintext gRPC)
    #[arg(long, value_name = "PORT", default_value_t = 15010)]
    pub xds_port: u16,

    /// Port of /metrics, /ready, /version and /debug
    #[arg(long, value_name = "PORT", default_value_t = 15014)]
    pub monitoring_port: u16,

    /// Port of the configuration API (Kubernetes-style paths)
    #[arg(long, value_name = "PORT", default_value_t = 15088)]
    pub api_port: u16,

    /// Leave when standard input ends: the parent process holds it open
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

pub fn run(args: Args) -> Outcome {
    if args.exit_with_parent {
        lateen_local::exit_with_parent();
    }
    Err(Failure::other(
        "the control plane is not part of this build yet",
    ))
}
