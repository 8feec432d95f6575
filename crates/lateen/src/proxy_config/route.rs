//! `proxy-config route`.

use serde_json::Value;

use super::From;
use super::dump::Dump;
use super::name;
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::table::Table;

/// Domains shown of a virtual host before "+ n more...".
const DOMAINS: usize = 2;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    /// Only the route table of this name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Show each route; with --verbose=false one row per table
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub verbose: bool,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

pub fn run(args: &Args) -> Outcome {
    let dump = args.from.config_dump()?;
    let selected = select(&dump, args.name.as_deref());
    let documents = selected.iter().map(|table| (*table).clone()).collect();
    if !output::document(args.output, &Value::Array(documents)) {
        table(&dump, args.name.as_deref(), args.verbose).print();
    }
    Ok(())
}

pub fn table(dump: &Dump, name: Option<&str>, verbose: bool) -> Table {
    let mut table = match verbose {
        true => Table::new(
            5,
            ["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"],
        ),
        false => Table::new(5, ["NAME", "VIRTUAL HOSTS"]),
    };
    for routes in select(dump, name) {
        let name: &str = routes["name"].as_str().unwrap_or_default();
        let hosts: Vec<&Value> = routes["virtual_hosts"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        if !verbose {
            table.row([name.to_owned(), hosts.len().to_string()]);
            continue;
        }
        for host in hosts {
            for [matched, origin] in rows_of(host) {
                let host_name = host_name(host, name);
                let domains = describe_domains(&domains_of(host));
                table.row([
                    name.to_owned(),
                    host_name.to_owned(),
                    domains,
                    matched,
                    origin,
                ]);
            }
        }
    }
    table
}

/// A virtual host that came by itself (VHDS) is called after its table, too.
fn host_name<'a>(host: &'a Value, table: &str) -> &'a str {
    let full = host["name"].as_str().unwrap_or_default();
    let own = full
        .strip_prefix(table)
        .and_then(|own| own.strip_prefix('/'));
    own.unwrap_or(full)
}

/// Match and origin of each route that is of interest; a host without routes answers 404.
fn rows_of(host: &Value) -> Vec<[String; 2]> {
    let empty = Vec::new();
    let routes = host["routes"].as_array().unwrap_or(&empty);
    if routes.is_empty() {
        return vec![["/*".to_owned(), "404".to_owned()]];
    }
    let passes_through = |route: &&Value| route["route"]["cluster"] == "PassthroughCluster";
    let routes = routes.iter().filter(|route| !passes_through(route));
    routes
        .map(|r| [describe_match(&r["match"]), name::origin(&r["metadata"])])
        .collect()
}

/// Tables named by a port come in the order of the ports, the others as they are.
fn select<'a>(dump: &'a Dump, name: Option<&str>) -> Vec<&'a Value> {
    let mut tables: Vec<&Value> = dump.routes();
    tables.retain(|table| name.is_none_or(|name| table["name"] == name));
    let number = |table: &&Value| table["name"].as_str().and_then(|n| n.parse::<u32>().ok());
    tables.sort_by_key(|table| number(table).map_or((1, 0), |n| (0, n)));
    tables
}

pub fn domains_of(host: &Value) -> Vec<&str> {
    host["domains"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// `/api*`, `/exact`, `regex a.*`.
pub fn describe_match(wanted: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(prefix) = wanted["prefix"].as_str() {
        parts.push(format!("{prefix}*"));
    }
    if let Some(prefix) = wanted["path_separated_prefix"].as_str() {
        parts.push(format!("PathPrefix:{prefix}"));
    }
    if let Some(path) = wanted["path"].as_str() {
        parts.push(path.to_owned());
    }
    if let Some(regex) = wanted.pointer("/safe_regex/regex").and_then(Value::as_str) {
        parts.push(format!("regex {regex}"));
    }
    parts.join(" ")
}

/// The domains that say something new: without ports, and without the long forms of a short one.
fn describe_domains(domains: &[&str]) -> String {
    if let [only] = domains {
        return (*only).to_owned();
    }
    // An IPv6 address has colons of its own.
    let has_port = |d: &str| d.contains(':') && !d.ends_with(']');
    let mut bare: Vec<&str> = domains.iter().copied().filter(|d| !has_port(d)).collect();
    // A sidecar that is an explicit HTTP proxy knows hosts by their ports only.
    if bare.is_empty() {
        bare = domains.to_vec();
    }
    let shorter = |domain: &str| {
        let (host, port) = domain.split_once(':').unwrap_or((domain, ""));
        let short = [".svc.cluster.local", ".svc"]
            .iter()
            .filter_map(|s| host.strip_suffix(s));
        short.into_iter().any(|short| {
            let named = |d: &&str| d.split_once(':').unwrap_or((d, "")) == (short, port);
            bare.iter().any(named)
        })
    };
    let shown: Vec<&str> = bare
        .iter()
        .copied()
        .filter(|domain| !shorter(domain))
        .collect();
    match shown.len() > DOMAINS {
        true => format!(
            "{} + {} more...",
            shown[..DOMAINS].join(", "),
            shown.len() - DOMAINS
        ),
        false => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn domains_are_shortened_as_istioctl_does() {
        let check = |domains: &[&str], expect: &str| assert_eq!(describe_domains(domains), expect);
        check(&["*"], "*");
        check(
            &[
                "reviews.default.svc.cluster.local",
                "reviews",
                "reviews.default.svc",
                "reviews.default",
            ],
            "reviews, reviews.default",
        );
        check(&["a", "a:80", "b", "c", "10.0.0.1"], "a, b + 2 more...");
        check(&["[fd00::1]", "[fd00::1]:80"], "[fd00::1]");
        check(
            &["a.b.svc.cluster.local:80", "a:80", "a.b:80", "a.b.svc:80"],
            "a:80, a.b:80",
        );
        check(&[], "");
    }

    #[test]
    fn matches_read_as_in_istioctl() {
        let check = |wanted: Value, expect: &str| assert_eq!(describe_match(&wanted), expect);
        check(json!({"prefix": "/"}), "/*");
        check(json!({"path": "/login"}), "/login");
        check(json!({"safe_regex": {"regex": "/a.*"}}), "regex /a.*");
        check(json!({"path_separated_prefix": "/a"}), "PathPrefix:/a");
    }
}
