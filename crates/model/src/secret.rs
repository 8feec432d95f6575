//! Certificates and keys that gateways serve with, as Secrets hold them.
//!
//! Which entry of a Secret is what is Istio's rule (`pilot/pkg/credentials/kube`): `tls.crt`,
//! `tls.key` and `ca.crt`, or `cert`, `key` and `cacert`; the authority for clients may stand in a
//! Secret of its own, whose name ends in `-cacert`.

use std::fmt;
use std::sync::Arc;

use lateen_api::secret::{
    AUTHORITY_KEYS, CERTIFICATE_KEYS, PRIVATE_KEY_KEYS, REVOCATION_KEYS, Secret as Spec,
};

use crate::rules::Origin;

/// What a gateway can use of a Secret. Everything is PEM and was checked.
#[derive(Clone)]
pub struct Secret {
    pub origin: Origin,
    pub pair: Option<CertificatePair>,
    /// Authorities that clients' certificates are verified with.
    pub authorities: Option<Vec<u8>>,
    pub revocations: Option<Vec<u8>>,
    /// What it was read from.
    spec: Arc<Spec>,
}

/// Equal to who serves with it.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin
            && self.pair == other.pair
            && self.authorities == other.authorities
            && self.revocations == other.revocations
    }
}

/// A certificate chain and its key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CertificatePair {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// Says which Secret it is and nothing of what it holds.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("namespace", &self.origin.namespace)
            .field("name", &self.origin.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CertificatePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificatePair")
    }
}

impl Secret {
    /// Takes what is usable; a pair that does not fit is none.
    pub fn read(origin: Origin, spec: Arc<Spec>) -> Secret {
        use lateen_api::certificate;
        let pairs = CERTIFICATE_KEYS.into_iter().zip(PRIVATE_KEY_KEYS);
        let mut pairs = pairs.filter_map(|(chain, key)| {
            let (chain, key) = (spec.entry(chain)?, spec.entry(key)?);
            certificate::check_pair(&chain, &key).ok()?;
            Some(CertificatePair { chain, key })
        });
        let usable = |names, check: fn(&[u8]) -> Result<(), &'static str>| {
            let (_, content) = spec.first_of(names)?;
            check(&content).ok()?;
            Some(content)
        };
        Secret {
            pair: pairs.next(),
            authorities: usable(AUTHORITY_KEYS, certificate::check_authorities),
            revocations: usable(REVOCATION_KEYS, certificate::check_revocations),
            origin,
            spec,
        }
    }

    /// Whether it was read from this very object.
    pub fn is_of(&self, origin: &Origin, spec: &Arc<Spec>) -> bool {
        Arc::ptr_eq(&self.spec, spec) && self.origin == *origin
    }
}
