//! `lateen proxy-status`: who is connected, and whether each proxy has accepted what it was sent.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::rest::ServerArgs;
use crate::table::Table;

/// The order in which types are pushed and shown.
const TYPES: [&str; 7] = ["cds", "lds", "eds", "rds", "vhds", "sds", "ecds"];

/// Show the connected proxies and whether each is in step with the control plane
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One proxy, as NAME[.NAMESPACE]: show each of its resources
    #[arg(value_name = "PROXY")]
    pub proxy: Option<String>,

    /// Only proxies of this namespace
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// A column for each type instead of one for all
    #[arg(short = 'v', long, num_args = 0..=1, default_missing_value = "1", value_name = "LEVEL")]
    pub verbosity: Option<u8>,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,

    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: Args) -> Outcome {
    let server = args.server.connect()?;
    let status = server.json("/debug/syncz")?;
    let empty = Vec::new();
    let all = status.as_array().unwrap_or(&empty);
    let Some(name) = &args.proxy else {
        let status: Value = all
            .iter()
            .filter(|proxy| is_in(proxy, args.namespace.as_deref()))
            .cloned()
            .collect();
        let all = status.as_array().unwrap_or(&empty);
        if !output::document(args.output, &status) {
            print_all(
                all,
                server.address(),
                args.verbosity.is_some_and(|level| level > 0),
            );
        }
        return Ok(());
    };
    let proxy = find(all, name, args.namespace.as_deref(), "proxy")?;
    if !output::document(args.output, proxy) {
        print_one(proxy, server.address());
    }
    Ok(())
}

/// The proxy that a person means by `NAME[.NAMESPACE]` or `deployment/NAME`. Without a namespace,
/// the default namespace first, then wherever it is.
pub fn find<'a>(
    all: &'a [Value],
    name: &str,
    namespace: Option<&str>,
    field: &str,
) -> Result<&'a Value, Failure> {
    let bare = name.rsplit_once('/').map_or(name, |(_, bare)| bare);
    let id = |proxy: &Value| proxy[field].as_str().unwrap_or_default().to_owned();
    let exact = format!("{bare}.{}", namespace.unwrap_or("default"));
    // The newest connection last: a proxy that reconnects may leave an old one for a moment.
    let by = |wanted: &dyn Fn(&str) -> bool| all.iter().rev().find(|p| wanted(&id(p)));
    let found = by(&|id| id == bare)
        .or_else(|| by(&|id| id == exact))
        .or_else(|| {
            let anywhere = format!("{bare}.");
            let elsewhere = |id: &str| {
                id.strip_prefix(&anywhere)
                    .is_some_and(|ns| !ns.contains('.'))
            };
            namespace.is_none().then(|| by(&elsewhere)).flatten()
        });
    found.ok_or_else(|| {
        let mut known: Vec<String> = all.iter().map(id).collect();
        known.sort();
        known.dedup();
        Failure::other(format!(
            "no proxy {name:?} is connected to the control plane; {}",
            instead(bare, &known)
        ))
    })
}

/// As many names as a person reads.
const LISTED: usize = 10;

/// What a person may have meant: those of a service's name, the one that is spelt nearly so, or
/// what there is.
fn instead(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "no proxy is connected".to_owned();
    }
    let quoted = |names: &[&String]| {
        let shown: Vec<String> = names
            .iter()
            .take(LISTED)
            .map(|n| format!("{n:?}"))
            .collect();
        shown.join(" or ")
    };
    let begin: Vec<&String> = known
        .iter()
        .filter(|known| !name.is_empty() && known.starts_with(name))
        .collect();
    if !begin.is_empty() {
        return format!("did you mean {}?", quoted(&begin));
    }
    let workload = |known: &String| known.split('.').next().unwrap_or_default().to_owned();
    let wanted = name.split('.').next().unwrap_or_default();
    let distance = |known: &String| strsim::damerau_levenshtein(wanted, &workload(known));
    let near = known.iter().min_by_key(|known| distance(known));
    // A third of the letters wrong is another word.
    match near.filter(|near| distance(near) * 3 <= wanted.chars().count()) {
        Some(near) => format!("did you mean {near:?}?"),
        None if known.len() <= LISTED => format!("connected are {}", known.join(", ")),
        None => format!(
            "connected are {} and {} more, see `lateen proxy-status`",
            known[..LISTED].join(", "),
            known.len() - LISTED
        ),
    }
}

fn is_in(proxy: &Value, namespace: Option<&str>) -> bool {
    let id = proxy["proxy"].as_str().unwrap_or_default();
    let own = id.rsplit_once('.').map(|(_, namespace)| namespace);
    namespace.is_none() || own == namespace
}

fn print_all(all: &[Value], server: &str, verbose: bool) {
    if all.is_empty() {
        anstream::eprintln!("No proxies are connected to {server}");
        return;
    }
    summary(all, server, verbose).print();
    print_rejections(all);
}

fn summary(all: &[Value], server: &str, verbose: bool) -> Table {
    let mut head = vec!["NAME", "CLUSTER"];
    if verbose {
        head.extend(["CDS", "LDS", "EDS", "RDS", "ECDS", "CONTROL", "VERSION"]);
    } else {
        head.extend(["CONTROL", "VERSION", "SUBSCRIBED TYPES", "STATUS"]);
    }
    let mut table = Table::new(5, head);
    for proxy in all {
        let mut row = vec![text(proxy, "proxy"), cluster(proxy)];
        if verbose {
            let types = ["cds", "lds", "eds", "rds", "ecds"];
            row.extend(
                types.map(|short| match proxy["types"][short]["state"].as_str() {
                    None if proxy["types"].get(short).is_none() => "IGNORED".to_owned(),
                    state => state.unwrap_or("NOT SENT").to_owned(),
                }),
            );
            row.extend([server.to_owned(), version(proxy)]);
        } else {
            row.extend([
                server.to_owned(),
                version(proxy),
                subscribed(proxy),
                status(proxy),
            ]);
        }
        table.row(row);
    }
    table
}

fn print_one(proxy: &Value, server: &str) {
    print_all(std::slice::from_ref(proxy), server, false);
    let mut table = Table::new(3, ["TYPE", "RESOURCE", "STATE"]);
    for (short, state) in types(proxy) {
        for (name, resource) in state["resources"].as_object().into_iter().flatten() {
            let state = match resource["state"]["state"].as_str() {
                Some("acked") => "SYNCED".to_owned(),
                Some("sent") => "SENT, not yet acknowledged".to_owned(),
                Some("rejected") => {
                    format!(
                        "REJECTED: {}",
                        one_line(resource["state"]["reason"].as_str())
                    )
                }
                other => other.unwrap_or("unknown").to_owned(),
            };
            table.row([short.to_uppercase(), name.clone(), state]);
        }
    }
    if !table.is_empty() {
        outln!();
        table.print();
    }
}

/// The types a proxy asked for, in the order of a push.
fn types(proxy: &Value) -> Vec<(&str, &Value)> {
    let Some(types) = proxy["types"].as_object() else {
        return Vec::new();
    };
    let mut types: Vec<_> = types
        .iter()
        .map(|(name, state)| (name.as_str(), state))
        .collect();
    let rank = |name: &str| {
        TYPES
            .iter()
            .position(|known| *known == name)
            .unwrap_or(TYPES.len())
    };
    types.sort_by_key(|(name, _)| rank(name));
    types
}

/// `4 (CDS,LDS,EDS,RDS)`, as istioctl counts.
fn subscribed(proxy: &Value) -> String {
    let types = types(proxy);
    let names: Vec<String> = types.iter().map(|(name, _)| name.to_uppercase()).collect();
    format!("{} ({})", names.len(), names.join(","))
}

/// `SYNCED`, or each type that is not.
fn status(proxy: &Value) -> String {
    let behind: Vec<String> = types(proxy)
        .into_iter()
        .filter(|(_, state)| state["state"] != "SYNCED")
        .map(|(name, state)| {
            let word = match state["state"].as_str() {
                Some("ERROR") => "REJECTED",
                word => word.unwrap_or("unknown"),
            };
            format!("{word} ({})", name.to_uppercase())
        })
        .collect();
    match behind.is_empty() {
        true => "SYNCED".to_owned(),
        false => behind.join(", "),
    }
}

fn print_rejections(all: &[Value]) {
    for proxy in all {
        for (short, state) in types(proxy) {
            let Some(message) = state["nack"]["message"].as_str() else {
                continue;
            };
            outln!(
                "\n{} rejected {}: {}",
                text(proxy, "proxy"),
                short.to_uppercase(),
                one_line(Some(message))
            );
        }
    }
}

fn one_line(text: Option<&str>) -> String {
    text.unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn text(proxy: &Value, field: &str) -> String {
    proxy[field].as_str().unwrap_or_default().to_owned()
}

fn cluster(proxy: &Value) -> String {
    proxy["cluster_id"]
        .as_str()
        .unwrap_or("Kubernetes")
        .to_owned()
}

/// What the proxy says Istio's version is; its own, marked as istioctl marks it, if it does not.
fn version(proxy: &Value) -> String {
    match proxy["istio_version"].as_str() {
        Some(version) if !version.is_empty() => version.to_owned(),
        _ => format!("{}*", text(proxy, "user_agent_version")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn proxies() -> Vec<Value> {
        vec![
            json!({
                "proxy": "a.default", "cluster_id": "Kubernetes", "istio_version": "1.30.0",
                "types": {"cds": {"state": "SYNCED"}, "lds": {"state": "SYNCED"}},
            }),
            json!({
                "proxy": "gw.istio-system", "user_agent_version": "1.40.0",
                "types": {
                    "rds": {"state": "STALE"},
                    "lds": {"state": "ERROR", "nack": {"message": "port is taken"}},
                    "cds": {"state": "SYNCED"},
                },
            }),
        ]
    }

    #[test]
    fn the_summary_names_what_is_not_in_step() {
        assert_eq!(
            summary(&proxies(), "c:1", false).to_string(),
            "NAME                CLUSTER        CONTROL     VERSION     SUBSCRIBED TYPES     STATUS\n\
             a.default           Kubernetes     c:1         1.30.0      2 (CDS,LDS)          SYNCED\n\
             gw.istio-system     Kubernetes     c:1         1.40.0*     3 (CDS,LDS,RDS)      \
             REJECTED (LDS), STALE (RDS)\n"
        );
        let verbose = summary(&proxies(), "c:1", true).to_string();
        let row = verbose.lines().nth(2).unwrap();
        let states: Vec<&str> = row.split_whitespace().skip(2).take(5).collect();
        assert_eq!(states, ["SYNCED", "ERROR", "IGNORED", "STALE", "IGNORED"]);
    }

    #[test]
    fn a_wrong_name_is_answered_with_what_was_meant() {
        let known = [
            "reviews-v1.default",
            "reviews-v2.default",
            "ratings-v1.default",
        ];
        let known = known.map(str::to_owned);
        let check = |name: &str, expect: &str| assert_eq!(instead(name, &known), expect, "{name}");
        check(
            "reviews",
            r#"did you mean "reviews-v1.default" or "reviews-v2.default"?"#,
        );
        check("ratigns-v1", r#"did you mean "ratings-v1.default"?"#);
        check("ratings-v1.prod", r#"did you mean "ratings-v1.default"?"#);
        let all = "connected are reviews-v1.default, reviews-v2.default, ratings-v1.default";
        check("web", all);
        check("", all);
        assert_eq!(instead("web", &[]), "no proxy is connected");
    }

    #[test]
    fn proxies_are_found_by_the_names_people_use() {
        let check = |name: &str, namespace: Option<&str>, expect: Option<&str>| {
            let all = proxies();
            let found = find(&all, name, namespace, "proxy").ok();
            assert_eq!(
                found.map(|p| p["proxy"].as_str().unwrap()),
                expect,
                "{name} {namespace:?}"
            );
        };
        check("a", None, Some("a.default"));
        check("a.default", None, Some("a.default"));
        check("deployment/a", None, Some("a.default"));
        check("gw", None, Some("gw.istio-system"));
        check("gw", Some("istio-system"), Some("gw.istio-system"));
        check("gw", Some("default"), None);
        check("nobody", None, None);
    }
}
