//! Key sets that the data plane fetches itself (`remote_jwks`).

use super::failure::JwtFailure;
use super::{KeySet, Token};
use std::sync::Arc;
use std::time::Duration;

/// Where the keys of a provider are.
#[derive(Clone, Debug)]
pub enum Keys {
    /// In the configuration.
    Given(KeySet),
    /// At a server; what was fetched belongs to the data plane.
    Fetched(Arc<RemoteKeys>),
}

/// What a fetch needs. Equal ones have the same keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteKeys {
    /// Over whose connections.
    pub cluster: Box<str>,
    /// As the request's `:authority` has it.
    pub authority: Box<str>,
    /// Path and query.
    pub path: Box<str>,
    /// Of one fetch.
    pub timeout: Duration,
    /// How long what was fetched counts.
    pub cache: Duration,
}

impl Keys {
    /// Checks a token's signature; `fetched` is what there is of a set that is not in the
    /// configuration.
    pub fn verify(&self, token: &Token<'_>, fetched: Option<&KeySet>) -> Result<(), JwtFailure> {
        match self {
            Keys::Given(set) => set.verify(token),
            Keys::Fetched(_) => fetched.ok_or(JwtFailure::NotFetched)?.verify(token),
        }
    }
}
