//! Kubernetes' roles and who has them (`rbac.authorization.k8s.io/v1`). The mesh reads what they say
//! of Secrets: which service accounts' gateways may have them.
//!
//! There is nobody here who has to be kept from anything else, so the rest is kept and means nothing.

use serde_json::Value as Json;

use crate::schema::{choice, message};

/// The group of roles, which references to them name, too.
pub const GROUP: &str = "rbac.authorization.k8s.io";

message! {
    /// The content of a Role; it stands beside `metadata`.
    pub struct Role {
        effective rules: Vec<PolicyRule>,
    }
}

message! {
    /// The content of a ClusterRole; it stands beside `metadata`.
    pub struct ClusterRole {
        effective rules: Vec<PolicyRule>,
        /// Refused: nobody here fills in the rules of such a role.
        effective aggregation_rule "aggregationRule": Json,
    }
}

message! {
    /// What a role allows.
    pub struct PolicyRule {
        /// Empty text is Kubernetes' core group; `*` is every group.
        effective api_groups "apiGroups": Vec<String>,
        effective resources: Vec<String>,
        /// Empty is every object.
        effective resource_names "resourceNames": Vec<String>,
        effective verbs: Vec<String>,
        effective non_resource_urls "nonResourceURLs": Vec<String>,
    }
}

message! {
    /// The content of a RoleBinding; it stands beside `metadata`.
    pub struct RoleBinding {
        effective role_ref "roleRef": Option<RoleRef>,
        effective subjects: Vec<Subject>,
    }
}

message! {
    /// The content of a ClusterRoleBinding; it stands beside `metadata`.
    pub struct ClusterRoleBinding {
        effective role_ref "roleRef": Option<RoleRef>,
        effective subjects: Vec<Subject>,
    }
}

message! {
    /// The role of a binding.
    pub struct RoleRef {
        effective api_group "apiGroup": String,
        effective kind: Option<RoleKind>,
        effective name: String,
    }
}

choice! {
    pub enum RoleKind {
        /// Of the binding's namespace.
        #[default]
        effective Role = "Role",
        effective ClusterRole = "ClusterRole",
    }
}

message! {
    /// Somebody who has a role.
    pub struct Subject {
        effective api_group "apiGroup": String,
        effective kind: Option<SubjectKind>,
        effective name: String,
        /// Of a ServiceAccount; default the binding's.
        effective namespace: String,
    }
}

choice! {
    pub enum SubjectKind {
        #[default]
        effective ServiceAccount = "ServiceAccount",
        effective User = "User",
        effective Group = "Group",
    }
}
