//! Why the control plane does not start, or stopped.

use std::io;
use std::net::SocketAddr;

use lateen_identity::CaError;
use lateen_store::StoreError;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ControlError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "cannot listen on {address} for {purpose}: {source}; stop what uses the port, or choose \
         another one with {flag}"
    )]
    Listen {
        purpose: &'static str,
        address: SocketAddr,
        flag: &'static str,
        source: io::Error,
    },
    #[error("the authority of the mesh cannot be used: {0}")]
    Authority(CaError),
    #[error("{task} ended unexpectedly: {reason}")]
    Task { task: &'static str, reason: String },
}
