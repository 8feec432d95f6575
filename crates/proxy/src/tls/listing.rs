//! What is in the contexts, for `/certs`.

use super::certificate::Description;
use super::context::{Secrets, identities, trusted};
use lateen_proxy_config::CommonTls;

/// The certificates of one context.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Those that are trusted.
    pub(crate) authorities: Vec<Description>,
    /// Those that are shown to peers.
    pub(crate) own: Vec<Description>,
}

/// What cannot be read is left out, as whatever waits for a secret.
pub(super) fn of(tls: &CommonTls, secrets: &Secrets) -> Listing {
    let own = identities(tls, secrets).unwrap_or_default();
    let own = own
        .iter()
        .filter_map(|identity| Description::of(identity.cert.first()?));
    let trusted = trusted(tls, secrets).ok().flatten().unwrap_or_default();
    let authorities = trusted
        .certificates
        .iter()
        .filter_map(|c| Description::of(c));
    Listing {
        own: own.collect(),
        authorities: authorities.collect(),
    }
}
