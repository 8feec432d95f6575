//! `WorkloadEntry`: one workload that is not a pod. Also the form of a ServiceEntry's endpoints.
//!
//! Field meaning: Istio's reference, networking/workload-entry.

use std::collections::BTreeMap;

use crate::schema::message;

message! {
    pub struct WorkloadEntry {
        /// IP address, DNS name (in a ServiceEntry with resolution DNS) or `unix:///path`.
        effective address: String,
        /// Name of a service port to the number the workload listens on.
        effective ports: BTreeMap<String, u32>,
        effective labels: BTreeMap<String, String>,
        effective network: String,
        /// `region/zone/subzone`.
        effective locality: String,
        effective weight: Option<u32>,
        effective service_account "serviceAccount": String,
    }
}
