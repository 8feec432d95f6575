//! AuthorizationPolicies that protect nothing, or name what is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::authorization_policy::Action;
use lateen_model::{AuthorizationPolicy, MeshSnapshot, Origin, Protocol, Service, labels_match};

use crate::{Finding, Level, Subject, attachments, not_found};

/// Findings of all AuthorizationPolicies.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for policy in snapshot.all_authorization_policies() {
        workloads(snapshot, policy, &mut found);
        namespaces(snapshot, policy, &mut found);
        provider(snapshot, policy, &mut found);
    }
    several_providers(snapshot, &mut found);
    out_of_scope(snapshot, &mut found);
    connections(snapshot, &mut found);
    found
}

fn subject(policy: &AuthorizationPolicy) -> Subject {
    Subject {
        kind: "AuthorizationPolicy",
        namespace: policy.origin.namespace.clone(),
        name: policy.origin.name.clone(),
    }
}

/// A policy that selects nobody.
fn workloads(snapshot: &MeshSnapshot, policy: &AuthorizationPolicy, found: &mut Vec<Finding>) {
    if !policy.targets().is_empty() {
        let (one, several) = (&policy.spec.target_ref, &policy.spec.target_refs);
        found.extend(attachments::findings(
            snapshot,
            &subject(policy),
            one,
            several,
        ));
        return;
    }
    let none = BTreeMap::new();
    let selector = policy.spec.selector.as_ref();
    let labels = selector.map_or(&none, |selector| &selector.match_labels);
    let namespace = &policy.origin.namespace;
    let everywhere = *namespace == snapshot.settings.root_namespace;
    if everywhere && labels.is_empty() {
        return;
    }
    let selected = snapshot.workloads().any(|workload| {
        (everywhere || workload.namespace == *namespace) && labels_match(labels, &workload.labels)
    });
    if selected {
        return;
    }
    let shown: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    found.push(Finding {
        code: "IST0127",
        level: Level::Warning,
        subject: subject(policy),
        message: format!(
            "No matching workloads for this resource with the following labels: {}",
            shown.join(",")
        ),
        path: "spec.selector".to_string(),
    });
}

/// Namespaces in sources that nobody is in.
fn namespaces(snapshot: &MeshSnapshot, policy: &AuthorizationPolicy, found: &mut Vec<Finding>) {
    for (rule_index, rule) in policy.rules().iter().enumerate() {
        let from = rule.from.as_deref().unwrap_or_default();
        for (from_index, from) in from.iter().enumerate() {
            let Some(source) = &from.source else { continue };
            for (field, names) in [
                ("namespaces", &source.namespaces),
                ("notNamespaces", &source.not_namespaces),
            ] {
                for (index, name) in names.iter().enumerate() {
                    if !exists(snapshot, name) {
                        let path = format!(
                            "spec.rules[{rule_index}].from[{from_index}].source.{field}[{index}]"
                        );
                        found.push(not_found(&subject(policy), "namespace", name, path));
                    }
                }
            }
        }
    }
}

/// Whether a namespace was declared, or somebody is in it.
fn exists(snapshot: &MeshSnapshot, pattern: &str) -> bool {
    if pattern.contains('*') {
        return true;
    }
    pattern == snapshot.settings.root_namespace
        || pattern == "default"
        || snapshot.has_namespace(pattern)
        || snapshot.workloads().any(|one| one.namespace == pattern)
        || snapshot.services().any(|one| one.namespace == pattern)
}

/// An authorizer that the mesh's settings do not know: what the policy matches is denied.
fn provider(snapshot: &MeshSnapshot, policy: &AuthorizationPolicy, found: &mut Vec<Finding>) {
    let Some(provider) = &policy.spec.provider else {
        return;
    };
    let known = snapshot.settings.extension_providers.iter().any(|one| {
        one.name == provider.name
            && (one.envoy_ext_authz_http.is_some() || one.envoy_ext_authz_grpc.is_some())
    });
    if !known {
        let path = "spec.provider.name".to_string();
        let what = "extension provider (all that the policy matches is denied)";
        found.push(not_found(&subject(policy), what, &provider.name, path));
    }
}

/// Workloads with policies of several authorizers, which deny what they match.
fn several_providers(snapshot: &MeshSnapshot, found: &mut Vec<Finding>) {
    let mut told = BTreeSet::new();
    for workload in snapshot.workloads() {
        let policies = snapshot.authorization_policies(&workload.namespace, &workload.labels);
        let custom: Vec<_> = policies
            .filter(|policy| policy.action() == Action::Custom)
            .collect();
        let names: BTreeSet<&str> = custom
            .iter()
            .filter_map(|policy| policy.spec.provider.as_ref())
            .map(|provider| provider.name.as_str())
            .collect();
        if names.len() < 2 {
            continue;
        }
        let names: Vec<&str> = names.into_iter().collect();
        for policy in custom {
            if told.insert(policy.origin.clone()) {
                found.push(Finding {
                    code: "IST0133",
                    level: Level::Warning,
                    subject: subject(policy),
                    message: format!(
                        "Schema validation warning: only 1 provider can be used per workload, {:?} \
                         has {names:?}: all that their policies match is denied",
                        workload.name
                    ),
                    path: "spec.provider.name".to_string(),
                });
            }
        }
    }
}

/// Workloads whose Sidecar does not import the service of their authorizer: it cannot be asked, which
/// denies what the policy matches.
fn out_of_scope(snapshot: &MeshSnapshot, found: &mut Vec<Finding>) {
    let mut told = BTreeSet::new();
    for workload in snapshot.workloads() {
        // Gateways have no Sidecar.
        if snapshot.gateways_for(&workload.labels).next().is_some() {
            continue;
        }
        let Some(sidecar) = snapshot.sidecar_for(&workload.namespace, &workload.labels) else {
            continue;
        };
        let policies = snapshot.authorization_policies(&workload.namespace, &workload.labels);
        for policy in policies.filter(|policy| policy.action() == Action::Custom) {
            let Some(service) = authorizer(snapshot, policy, &workload.namespace) else {
                continue;
            };
            let scope = snapshot.scope_with(&workload.namespace, Some(sidecar));
            if scope.admits(service) || !told.insert(policy.origin.clone()) {
                continue;
            }
            let Origin {
                namespace, name, ..
            } = &sidecar.origin;
            let what = format!(
                "host of the extension provider in the egress hosts of Sidecar {namespace}/{name} \
                 (all that the policy matches for {:?} is denied)",
                workload.name
            );
            let path = "spec.provider.name".to_string();
            found.push(not_found(&subject(policy), &what, &service.hostname, path));
        }
    }
}

fn authorizer<'a>(
    snapshot: &'a MeshSnapshot,
    policy: &AuthorizationPolicy,
    seen_from: &str,
) -> Option<&'a Arc<Service>> {
    let name = &policy.spec.provider.as_ref()?.name;
    let mut providers = snapshot.settings.extension_providers.iter();
    let provider = providers.find(|one| one.name == *name)?;
    let http = provider.envoy_ext_authz_http.as_ref();
    let http = http.map(|one| (&one.service, &one.port));
    let grpc = provider.envoy_ext_authz_grpc.as_ref();
    let (service, port) = http.or(grpc.map(|one| (&one.service, &one.port)))?;
    let (service, _) = snapshot.authorizer(service, port, seen_from)?;
    Some(service)
}

/// Ports at which nobody can ask an authorizer that is asked over HTTP: those of connections, and
/// those where the client chooses what it speaks.
fn connections(snapshot: &MeshSnapshot, found: &mut Vec<Finding>) {
    let over_http = |policy: &AuthorizationPolicy| {
        let name = policy.spec.provider.as_ref().map(|one| one.name.as_str());
        let mut providers = snapshot.settings.extension_providers.iter();
        policy.action() == Action::Custom
            && providers
                .any(|one| Some(one.name.as_str()) == name && one.envoy_ext_authz_http.is_some())
    };
    let mut told = BTreeSet::new();
    for workload in snapshot.workloads() {
        let policies = snapshot.authorization_policies(&workload.namespace, &workload.labels);
        for policy in policies.filter(|policy| over_http(policy)) {
            let services = snapshot.services_of(workload);
            let mut ports =
                services.flat_map(|service| service.ports.iter().map(move |p| (service, p)));
            let Some((service, port)) = ports
                .find(|(_, port)| port.protocol.is_tcp() || port.protocol == Protocol::Undeclared)
            else {
                continue;
            };
            if !told.insert(policy.origin.clone()) {
                continue;
            }
            found.push(Finding {
                code: "IST0133",
                level: Level::Warning,
                subject: subject(policy),
                message: format!(
                    "Schema validation warning: the provider is asked over HTTP, so nobody is asked about \
                     connections: port {} of {} is not declared to be HTTP, and what is not HTTP passes \
                     there; declare its protocol, use envoyExtAuthzGrpc, or deny the port",
                    port.number, service.hostname
                ),
                path: "spec.provider.name".to_string(),
            });
        }
    }
}
