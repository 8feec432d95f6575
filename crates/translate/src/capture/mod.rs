//! Listeners, routes and clusters of a sidecar whose traffic is redirected to it
//! (`INTERCEPTION_MODE: REDIRECT`).
//!
//! | file | holds |
//! |---|---|
//! | `outbound.rs` | `virtualOutbound`, and a listener per service port that the application may call |
//! | `inbound.rs` | `virtualInbound`, with filter chains for each port of the workload |
//! | `clusters.rs` | clusters of original destinations |
//! | `routes.rs` | the route tables of the outbound HTTP listeners |
//!
//! Names and shapes are Istio's (`pilot/pkg/networking/core/listener.go`, `listener_builder.go`,
//! `listener_inbound.go`): the packet filter leads everything to one of two ports, and the listeners
//! behind them are found by where the connection was going.

pub mod clusters;
pub mod inbound;
pub mod outbound;
pub mod routes;

use crate::envoy::{self, http_inspector, listener, original_dst};

/// Where connections of the application are redirected to.
pub const OUTBOUND_PORT: u32 = 15001;
/// Where connections to the application are redirected to.
pub const INBOUND_PORT: u32 = 15006;
/// Listeners that are not of one address stand here.
pub const WILDCARD: &str = "0.0.0.0";
/// Connections that come in through the proxy have this source towards the application, by which
/// the packet filter knows them.
pub const INBOUND_SOURCE: &str = "127.0.0.6";

/// What the first bytes of plain HTTP are found to be. HTTP/1.0 is not among them: where it is not
/// accepted it passes as TCP, rather than be refused.
const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];
const RAW_BUFFER: &str = "raw_buffer";

/// The match for what turns out to be plain HTTP.
fn plain_http(port: Option<u32>) -> listener::FilterChainMatch {
    listener::FilterChainMatch {
        destination_port: port.and_then(envoy::u32_value),
        transport_protocol: RAW_BUFFER.to_string(),
        application_protocols: PLAIN_HTTP.map(str::to_string).to_vec(),
        ..Default::default()
    }
}

fn original_dst_filter() -> listener::ListenerFilter {
    envoy::listener_filter(
        "envoy.filters.listener.original_dst",
        &original_dst::OriginalDst {},
    )
}

pub fn http_inspector_filter() -> listener::ListenerFilter {
    envoy::listener_filter(
        "envoy.filters.listener.http_inspector",
        &http_inspector::HttpInspector {},
    )
}
