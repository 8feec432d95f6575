//! Real sockets, echo servers, a runner for stock Envoy and expectation helpers for tests.
//!
//! What stands here stops the test at anything that is not as expected: it is never a normal
//! dependency.

#![allow(
    clippy::expect_used,
    reason = "a test stops at what is not as expected"
)]

pub mod certificates;
pub mod child;
pub mod connect_proxy;
pub mod echo;
pub mod envoy;
pub mod http;
#[cfg(target_os = "linux")]
pub mod netns;
pub mod ports;
pub mod recorder;
pub mod signing;
pub mod tls_client;
pub mod tokens;
pub mod tools;

use std::time::{Duration, Instant};

/// Long enough for anything on a slow and busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Repeats `attempt` until it succeeds. Panics with its last error after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let error = match attempt().await {
            Ok(value) => return value,
            Err(error) => error,
        };
        assert!(
            started.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}: {error}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits like [`eventually`], until `attempt` succeeds many times in a row: each worker of a proxy
/// takes a change on its own, and which worker gets a connection is chance.
pub async fn settles(what: &str, mut attempt: impl AsyncFnMut() -> Result<(), String>) {
    eventually(what, async || {
        for _ in 0..16 {
            attempt().await?;
        }
        Ok(())
    })
    .await;
}
