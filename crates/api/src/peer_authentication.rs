//! `PeerAuthentication`: whether workloads take connections with mutual TLS, without, or both.
//!
//! Field meaning: Istio's reference, security/peer_authentication.

use std::collections::BTreeMap;

use crate::destination_rule::WorkloadSelector;
use crate::schema::{choice, message};

message! {
    pub struct PeerAuthentication {
        /// Without it the rule is for the whole namespace, in the root namespace for the mesh.
        effective selector: Option<WorkloadSelector>,
        effective mtls: Option<MutualTls>,
        /// By port of the workload (not of the service).
        effective port_level_mtls "portLevelMtls": BTreeMap<String, MutualTls>,
    }
}

message! {
    pub struct MutualTls {
        effective mode: Option<MutualTlsMode>,
    }
}

choice! {
    pub enum MutualTlsMode {
        /// As the rule above says: that of the namespace, of the mesh, else `PERMISSIVE`.
        #[default]
        effective Unset = "UNSET",
        effective Disable = "DISABLE",
        effective Permissive = "PERMISSIVE",
        effective Strict = "STRICT",
    }
}

impl PeerAuthentication {
    /// Whether the rule is for a whole namespace (or, in the root namespace, the mesh).
    pub fn is_default(&self) -> bool {
        self.selector
            .as_ref()
            .is_none_or(|selector| selector.match_labels.is_empty())
    }
}
