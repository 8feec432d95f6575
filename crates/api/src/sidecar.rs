//! `Sidecar`: what the proxies of some workloads accept and what they can reach.
//!
//! Field meaning: Istio's reference, networking/sidecar.

use crate::destination_rule::ConnectionPoolSettings;
use crate::gateway::ServerTlsSettings;
use crate::schema::{choice, message};
use crate::service_entry::WorkloadSelector;
use crate::virtual_service::Destination;

message! {
    pub struct Sidecar {
        /// Without it the rule is for the whole namespace, in the root namespace for the mesh.
        effective workload_selector "workloadSelector": Option<WorkloadSelector>,
        effective ingress: Vec<IstioIngressListener>,
        effective egress: Vec<IstioEgressListener>,
        effective inbound_connection_pool "inboundConnectionPool": Option<ConnectionPoolSettings>,
        effective outbound_traffic_policy "outboundTrafficPolicy": Option<OutboundTrafficPolicy>,
    }
}

message! {
    pub struct IstioIngressListener {
        effective port: Option<SidecarPort>,
        /// Address, or `unix://` and a path.
        effective bind: String,
        effective capture_mode "captureMode": Option<CaptureMode>,
        /// `127.0.0.1:PORT`, `0.0.0.0:PORT` (the workload's own address) or `unix:///path`; default
        /// `127.0.0.1` and the port.
        effective default_endpoint "defaultEndpoint": String,
        /// Ends TLS of clients outside the mesh, on a port that takes no mutual TLS.
        effective tls: Option<ServerTlsSettings>,
        effective connection_pool "connectionPool": Option<ConnectionPoolSettings>,
    }
}

message! {
    pub struct IstioEgressListener {
        /// Without it the listener is for all ports of its hosts.
        effective port: Option<SidecarPort>,
        effective bind: String,
        effective capture_mode "captureMode": Option<CaptureMode>,
        /// `namespace/dnsName`; `.`, `*` and `~` for the namespace.
        effective hosts: Vec<String>,
    }
}

message! {
    pub struct SidecarPort {
        effective number: u32,
        effective protocol: String,
        effective name: String,
        pending target_port "targetPort": Option<u32> => "use defaultEndpoint",
    }
}

choice! {
    pub enum CaptureMode {
        #[default]
        effective Default = "DEFAULT",
        effective Iptables = "IPTABLES",
        effective None = "NONE",
    }
}

message! {
    pub struct OutboundTrafficPolicy {
        effective mode: Option<OutboundTrafficMode>,
        /// Where traffic for unknown hosts goes instead of its destination.
        effective egress_proxy "egressProxy": Option<Destination>,
    }
}

choice! {
    /// What happens to traffic for hosts that nobody registered.
    pub enum OutboundTrafficMode {
        effective RegistryOnly = "REGISTRY_ONLY",
        #[default]
        effective AllowAny = "ALLOW_ANY",
        effective AllowAnyDynamicDns = "ALLOW_ANY_DYNAMIC_DNS",
    }
}
