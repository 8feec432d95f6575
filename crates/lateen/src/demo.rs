//! `lateen demo`: a whole mesh with Bookinfo on this machine.

use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// Start a whole mesh with the Bookinfo application on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port of the ingress gateway: http://127.0.0.1:PORT/productpage
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,

    /// First of the ports that everything else uses
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
    Err(Failure::other("the demo is not part of this build yet"))
}
