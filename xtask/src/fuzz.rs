//! `cargo xtask fuzz`: looks for inputs that break what reads bytes from outside (fuzz/README.md).
//!
//! Builds the targets of `fuzz/` with the coverage instrumentation that libFuzzer asks for, which the
//! stable compiler has, and runs them one after the other.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, cargo, root, run as run_command, target_dir};

/// What `cargo fuzz` passes to the compiler, without a sanitizer: there is no `unsafe` for one to find
/// mistakes in.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Real documents that the fuzzing of YAML begins with, beside its corpus.
const DOCUMENTS: [&str; 2] = [
    "crates/api/tests/complete",
    "crates/api/tests/user-documents",
];

/// Options of the task.
#[derive(clap::Args)]
pub struct Args {
    /// Only this target (a file of fuzz/fuzz_targets, without `.rs`).
    target: Option<String>,
    /// How long to run each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Options of libFuzzer.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds and runs.
pub fn run(args: &Args) -> Result {
    let mut targets = targets()?;
    if let Some(wanted) = &args.target {
        if !targets.contains(wanted) {
            return Err(format!(
                "there is no fuzz target {wanted}; there are {}",
                targets.join(", ")
            ));
        }
        targets.retain(|target| target == wanted);
    }
    let built = target_dir().join("fuzz");
    let host = host()?;
    let mut build = cargo();
    build
        .args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml"])
        // With a target named, build scripts and macros are not instrumented.
        .args(["--target", &host, "--target-dir"])
        .arg(&built)
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    for target in &targets {
        build.args(["--bin", target]);
    }
    run_command("cargo build (fuzz targets)", &mut build)?;
    let mut failed = Vec::new();
    for target in &targets {
        let program = built.join(&host).join("release").join(target);
        if let Err(error) = fuzz(target, &program, &built, args) {
            eprintln!("{error}");
            failed.push(target.as_str());
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{} broke on an input, which is in {}; see fuzz/README.md",
            failed.join(", "),
            built.join("found").display()
        )),
    }
}

fn fuzz(target: &str, program: &Path, built: &Path, args: &Args) -> Result {
    let directory = |path: PathBuf| {
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok::<_, String>(path)
    };
    let corpus = directory(built.join("corpus").join(target))?;
    let found = directory(built.join("found").join(target))?;
    let mut command = Command::new(program);
    command
        .current_dir(root())
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192"])
        .args(["-verbosity=1", "-print_final_stats=1"])
        .args(&args.rest)
        // New inputs go to the first directory, the others are only read.
        .arg(corpus)
        .arg(root().join("fuzz/corpus").join(target));
    if target == "yaml" {
        command.args(DOCUMENTS.map(|documents| root().join(documents)));
    }
    run_command(&format!("fuzz {target}"), &mut command)
}

/// The names of the targets.
fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let entries =
        std::fs::read_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// The platform that the compiler builds for by itself.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .map_err(|e| format!("rustc -vV: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| "rustc -vV does not say its host".to_owned())
}
