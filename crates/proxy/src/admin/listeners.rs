//! `/listeners`: the names and bound addresses.

use super::json;
use super::query::Query;
use crate::main_thread::ProxyState;
use axum::response::{IntoResponse, Response};
use lateen_proxy_config::Address;
use serde_json::{Value, json};
use std::fmt::Write;
use std::net::SocketAddr;

pub(super) fn show(proxy: &ProxyState, query: &Query) -> Response {
    let listeners = proxy.workers.listeners();
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = listeners
            .iter()
            .map(|l| {
                let mut addresses = l.addresses.iter().map(any_address);
                let mut status = json!({ "name": &*l.listener });
                if let Some(first) = addresses.next() {
                    status["local_address"] = first;
                }
                let more: Vec<Value> = addresses.collect();
                if !more.is_empty() {
                    status["additional_local_addresses"] = more.into();
                }
                status
            })
            .collect();
        return json(&json!({ "listener_statuses": statuses }));
    }
    let mut out = String::new();
    for listener in &listeners {
        for address in &listener.addresses {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{}::{address}", listener.listener);
        }
    }
    out.into_response()
}

/// The same of a TCP or a Unix domain socket.
fn any_address(of: &Address) -> Value {
    match of {
        Address::Socket(of) => address(*of),
        Address::Pipe(path) => json!({ "pipe": { "path": path } }),
    }
}

/// An address as Envoy's `core.v3.Address`.
pub(super) fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
