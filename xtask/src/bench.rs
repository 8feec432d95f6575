//! `cargo xtask bench`: installs the peers, builds what is measured and the program that measures
//! (`crates/bench`, see there why it is a program of its own), and becomes that program.

use std::os::unix::process::CommandExt;

use crate::{Result, cargo, root, run as run_command, setup, target_dir};

/// Options of the task.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Do not install anything; peers that are missing are reported. Must come first.
    #[arg(long)]
    no_setup: bool,
    /// Options of the benchmark; see `cargo xtask bench --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds, then runs the benchmark in place of this process, so that a signal meets the program
/// that has to stop the proxies. Returns only when something went wrong.
pub fn run(args: &Args) -> Result {
    // One build: the benchmark uses nothing that `lateen` does not use with the same features, so
    // it changes nothing in what it measures, and what both need is compiled once.
    let packages = ["-p", "lateen", "-p", "lateen-proxy", "-p", "lateen-bench"];
    run_command(
        "cargo build --release",
        cargo()
            .args(["build", "--release", "--bins"])
            .args(packages),
    )?;
    let binaries = target_dir().join("release");
    let mut bench = std::process::Command::new(binaries.join("lateen-bench"));
    bench
        .current_dir(root())
        .args(&args.options)
        .env("LATEEN_BENCH_BINARIES", &binaries)
        .env("LATEEN_BENCH_SAVE", root().join("docs/benchmarks"));
    let asks_help = args.options.iter().any(|o| o == "--help" || o == "-h");
    if !args.no_setup && !asks_help {
        bench.envs(setup::for_bench()?.environment);
    }
    Err(format!("cannot start {bench:?}: {}", bench.exec()))
}
