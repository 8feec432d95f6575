//! Project tasks, run as `cargo xtask TASK`.
//!
//! `test` is what continuous integration runs; it sets up the programs the tests drive. `tidy`
//! holds the rules of the code base that no compiler knows. `bench` measures us against peers, `diff`
//! shows where our proxy is not like stock Envoy, `fuzz` looks for inputs that break us.

mod bench;
mod diff;
mod failures;
mod fuzz;
mod setup;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Project tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Format, lints, tidy, unit, integration and interop tests; installs what they need. Up to three
    /// tests that fail are run again, and named: BY CHANCE (docs/decisions/0007).
    Test(test::Args),
    /// Our proxy beside Envoy, HAProxy and nginx; saves a table in docs/benchmarks.
    Bench(bench::Args),
    /// Our proxy beside stock Envoy: the same rules and requests, and what differs.
    Diff(diff::Args),
    /// Looks for inputs that break what reads bytes from outside.
    Fuzz(fuzz::Args),
    /// The rules no compiler knows: crate directions, module docs, file lengths, the feature table.
    Tidy,
    /// Install the programs that tests and benchmarks drive, and nothing else.
    Setup,
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Diff(args) => diff::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Tidy => tidy::run(),
        Task::Setup => setup::run().map(|_| ()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a task returns: nothing, or a sentence that says what is wrong.
type Result<T = ()> = std::result::Result<T, String>;

/// The root of the repository: of the checkout this runs in, though the binary may have been built in
/// another one that shares its target directory.
fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    xtask.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The directory cargo builds into.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| root().join("target"))
}

/// The cargo that runs this task.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command with its output shown; a failure is an error that names it.
fn run(what: &str, command: &mut Command) -> Result {
    eprintln!("==> {what}");
    let status = command
        .status()
        .map_err(|e| format!("{what}: cannot start {command:?}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{what} failed ({status})"))
    }
}
