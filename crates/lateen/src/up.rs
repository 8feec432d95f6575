//! `lateen up`: a mesh of the person's own services on this machine.

use std::path::{Path, PathBuf};

use lateen_api::{Diagnostic, parse_mesh_file};
use lateen_local::capture::{self, Network};
use lateen_local::mesh::{Seed, SeedError};
use lateen_local::plan::{self, Plan, PlanError, PlanOptions};

use crate::failure::{Failure, Outcome};
use crate::session::{self, Session, say};

/// Start a mesh of your own services, described in a file
///
/// The file lists workloads: their service, ports, labels and command. Each is started with a
/// sidecar of its own, on 127.0.0.1, without Kubernetes and without root. docs/mesh-file.md has
/// every field and an example.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The mesh file
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        default_value = "mesh.yaml"
    )]
    pub file: PathBuf,

    /// Port of the first gateway, instead of the file's
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// First of the ports that proxies, applications and the control plane use
    #[arg(long, value_name = "PORT", default_value_t = 15000)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port_base: u16,

    /// Directory for configuration, state and logs [default: the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory of Istio YAML to apply and watch
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Each workload in a network namespace of its own, traffic captured by packet filter rules:
    /// programs need not know of the mesh (Linux, root)
    #[arg(long)]
    pub transparent: bool,

    /// Run this stock Envoy in the place of Lateen's proxy
    #[arg(long, value_name = "BINARY")]
    pub envoy: Option<PathBuf>,

    /// Print one JSON object on stdout when everything is ready
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Outcome {
    let source = Source::read(&args.file)?;
    let run_dir = session::run_dir(args.run_dir, &source.mesh_name())?;
    let network = network(args.transparent, &run_dir)?;
    let plan = plan(&source, args.port_base, args.port, network)?;
    let mut seeds = Vec::new();
    for path in &plan.config {
        for (seed, warnings) in Seed::from_path(path).map_err(seed_failure)? {
            warnings.iter().for_each(|warning| say(warning));
            seeds.push(seed);
        }
    }
    session::run(Session {
        plan,
        run_dir,
        seeds,
        watched: watched(args.config)?,
        envoy: args.envoy,
        json: args.json,
        page: "/",
        example: None,
    })
}

fn seed_failure(error: SeedError) -> Failure {
    match error {
        SeedError::Invalid(_) => Failure::data(error),
        SeedError::Read { .. } => Failure::other(error),
    }
}

/// The text of a mesh file and where it comes from.
#[derive(Debug)]
pub struct Source {
    /// What errors call it.
    pub name: String,
    pub text: String,
    /// What relative paths in it start from.
    pub directory: PathBuf,
}

impl Source {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let fail = |error: std::io::Error| {
            let message = format!(
                "cannot read the mesh file {name}: {error}; name one with -f, or try `lateen demo`"
            );
            Failure::other(message)
        };
        let bytes = std::fs::read(path).map_err(fail)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::data(format!("{name} is not UTF-8 text; save it as UTF-8")))?;
        let path = path.canonicalize().map_err(fail)?;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self {
            name,
            text,
            directory,
        })
    }

    /// The name in the file; a file that cannot be read has the name of those without one, and
    /// says what is wrong when it is planned.
    pub fn mesh_name(&self) -> String {
        let parsed = parse_mesh_file(&self.name, &self.text);
        let name = parsed.map(|parsed| parsed.file.name).unwrap_or_default();
        match name.is_empty() {
            true => "up".to_owned(),
            false => name,
        }
    }
}

/// The addresses of a mesh with transparent capture, or why that cannot be had here.
pub fn network(transparent: bool, run_dir: &Path) -> Result<Option<Network>, Failure> {
    match transparent {
        true => capture::choose_network(run_dir)
            .map(Some)
            .map_err(Failure::other),
        false => Ok(None),
    }
}

/// Parses and plans a mesh file; every error is shown with its line.
pub fn plan(
    source: &Source,
    port_base: u16,
    gateway_port: Option<u16>,
    network: Option<Network>,
) -> Result<Plan, Failure> {
    let directory = source.directory.clone();
    let options = PlanOptions {
        port_base,
        gateway_port,
        directory,
        network,
    };
    parse_mesh_file(&source.name, &source.text)
        .map_err(PlanError::File)
        .and_then(|parsed| plan::plan(&parsed, &options))
        .map_err(|error| match error {
            PlanError::File(diagnostics) => invalid(source, &diagnostics),
            PlanError::Ports(error) => Failure::usage(error),
        })
}

fn invalid(source: &Source, diagnostics: &[Diagnostic]) -> Failure {
    let rendered: String = diagnostics
        .iter()
        .map(|diagnostic| diagnostic.render(&source.text, false))
        .collect();
    let count = diagnostics.len();
    let errors = if count == 1 {
        "an error".to_owned()
    } else {
        format!("{count} errors")
    };
    Failure::data(format!(
        "{} has {errors}\n{}",
        source.name,
        rendered.trim_end()
    ))
}

/// A directory to watch must exist; the control plane would only say so in its log.
pub fn watched(config: Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    let Some(path) = config else { return Ok(None) };
    match path.canonicalize() {
        Ok(path) if path.is_dir() => Ok(Some(path)),
        Ok(_) => Err(Failure::usage(format!(
            "--config {} is not a directory; use `lateen apply -f` for a file",
            path.display()
        ))),
        Err(error) => Err(Failure::usage(format!(
            "--config {}: {error}",
            path.display()
        ))),
    }
}
