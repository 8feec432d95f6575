//! Programs that are not ours against a control plane in this process: stock Envoy as gateway and
//! as sidecar, grpcio as a proxyless client, kubectl.
//!
//! A counterpart that is not installed is skipped loudly; `cargo xtask test` installs them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod envoy_changes;
mod envoy_gateway;
mod envoy_requests;
mod envoy_sidecar;
mod grpc;
mod kubectl;
mod mesh;
