//! What stands for an object that is kept somewhere and cannot be read any more, where to leave it out
//! would weaken something: written by another version, or before the rules for it became stricter.
//!
//! To leave such an object out would open what it closed. What stands for it closes everything that
//! it may have been about: the workloads of its selector or targets if those can be read, else those
//! of its namespace (in the root namespace, the mesh).
//!
//! | object | stands for it |
//! |---|---|
//! | AuthorizationPolicy | a policy that denies everything; none for one that decided nothing (AUDIT, a dry run) |
//! | PeerAuthentication | STRICT on every port |
//! | DestinationRule | where it says anything of TLS, one for its host that is [`Object::closed`]: nothing is sent there, since nobody knows how |
//! | Sidecar | one that imports what of the egress hosts can be read, else the own namespace; unknown hosts are refused unless it says otherwise |
//! | ConfigMap `istio`, IstioOperator with a `meshConfig` | one without content; being [`Object::closed`], no proxy is served: nobody knows the settings of the mesh |
//! | Role, ClusterRole, RoleBinding, ClusterRoleBinding | one that gives nothing; being [`Object::closed`], it counts as one about Secrets, so that only others give them |
//! | RequestAuthentication | one without rules; being [`Object::closed`], requests are refused, since there is no saying which tokens and which headers made of them are to be trusted |

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use crate::authorization_policy::{Action, AuthorizationPolicy, DRY_RUN, Rule, parse_switch};
use crate::destination_rule::{DestinationRule, WorkloadSelector};
use crate::istio_operator::IstioOperator;
use crate::kind::Kind;
use crate::kubernetes::ConfigMap;
use crate::meta::ObjectMeta;
use crate::object::{Object, Spec};
use crate::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication};
use crate::request_authentication::RequestAuthentication;
use crate::role::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use crate::service_entry;
use crate::sidecar::{IstioEgressListener, OutboundTrafficMode, OutboundTrafficPolicy, Sidecar};
use crate::target_reference::PolicyTargetReference;

impl Object {
    /// What stands for a document that cannot be read; `None` when nothing is open without it.
    pub fn closed_for(document: &Json) -> Option<Object> {
        let kind = kind_of(document)?;
        let spec = document.get("spec");
        let selector = spec.and_then(selector);
        let target_refs = spec.and_then(targets).unwrap_or_default();
        let spec: Spec = match kind {
            Kind::AuthorizationPolicy if decides_nothing(document) => return None,
            Kind::AuthorizationPolicy => AuthorizationPolicy {
                selector,
                target_refs,
                action: Some(Action::Deny),
                rules: Some(vec![Rule::default()]),
                ..Default::default()
            }
            .into(),
            Kind::PeerAuthentication => PeerAuthentication {
                selector,
                mtls: Some(MutualTls {
                    mode: Some(MutualTlsMode::Strict),
                }),
                ..Default::default()
            }
            .into(),
            Kind::RequestAuthentication => RequestAuthentication {
                selector,
                target_refs,
                ..Default::default()
            }
            .into(),
            Kind::DestinationRule => destination_rule(spec?)?.into(),
            Kind::Sidecar => sidecar(spec).into(),
            Kind::ConfigMap if is_mesh_config(document) => ConfigMap::default().into(),
            Kind::IstioOperator if configures_the_mesh(spec) => IstioOperator::default().into(),
            Kind::Role => Role::default().into(),
            Kind::ClusterRole => ClusterRole::default().into(),
            Kind::RoleBinding => RoleBinding::default().into(),
            Kind::ClusterRoleBinding => ClusterRoleBinding::default().into(),
            _ => return None,
        };
        let named = |field: &str| {
            let text = document.pointer(&format!("/metadata/{field}"));
            text.and_then(Json::as_str).unwrap_or_default().to_owned()
        };
        let meta = ObjectMeta {
            name: named("name"),
            namespace: named("namespace"),
            ..Default::default()
        };
        Some(Object {
            closed: true,
            ..Object::new(meta, spec)
        })
    }
}

fn kind_of(document: &Json) -> Option<Kind> {
    let kind = document.get("kind").and_then(Json::as_str)?;
    let version = document.get("apiVersion").and_then(Json::as_str)?;
    let (group, _) = version.split_once('/').unwrap_or_default();
    let mut kinds = Kind::ALL.iter().copied();
    kinds.find(|one| {
        let info = one.info();
        info.group == group && info.name == kind
    })
}

/// A rule for the host of one that is lost, if that said anything of TLS.
fn destination_rule(spec: &Json) -> Option<DestinationRule> {
    let host = spec.get("host").and_then(Json::as_str)?;
    let selector = spec.get("workloadSelector");
    let match_labels = selector.and_then(|one| labels(one.as_object()?, "matchLabels"));
    says_tls(spec).then(|| DestinationRule {
        host: host.to_owned(),
        export_to: texts(spec.get("exportTo")).unwrap_or_default(),
        workload_selector: match_labels.map(|match_labels| WorkloadSelector { match_labels }),
        ..Default::default()
    })
}

/// Whether any field says something of TLS.
fn says_tls(value: &Json) -> bool {
    match value {
        Json::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.to_ascii_lowercase().contains("tls") || says_tls(value)),
        Json::Array(items) => items.iter().any(says_tls),
        _ => false,
    }
}

/// A Sidecar that shows its workloads nothing that the one that is lost did not show.
fn sidecar(spec: Option<&Json>) -> Sidecar {
    let said = |name: &str| spec.and_then(|spec| spec.get(name));
    let selector = said("workloadSelector");
    let labels = selector.and_then(|one| labels(one.as_object()?, "labels"));
    let listeners = said("egress").and_then(Json::as_array);
    // A listener of one port imports that port only.
    let whole = |one: &&Json| one.get("port").is_none();
    let hosts = listeners.into_iter().flatten().filter(whole);
    let hosts = hosts.filter_map(|one| texts(one.get("hosts"))).flatten();
    let mut hosts: Vec<String> = hosts.filter(|host| host.contains('/')).collect();
    if hosts.is_empty() {
        hosts.push("./*".to_owned());
    }
    let mode = said("outboundTrafficPolicy").map(|policy| {
        let mode = policy.get("mode").and_then(Json::as_str);
        match mode {
            Some("ALLOW_ANY") => OutboundTrafficMode::AllowAny,
            _ => OutboundTrafficMode::RegistryOnly,
        }
    });
    Sidecar {
        workload_selector: labels.map(|labels| service_entry::WorkloadSelector { labels }),
        egress: vec![IstioEgressListener {
            hosts,
            ..Default::default()
        }],
        outbound_traffic_policy: mode.map(|mode| OutboundTrafficPolicy {
            mode: Some(mode),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Whether a ConfigMap is, or may be, that of the mesh.
fn is_mesh_config(document: &Json) -> bool {
    let name = document.pointer("/metadata/name").and_then(Json::as_str);
    let data = document.get("data");
    let other = data.is_some_and(|data| data.is_object() && data.get("mesh").is_none());
    name == Some("istio") && data.is_some() && !other
}

fn configures_the_mesh(spec: Option<&Json>) -> bool {
    spec.is_some_and(|spec| !spec.is_object() || spec.get("meshConfig").is_some())
}

fn texts(list: Option<&Json>) -> Option<Vec<String>> {
    let texts = list?.as_array()?.iter();
    texts.map(|one| Some(one.as_str()?.to_owned())).collect()
}

/// The labels of a selector that says nothing else.
fn labels(selector: &Map<String, Json>, name: &str) -> Option<BTreeMap<String, String>> {
    let labels = selector.get(name)?.as_object()?.iter();
    let labels = labels.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    labels
        .collect::<Option<_>>()
        .filter(|_| selector.len() == 1)
}

/// The workloads an object is for. `None`, which is all of them, unless every word of it is known.
fn selector(spec: &Json) -> Option<WorkloadSelector> {
    let selector = spec.get("selector")?.as_object()?;
    if TARGETS.iter().any(|field| spec.get(field).is_some()) {
        return None;
    }
    let match_labels = labels(selector, "matchLabels")?;
    Some(WorkloadSelector { match_labels })
}

const TARGETS: [&str; 2] = ["targetRef", "targetRefs"];

/// What an object is attached to. `None`, which is nothing in particular, unless every word is known.
fn targets(spec: &Json) -> Option<Vec<PolicyTargetReference>> {
    let said = |field: &str| spec.get(field);
    let all = match (said("selector"), said(TARGETS[0]), said(TARGETS[1])) {
        (None, Some(one), None) => std::slice::from_ref(one),
        (None, None, Some(several)) => several.as_array()?,
        _ => return None,
    };
    let reference = |one: &Json| {
        let mut target = PolicyTargetReference::default();
        for (field, value) in one.as_object()? {
            let value = value.as_str()?.to_owned();
            match field.as_str() {
                "group" => target.group = value,
                "kind" => target.kind = value,
                "name" => target.name = value,
                _ => return None,
            }
        }
        (target.target().is_some() && !target.name.is_empty()).then_some(target)
    };
    all.iter().map(reference).collect()
}

/// Whether an AuthorizationPolicy only counted.
fn decides_nothing(document: &Json) -> bool {
    let annotations = document.pointer("/metadata/annotations");
    let dry_run = annotations.and_then(|all| all.get(DRY_RUN)?.as_str());
    let action = document.pointer("/spec/action").and_then(Json::as_str);
    action == Some("AUDIT") || dry_run.and_then(parse_switch) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(kind: &str, spec: Json, expected: Option<Json>) {
        let document = json!({
            "apiVersion": "security.istio.io/v9", "kind": kind,
            "metadata": {"name": "one", "namespace": "shop"}, "spec": spec,
        });
        let found = Object::closed_for(&document);
        let spec = found.as_ref().map(|object| {
            assert!(object.closed);
            assert_eq!(object.meta.name, "one");
            assert_eq!(object.meta.namespace, "shop");
            let json = object.to_json();
            json.get("spec").cloned().unwrap_or_else(|| json!({}))
        });
        assert_eq!(spec, expected, "{document}");
    }

    #[test]
    fn what_cannot_be_read_closes_what_it_may_have_been_about() {
        let policy = "AuthorizationPolicy";
        let denied = json!({"rules": [{}], "action": "DENY"});
        let front = json!({"matchLabels": {"app": "front"}});
        let denied_front = json!({"selector": front, "rules": [{}], "action": "DENY"});
        let of_front = json!({"selector": front, "action": "LATER"});
        check(policy, of_front, Some(denied_front));
        check(policy, json!({"action": "DENY"}), Some(denied.clone()));
        check(policy, json!("?"), Some(denied.clone()));
        // Whom a selector is for that is not understood is not known.
        for selector in [
            json!("front"),
            json!({"matchExpressions": []}),
            json!({"matchLabels": {"app": "front"}, "matchExpressions": []}),
            json!({"matchLabels": {"app": 1}}),
            json!(null),
        ] {
            check(policy, json!({"selector": selector}), Some(denied.clone()));
        }
        let targeted = json!({"selector": front, "targetRefs": []});
        check(policy, targeted, Some(denied.clone()));
        check(policy, json!({"action": "AUDIT", "later": 1}), None);
        let edge =
            json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}]);
        let denied_edge = json!({"targetRefs": edge, "rules": [{}], "action": "DENY"});
        let of_edge = json!({"targetRefs": edge, "action": "LATER"});
        check(policy, of_edge, Some(denied_edge.clone()));
        let of_edge = json!({"targetRef": edge[0], "action": "LATER"});
        check(policy, of_edge, Some(denied_edge));
        for target in [
            json!({"group": "later.io", "kind": "Gateway", "name": "edge"}),
            json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "names": ["edge"]}),
            json!("edge"),
        ] {
            check(
                policy,
                json!({"targetRefs": [target]}),
                Some(denied.clone()),
            );
        }
        let strict = json!({"selector": front, "mtls": {"mode": "STRICT"}});
        check(
            "PeerAuthentication",
            json!({"selector": front, "mtls": {"mode": "LATER"}}),
            Some(strict),
        );
        let tokens = json!({"selector": front, "jwtRules": [{"issuer": 1}]});
        check(
            "RequestAuthentication",
            tokens,
            Some(json!({"selector": front})),
        );
        check("Sidecar", json!({}), None);
    }

    #[test]
    fn what_is_lost_elsewhere_weakens_nothing() {
        let check = |api: &str, kind: &str, name: &str, rest: Json, expected: Option<Json>| {
            let mut document = json!({
                "apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "shop"},
            });
            for (field, value) in rest.as_object().unwrap() {
                document[field] = value.clone();
            }
            let found = Object::closed_for(&document);
            let spec = found.map(|object| object.to_json()["spec"].clone());
            assert_eq!(spec, expected, "{document}");
        };
        let rule = |spec: Json, expected: Option<Json>| {
            let api = "networking.istio.io/v9";
            check(
                api,
                "DestinationRule",
                "one",
                json!({"spec": spec}),
                expected,
            );
        };
        let tls = json!({"tls": {"mode": "LATER"}});
        let closed = json!({"host": "pay"});
        rule(
            json!({"host": "pay", "trafficPolicy": tls}),
            Some(closed.clone()),
        );
        let of_port = json!({"portLevelSettings": [{"port": {"number": 1}, "tls": {}}]});
        rule(
            json!({"host": "pay", "trafficPolicy": of_port}),
            Some(closed.clone()),
        );
        let of_subset = json!([{"name": "a", "trafficPolicy": tls}]);
        rule(json!({"host": "pay", "subsets": of_subset}), Some(closed));
        let for_some = json!({
            "host": "pay", "exportTo": ["."], "workloadSelector": {"matchLabels": {"app": "a"}},
        });
        let mut lost = for_some.clone();
        lost["trafficPolicy"] = tls;
        rule(lost, Some(for_some));
        rule(
            json!({"host": "pay", "trafficPolicy": {"loadBalancer": 1}}),
            None,
        );
        rule(json!({"trafficPolicy": {"tls": {}}}), None);

        let sidecar = |spec: Json, expected: Json| {
            let api = "networking.istio.io/v1";
            check(api, "Sidecar", "one", json!({"spec": spec}), Some(expected));
        };
        sidecar(json!("?"), json!({"egress": [{"hosts": ["./*"]}]}));
        sidecar(
            json!({
                "workloadSelector": {"labels": {"app": "a"}},
                "egress": [{"hosts": ["./a", "other/*"], "later": 1}, {"hosts": ["*/*"], "port": {}}],
                "outboundTrafficPolicy": {"mode": "LATER"},
            }),
            json!({
                "workloadSelector": {"labels": {"app": "a"}},
                "egress": [{"hosts": ["./a", "other/*"]}],
                "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            }),
        );

        let map = |name: &str, data: Json, closed: bool| {
            let document = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {"name": name, "namespace": "istio-system"},
            });
            let found = Object::closed_for(&document);
            assert_eq!(
                found.is_some_and(|object| object.closed),
                closed,
                "{document}"
            );
        };
        map("istio", json!({"mesh": "trustDomain: {}"}), true);
        map("istio", json!("?"), true);
        map("istio", json!({"meshNetworks": 1}), false);
        map("other", json!({"mesh": 1}), false);
        let operator = |spec: Json, closed: bool| {
            let document = json!({
                "apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator",
                "metadata": {"name": "one"}, "spec": spec,
            });
            assert_eq!(
                Object::closed_for(&document).is_some(),
                closed,
                "{document}"
            );
        };
        operator(json!({"meshConfig": {"trustDomain": 1}}), true);
        operator(json!({"profile": 1}), false);
    }

    #[test]
    fn a_dry_run_that_cannot_be_read_is_left_out() {
        let document = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "one", "annotations": {DRY_RUN: "true"}}, "spec": {"later": 1},
        });
        assert_eq!(Object::closed_for(&document), None);
    }
}
