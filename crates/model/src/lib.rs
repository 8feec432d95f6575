//! Registry (services, workloads, endpoints) and the immutable [`MeshSnapshot`] with its indexes.
//!
//! Objects come in, a value comes out: no I/O, no clock, nothing of xDS. Visibility and selection
//! are answered here, so that translation asks questions and never scans objects.

mod attachment;
mod authorization;
mod auto_allocate;
mod delegate;
mod host_index;
pub mod hostname;
mod peer_authentication;
mod protocol;
mod proxy;
mod registry;
mod request_authentication;
mod roles;
mod rules;
mod secret;
pub mod servers;
mod service;
mod settings;
mod sidecar;
mod slices;
mod snapshot;
mod visibility;

pub use authorization::AuthorizationPolicy;
pub use host_index::HostIndex;
pub use peer_authentication::{
    MtlsMode, NamespaceMtls, PeerAuthentication, WorkloadMtls, takes_mtls,
};
pub use protocol::Protocol;
pub use proxy::{Generator, Interception, NodeError, Proxy, ProxyKind};
pub use request_authentication::{
    KeyServer, KeySet, KeySets, KeySource, KeysFetchedBy, RequestAuthentication,
};
pub use roles::RoleBinding;
pub use rules::{
    DestinationRule, DestinationRules, Gateway, MESH_GATEWAY, Origin, ServerHost, VirtualService,
    resolve_gateway,
};
pub use secret::{CertificatePair, Secret};
pub use service::{
    DnsTarget, Endpoint, Locality, Location, Resolution, Service, ServiceEndpoints, ServicePort,
    Source, TargetPort, Workload, WorkloadKind, labels_match,
};
pub use settings::{
    Compliance, DEFAULT_ACCESS_LOG_FORMAT, GatewayTopology, LogEncoding, MeshSettings,
    OutboundPolicy, TlsSettings, default_access_log_json,
};
pub use sidecar::{Egress, Import, ImportOf, Scope, Sidecar};
pub use snapshot::{Changes, Identity, MeshSnapshot, NamespacedName, ObjectChange};
pub use visibility::Visibility;
