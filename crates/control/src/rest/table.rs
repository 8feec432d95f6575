//! Objects as rows for people: the printer columns of Kubernetes' and Istio's kinds.
//!
//! Columns follow Istio's CRDs (`additionalPrinterColumns`) and kubectl's printers for the core
//! kinds. A client asks for them with `Accept: application/json;as=Table` (kubectl and
//! `lateen get` do), so that there is one place that knows them.

use super::pod_cells as pod;
use lateen_api::Kind;
use lateen_store::Stored;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

struct Column {
    name: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    priority: u8,
    cell: Cell,
}

enum Cell {
    Name,
    Age,
    /// A field by JSON pointer; lists print as JSON, as the API server prints them.
    Field(&'static str),
    Fixed(&'static str),
    Of(fn(&Value) -> String),
}

const fn column(name: &'static str, cell: Cell) -> Column {
    Column {
        name,
        priority: 0,
        cell,
    }
}

const fn wide(name: &'static str, cell: Cell) -> Column {
    Column {
        name,
        priority: 1,
        cell,
    }
}

const NAME: Column = column("Name", Cell::Name);
const AGE: Column = column("Age", Cell::Age);

fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::VirtualService => {
            const {
                &[
                    NAME,
                    column("Gateways", Cell::Field("/spec/gateways")),
                    column("Hosts", Cell::Field("/spec/hosts")),
                    AGE,
                ]
            }
        }
        Kind::DestinationRule => const { &[NAME, column("Host", Cell::Field("/spec/host")), AGE] },
        Kind::Gateway | Kind::RequestAuthentication => const { &[NAME, AGE] },
        Kind::ServiceEntry => {
            const {
                &[
                    NAME,
                    column("Hosts", Cell::Field("/spec/hosts")),
                    column("Location", Cell::Field("/spec/location")),
                    column("Resolution", Cell::Field("/spec/resolution")),
                    AGE,
                ]
            }
        }
        Kind::WorkloadEntry => {
            const { &[NAME, AGE, column("Address", Cell::Field("/spec/address"))] }
        }
        Kind::Service => {
            const {
                &[
                    NAME,
                    column("Type", Cell::Of(service_type)),
                    column("Cluster-IP", Cell::Of(cluster_ip)),
                    column("External-IP", Cell::Of(external)),
                    column("Port(s)", Cell::Of(ports)),
                    AGE,
                    wide("Selector", Cell::Of(service_selector)),
                ]
            }
        }
        Kind::Pod => {
            const {
                &[
                    NAME,
                    column("Ready", Cell::Of(pod::ready)),
                    column("Status", Cell::Of(pod::status)),
                    column("Restarts", Cell::Of(pod::restarts)),
                    AGE,
                    wide("IP", Cell::Of(pod::address)),
                    wide("Node", Cell::Of(pod::node)),
                    wide("Nominated Node", Cell::Of(pod::nominated_node)),
                    wide("Readiness Gates", Cell::Of(pod::readiness_gates)),
                ]
            }
        }
        Kind::Secret => {
            const {
                &[
                    NAME,
                    column("Type", Cell::Of(secret_type)),
                    column("Data", Cell::Of(secret_entries)),
                    AGE,
                ]
            }
        }
        Kind::Endpoints => const { &[NAME, column("Endpoints", Cell::Of(endpoints)), AGE] },
        Kind::EndpointSlice => {
            const {
                &[
                    NAME,
                    column("AddressType", Cell::Field("/addressType")),
                    column("Ports", Cell::Of(slice_ports)),
                    column("Endpoints", Cell::Of(slice_endpoints)),
                    AGE,
                ]
            }
        }
        Kind::Role | Kind::ClusterRole => {
            const {
                &[
                    NAME,
                    column("Created At", Cell::Field("/metadata/creationTimestamp")),
                ]
            }
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            const {
                &[
                    NAME,
                    column("Role", Cell::Of(bound_role)),
                    AGE,
                    wide("Users", Cell::Of(|body| subjects(body, "User"))),
                    wide("Groups", Cell::Of(|body| subjects(body, "Group"))),
                    wide(
                        "ServiceAccounts",
                        Cell::Of(|body| subjects(body, "ServiceAccount")),
                    ),
                ]
            }
        }
        Kind::Namespace => const { &[NAME, column("Status", Cell::Fixed("Active")), AGE] },
        // A kind that is added to the api crate shows at least its name until it has columns.
        #[allow(unreachable_patterns, reason = "kinds are added in another crate")]
        _ => const { &[NAME, AGE] },
    }
}

/// The `Table` of `objects`.
pub(crate) fn table(kind: Kind, objects: &[&Stored], metadata: Value) -> Value {
    let columns = columns(kind);
    let now = OffsetDateTime::now_utc();
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": "string",
                "format": if matches!(column.cell, Cell::Name) { "name" } else { "" },
                "description": "",
                "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut document = object.document();
            let of = |column: &Column| cell(&column.cell, object, &document, now);
            let cells: Vec<String> = columns.iter().map(of).collect();
            let metadata = document["metadata"].take();
            json!({
                "cells": cells,
                "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                },
            })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn cell(cell: &Cell, object: &Stored, body: &Value, now: OffsetDateTime) -> String {
    match cell {
        Cell::Name => object.key.name.clone(),
        Cell::Fixed(text) => (*text).to_owned(),
        Cell::Of(compute) => compute(body),
        Cell::Field(pointer) => match body.pointer(pointer) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        },
        Cell::Age => OffsetDateTime::parse(&object.created, &Rfc3339)
            .map_or("<unknown>".to_owned(), |at| age((now - at).whole_seconds())),
    }
}

fn service_type(body: &Value) -> String {
    let given = body.pointer("/spec/type").and_then(Value::as_str);
    given.unwrap_or("ClusterIP").to_owned()
}

fn external(body: &Value) -> String {
    let name = body.pointer("/spec/externalName").and_then(Value::as_str);
    name.unwrap_or("<none>").to_owned()
}

fn secret_type(body: &Value) -> String {
    let given = body.get("type").and_then(Value::as_str);
    given.unwrap_or("Opaque").to_owned()
}

fn secret_entries(body: &Value) -> String {
    let entries = body.get("data").and_then(Value::as_object);
    entries.map_or(0, |entries| entries.len()).to_string()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// As kubectl prints them: three, and how many more there are.
fn several(all: Vec<String>) -> String {
    match all.len() {
        0 => "<none>".to_owned(),
        more @ 4.. => format!("{} + {} more...", all[..3].join(","), more - 3),
        _ => all.join(","),
    }
}

fn endpoints(body: &Value) -> String {
    let subsets = list(body, "subsets").iter();
    let places = subsets.flat_map(|subset| {
        let ports = list(subset, "ports");
        let addresses = list(subset, "addresses").iter();
        addresses.flat_map(move |address| {
            let ip = address["ip"].as_str().unwrap_or_default();
            ports
                .iter()
                .map(move |port| format!("{ip}:{}", port["port"]))
        })
    });
    several(places.collect())
}

fn slice_ports(body: &Value) -> String {
    let ports = list(body, "ports").iter();
    several(ports.map(|port| port["port"].to_string()).collect())
}

fn slice_endpoints(body: &Value) -> String {
    let addresses = list(body, "endpoints").iter();
    let addresses = addresses.flat_map(|endpoint| list(endpoint, "addresses"));
    let addresses = addresses.filter_map(Value::as_str).map(str::to_owned);
    several(addresses.collect())
}

/// `Role/web`.
fn bound_role(body: &Value) -> String {
    let part = |name: &str| {
        body["roleRef"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    format!("{}/{}", part("kind"), part("name"))
}

/// Those of one kind, with their namespace where they have one.
fn subjects(body: &Value, kind: &str) -> String {
    let subjects = body["subjects"].as_array().map(Vec::as_slice);
    let of_kind = subjects.unwrap_or_default().iter();
    let of_kind = of_kind.filter(|one| one["kind"] == kind);
    let name = |one: &Value| {
        let name = one["name"].as_str().unwrap_or_default();
        match one["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        }
    };
    of_kind.map(name).collect::<Vec<_>>().join(", ")
}

fn cluster_ip(body: &Value) -> String {
    let given = body.pointer("/spec/clusterIP").and_then(Value::as_str);
    given
        .filter(|ip| !ip.is_empty())
        .unwrap_or("<none>")
        .to_owned()
}

fn ports(body: &Value) -> String {
    let Some(ports) = body.pointer("/spec/ports").and_then(Value::as_array) else {
        return "<none>".to_owned();
    };
    let one = |port: &Value| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        match port["nodePort"].as_u64() {
            Some(node_port) => format!("{}:{node_port}/{protocol}", port["port"]),
            None => format!("{}/{protocol}", port["port"]),
        }
    };
    ports.iter().map(one).collect::<Vec<_>>().join(",")
}

fn service_selector(body: &Value) -> String {
    let Some(labels) = body.pointer("/spec/selector").and_then(Value::as_object) else {
        return "<none>".to_owned();
    };
    let pairs = labels
        .iter()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
    pairs.collect::<Vec<_>>().join(",")
}

/// An age as kubectl prints it: two units while that is of interest.
pub(crate) fn age(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let two = |a: i64, unit_a: char, b: i64, unit_b: char| match b {
        0 => format!("{a}{unit_a}"),
        _ => format!("{a}{unit_a}{b}{unit_b}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_in_kubectl() {
        let check = |seconds: i64, expect: &str| assert_eq!(age(seconds), expect, "{seconds}");
        check(-5, "<invalid>");
        check(0, "0s");
        check(119, "119s");
        check(120, "2m");
        check(125, "2m5s");
        check(600, "10m");
        check(10_799, "179m");
        check(3 * 3_600 + 120, "3h2m");
        check(8 * 3_600 + 120, "8h");
        check(47 * 3_600, "47h");
        check(2 * 86_400 + 3_600, "2d1h");
        check(100 * 86_400, "100d");
        check(2 * 365 * 86_400 + 86_400, "2y1d");
        check(9 * 365 * 86_400, "9y");
    }

    #[test]
    fn every_kind_starts_with_its_name() {
        for kind in Kind::ALL {
            assert_eq!(columns(*kind)[0].name, "Name", "{kind}");
        }
    }
}
