//! `lateen demo`: a whole mesh with Bookinfo on this machine.

use std::path::PathBuf;

use lateen_local::demo;
use lateen_local::mesh::Seed;

use crate::failure::{Failure, Outcome};
use crate::session::{self, Session};
use crate::up;

/// Start a whole mesh with the Bookinfo application on this machine
///
/// Starts a control plane, an ingress gateway and six workloads, each with a sidecar of its own,
/// all on 127.0.0.1, without Kubernetes and without root. What you apply is kept in the run
/// directory and is there again at the next start. Ctrl-C stops everything.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port of the ingress gateway: http://127.0.0.1:PORT/productpage
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// First of the ports that everything else uses
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
    let source = up::Source {
        name: "demo.yaml".to_owned(),
        text: demo::MESH.to_owned(),
        directory: PathBuf::from("/"),
    };
    let run_dir = session::run_dir(args.run_dir, "demo")?;
    let network = up::network(args.transparent, &run_dir)?;
    let plan = up::plan(&source, args.port_base, Some(args.port), network)?;
    let (seed, _) = Seed::from_text("gateway.yaml", demo::GATEWAY).map_err(Failure::other)?;
    session::run(Session {
        plan,
        run_dir,
        seeds: vec![seed],
        watched: up::watched(args.config)?,
        envoy: args.envoy,
        json: args.json,
        page: demo::PAGE,
        example: Some(demo::EXAMPLE),
    })
}
