//! The name table that the control plane sends for DNS: Istio's `istio.networking.nds.v1`
//! (`pkg/dns/proto/nds.proto`), which `envoy-types` does not have.
//!
//! The map is a `BTreeMap`, so that equal tables are equal bytes.

use std::collections::BTreeMap;

/// The type that this table is asked for as, over ADS.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// Host names and what they resolve to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameTable {
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// One host name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// `Kubernetes` or `External`: only the former has short names.
    #[prost(string, tag = "2")]
    pub registry: String,
    #[prost(string, tag = "3")]
    pub shortname: String,
    #[prost(string, tag = "4")]
    pub namespace: String,
}

/// The registry of Kubernetes Services, as Istio names it.
pub const KUBERNETES: &str = "Kubernetes";
/// The registry of ServiceEntries, as Istio names it.
pub const EXTERNAL: &str = "External";
