//! `lateen proxy`: the data plane as a process of its own.

use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// Run a proxy from an Envoy bootstrap file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bootstrap in Envoy's JSON form: node, admin address, xDS server
    #[arg(
        short = 'c',
        long = "bootstrap",
        alias = "config-path",
        value_name = "FILE"
    )]
    pub bootstrap: PathBuf,

    /// Number of worker threads; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub concurrency: usize,

    /// Leave when standard input ends: the parent process holds it open
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

pub fn run(args: Args) -> Outcome {
    if args.exit_with_parent {
        lateen_local::exit_with_parent();
    }
    Err(Failure::other("the proxy is not part of this build yet"))
}
