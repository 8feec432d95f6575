//! Gateways that no proxy serves, or on ports their Service does not have.

use std::collections::BTreeMap;

use lateen_model::{Gateway, MeshSnapshot, labels_match};

use crate::{Finding, Level, Subject, not_found};

/// Findings of all Gateways.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    snapshot
        .gateways()
        .flat_map(|gateway| of_gateway(snapshot, gateway))
        .collect()
}

fn of_gateway(snapshot: &MeshSnapshot, gateway: &Gateway) -> Vec<Finding> {
    let subject = Subject {
        kind: "Gateway",
        namespace: gateway.origin.namespace.clone(),
        name: gateway.origin.name.clone(),
    };
    let selector = &gateway.spec.selector;
    let served: Vec<_> = snapshot
        .workloads()
        .filter(|workload| labels_match(selector, &workload.labels))
        .collect();
    if served.is_empty() {
        return vec![not_found(
            &subject,
            "selector",
            &written(selector),
            "spec.selector".to_string(),
        )];
    }
    let ports = gateway.spec.servers.iter().enumerate();
    let ports = ports.filter_map(|(index, server)| Some((index, server.port.as_ref()?.number)));
    let missing = ports.filter(|(_, port)| {
        let has = |workload: &&std::sync::Arc<lateen_model::Workload>| {
            snapshot
                .services_of(workload)
                .any(|service| service.port(*port).is_some())
        };
        !served.iter().any(has)
    });
    missing
        .map(|(index, port)| Finding {
            code: "IST0162",
            level: Level::Warning,
            subject: subject.clone(),
            message: format!(
                "The gateway is listening on a target port (port {port}) that is not defined in the Service associated with its workload instances (Pod selector {}). If you need to access the gateway port through the gateway Service, it will not be available.",
                written(selector)
            ),
            path: format!("spec.servers[{index}].port.number"),
        })
        .collect()
}

/// `app=gateway,istio=ingressgateway`.
fn written(selector: &BTreeMap<String, String>) -> String {
    let pairs = selector.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}
