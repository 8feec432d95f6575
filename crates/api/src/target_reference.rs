//! What a policy is attached to by name, in place of a selector (type/v1beta1, `PolicyTargetReference`).

use crate::schema::message;

/// The label by which a workload is an instance of a Gateway of Kubernetes' Gateway API.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// How many a policy may have (Istio's CRDs).
pub const MOST_TARGETS: usize = 16;

message! {
    pub struct PolicyTargetReference {
        effective group: String,
        effective kind: String,
        effective name: String,
        /// Refused: what is attached is of the policy's own namespace.
        effective namespace: String,
    }
}

/// Kinds that policies are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Gateway,
    /// Of these and the kinds below, only waypoints are guarded, and there are none here.
    GatewayClass,
    Service,
    ServiceEntry,
}

impl PolicyTargetReference {
    /// What kind of thing is meant; `None` for one that no policy can be attached to.
    pub fn target(&self) -> Option<Target> {
        match (self.group.as_str(), self.kind.as_str()) {
            ("gateway.networking.k8s.io", "Gateway") => Some(Target::Gateway),
            ("gateway.networking.k8s.io", "GatewayClass") => Some(Target::GatewayClass),
            ("" | "core", "Service") => Some(Target::Service),
            ("networking.istio.io", "ServiceEntry") => Some(Target::ServiceEntry),
            _ => None,
        }
    }

    /// Those of a policy: the list, or else the single one of older documents.
    pub fn of<'a>(
        one: &'a Option<PolicyTargetReference>,
        several: &'a [PolicyTargetReference],
    ) -> &'a [PolicyTargetReference] {
        match several.is_empty() {
            true => one.as_slice(),
            false => several,
        }
    }
}
