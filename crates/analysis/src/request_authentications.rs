//! RequestAuthentications without workloads, keys that cannot be had, and routes by claims that
//! nobody vouches for.

use lateen_api::request_authentication::routing_claim;
use lateen_model::{KeySource, MeshSnapshot, VirtualService, labels_match};

use crate::{Finding, Level, Subject, attachments};

/// Findings of all RequestAuthentications, and of VirtualServices that lean on them.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for policy in snapshot.all_request_authentications() {
        let subject = Subject {
            kind: "RequestAuthentication",
            namespace: policy.origin.namespace.clone(),
            name: policy.origin.name.clone(),
        };
        found.extend(selects_nobody(snapshot, policy, &subject));
        let (one, several) = (&policy.spec.target_ref, &policy.spec.target_refs);
        found.extend(attachments::findings(snapshot, &subject, one, several));
        for (index, rule) in policy.spec.jwt_rules.iter().enumerate() {
            let source = KeySource::of(rule);
            let set = source.as_ref().and_then(|source| snapshot.key_set(source));
            let Some((set, error)) = set.and_then(|set| Some((set, set.error.as_ref()?))) else {
                continue;
            };
            let (level, meanwhile) = match set.keys {
                Some(_) => (Level::Warning, "the last good ones stay in force"),
                None => (Level::Error, "every token of this issuer is refused"),
            };
            found.push(Finding {
                code: KEYS_NOT_FETCHED,
                level,
                subject: subject.clone(),
                message: format!(
                    "The keys of the issuer {:?} cannot be fetched, {meanwhile}: {error}",
                    rule.issuer
                ),
                path: match rule.jwks_uri.is_empty() {
                    true => format!("spec.jwtRules[{index}].issuer"),
                    false => format!("spec.jwtRules[{index}].jwksUri"),
                },
            });
        }
    }
    for rule in snapshot.virtual_services() {
        found.extend(claims_without_tokens(snapshot, rule));
    }
    found
}

/// What is said of one VirtualService.
pub fn of_routes(snapshot: &MeshSnapshot, subject: &Subject) -> Option<Finding> {
    let mut rules = snapshot.virtual_services();
    let its = |rule: &VirtualService| {
        rule.origin.name == subject.name && rule.origin.namespace == subject.namespace
    };
    claims_without_tokens(snapshot, rules.find(|rule| its(rule))?)
}

/// Istio has no code for it: there the log of istiod says it.
const KEYS_NOT_FETCHED: &str = "LAT0001";

fn selects_nobody(
    snapshot: &MeshSnapshot,
    policy: &lateen_model::RequestAuthentication,
    subject: &Subject,
) -> Option<Finding> {
    let selector = &policy.spec.selector.as_ref()?.match_labels;
    let root = &snapshot.settings.root_namespace;
    let selected = snapshot.workloads().any(|workload| {
        (subject.namespace == *root || subject.namespace == workload.namespace)
            && labels_match(selector, &workload.labels)
    });
    if selected || selector.is_empty() {
        return None;
    }
    let labels: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    Some(Finding {
        code: "IST0127",
        level: Level::Warning,
        subject: subject.clone(),
        message: format!(
            "No matching workloads for this resource with the following labels: {}",
            labels.join(",")
        ),
        path: "spec.selector".to_string(),
    })
}

/// A route by claims where no RequestAuthentication makes the gateway read tokens (IST0149).
fn claims_without_tokens(snapshot: &MeshSnapshot, rule: &VirtualService) -> Option<Finding> {
    let (key, path) = first_claim(rule)?;
    let named = |name: &str| rule.gateways.iter().any(|gateway| gateway == name);
    for gateway in snapshot.gateways() {
        let name = gateway.full_name();
        if !named(&name) {
            continue;
        }
        let pod = snapshot.workloads().find(|workload| {
            labels_match(&gateway.spec.selector, &workload.labels)
                && snapshot
                    .request_authentications(&workload.namespace, &workload.labels)
                    .is_empty()
        });
        if let Some(pod) = pod {
            return Some(Finding {
                code: "IST0149",
                level: Level::Error,
                subject: Subject {
                    kind: "VirtualService",
                    namespace: rule.origin.namespace.clone(),
                    name: rule.origin.name.clone(),
                },
                message: format!(
                    "The virtual service uses the JWT claim based routing (key: {key}) but found no request authentication for the gateway ({name}) pod ({}). The request authentication must first be applied for the gateway pods to validate the JWT token and make the claims available for routing.",
                    pod.name
                ),
                path,
            });
        }
    }
    None
}

/// The first claim that a rule matches, and where.
fn first_claim(rule: &VirtualService) -> Option<(String, String)> {
    for (i, http) in rule.spec.http.iter().enumerate() {
        for (j, item) in http.matches.iter().enumerate() {
            for (field, headers) in [
                ("headers", &item.headers),
                ("withoutHeaders", &item.without_headers),
            ] {
                if let Some(key) = headers.keys().find(|key| routing_claim(key).is_some()) {
                    let path = format!("spec.http[{i}].match[{j}].{field}[{key:?}]");
                    return Some((key.clone(), path));
                }
            }
        }
    }
    None
}
