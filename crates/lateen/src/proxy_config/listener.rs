//! `proxy-config listener`.

use serde_json::Value;

use super::From;
use super::dump::Dump;
use super::route::{describe_match, domains_of};
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::table::Table;

const HTTP: &str = "http_connection_manager";
const TCP: &str = "tcp_proxy";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    #[command(flatten)]
    pub filter: Filter,

    /// Show each filter chain; with --verbose=false one row per listener
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub verbose: bool,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Only listeners on this address
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,

    /// Only listeners on this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u64>,

    /// Only listeners of this type: HTTP, TCP or HTTP+TCP
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
}

pub fn run(args: &Args) -> Outcome {
    let dump = args.from.config_dump()?;
    let selected = select(&dump, &args.filter);
    let documents = selected
        .iter()
        .map(|listener| (*listener).clone())
        .collect();
    if !output::document(args.output, &Value::Array(documents)) {
        table(&dump, &args.filter, args.verbose).print();
    }
    Ok(())
}

pub fn table(dump: &Dump, filter: &Filter, verbose: bool) -> Table {
    let mut table = match verbose {
        true => Table::new(1, ["ADDRESSES", "PORT", "MATCH", "DESTINATION"]),
        false => Table::new(1, ["ADDRESSES", "PORT", "TYPE"]),
    };
    for listener in select(dump, filter) {
        let (address, port) = (addresses(listener).join(","), port(listener).to_string());
        if !verbose {
            table.row([address, port, kind(listener).to_owned()]);
            continue;
        }
        let mut rows: Vec<(String, String)> = chains(listener)
            .map(|chain| (chain_match(chain), destination(chain)))
            .collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1));
        for (matched, destination) in rows {
            table.row([address.clone(), port.clone(), matched, destination]);
        }
    }
    table
}

fn select<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut listeners: Vec<&Value> = dump
        .listeners()
        .into_iter()
        .filter(|listener| filter.takes(listener))
        .collect();
    listeners.sort_by_key(|l| (port(l), addresses(l).join(","), kind(l)));
    listeners
}

impl Filter {
    fn takes(&self, listener: &Value) -> bool {
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        self.address
            .as_ref()
            .is_none_or(|a| addresses(listener).iter().any(|b| same(a, b)))
            && self.port.is_none_or(|wanted| port(listener) == wanted)
            && self
                .kind
                .as_ref()
                .is_none_or(|wanted| same(wanted, kind(listener)))
    }
}

fn addresses(listener: &Value) -> Vec<String> {
    let one = |address: &Value| {
        let socket = address
            .pointer("/socket_address/address")
            .and_then(Value::as_str);
        socket.map(str::to_owned)
    };
    let more = listener["additional_addresses"]
        .as_array()
        .into_iter()
        .flatten();
    one(&listener["address"])
        .into_iter()
        .chain(more.filter_map(|a| one(&a["address"])))
        .collect()
}

fn port(listener: &Value) -> u64 {
    listener
        .pointer("/address/socket_address/port_value")
        .and_then(Value::as_u64)
        .unwrap_or(0)
}

fn chains(listener: &Value) -> impl Iterator<Item = &Value> {
    let chains = listener["filter_chains"].as_array().into_iter().flatten();
    chains.chain(listener.get("default_filter_chain"))
}

fn filters(chain: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let filters = chain["filters"].as_array().into_iter().flatten();
    filters.map(|filter| {
        let name = filter["name"].as_str().unwrap_or_default();
        (
            name.rsplit('.').next().unwrap_or_default(),
            &filter["typed_config"],
        )
    })
}

/// HTTP, TCP or both; connections that are only thrown away do not count.
fn kind(listener: &Value) -> &'static str {
    let (mut http, mut tcp) = (false, false);
    for (name, config) in chains(listener).flat_map(filters) {
        http |= name == HTTP;
        tcp |= name == TCP && config["cluster"] != "BlackHoleCluster";
    }
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

fn chain_match(chain: &Value) -> String {
    let wanted = &chain["filter_chain_match"];
    let texts = |field: &str| -> Vec<&str> {
        wanted[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    };
    let mut parts = Vec::new();
    let names = texts("server_names");
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    if let Some(transport) = wanted["transport_protocol"]
        .as_str()
        .filter(|t| !t.is_empty())
    {
        parts.push(format!("Trans: {transport}"));
    }
    let protocols = texts("application_protocols");
    if !protocols.is_empty() {
        parts.push(format!("App: {}", protocols_name(&protocols)));
    }
    let port = wanted["destination_port"]
        .as_u64()
        .map(|port| format!(":{port}"));
    let ranges = wanted["prefix_ranges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|range| {
            let address = range["address_prefix"].as_str().unwrap_or_default();
            format!("{address}/{}", range["prefix_len"].as_u64().unwrap_or(0))
        });
    let ranges: Vec<String> = ranges.collect();
    match (ranges.is_empty(), port) {
        (false, port) => {
            parts.push(format!(
                "Addr: {}{}",
                ranges.join(","),
                port.unwrap_or_default()
            ));
        }
        (true, Some(port)) => parts.push(format!("Addr: *{port}")),
        (true, None) => {}
    }
    match parts.is_empty() {
        true => "ALL".to_owned(),
        false => parts.join("; "),
    }
}

/// istioctl's short names for the lists of ALPN protocols that Istio uses.
fn protocols_name(protocols: &[&str]) -> String {
    match protocols {
        ["http/1.0", "http/1.1", "h2c"] => "HTTP".to_owned(),
        ["istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"] => "Istio HTTP Plain".to_owned(),
        [
            "http/1.0",
            "http/1.1",
            "h2c",
            "istio-http/1.0",
            "istio-http/1.1",
            "istio-h2",
        ] => "HTTP TLS".to_owned(),
        ["istio-peer-exchange", "istio"] => "TCP TLS".to_owned(),
        other => other.join(","),
    }
}

fn destination(chain: &Value) -> String {
    for (name, config) in filters(chain) {
        if name == HTTP {
            let named = config
                .pointer("/rds/route_config_name")
                .and_then(Value::as_str);
            return match (config.get("route_config"), named) {
                (Some(routes), _) => inline(routes),
                (None, Some(named)) => format!("Route: {named}"),
                (None, None) => "HTTP".to_owned(),
            };
        }
        if name == TCP && config["cluster"] != "BlackHoleCluster" {
            return match config["cluster"].as_str() {
                Some(cluster) => cluster_text(cluster),
                None => "Weighted clusters".to_owned(),
            };
        }
    }
    "Non-HTTP/Non-TCP".to_owned()
}

fn cluster_text(cluster: &str) -> String {
    match cluster.contains("Cluster") {
        true => cluster.to_owned(),
        false => format!("Cluster: {cluster}"),
    }
}

/// A route table inside a listener: the cluster if it takes everything, else its matches.
fn inline(routes: &Value) -> String {
    let hosts: Vec<&Value> = routes["virtual_hosts"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    if let [host] = hosts.as_slice()
        && domains_of(host) == ["*"]
        && let Some([only]) = host["routes"].as_array().map(Vec::as_slice)
        && only["match"]["prefix"] == "/"
        && let Some(cluster) = only["route"]["cluster"].as_str()
    {
        return cluster_text(cluster);
    }
    let described = hosts.iter().map(|host| {
        let matches = host["routes"].as_array().into_iter().flatten();
        let matches: Vec<String> = matches.map(|r| describe_match(&r["match"])).collect();
        match domains_of(host).as_slice() {
            ["*"] => matches.join(", "),
            domains => format!("{} {}", domains.join("/"), matches.join(", ")),
        }
    });
    format!("Inline Route: {}", described.collect::<Vec<_>>().join("; "))
}
