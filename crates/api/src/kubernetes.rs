//! The Kubernetes kinds that the mesh reads: `Service`, `Namespace` and `ConfigMap`.
//!
//! A Service comes with everything a cluster puts in it; what only concerns a cluster's own
//! networking (node ports, load balancer addresses) is kept and means nothing here.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::field::IntOrString;
use crate::schema::{choice, message};

message! {
    /// The `spec` of a Service.
    pub struct Service {
        effective ports: Vec<ServicePort>,
        effective selector: BTreeMap<String, String>,
        /// `None` makes a headless service.
        effective cluster_ip "clusterIP": String,
        effective cluster_ips "clusterIPs": Vec<String>,
        effective service_type "type": Option<ServiceType>,
        pending external_ips "externalIPs": Vec<String>,
        pending session_affinity "sessionAffinity": Option<SessionAffinity>,
        pending session_affinity_config "sessionAffinityConfig": Json,
        effective load_balancer_ip "loadBalancerIP": String,
        effective load_balancer_source_ranges "loadBalancerSourceRanges": Vec<String>,
        effective load_balancer_class "loadBalancerClass": String,
        effective allocate_load_balancer_node_ports "allocateLoadBalancerNodePorts": Option<bool>,
        /// For type ExternalName: the host that the Service is another name of.
        effective external_name "externalName": String,
        pending external_traffic_policy "externalTrafficPolicy": Option<TrafficPolicy>,
        pending internal_traffic_policy "internalTrafficPolicy": Option<TrafficPolicy>,
        effective health_check_node_port "healthCheckNodePort": Option<i32>,
        effective publish_not_ready_addresses "publishNotReadyAddresses": Option<bool>,
        effective ip_families "ipFamilies": Vec<String>,
        effective ip_family_policy "ipFamilyPolicy": String,
        pending traffic_distribution "trafficDistribution": String,
    }
}

message! {
    pub struct ServicePort {
        /// A prefix before `-` names the protocol unless `appProtocol` does.
        effective name: String,
        effective protocol: Option<TransportProtocol>,
        effective app_protocol "appProtocol": String,
        effective port: u32,
        /// Default `port`; a name means a port of the workload.
        effective target_port "targetPort": Option<IntOrString>,
        effective node_port "nodePort": Option<u32>,
    }
}

choice! {
    pub enum ServiceType {
        #[default]
        effective ClusterIp = "ClusterIP",
        effective NodePort = "NodePort",
        effective LoadBalancer = "LoadBalancer",
        effective ExternalName = "ExternalName",
    }
}

choice! {
    pub enum SessionAffinity {
        #[default]
        effective None = "None",
        effective ClientIp = "ClientIP",
    }
}

choice! {
    pub enum TrafficPolicy {
        #[default]
        effective Cluster = "Cluster",
        effective Local = "Local",
    }
}

choice! {
    pub enum TransportProtocol {
        #[default]
        effective Tcp = "TCP",
        effective Udp = "UDP",
        effective Sctp = "SCTP",
    }
}

message! {
    /// The `spec` of a Namespace. What the mesh reads are the namespace's labels.
    pub struct Namespace {
        effective finalizers: Vec<String>,
    }
}

message! {
    /// The mesh reads `data.mesh` of the one called `istio` in the root namespace: a MeshConfig.
    pub struct ConfigMap {
        effective data: BTreeMap<String, String>,
        effective binary_data "binaryData": BTreeMap<String, String>,
        effective immutable: Option<bool>,
    }
}
