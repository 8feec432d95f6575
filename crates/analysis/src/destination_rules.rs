//! DestinationRules for hosts nobody has, subsets without workloads, and TLS that checks nobody.

use std::sync::Arc;

use lateen_api::destination_rule::{ClientTlsMode, ClientTlsSettings, Subset};
use lateen_model::{
    DestinationRule, MeshSnapshot, Origin, Resolution, Service, hostname, labels_match,
};

use crate::{Finding, Level, Subject};

/// Findings of all DestinationRules.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    snapshot
        .destination_rules()
        .flat_map(|rule| of_rule(snapshot, rule))
        .collect()
}

/// Findings of one, and of what it is merged with.
pub fn of(snapshot: &MeshSnapshot, wanted: &Subject) -> Vec<Finding> {
    let own = |rule: &&Arc<DestinationRule>| subject(rule).as_ref() == Some(wanted);
    let rules = snapshot.destination_rules().filter(own);
    rules.flat_map(|rule| of_rule(snapshot, rule)).collect()
}

/// A merged rule is spoken of by its oldest object; the path is of the merged rule.
fn subject(rule: &DestinationRule) -> Option<Subject> {
    let Origin {
        name, namespace, ..
    } = rule.origins.first()?;
    Some(Subject {
        kind: "DestinationRule",
        namespace: namespace.clone(),
        name: name.clone(),
    })
}

fn of_rule(snapshot: &MeshSnapshot, rule: &DestinationRule) -> Vec<Finding> {
    let Some(subject) = subject(rule) else {
        return Vec::new();
    };
    let mut found = unverified(rule, &subject);
    let services: Vec<&Arc<Service>> = match snapshot.service(&rule.host) {
        Some(service) => vec![service],
        None => snapshot
            .services()
            .filter(|service| hostname::matches(&rule.host, &service.hostname))
            .collect(),
    };
    if services.is_empty() {
        found.push(Finding {
            code: "IST0174",
            level: Level::Warning,
            message: format!(
                "The host {} defined in the DestinationRule does not match any services in the mesh.",
                rule.host
            ),
            path: "spec.host".to_string(),
            subject,
        });
        return found;
    }
    // Of a rule merged from several objects no object has these indexes.
    let merged = rule.origins.len() > 1;
    for (index, subset) in rule.subsets.iter().enumerate() {
        if !services
            .iter()
            .any(|service| selects(snapshot, service, subset))
        {
            found.push(Finding {
                code: "IST0173",
                level: Level::Error,
                message: format!(
                    "The Subset {} defined in the DestinationRule does not select any pods. Which may lead to 503 UH (NoHealthyUpstream).",
                    subset.name
                ),
                path: match merged {
                    true => "spec.subsets".to_string(),
                    false => format!("spec.subsets[{index}].labels"),
                },
                subject: subject.clone(),
            });
        }
    }
    found
}

/// Whether a subset has an endpoint. Names that proxies resolve are not known here.
fn selects(snapshot: &MeshSnapshot, service: &Service, subset: &Subset) -> bool {
    match service.resolution {
        Resolution::Endpoints => {
            let endpoints = snapshot.endpoints(&service.hostname);
            let mut all = endpoints.by_port.values().flatten();
            all.any(|endpoint| labels_match(&subset.labels, &endpoint.workload.labels))
        }
        _ => {
            service.dns_targets.is_empty()
                || service
                    .dns_targets
                    .iter()
                    .any(|target| labels_match(&subset.labels, &target.labels))
        }
    }
}

/// TLS to a server whose certificate nobody looks at.
fn unverified(rule: &DestinationRule, subject: &Subject) -> Vec<Finding> {
    let Some(policy) = &rule.traffic_policy else {
        return Vec::new();
    };
    let name = format!("{}/{}", subject.namespace, subject.name);
    let mut found = Vec::new();
    if let Some(mode) = policy.tls.as_ref().and_then(unverified_mode) {
        found.push(Finding {
            code: "IST0128",
            level: Level::Warning,
            subject: subject.clone(),
            message: format!(
                "DestinationRule {name} in namespace {} has TLS mode set to {mode} but no caCertificates are set to validate server identity for host: {}",
                subject.namespace, rule.host
            ),
            path: "spec.trafficPolicy.tls".to_string(),
        });
    }
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        if let Some(mode) = port.tls.as_ref().and_then(unverified_mode) {
            let number = port.port.as_ref().map_or(0, |port| port.number);
            found.push(Finding {
                code: "IST0129",
                level: Level::Warning,
                subject: subject.clone(),
                message: format!(
                    "DestinationRule {name} in namespace {} has TLS mode set to {mode} but no caCertificates are set to validate server identity for host: {} at port {number}",
                    subject.namespace, rule.host
                ),
                path: format!("spec.trafficPolicy.portLevelSettings[{index}].tls"),
            });
        }
    }
    found
}

/// The mode, where it needs `caCertificates` (or a Secret) to check the server and has neither.
fn unverified_mode(tls: &ClientTlsSettings) -> Option<&'static str> {
    let mode = match tls.mode? {
        ClientTlsMode::Simple => "SIMPLE",
        ClientTlsMode::Mutual => "MUTUAL",
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => return None,
    };
    (tls.ca_certificates.is_empty() && tls.credential_name.is_empty()).then_some(mode)
}
