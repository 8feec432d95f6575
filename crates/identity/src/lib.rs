//! Who a workload is, and how it proves it: SPIFFE identities, the certificate authority that
//! attests them, and the tokens that a workload shows to get its first certificate.
//!
//! ```text
//! token or certificate -> SpiffeId --\
//!                          CSR ------+-> Authority::issue -> chain
//! files, Secret, self-signed -> Ca --/
//! ```
//!
//! Architecture Invariant: no other crate touches a signing key of the authority. The key of a
//! workload is made where the workload's proxy runs; only its public half ever comes here.
//! Nothing here knows gRPC, xDS or Kubernetes objects, and nothing reads the clock: callers say
//! what time it is.

mod authority;
mod ca;
mod certificate;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod key;
mod pieces;
mod request;
mod revocation;
mod self_signed;
mod spiffe;
pub mod token;

pub use authority::{Authority, IssueError, Issued, Lifetimes, ServerCertificate};
pub use ca::{Ca, CaOptions, Origin};
pub use certificate::{CertificateError, identity_of, not_after};
pub use key::{CryptoError, KeyKind};
pub use pieces::{CaError, Pieces};
pub use revocation::Revocations;
pub use self_signed::RootLifetimes;
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
