//! What stands for a security object that is kept somewhere and cannot be read any more: written by
//! another version, or before the rules for it became stricter.
//!
//! To leave such an object out would open what it closed. What stands for it closes everything that
//! it may have been about: the workloads of its selector or targets if those can be read, else those
//! of its namespace (in the root namespace, the mesh).
//!
//! | object | stands for it |
//! |---|---|
//! | AuthorizationPolicy | a policy that denies everything; none for one that decided nothing (AUDIT, a dry run) |
//! | PeerAuthentication | STRICT on every port |
//! | RequestAuthentication | one without rules; being [`Object::closed`], requests are refused, since there is no saying which tokens and which headers made of them are to be trusted |

use serde_json::Value as Json;

use crate::authorization_policy::{Action, AuthorizationPolicy, DRY_RUN, Rule, parse_switch};
use crate::destination_rule::WorkloadSelector;
use crate::kind::Kind;
use crate::meta::ObjectMeta;
use crate::object::{Object, Spec};
use crate::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication};
use crate::request_authentication::RequestAuthentication;
use crate::target_reference::PolicyTargetReference;

impl Object {
    /// What stands for a document that cannot be read; `None` when nothing is open without it.
    pub fn closed_for(document: &Json) -> Option<Object> {
        let kind = document.get("kind").and_then(Json::as_str)?;
        let group = document.get("apiVersion").and_then(Json::as_str)?;
        let (group, _) = group.split_once('/')?;
        let mut kinds = Kind::ALL.iter().copied();
        let kind = kinds.find(|one| {
            let info = one.info();
            one.is_security() && info.group == group && info.name == kind
        })?;
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

/// The workloads an object is for. `None`, which is all of them, unless every word of it is known.
fn selector(spec: &Json) -> Option<WorkloadSelector> {
    let selector = spec.get("selector")?.as_object()?;
    if TARGETS.iter().any(|field| spec.get(field).is_some()) || selector.len() != 1 {
        return None;
    }
    let labels = selector.get("matchLabels")?.as_object()?.iter();
    let labels: Option<_> = labels
        .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    Some(WorkloadSelector {
        match_labels: labels?,
    })
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
    fn a_dry_run_that_cannot_be_read_is_left_out() {
        let document = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "one", "annotations": {DRY_RUN: "true"}}, "spec": {"later": 1},
        });
        assert_eq!(Object::closed_for(&document), None);
    }
}
