//! TLS through real sockets, with curl and openssl on the other side.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod certs;
#[path = "../common/mod.rs"]
mod common;
mod downstream;
mod upstream;

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Command;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// The transport socket of a server.
fn server(common: Value, more: Value) -> Value {
    let context = json!({
        "@type": format!("{TLS}.DownstreamTlsContext"),
        "common_tls_context": common,
    });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": common::merged(context, more),
    })
}

/// The transport socket of a client.
fn client(common: Value, more: Value) -> Value {
    let context = json!({
        "@type": format!("{TLS}.UpstreamTlsContext"),
        "common_tls_context": common,
    });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": common::merged(context, more),
    })
}

fn inline(cert: &certs::Cert) -> Value {
    json!({
        "certificate_chain": { "inline_string": cert.chain },
        "private_key": { "inline_string": cert.key },
    })
}

fn files(cert: &certs::Cert) -> Value {
    json!({
        "certificate_chain": { "filename": cert.chain_path },
        "private_key": { "filename": cert.key_path },
    })
}

/// `curl` for `https://HOST/PATH` at `to`: its output, or its error.
fn curl(to: SocketAddr, url: &str, arguments: &[&str]) -> Result<String, String> {
    let host = url.split('/').nth(2).unwrap();
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--connect-to"])
        .arg(format!("{host}::127.0.0.1:{}", to.port()))
        .args(arguments)
        .arg(url)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
