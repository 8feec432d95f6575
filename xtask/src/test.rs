//! `cargo xtask test`: everything continuous integration holds us to, in the order that fails
//! fastest.

use crate::{Result, cargo, failures, run as run_command, setup, target_dir, tidy};

/// Options of the task.
#[derive(clap::Args)]
pub struct Args {
    /// Do not install anything; tests whose counterpart is missing are skipped and listed.
    #[arg(long)]
    no_setup: bool,
    /// Passed on to the test binaries (a test name to filter by, for example).
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the whole check.
pub fn run(args: &Args) -> Result {
    run_command(
        "cargo fmt --check",
        cargo().args(["fmt", "--all", "--check"]),
    )?;
    tidy::run()?;
    let tools = if args.no_setup {
        None
    } else {
        Some(setup::run()?)
    };
    run_command(
        "cargo clippy",
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    let skipped = target_dir().join("skipped-tests.txt");
    let _ = std::fs::remove_file(&skipped);
    let tests = |rest: &[String]| {
        let mut tests = cargo();
        tests
            .args(["test", "--workspace", "--no-fail-fast"])
            .env("LATEEN_TEST_SKIPPED", &skipped);
        if let Some(tools) = &tools {
            tests.envs(tools.environment.iter().cloned());
        }
        if !rest.is_empty() {
            tests.arg("--").args(rest);
        }
        tests
    };
    let result = failures::run("cargo test", tests, &args.rest, std::io::stdout());
    report_skipped(&skipped);
    if let Some(tools) = &tools {
        for sentence in &tools.missing {
            eprintln!("MISSING: {sentence}");
        }
    }
    result
}

/// Tests append a line to this file when a counterpart they need is missing.
fn report_skipped(path: &std::path::Path) {
    let Ok(text) = std::fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        eprintln!("SKIPPED: {line}");
    }
}
