//! `proxy-config endpoint`: from `/clusters`, which knows health; from a dump when that is all
//! there is.

use serde_json::Value;

use super::From;
use super::dump::Dump;
use super::name;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::table::Table;

const HEAD: [&str; 4] = ["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"];

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    #[command(flatten)]
    pub filter: Filter,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Only endpoints at this address
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,

    /// Only endpoints at this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u64>,

    /// Only endpoints of this cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,

    /// Only endpoints with this status: healthy, unhealthy
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
}

/// One address of one cluster.
struct Endpoint<'a> {
    address: String,
    port: u64,
    status: &'a str,
    ejected: bool,
    cluster: &'a str,
}

pub fn run(args: &Args) -> Outcome {
    let document = args.from.document("/clusters?format=json")?;
    // A file may hold either page.
    if document.get("configs").is_some() {
        let dump = Dump::new(document)?;
        let documents = dump.endpoints().into_iter().cloned().collect();
        if !output::document(args.output, &Value::Array(documents)) {
            table_of_dump(&dump, &args.filter).print();
        }
        return Ok(());
    }
    let Some(clusters) = document["cluster_statuses"].as_array() else {
        let text = "this is neither a /clusters page nor a config dump of a proxy";
        return Err(Failure::data(text));
    };
    let taken = |cluster: &&Value| hosts(cluster).iter().any(|host| args.filter.takes(host));
    let selected: Vec<&Value> = clusters.iter().filter(taken).collect();
    let documents = selected.iter().map(|cluster| (*cluster).clone()).collect();
    if !output::document(args.output, &Value::Array(documents)) {
        let all = selected.iter().flat_map(|cluster| hosts(cluster));
        table(all.filter(|host| args.filter.takes(host)).collect()).print();
    }
    Ok(())
}

/// Endpoints as configured: a dump knows nothing of outliers.
pub fn table_of_dump(dump: &Dump, filter: &Filter) -> Table {
    let all = dump.endpoints().into_iter().flat_map(configured);
    table(all.filter(|host| filter.takes(host)).collect())
}

fn table(mut endpoints: Vec<Endpoint<'_>>) -> Table {
    endpoints.sort_by(|a, b| (&a.address, a.port, a.cluster).cmp(&(&b.address, b.port, b.cluster)));
    let mut table = Table::new(5, HEAD);
    for endpoint in endpoints {
        let address = match endpoint.port {
            0 => endpoint.address,
            port => format!("{}:{port}", endpoint.address),
        };
        let check = if endpoint.ejected { "FAILED" } else { "OK" };
        table.row([&address, endpoint.status, check, endpoint.cluster]);
    }
    table
}

impl Filter {
    fn takes(&self, endpoint: &Endpoint<'_>) -> bool {
        let same = |wanted: &Option<String>, found: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        same(&self.address, &endpoint.address)
            && same(&self.cluster, endpoint.cluster)
            && same(&self.status, endpoint.status)
            && self.port.is_none_or(|port| port == endpoint.port)
    }
}

/// The endpoints of one entry of `/clusters`.
fn hosts(cluster: &Value) -> Vec<Endpoint<'_>> {
    let name = cluster["name"].as_str().unwrap_or_default();
    let mut found = Vec::new();
    for host in cluster["host_statuses"].as_array().into_iter().flatten() {
        let health = &host["health_status"];
        let (address, port) = address(&host["address"]);
        found.push(Endpoint {
            address,
            port,
            status: health["eds_health_status"].as_str().unwrap_or("UNKNOWN"),
            ejected: health["failed_outlier_check"].as_bool().unwrap_or(false),
            cluster: name,
        });
    }
    found
}

/// The endpoints of one ClusterLoadAssignment.
fn configured(assignment: &Value) -> Vec<Endpoint<'_>> {
    let name = assignment["cluster_name"].as_str().unwrap_or_default();
    let localities = assignment["endpoints"].as_array().into_iter().flatten();
    let endpoints = localities
        .filter_map(|locality| locality["lb_endpoints"].as_array())
        .flatten();
    let mut found = Vec::new();
    for one in endpoints {
        let (address, port) = address(&one["endpoint"]["address"]);
        let status = one["health_status"].as_str().unwrap_or("HEALTHY");
        found.push(Endpoint {
            address,
            port,
            status,
            ejected: false,
            cluster: name,
        });
    }
    found.sort_by_key(|endpoint| name::parse(endpoint.cluster).port);
    found
}

fn address(address: &Value) -> (String, u64) {
    let socket = &address["socket_address"];
    match (
        socket["address"].as_str(),
        address.pointer("/pipe/path").and_then(Value::as_str),
    ) {
        (Some(text), _) => (text.to_owned(), socket["port_value"].as_u64().unwrap_or(0)),
        (None, Some(path)) => (format!("unix://{path}"), 0),
        (None, None) => (String::new(), 0),
    }
}
