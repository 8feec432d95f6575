//! `lateen bootstrap`: the bootstrap of one proxy, for stock Envoy or for a look.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use lateen_local::demo;
use lateen_local::identity::Place;
use lateen_local::plan::Plan;

use crate::failure::{Failure, Outcome};
use crate::{session, up};

/// Print the bootstrap of a workload's sidecar or of a gateway, for Lateen's proxy or stock Envoy
///
/// The mesh file may say `proxy: external` of a workload or gateway; `lateen up` then leaves its
/// proxy to you: `lateen bootstrap WORKLOAD -f mesh.yaml > b.json; envoy -c b.json`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the workload or gateway, e.g. reviews-v1 or istio-ingressgateway
    pub workload: String,

    /// The mesh file [default: the demo's]
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Port of the first gateway, instead of the file's
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// First of the mesh's ports
    #[arg(long, value_name = "PORT", default_value_t = 15000)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port_base: u16,

    /// Run directory of the mesh, where the agent of the proxy answers [default: the user's state
    /// directory]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Give the proxy's own ports (admin, outbound, inbound) a block of their own from here
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub proxy_ports: Option<u16>,
}

pub fn run(args: Args) -> Outcome {
    let source = match &args.file {
        Some(file) => up::Source::read(file)?,
        None => up::Source {
            name: "demo.yaml".to_owned(),
            text: demo::MESH.to_owned(),
            directory: PathBuf::from("/"),
        },
    };
    let mut plan = up::plan(&source, args.port_base, args.port, None)?;
    if let Some(first) = args.proxy_ports {
        plan.move_proxy(&args.workload, first)
            .map_err(Failure::usage)?;
    }
    let name = match &args.file {
        Some(_) => source.mesh_name(),
        None => "demo".to_owned(),
    };
    let run_dir = session::run_dir(args.run_dir, &name)?;
    // A proxy may be started from another directory.
    let run_dir = std::path::absolute(&run_dir).unwrap_or(run_dir);
    let place = Place::in_run_dir(&run_dir, &args.workload);
    let bootstrap = plan
        .bootstrap_of(&args.workload, &place)
        .ok_or_else(|| unknown(&plan, &args.workload))?;
    match writeln!(anstream::stdout(), "{bootstrap:#}") {
        // `| head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Failure::other),
    }
}

fn unknown(plan: &Plan, name: &str) -> Failure {
    let workloads = plan.workloads.iter().map(|workload| workload.name.as_str());
    let gateways = plan.gateways.iter().map(|gateway| gateway.name.as_str());
    let known: Vec<&str> = gateways.chain(workloads).collect();
    Failure::usage(format!(
        "there is no workload {name:?}; there are {}",
        known.join(", ")
    ))
}
