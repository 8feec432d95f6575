//! The real counterparts that judge us: where they are, and how a test says that one is missing.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// Stock Envoy: `LATEEN_TEST_ENVOY` (set by `cargo xtask test`), else `envoy` on the path.
pub fn envoy() -> Option<PathBuf> {
    find("LATEEN_TEST_ENVOY", "envoy", &["--version"])
}

/// A Python with grpcio: `LATEEN_TEST_PYTHON`, else `python3` on the path.
pub fn python_with_grpc() -> Option<PathBuf> {
    find("LATEEN_TEST_PYTHON", "python3", &["-c", "import grpc"])
}

/// The scanner of TLS servers: `LATEEN_TEST_SSLYZE`, else `sslyze` on the path.
pub fn sslyze() -> Option<PathBuf> {
    find("LATEEN_TEST_SSLYZE", "sslyze", &["--help"])
}

/// Any program on the path, asked to prove itself with `probe` arguments.
pub fn program(name: &str, probe: &[&str]) -> Option<PathBuf> {
    find("", name, probe)
}

/// A program of this workspace, beside the test that runs: `cargo test --workspace` builds it.
pub fn built(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let path = own.parent()?.parent()?.join(name);
    path.is_file().then_some(path)
}

fn find(variable: &str, name: &str, probe: &[&str]) -> Option<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) if !variable.is_empty() => PathBuf::from(path),
        _ => PathBuf::from(name),
    };
    let output = Command::new(&path).args(probe).output().ok()?;
    output.status.success().then_some(path)
}

/// Says loudly that a test did not run. `cargo xtask test` lists these at the end.
pub fn skip(test: &str, missing: &str) {
    eprintln!("SKIPPED {test}: {missing} is not installed");
    if let Some(list) = std::env::var_os("LATEEN_TEST_SKIPPED") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(list);
        if let Ok(mut file) = file {
            // The list is for people; a test must not fail over it.
            let _ = writeln!(file, "{test}: {missing} is not installed");
        }
    }
}
