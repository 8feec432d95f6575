//! `ServiceEntry`: a service that the platform's registry does not know.
//!
//! Field meaning: Istio's reference, networking/service-entry.

use std::collections::BTreeMap;

use crate::schema::{choice, message};
use crate::workload_entry::WorkloadEntry;

message! {
    pub struct ServiceEntry {
        effective hosts: Vec<String>,
        effective addresses: Vec<String>,
        effective ports: Vec<ServicePort>,
        effective location: Option<Location>,
        effective resolution: Option<Resolution>,
        /// Excludes `workloadSelector`.
        effective endpoints: Vec<WorkloadEntry>,
        effective workload_selector "workloadSelector": Option<WorkloadSelector>,
        effective export_to "exportTo": Vec<String>,
        /// Names that its endpoints may prove themselves with.
        effective subject_alt_names "subjectAltNames": Vec<String>,
    }
}

message! {
    pub struct ServicePort {
        effective number: u32,
        /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS ...; empty means detect.
        effective protocol: String,
        effective name: String,
        /// Where endpoints listen; default `number`.
        effective target_port "targetPort": Option<u32>,
    }
}

message! {
    /// Of WorkloadEntries and pods. (DestinationRule's selector says `matchLabels`.)
    pub struct WorkloadSelector {
        effective labels: BTreeMap<String, String>,
    }
}

choice! {
    pub enum Location {
        #[default]
        effective MeshExternal = "MESH_EXTERNAL",
        effective MeshInternal = "MESH_INTERNAL",
    }
}

choice! {
    pub enum Resolution {
        #[default]
        effective None = "NONE",
        effective Static = "STATIC",
        effective Dns = "DNS",
        effective DnsRoundRobin = "DNS_ROUND_ROBIN",
        effective DynamicDns = "DYNAMIC_DNS",
    }
}
