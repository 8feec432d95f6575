//! Clusters of a sidecar whose traffic is redirected: the application is where connections were
//! going.

use lateen_model::{MeshSettings, Protocol};

use super::INBOUND_SOURCE;
use crate::cluster_policy;
use crate::clusters;
use crate::envoy::{cluster, core};
use crate::names;
use crate::sidecar::InboundTarget;

/// The application's port: at the address the connection came to.
pub fn inbound(to: &InboundTarget, protocol: Protocol, mesh: &MeshSettings) -> cluster::Cluster {
    let mut made = clusters::inbound(to.port, to, protocol, mesh);
    cluster_policy::original_destination(&mut made);
    from_the_proxy(&mut made);
    made
}

/// Ports of the application that no service leads to.
pub fn inbound_passthrough(mesh: &MeshSettings) -> cluster::Cluster {
    let mut made = clusters::passthrough(mesh);
    made.name = names::INBOUND_PASSTHROUGH_CLUSTER.to_string();
    from_the_proxy(&mut made);
    made
}

/// The packet filter must not send connections to the application back to the proxy.
fn from_the_proxy(made: &mut cluster::Cluster) {
    made.upstream_bind_config = Some(core::BindConfig {
        source_address: Some(core::SocketAddress {
            address: INBOUND_SOURCE.to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(0)),
            ..Default::default()
        }),
        ..Default::default()
    });
}
