//! Rules of what policies are attached to by name (Istio, `validatePolicyTargetReference`).

use super::Checker;
use crate::destination_rule::WorkloadSelector;
use crate::target_reference::{MOST_TARGETS, PolicyTargetReference, Target};

/// A policy has a selector or targets, not both.
pub fn attachment(
    check: &mut Checker,
    selector: &Option<WorkloadSelector>,
    one: &Option<PolicyTargetReference>,
    several: &[PolicyTargetReference],
) {
    check.at_most_one(&[
        ("selector", selector.is_some()),
        ("targetRef", one.is_some()),
        ("targetRefs", !several.is_empty()),
    ]);
    if several.len() > MOST_TARGETS {
        check.field("targetRefs", |check| {
            check.error_hint(
                format!(
                    "{} targets, at most {MOST_TARGETS} are allowed",
                    several.len()
                ),
                "make several policies of it",
            );
        });
    }
    check.some("targetRef", one, reference);
    check.list("targetRefs", several, reference);
}

fn reference(check: &mut Checker, target: &PolicyTargetReference) {
    if target.name.is_empty() {
        check.missing("name", "the name of the target must be set");
    }
    if !target.namespace.is_empty() {
        check.field("namespace", |check| {
            check.error_hint(
                "a policy is attached to what is in its own namespace",
                "remove the field, and put the policy into the namespace of its target",
            );
        });
    }
    match target.target() {
        Some(Target::Gateway) => {}
        // Whoever writes this believes to be protected.
        Some(Target::GatewayClass | Target::Service | Target::ServiceEntry) => {
            check.warning(format!(
                "this guards nothing: policies attached to a {} count at waypoints only, and there \
                 are none in this version; use selector with the labels of the workloads, or attach \
                 the policy to a Gateway",
                target.kind
            ));
        }
        None => check.field("kind", |check| {
            check.error_hint(
                format!(
                    "a policy cannot be attached to {:?} of group {:?}",
                    target.kind, target.group
                ),
                "use Gateway or GatewayClass of gateway.networking.k8s.io, Service of the core \
                 group (\"\"), or ServiceEntry of networking.istio.io",
            );
        }),
    }
}
