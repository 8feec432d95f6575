//! `cargo xtask tidy`: rules of the code base that no compiler knows.
//!
//! Crate directions (ARCHITECTURE.md), module docs, file lengths, and that every feature called
//! `works` names a test that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Result, cargo, root};

/// Which of our crates a crate may depend on. A missing edge here is a design decision.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("agent", &["proto"]),
    ("api", &["telemetry"]),
    ("store", &["api"]),
    ("model", &["api"]),
    ("analysis", &["api", "model"]),
    ("translate", &["api", "model", "proto"]),
    ("proto", &[]),
    ("identity", &[]),
    ("xds", &["proto"]),
    ("telemetry", &[]),
    ("proxy-config", &["proto", "telemetry"]),
    (
        "proxy",
        &["agent", "proto", "proxy-config", "xds", "telemetry"],
    ),
    (
        "control",
        &[
            "api",
            "store",
            "model",
            "analysis",
            "translate",
            "proto",
            "identity",
            "xds",
            "telemetry",
        ],
    ),
    ("local", &["api", "control", "proxy"]),
    (
        "lateen",
        &["agent", "api", "store", "control", "local", "proxy"],
    ),
    ("testkit", &[]),
    ("bench", &["proxy-config", "xds"]),
    ("differ", &["api", "control", "testkit"]),
];

/// A file longer than this is looked at for the missing concept, not split at random.
const MAX_LINES: usize = 700;

/// Runs every rule and reports all that is wrong at once.
pub fn run() -> Result {
    eprintln!("==> tidy");
    let mut problems = Vec::new();
    crate_directions(&mut problems)?;
    let files = rust_files();
    source_files(&files, &mut problems);
    proofs(&files, &mut problems);
    if problems.is_empty() {
        return Ok(());
    }
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    Err(format!("{} tidy problems", problems.len()))
}

/// Holds the arrows of the crate table against what `cargo metadata` says.
fn crate_directions(problems: &mut Vec<String>) -> Result {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = short_name(package["name"].as_str().unwrap_or_default());
        if name == "xtask" {
            continue;
        }
        let Some(may) = allowed.get(name) else {
            problems.push(format!(
                "crate {name} is not in the crate table of xtask/src/tidy.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            if !on.starts_with("lateen-") || dependency["kind"] == "dev" {
                continue;
            }
            if !may.contains(&short_name(on)) {
                problems.push(format!("crate {name} may not depend on {}", short_name(on)));
            }
        }
    }
    Ok(())
}

fn short_name(package: &str) -> &str {
    package.strip_prefix("lateen-").unwrap_or(package)
}

/// Every Rust file that people write.
fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in ["crates", "xtask"] {
        collect(&root().join(dir), &mut files);
    }
    files.sort();
    files
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn source_files(files: &[PathBuf], problems: &mut Vec<String>) {
    for path in files {
        let Ok(text) = std::fs::read_to_string(path) else {
            problems.push(format!("{}: cannot be read", shown(path)));
            continue;
        };
        if !text.starts_with("//!") {
            problems.push(format!(
                "{}: does not open with a `//!` module doc",
                shown(path)
            ));
        }
        let lines = text.lines().count();
        let is_test = path.components().any(|part| part.as_os_str() == "tests");
        if lines > MAX_LINES && !is_test {
            problems.push(format!(
                "{}: {lines} lines, more than {MAX_LINES}",
                shown(path)
            ));
        }
    }
}

/// A row of docs/features.md reads `| ID | state | proof |`; `works` must name a test that exists.
/// What is said to work names a test that exists: every row of the feature table that says so, and
/// every fact about Istio.
fn proofs(files: &[PathBuf], problems: &mut Vec<String>) {
    let tests = test_names(files);
    for (document, columns) in [("docs/features.md", 4), ("docs/istio-behaviour.md", 3)] {
        let Ok(text) = std::fs::read_to_string(root().join(document)) else {
            problems.push(format!("{document} cannot be read"));
            continue;
        };
        for line in text.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, id, .., proof, _] = cells[..] else {
                continue;
            };
            let claims = match columns {
                4 => cells.get(3).is_some_and(|state| state.starts_with("works")),
                _ => id.parse::<u32>().is_ok(),
            };
            if claims && cells.len() == columns + 2 {
                named_tests(document, id, proof, &tests, problems);
            }
        }
    }
}

fn named_tests(
    document: &str,
    id: &str,
    proof: &str,
    tests: &BTreeSet<String>,
    problems: &mut Vec<String>,
) {
    let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
    if named.is_empty() {
        problems.push(format!(
            "{document}: {id} is said to work but names no test"
        ));
    }
    for name in named {
        let function = name.rsplit("::").next().unwrap_or(name);
        if !tests.contains(function) {
            problems.push(format!(
                "{document}: {id} names the test {name}, which is not there"
            ));
        }
    }
}

fn test_names(files: &[PathBuf]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for text in files
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
    {
        for line in text.lines().map(str::trim_start) {
            let Some(rest) = line
                .strip_prefix("async fn ")
                .or_else(|| line.strip_prefix("fn "))
            else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            names.insert(name);
        }
    }
    names
}
