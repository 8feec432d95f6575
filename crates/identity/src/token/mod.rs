//! Tokens that a workload shows to prove its service account: JSON Web Tokens as Kubernetes
//! projects them into pods, checked here, and issued here where there is no Kubernetes.
//!
//! A token is bound to an audience (`istio-ca`), so that one made for another service is worth
//! nothing here, and to a time. The algorithm is that of the key, never what a token says of
//! itself.

mod issue;
mod keys;
mod verify;

pub use issue::{Token, TokenIssuer};
pub use keys::{KeyError, TrustedIssuer};
pub use verify::{Proof, Subject, TokenError, TokenVerifier};

/// The audience of tokens for the control plane, as in Istio.
pub const CA_AUDIENCE: &str = "istio-ca";

/// `sub` of the token of a service account.
const SUBJECT_PREFIX: &str = "system:serviceaccount:";
