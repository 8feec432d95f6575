//! Kubernetes' `EndpointSlice` and `Endpoints`: where a Service leads that selects no pods, or beside
//! those it selects.

use serde_json::Value as Json;

use crate::kubernetes::TransportProtocol;
use crate::schema::{choice, message};

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The label that says who writes a slice, and the value of who makes them of a selector.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const SELECTOR_CONTROLLER: &str = "endpointslice-controller.k8s.io";

message! {
    /// The content of an EndpointSlice; it stands beside `metadata`.
    pub struct EndpointSlice {
        effective address_type "addressType": Option<AddressType>,
        effective endpoints: Vec<SliceEndpoint>,
        effective ports: Vec<EndpointPort>,
    }
}

choice! {
    pub enum AddressType {
        #[default]
        effective Ipv4 = "IPv4",
        effective Ipv6 = "IPv6",
        /// Names; Istio leaves such slices out, too.
        pending Fqdn = "FQDN",
    }
}

message! {
    pub struct SliceEndpoint {
        effective addresses: Vec<String>,
        effective conditions: Option<EndpointConditions>,
        /// Its name under a headless Service.
        effective hostname: String,
        effective target_ref "targetRef": Json,
        pending deprecated_topology "deprecatedTopology": Json,
        effective node_name "nodeName": String,
        effective zone: String,
        pending hints: Json,
    }
}

message! {
    pub struct EndpointConditions {
        /// Unless it is false, the endpoint gets traffic.
        effective ready: Option<bool>,
        /// Without a meaning of its own: what is not ready gets no traffic (as in Istio).
        effective serving: Option<bool>,
        effective terminating: Option<bool>,
    }
}

message! {
    /// A port under the name that the Service's port has.
    pub struct EndpointPort {
        effective name: String,
        effective protocol: Option<TransportProtocol>,
        effective port: Option<u32>,
        effective app_protocol "appProtocol": String,
    }
}

message! {
    /// The content of an Endpoints, which has the name of its Service; it stands beside `metadata`.
    pub struct Endpoints {
        effective subsets: Vec<EndpointSubset>,
    }
}

message! {
    pub struct EndpointSubset {
        effective addresses: Vec<EndpointAddress>,
        effective not_ready_addresses "notReadyAddresses": Vec<EndpointAddress>,
        effective ports: Vec<EndpointPort>,
    }
}

message! {
    pub struct EndpointAddress {
        effective ip: String,
        effective hostname: String,
        effective node_name "nodeName": String,
        effective target_ref "targetRef": Json,
    }
}
