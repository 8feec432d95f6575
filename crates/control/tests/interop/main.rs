//! A control plane in this process, and what connects to it: stock Envoy and our own proxy as
//! gateway and as sidecar, grpcio as a proxyless client, kubectl.
//!
//! Most tests run on both data planes with the same documents, requests and expectations.
//!
//! A counterpart that is not installed is skipped loudly; `cargo xtask test` installs them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

/// Each test on stock Envoy and on our proxy.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod stock_envoy {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(lateen_testkit::envoy::Plane::StockEnvoy).await;
                }
            )*
        }

        mod lateen {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(lateen_testkit::envoy::Plane::Lateen).await;
                }
            )*
        }
    };
}

mod aliases;
mod attached;
mod authorization;
mod authorized_gateway;
mod balancing;
mod bindings;
mod by_name;
mod callers;
#[cfg(target_os = "linux")]
#[macro_use]
mod capture;
#[cfg(target_os = "linux")]
mod capture_destinations;
#[cfg(target_os = "linux")]
mod capture_mtls;
mod changes;
mod claims;
mod client_certificates;
mod conditions;
mod cors;
mod delegates;
mod destination_rules;
mod documents;
mod edges;
mod ends;
mod external_authorizers;
mod faults;
mod fixed;
mod frames;
mod gateway;
mod grpc;
mod grpc_streams;
mod handshakes;
mod identities;
mod kubectl;
#[allow(
    dead_code,
    reason = "what tests of mutual TLS and authorization start from"
)]
mod member;
mod mesh;
mod mesh_gateway;
mod mesh_settings;
mod mirrors;
mod mtls;
mod open_connections;
mod origination;
mod outlier;
mod pods;
mod pools;
mod protocols;
mod remote_keys;
mod requests;
mod retries;
mod revocation;
mod roles;
mod scanned;
mod scope;
mod secrets;
mod secure_gateway;
mod selection;
mod service_entries;
mod sidecar;
mod sidecar_sockets;
mod slices;
mod sniffing;
mod tcp_tunnels;
mod tls_settings;
mod tokens;
mod tunnels;
mod unreadable;
mod upgrades;
mod user_documents;
mod virtual_hosts;
mod wire;
mod zones;
