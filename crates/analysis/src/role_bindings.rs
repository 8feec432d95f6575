//! Bindings of roles that are not there.

use lateen_api::role::RoleKind;
use lateen_model::MeshSnapshot;

use crate::{Finding, Level, Subject, not_found};

pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let dangling = snapshot.dangling_role_bindings();
    dangling
        .map(|binding| {
            let subject = Subject {
                kind: match binding.namespace.as_str() {
                    "" => "ClusterRoleBinding",
                    _ => "RoleBinding",
                },
                namespace: binding.namespace.clone(),
                name: binding.name.clone(),
            };
            let role = binding.role.as_ref();
            let what = match role.and_then(|role| role.kind) {
                Some(RoleKind::ClusterRole) => "ClusterRole",
                _ => "Role",
            };
            let name = role.map_or("", |role| &role.name);
            let found = not_found(&subject, what, name, "roleRef.name".to_string());
            let reach = match binding.namespace.as_str() {
                "" => "gateways of every namespace".to_string(),
                namespace => format!("gateways of the namespace {namespace}"),
            };
            Finding {
                level: Level::Error,
                message: format!(
                    "{}; nobody knows whether it is about Secrets, so {reach} get those only that \
                     other bindings give them",
                    found.message
                ),
                ..found
            }
        })
        .collect()
}
