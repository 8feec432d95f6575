//! Envoy's messages to the runtime types. One file per message; each function takes a message apart
//! completely, so that a field this proxy has not placed does not compile; a function here is as long as
//! its message is wide.

#![allow(
    deprecated,
    reason = "control planes still send fields that Envoy calls deprecated"
)]

mod access_log;
mod by_name;
mod cluster;
mod dns;
mod endpoint;
mod ext_authz;
mod fault_and_cors;
mod filter_chain;
mod filters;
mod hash_policy;
mod hcm;
mod headers;
mod http_options;
mod jwt_authn;
mod lb;
mod listener;
mod listener_filters;
mod mirror;
mod outlier;
mod rbac;
mod request_alpn;
mod retry;
mod route;
mod route_action;
mod route_match;
mod route_table;
mod scope;
mod secret;
mod secret_source;
mod strings;
mod tls;
mod transport;
mod upstream_http;
pub(crate) mod uri_template;
mod values;
mod zones;

pub(crate) use route_table::Around;

use crate::route::{RouteTable, VirtualHost};
use crate::{Cluster, Compiled, ConfigError, EndpointSet, Listener, Notice, Secret};
use envoy_types::pb::envoy::config as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
use prost::Message;
use scope::At;
use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

/// Compiles the bytes of an `envoy.config.listener.v3.Listener`.
pub fn compile_listener(bytes: &[u8]) -> Result<Compiled<Listener>, ConfigError> {
    compile::<pb::listener::v3::Listener, _>(bytes, listener::listener)
}

/// Compiles the bytes of an `envoy.config.cluster.v3.Cluster`.
pub fn compile_cluster(bytes: &[u8]) -> Result<Compiled<Cluster>, ConfigError> {
    compile::<pb::cluster::v3::Cluster, _>(bytes, cluster::cluster)
}

/// Compiles the bytes of an `envoy.config.route.v3.RouteConfiguration`.
pub fn compile_routes(bytes: &[u8]) -> Result<Compiled<RouteTable>, ConfigError> {
    compile::<pb::route::v3::RouteConfiguration, _>(bytes, route_table::route_table)
}

/// Compiles the bytes of an `envoy.config.route.v3.VirtualHost` that comes by itself, for `table`.
pub fn compile_virtual_host(
    bytes: &[u8],
    table: &RouteTable,
) -> Result<Compiled<VirtualHost>, ConfigError> {
    compile::<pb::route::v3::VirtualHost, _>(bytes, |message, at| {
        route_table::discovered_host(message, table, at)
    })
}

/// Compiles the bytes of an `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub fn compile_endpoints(bytes: &[u8]) -> Result<Compiled<EndpointSet>, ConfigError> {
    compile::<pb::endpoint::v3::ClusterLoadAssignment, _>(bytes, |message, at| {
        values::non_empty(message.cluster_name.clone(), at.field("cluster_name"))?;
        endpoint::endpoint_set(message, at)
    })
}

/// Compiles the bytes of an `envoy.extensions.transport_sockets.tls.v3.Secret`.
pub fn compile_secret(bytes: &[u8]) -> Result<Compiled<Secret>, ConfigError> {
    compile::<tls_v3::Secret, _>(bytes, secret::secret)
}

fn compile<M: Message + Default, T>(
    bytes: &[u8],
    convert: impl FnOnce(M, At<'_>) -> Result<T, ConfigError>,
) -> Result<Compiled<T>, ConfigError> {
    let notices = RefCell::new(Vec::new());
    let at = At::root(&notices);
    let value = convert(values::decode(bytes, at)?, at)?;
    Ok(Compiled {
        value: Arc::new(value),
        unsupported: once(notices.into_inner()),
    })
}

/// The same notice for many routes or endpoints says nothing new: the first place stands for all.
fn once(mut notices: Vec<Notice>) -> Vec<Notice> {
    let mut seen = HashSet::new();
    notices.retain(|Notice { path, what }| {
        let without_indexes: String = path.chars().filter(|c| !c.is_ascii_digit()).collect();
        seen.insert((without_indexes, what.clone()))
    });
    notices
}
