//! MeshSnapshot and proxy to Envoy v3 resources: pure, incremental, cached.
//!
//! [`Translator`] is the entry. For each resource it collects the inputs into a key and asks a
//! memo ([`cache::Memo`]); only what has new inputs is made and encoded again, and proxies that see
//! the same inputs share the bytes.
//!
//! Invariant: a generator reads nothing but its key. No I/O, no clock.

mod affected;
mod authorization;
mod auto_mtls;
mod by_name;
pub mod cache;
mod capture;
mod cluster_policy;
mod clusters;
mod compliance;
mod connection_manager;
mod destination_policy;
mod endpoints;
mod envoy;
mod filters;
mod gateway;
mod gateway_listeners;
mod grpc;
mod guard;
mod inbound_tls;
mod jwt_authn;
mod l4;
mod listener_wide;
mod listeners;
mod locality;
mod mesh_tls;
mod name_table;
pub mod names;
mod own_endpoints;
mod policy;
mod port_table;
mod route_action;
mod route_match;
mod route_table;
mod secrets;
mod shared_names;
mod sidecar;
mod tls_context;
mod translator;
mod upstream_tls;
mod virtual_hosts;

pub use affected::{Affected, affected};
pub use shared_names::own_names;
pub use translator::{Encoded, Names, Translator, type_url};
