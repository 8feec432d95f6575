//! What compiles, what is reported, what is rejected: one table per message, in JSON.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod cluster;
mod listener;
mod route;

use envoy_types::pb::envoy::config as pb;
use lateen_proto::Descriptors;
use lateen_proxy_config::compile::{
    compile_cluster, compile_endpoints, compile_listener, compile_routes,
};
use lateen_proxy_config::{Cluster, Compiled, ConfigError, Listener};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};
use std::sync::LazyLock;

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";

fn bytes(type_name: &str, json: &Value) -> Vec<u8> {
    static DESCRIPTORS: LazyLock<Descriptors> =
        LazyLock::new(|| Descriptors::load().unwrap_or_else(|e| panic!("{e}")));
    DESCRIPTORS
        .json_to_message(type_name, json)
        .unwrap_or_else(|e| panic!("{json}: {e}"))
}

fn compiled_listener(json: &Value) -> Result<Compiled<Listener>, ConfigError> {
    compile_listener(&bytes(LISTENER, json))
}

fn compiled_cluster(json: &Value) -> Result<Compiled<Cluster>, ConfigError> {
    compile_cluster(&bytes(CLUSTER, json))
}

/// `base` with the fields of `extra` put over it, recursively; `null` removes.
fn with(mut base: Value, extra: Value) -> Value {
    match (&mut base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            for (key, value) in extra {
                let slot = base.entry(key.clone()).or_insert(Value::Null);
                *slot = with(slot.take(), value);
                if slot.is_null() {
                    base.remove(&key);
                }
            }
        }
        (base, extra) => *base = extra,
    }
    base
}

/// Whether `error` has this path and says this.
fn expect_error<T>(result: Result<Compiled<T>, ConfigError>, path: &str, reason: &str) {
    match result {
        Ok(_) => panic!("accepted; expected {path}: {reason}"),
        Err(e) => {
            assert_eq!(e.path, path, "{e}");
            assert!(e.reason.contains(reason), "{e}\ndoes not say: {reason}");
        }
    }
}

/// The notices of a result, as `path: what`.
fn notices<T>(result: Result<Compiled<T>, ConfigError>) -> Vec<String> {
    let compiled = result.unwrap_or_else(|e| panic!("{e}"));
    compiled
        .unsupported
        .into_iter()
        .map(|n| format!("{}: {}", n.path, n.what))
        .collect()
}

/// Every compile function, on bytes of any kind.
fn compile_all(bytes: &[u8]) {
    let _ = compile_listener(bytes);
    let _ = compile_cluster(bytes);
    let _ = compile_routes(bytes);
    let _ = compile_endpoints(bytes);
}

proptest! {
    #[test]
    fn any_bytes_are_compiled_or_refused(bytes: Vec<u8>) {
        compile_all(&bytes);
    }

    #[test]
    fn damaged_messages_are_compiled_or_refused(at: proptest::sample::Index, byte: u8, cut: proptest::sample::Index) {
        let filter = pb::listener::v3::Filter::default();
        let chain = pb::listener::v3::FilterChain { filters: vec![filter], ..Default::default() };
        let message = pb::listener::v3::Listener { name: "l".into(), filter_chains: vec![chain], ..Default::default() };
        for mut bytes in [message.encode_to_vec(), bytes(CLUSTER, &cluster::eds_cluster()), bytes(ROUTES, &route::route_table(json!({})))] {
            let index = at.index(bytes.len());
            bytes[index] = byte;
            compile_all(&bytes);
            compile_all(&bytes[..cut.index(bytes.len())]);
        }
    }
}
