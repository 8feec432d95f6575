//! `x describe service NAME` as sentences.

use serde_json::Value;

use super::describe::{list, sentence, text};

/// Prints what the control plane knows of a service.
pub fn print(found: &Value) {
    outln!("Service: {}", text(found, "host"));
    for port in list(found, "ports") {
        let mtls = match joined(port, "mtls") {
            none if none.is_empty() => "no workload".to_owned(),
            modes => format!("mTLS {modes}"),
        };
        outln!(
            "   Port: {} {}/{} targets {}, {mtls}",
            text(port, "name"),
            port["number"],
            text(port, "protocol"),
            text(port, "targetPort"),
        );
    }
    outln!("--------------------");
    workloads(found);
    destination_rule(&found["destinationRule"], text(found, "host"));
    for rule in list(found, "virtualServices") {
        virtual_service(rule);
    }
    for gateway in list(found, "gateways") {
        outln!(
            "Exposed by Gateway: {} (VirtualService {})",
            text(gateway, "gateway"),
            text(gateway, "by")
        );
        for server in list(gateway, "servers").filter_map(Value::as_str) {
            outln!("   {server}");
        }
    }
    outln!("--------------------");
    let members = list(found, "workloads").count();
    let mut policies = list(found, "authorizationPolicies").peekable();
    match policies.peek() {
        None => outln!("No AuthorizationPolicy applies: every request is allowed."),
        Some(_) => outln!("Applied AuthorizationPolicies:"),
    }
    for policy in policies {
        let of = match list(policy, "workloads").count() == members {
            true => String::new(),
            false => format!(" at {}", joined(policy, "workloads")),
        };
        outln!("   {}{of}", sentence(policy));
    }
}

fn joined(value: &Value, field: &str) -> String {
    let words: Vec<&str> = list(value, field).filter_map(Value::as_str).collect();
    words.join(", ")
}

fn workloads(found: &Value) {
    let mut workloads = list(found, "workloads").peekable();
    if workloads.peek().is_none() {
        outln!("No workload of the mesh is behind it.");
        return;
    }
    outln!("Workloads:");
    for workload in workloads {
        let mut notes = Vec::new();
        let subsets = joined(workload, "subsets");
        if !subsets.is_empty() {
            notes.push(format!("subset {subsets}"));
        }
        if workload["takesMtls"] != true {
            notes.push("no certificate of the mesh".to_owned());
        }
        if workload["healthy"] != true {
            notes.push("not healthy".to_owned());
        }
        let notes = match notes.is_empty() {
            true => String::new(),
            false => format!(" ({})", notes.join("; ")),
        };
        outln!(
            "   {} {}{notes}",
            text(workload, "name"),
            text(workload, "address")
        );
    }
}

fn destination_rule(rule: &Value, host: &str) {
    if rule.is_null() {
        return;
    }
    outln!("DestinationRule: {} for {host}", joined(rule, "names"));
    policy(rule, "   ");
    for subset in list(rule, "subsets") {
        let count = match subset["workloads"].as_u64().unwrap_or(0) {
            0 => "no workload: requests to it fail".to_owned(),
            1 => "1 workload".to_owned(),
            many => format!("{many} workloads"),
        };
        outln!("   Subset {}: {count}", text(subset, "name"));
        policy(subset, "      ");
    }
}

/// The groups of a traffic policy that are set.
fn policy(of: &Value, indent: &str) {
    let groups = of["trafficPolicy"].as_object().into_iter().flatten();
    for (name, value) in groups {
        outln!("{indent}{name}: {value}");
    }
}

fn virtual_service(rule: &Value) {
    outln!(
        "VirtualService: {} (gateways: {})",
        text(rule, "name"),
        joined(rule, "gateways")
    );
    for route in list(rule, "routes") {
        let also = match joined(route, "also") {
            none if none.is_empty() => none,
            some => format!(" with {some}"),
        };
        outln!("   {} to {}{also}", text(route, "at"), joined(route, "to"));
        for matched in list(route, "matches") {
            outln!("      if {matched}");
        }
    }
}
