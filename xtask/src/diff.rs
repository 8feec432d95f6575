//! `cargo xtask diff`: builds our proxy and the differential harness (`crates/differ`), installs
//! stock Envoy, and becomes the harness.

use std::os::unix::process::CommandExt;

use crate::{Result, cargo, root, run as run_command, setup, target_dir};

/// Options of the task.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Do not install anything. Must come first.
    #[arg(long)]
    no_setup: bool,
    /// Options of the harness; see `cargo xtask diff --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds, then runs the harness in place of this process. Returns only when something went wrong.
pub fn run(args: &Args) -> Result {
    run_command(
        "cargo build",
        cargo().args([
            "build",
            "--quiet",
            "-p",
            "lateen-proxy",
            "-p",
            "lateen-differ",
        ]),
    )?;
    let mut harness = std::process::Command::new(target_dir().join("debug/lateen-differ"));
    harness.current_dir(root()).args(&args.options);
    let runs_nothing = |option: &String| ["--help", "-h", "--list"].contains(&option.as_str());
    if !args.no_setup && !args.options.iter().any(runs_nothing) {
        harness.envs(setup::run()?.environment);
    }
    Err(format!("cannot start {harness:?}: {}", harness.exec()))
}
