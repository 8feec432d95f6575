//! `x describe WORKLOAD`, `x describe service NAME`: what holds for it, in sentences.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::rest::{Call, ServerArgs};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME[.NAMESPACE] of a workload, or what to describe (service, workload) before it
    #[arg(value_name = "[service] NAME", required = true, num_args = 1..=2)]
    pub what: Vec<String>,

    /// Namespace of the workload or service
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,

    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &Args) -> Outcome {
    let (what, name) = of_what(&args.what)?;
    let name = match (&args.namespace, name.contains('.')) {
        (Some(namespace), _) => format!("{name}.{namespace}"),
        (None, true) => name.to_owned(),
        (None, false) => format!("{name}.default"),
    };
    let (parameter, list) = match what {
        What::Workload => ("workload", "workloadentries"),
        What::Service => ("service", "services"),
    };
    let path = format!("/debug/describe?{parameter}={name}");
    let answer = args.server.connect()?.call(Call::get(&path))?;
    if !answer.is_good() {
        return Err(Failure::other(format!(
            "{}; `lateen get {list} -A` lists them",
            answer.text().trim()
        )));
    }
    let found = answer.json()?;
    if !output::document(args.output, &found) {
        match what {
            What::Workload => print(&found),
            What::Service => super::describe_service::print(&found),
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum What {
    Workload,
    Service,
}

/// `NAME`, or `service NAME` and what istioctl and kubectl users write for it.
fn of_what(words: &[String]) -> Result<(What, &str), Failure> {
    let what = match words {
        [name] => return Ok((What::Workload, name)),
        [what, _] => what.to_ascii_lowercase(),
        _ => String::new(),
    };
    let name = words.last().map(String::as_str).unwrap_or_default();
    match what.as_str() {
        "service" | "services" | "svc" => Ok((What::Service, name)),
        "workload" | "workloads" | "workloadentry" | "we" | "pod" | "pods" | "po" => {
            Ok((What::Workload, name))
        }
        other => Err(Failure::usage(format!(
            "{other:?} cannot be described; use service NAME or workload NAME"
        ))),
    }
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

fn print(found: &Value) {
    outln!(
        "Workload: {}.{}",
        text(found, "name"),
        text(found, "namespace")
    );
    outln!("   Address: {}", text(found, "address"));
    if !text(found, "serviceAccount").is_empty() {
        outln!("   Service account: {}", text(found, "serviceAccount"));
    }
    let labels = found["labels"].as_object().into_iter().flatten();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    outln!("   Labels: {}", labels.join(","));
    outln!("--------------------");
    let mut services = list(found, "services").peekable();
    if services.peek().is_none() {
        outln!("No service selects the workload.");
    }
    for service in services {
        print_service(service);
    }
    outln!("--------------------");
    outln!("Effective PeerAuthentication:");
    outln!("   Workload mTLS mode: {}", text(found, "mtls"));
    if found["takesMtls"] != true {
        outln!("   Its proxy has no certificate of the mesh: clients do not use mTLS with it.");
    }
    let mut policies = list(found, "authorizationPolicies").peekable();
    match policies.peek() {
        None => outln!("No AuthorizationPolicy applies: every request is allowed."),
        Some(_) => outln!("Applied AuthorizationPolicies:"),
    }
    for policy in policies {
        outln!("   {}", sentence(policy));
    }
}

/// `ALLOW viewers.default (1 rule)`.
pub(super) fn sentence(policy: &Value) -> String {
    let rules = match policy["rules"].as_u64().unwrap_or(0) {
        0 => "no rule".to_owned(),
        1 => "1 rule".to_owned(),
        many => format!("{many} rules"),
    };
    let dry = match policy["dryRun"] == true {
        true => ", dry run",
        false => "",
    };
    let (action, name) = (text(policy, "action"), text(policy, "name"));
    format!("{action} {name} ({rules}{dry})")
}

fn print_service(service: &Value) {
    outln!("Service: {}", text(service, "host"));
    for port in list(service, "ports") {
        outln!(
            "   Port: {} {}/{} targets workload port {}, mTLS {}",
            text(port, "name"),
            port["number"],
            text(port, "protocol"),
            port["workloadPort"],
            text(port, "mtls")
        );
    }
    let names =
        |field: &str| -> Vec<&str> { list(service, field).filter_map(Value::as_str).collect() };
    for rule in names("destinationRules") {
        outln!("DestinationRule: {rule} for {}", text(service, "host"));
    }
    let subsets = names("subsets");
    if !subsets.is_empty() {
        outln!("   Matching subsets: {}", subsets.join(","));
    }
    for rule in list(service, "virtualServices") {
        let gateways: Vec<&str> = list(rule, "gateways").filter_map(Value::as_str).collect();
        outln!(
            "VirtualService: {} (gateways: {})",
            text(rule, "name"),
            gateways.join(", ")
        );
    }
}
