//! `proxy-config cluster`.

use serde_json::Value;

use super::From;
use super::dump::Dump;
use super::name;
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::table::Table;

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
    /// Only clusters whose host contains this
    #[arg(long, value_name = "HOST")]
    pub fqdn: Option<String>,

    /// Only clusters of this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u32>,

    /// Only clusters of this subset
    #[arg(long, value_name = "SUBSET")]
    pub subset: Option<String>,

    /// Only inbound or outbound clusters
    #[arg(long, value_enum, value_name = "DIRECTION")]
    pub direction: Option<Direction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    /// As names of clusters and statistics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

pub fn run(args: &Args) -> Outcome {
    let dump = args.from.config_dump()?;
    let selected = select(&dump, &args.filter);
    let documents = selected.iter().map(|cluster| (*cluster).clone()).collect();
    if !output::document(args.output, &Value::Array(documents)) {
        table(&dump, &args.filter).print();
    }
    Ok(())
}

pub fn table(dump: &Dump, filter: &Filter) -> Table {
    let head = [
        "SERVICE FQDN",
        "PORT",
        "SUBSET",
        "DIRECTION",
        "TYPE",
        "DESTINATION RULE",
    ];
    let mut table = Table::new(5, head);
    for cluster in select(dump, filter) {
        let name = name::parse(cluster["name"].as_str().unwrap_or_default());
        let dash = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        let port = if name.istio {
            name.port.to_string()
        } else {
            "-".to_owned()
        };
        table.row([
            name.host.to_owned(),
            port,
            dash(name.subset),
            dash(name.direction),
            // Protobuf's JSON leaves a zero value out; zero is STATIC.
            cluster["type"].as_str().unwrap_or("STATIC").to_owned(),
            name::origin(&cluster["metadata"]),
        ]);
    }
    table
}

fn select<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let name_of = |cluster: &'a Value| cluster["name"].as_str().unwrap_or_default();
    let mut clusters: Vec<&Value> = dump
        .clusters()
        .into_iter()
        .filter(|cluster| filter.takes(name_of(cluster)))
        .collect();
    clusters.sort_by_key(|cluster| name::parse(name_of(cluster)));
    clusters
}

impl Filter {
    /// As in istioctl, a filter is a part of the name.
    fn takes(&self, name: &str) -> bool {
        let contains = |wanted: &Option<String>| {
            wanted
                .as_ref()
                .is_none_or(|wanted| name.contains(wanted.as_str()))
        };
        contains(&self.fqdn)
            && contains(&self.subset)
            && self.direction.is_none_or(|way| name.contains(way.name()))
            && self
                .port
                .is_none_or(|port| name.contains(&format!("|{port}|")))
    }
}
