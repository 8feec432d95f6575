//! `x describe WORKLOAD`: what holds for a workload, in sentences.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::rest::{Call, ServerArgs};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The workload, as NAME[.NAMESPACE]
    #[arg(value_name = "WORKLOAD")]
    pub workload: String,

    /// Namespace of the workload
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,

    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &Args) -> Outcome {
    let name = match (&args.namespace, args.workload.contains('.')) {
        (Some(namespace), _) => format!("{}.{namespace}", args.workload),
        (None, true) => args.workload.clone(),
        (None, false) => format!("{}.default", args.workload),
    };
    let path = format!("/debug/describe?workload={name}");
    let answer = args.server.connect()?.call(Call::get(&path))?;
    if !answer.is_good() {
        return Err(Failure::other(format!(
            "{}; `lateen get workloadentries -A` lists them",
            answer.text().trim()
        )));
    }
    let found = answer.json()?;
    if !output::document(args.output, &found) {
        print(&found);
    }
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
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
        let rules = policy["rules"].as_u64().unwrap_or(0);
        let rules = match rules {
            0 => "no rule".to_owned(),
            1 => "1 rule".to_owned(),
            many => format!("{many} rules"),
        };
        let dry = match policy["dryRun"] == true {
            true => ", dry run",
            false => "",
        };
        outln!(
            "   {} {} ({rules}{dry})",
            text(policy, "action"),
            text(policy, "name")
        );
    }
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
