//! What policies are attached to by name, and is not there.

use lateen_api::target_reference::{GATEWAY_NAME, PolicyTargetReference, Target};
use lateen_model::MeshSnapshot;

use crate::{Finding, Subject, not_found};

/// Gateways that a policy is for and that no workload is an instance of. (What the other kinds come
/// to, the policy says about itself when it is validated.)
pub fn findings(
    snapshot: &MeshSnapshot,
    subject: &Subject,
    one: &Option<PolicyTargetReference>,
    several: &[PolicyTargetReference],
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, target) in PolicyTargetReference::of(one, several).iter().enumerate() {
        if target.target() != Some(Target::Gateway) {
            continue;
        }
        let there = snapshot.workloads().any(|workload| {
            workload.namespace == subject.namespace
                && workload.labels.get(GATEWAY_NAME) == Some(&target.name)
        });
        if !there {
            let path = match several.is_empty() {
                true => "spec.targetRef.name".to_string(),
                false => format!("spec.targetRefs[{index}].name"),
            };
            let namespace = &subject.namespace;
            let what = format!(
                "gateway (a workload of namespace {namespace} with the label {GATEWAY_NAME}; \
                 without one the policy guards nothing)"
            );
            found.push(not_found(subject, &what, &target.name, path));
        }
    }
    found
}
