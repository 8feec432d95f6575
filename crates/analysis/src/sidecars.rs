//! Several Sidecars for one workload: one counts, the others have no effect.

use std::collections::BTreeMap;

use lateen_model::{MeshSnapshot, Sidecar};

use crate::{Finding, Level, Subject};

/// Findings of all Sidecars.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut namespaces: BTreeMap<&str, Vec<&Sidecar>> = BTreeMap::new();
    for sidecar in snapshot.sidecars() {
        let namespace = namespaces.entry(&sidecar.origin.namespace).or_default();
        namespace.push(sidecar);
    }
    for (namespace, sidecars) in namespaces {
        defaults(namespace, &sidecars, &mut found);
        selectors(snapshot, namespace, &sidecars, &mut found);
    }
    found
}

fn finding(sidecar: &Sidecar, code: &'static str, message: String) -> Finding {
    Finding {
        code,
        level: Level::Error,
        subject: Subject {
            kind: "Sidecar",
            namespace: sidecar.origin.namespace.clone(),
            name: sidecar.origin.name.clone(),
        },
        message,
        path: "spec.workloadSelector".to_string(),
    }
}

fn names(sidecars: &[&Sidecar]) -> String {
    let names: Vec<&str> = sidecars
        .iter()
        .map(|one| one.origin.name.as_str())
        .collect();
    names.join(" ")
}

/// Several without a selector in one namespace: the oldest counts.
fn defaults(namespace: &str, sidecars: &[&Sidecar], found: &mut Vec<Finding>) {
    let defaults: Vec<&Sidecar> = sidecars
        .iter()
        .copied()
        .filter(|one| one.is_default())
        .collect();
    if defaults.len() < 2 {
        return;
    }
    let message = format!(
        "The Sidecars [{}] in namespace {namespace:?} have no workload selector, which can lead to undefined behavior.",
        names(&defaults)
    );
    found.extend(
        defaults
            .iter()
            .map(|one| finding(one, "IST0111", message.clone())),
    );
}

/// Several whose selectors pick one workload: the oldest counts.
fn selectors(
    snapshot: &MeshSnapshot,
    namespace: &str,
    sidecars: &[&Sidecar],
    found: &mut Vec<Finding>,
) {
    let selecting: Vec<&Sidecar> = sidecars
        .iter()
        .copied()
        .filter(|one| !one.is_default())
        .collect();
    if selecting.len() < 2 {
        return;
    }
    let mut told: Vec<Vec<&Sidecar>> = Vec::new();
    for workload in snapshot
        .workloads()
        .filter(|one| one.namespace == namespace)
    {
        let picking: Vec<&Sidecar> = selecting
            .iter()
            .copied()
            .filter(|one| one.selects(&workload.labels))
            .collect();
        if picking.len() < 2 || told.contains(&picking) {
            continue;
        }
        let message = format!(
            "The Sidecars [{}] in namespace {namespace:?} select the same workload pod {:?}, which can lead to undefined behavior.",
            names(&picking),
            workload.name
        );
        found.extend(
            picking
                .iter()
                .map(|one| finding(one, "IST0110", message.clone())),
        );
        told.push(picking);
    }
}
