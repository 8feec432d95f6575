//! `/certs`: the certificates of every TLS context, in Envoy's form.

use super::json;
use crate::main_thread::ProxyState;
use crate::tls::Description;
use axum::response::Response;
use lateen_telemetry::format::timestamp;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

pub(super) fn show(proxy: &ProxyState) -> Response {
    let now = SystemTime::now();
    let all = |found: &[Description]| -> Vec<Value> {
        found.iter().map(|about| certificate(about, now)).collect()
    };
    let contexts = proxy.workers.certificates();
    let contexts: Vec<Value> = contexts
        .iter()
        .map(|context| {
            json!({ "ca_cert": all(&context.authorities), "cert_chain": all(&context.own) })
        })
        .collect();
    json(&json!({ "certificates": contexts }))
}

fn certificate(about: &Description, now: SystemTime) -> Value {
    let dns = about.dns.iter().map(|name| json!({ "dns": name }));
    let uris = about.uris.iter().map(|uri| json!({ "uri": uri }));
    let ips = about.ips.iter().map(|ip| json!({ "ip_address": ip }));
    let names: Vec<Value> = dns.chain(uris).chain(ips).collect();
    let left = time(about.not_after)
        .duration_since(now)
        .unwrap_or_default();
    json!({
        "path": "<inline>",
        "serial_number": about.serial,
        "subject_alt_names": names,
        // 64 bits are text in protobuf's JSON.
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": timestamp(time(about.not_before)),
        "expiration_time": timestamp(time(about.not_after)),
    })
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
