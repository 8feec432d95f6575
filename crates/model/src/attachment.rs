//! Whether a security policy counts for a workload: by its selector, or by what it is attached to
//! (`pilot/pkg/model/policyattachment.go`).
//!
//! An instance of a Gateway of the Gateway API carries that Gateway's name in a label. Policies
//! attached to the Gateway are for these workloads of their own namespace and for nobody else, neither
//! sidecars nor gateways that have a selector only. Policies attached to anything else are for
//! waypoints, which are not there. A policy without targets selects every kind of workload
//! (`ENABLE_SELECTOR_BASED_K8S_GATEWAY_POLICY`, true in Istio).

use std::collections::BTreeMap;

use lateen_api::destination_rule::WorkloadSelector;
use lateen_api::target_reference::{GATEWAY_NAME, PolicyTargetReference, Target};

use crate::service::labels_match;

/// Where a policy is, and what it says it is for.
pub(crate) struct Attachment<'a> {
    pub namespace: &'a str,
    pub selector: Option<&'a WorkloadSelector>,
    pub targets: &'a [PolicyTargetReference],
}

impl Attachment<'_> {
    /// Whether it is for this workload, of those in its reach.
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.targets.is_empty() {
            let selector = self.selector;
            return selector.is_none_or(|selector| labels_match(&selector.match_labels, labels));
        }
        let Some(gateway) = labels.get(GATEWAY_NAME) else {
            return false;
        };
        self.namespace == namespace
            && self.targets.iter().any(|target| {
                target.target() == Some(Target::Gateway)
                    && target.name == *gateway
                    && (target.namespace.is_empty() || target.namespace == namespace)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &str, targets: &[(&str, &str, &str)], workload: (&str, &str), expect: bool) {
        let targets: Vec<_> = targets
            .iter()
            .map(|(group, kind, name)| PolicyTargetReference {
                group: group.to_string(),
                kind: kind.to_string(),
                name: name.to_string(),
                namespace: String::new(),
            })
            .collect();
        let attachment = Attachment {
            namespace: policy,
            selector: None,
            targets: &targets,
        };
        let (namespace, gateway) = workload;
        let mut labels = BTreeMap::from([("app".to_string(), "edge".to_string())]);
        if !gateway.is_empty() {
            labels.insert(GATEWAY_NAME.to_string(), gateway.to_string());
        }
        let found = attachment.selects(namespace, &labels);
        assert_eq!(found, expect, "{policy} {targets:?} {workload:?}");
    }

    #[test]
    fn a_policy_attached_to_a_gateway_is_for_its_instances_only() {
        const GATEWAY: (&str, &str, &str) = ("gateway.networking.k8s.io", "Gateway", "edge");
        check("web", &[GATEWAY], ("web", "edge"), true);
        check("web", &[GATEWAY], ("web", "other"), false);
        // A sidecar, or a gateway with a selector only.
        check("web", &[GATEWAY], ("web", ""), false);
        // Not even from the root namespace.
        check("istio-system", &[GATEWAY], ("web", "edge"), false);
        check("web", &[GATEWAY], ("shop", "edge"), false);
        // One of several is enough.
        let other = ("gateway.networking.k8s.io", "Gateway", "other");
        check("web", &[other, GATEWAY], ("web", "edge"), true);
        for elsewhere in [
            ("networking.istio.io", "Gateway", "edge"),
            ("gateway.networking.k8s.io", "GatewayClass", "edge"),
            ("", "Service", "edge"),
            ("networking.istio.io", "ServiceEntry", "edge"),
        ] {
            check("web", &[elsewhere], ("web", "edge"), false);
        }
        check("web", &[], ("web", "edge"), true);
        check("web", &[], ("web", ""), true);
    }
}
