//! `lateen proxy-config`: what one proxy uses, read from its admin port in istioctl's columns.
//!
//! The proxy answers `/config_dump` in Envoy's form, so this works for a stock Envoy as for ours,
//! and for a dump in a file.

mod bootstrap;
mod cluster;
pub mod dump;
mod endpoint;
mod listener;
mod name;
mod route;
mod secret;
mod stats;

use clap::Subcommand;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::proxy_status;
use crate::rest::{Answer, Call, Role, Server, ServerArgs};
use dump::Dump;

/// Show the configuration that a proxy uses
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, infer_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub part: Part,
}

#[derive(Debug, Subcommand)]
pub enum Part {
    /// Clusters: the services and subsets the proxy can send to
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster(cluster::Args),
    /// Listeners: the ports it accepts connections on
    #[command(visible_aliases = ["listeners", "l"])]
    Listener(listener::Args),
    /// Routes: which requests go to which cluster
    #[command(visible_aliases = ["routes", "r"])]
    Route(route::Args),
    /// Endpoints: the addresses behind each cluster, with their health
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint(endpoint::Args),
    /// The bootstrap it was started with
    #[command(visible_alias = "b")]
    Bootstrap(bootstrap::Args),
    /// Secrets: certificates and keys the proxy was given
    #[command(visible_alias = "s")]
    Secret(secret::Args),
    /// Statistics: the counters, gauges and histograms of the proxy
    Stats(stats::Args),
    /// Clusters, listeners, routes and endpoints together
    #[command(visible_alias = "a")]
    All(AllArgs),
}

/// Whose configuration, and from where
#[derive(Debug, clap::Args)]
pub struct From {
    /// The workload, as NAME[.NAMESPACE]
    #[arg(value_name = "WORKLOAD", required_unless_present_any = ["file", "admin"])]
    pub workload: Option<String>,

    /// Namespace of the workload
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Read a dump from a file instead of asking a proxy
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "workload")]
    pub file: Option<String>,

    /// Ask the proxy at this admin address, without the control plane
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["file", "workload"])]
    pub admin: Option<String>,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub struct AllArgs {
    #[command(flatten)]
    pub from: From,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

pub fn run(args: Args) -> Outcome {
    match args.part {
        Part::Cluster(args) => cluster::run(&args),
        Part::Listener(args) => listener::run(&args),
        Part::Route(args) => route::run(&args),
        Part::Endpoint(args) => endpoint::run(&args),
        Part::Bootstrap(args) => bootstrap::run(&args),
        Part::Secret(args) => secret::run(&args),
        Part::Stats(args) => stats::run(&args),
        Part::All(args) => all(&args),
    }
}

fn all(args: &AllArgs) -> Outcome {
    let dump = args.from.config_dump()?;
    if output::document(args.output, dump.whole()) {
        return Ok(());
    }
    cluster::table(&dump, &cluster::Filter::default()).print();
    outln!();
    listener::table(&dump, &listener::Filter::default(), true).print();
    outln!();
    route::table(&dump, None, true).print();
    outln!();
    endpoint::table_of_dump(&dump, &endpoint::Filter::default()).print();
    Ok(())
}

impl From {
    /// The proxy's whole configuration, endpoints included.
    pub fn config_dump(&self) -> Result<Dump, Failure> {
        self.document("/config_dump?include_eds")
            .and_then(Dump::new)
    }

    /// A JSON page of the proxy's admin port, or the file.
    pub fn document(&self, page: &str) -> Result<Value, Failure> {
        if let Some(file) = &self.file {
            let text = match file.as_str() {
                "-" => std::io::read_to_string(std::io::stdin()),
                path => std::fs::read_to_string(path),
            };
            let text = text.map_err(|e| Failure::other(format!("cannot read {file}: {e}")))?;
            return serde_json::from_str(&text)
                .map_err(|e| Failure::data(format!("{file} is not JSON: {e}")));
        }
        self.ask(page)?.json()
    }

    /// A page of the proxy's admin port.
    fn ask(&self, page: &str) -> Result<Answer, Failure> {
        let admin = match &self.admin {
            Some(admin) => admin.clone(),
            None => self.admin_address()?,
        };
        let proxy = Server::new(&admin, Role::Proxy)?;
        let answer = proxy.call(Call::get(page))?;
        if !answer.is_good() {
            let (code, text) = (answer.code, answer.text());
            let text = text.trim();
            return Err(Failure::other(format!(
                "{admin}{page} answered {code}: {text}"
            )));
        }
        Ok(answer)
    }

    /// The proxy tells the control plane its admin address in its node's metadata.
    fn admin_address(&self) -> Result<String, Failure> {
        let connections = self.server.connect()?.json("/debug/connections")?;
        let empty = Vec::new();
        let all = connections.as_array().unwrap_or(&empty);
        let name = self.workload.as_deref().unwrap_or_default();
        let found = proxy_status::find(all, name, self.namespace.as_deref(), "proxy")?;
        found["metadata"]["LATEEN_ADMIN"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| {
                Failure::other(format!(
                    "the proxy {name:?} does not say where its admin port is (node metadata \
                 LATEEN_ADMIN); name it with --admin HOST:PORT"
                ))
            })
    }
}
