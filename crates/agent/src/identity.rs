//! A certificate that the authority gave: read, and checked to be for our key.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::key::Requested;

/// A certificate with its key.
pub struct Identity {
    /// In PEM: the workload's first, then those between it and a root.
    pub chain: String,
    /// PKCS #8 in PEM.
    pub key: Zeroizing<String>,
    /// The URI of the certificate; empty: it has none.
    pub spiffe_id: String,
    /// Hexadecimal, lower case.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// When it came. Its life is counted from here: authorities date certificates back.
    pub received: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// Why an answer of the authority cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("the authority answered without a certificate")]
    Empty,
    #[error("the authority's answer cannot be read: {0}")]
    Unreadable(String),
    #[error("the certificate is for another key than ours")]
    AnotherKey,
    #[error("the certificate is not valid now; are the clocks right?")]
    NotNow,
}

/// An answer taken apart.
pub(crate) struct Answer {
    pub(crate) identity: Identity,
    /// Roots in PEM, in the order they came.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// Takes the authority's answer apart: the workload's certificate first, the root (or several,
    /// while one is replaced) last, as Istio's authority sends it.
    pub(crate) fn from_answer(
        parts: &[String],
        requested: Requested,
        now: SystemTime,
    ) -> Result<Answer, IdentityError> {
        let mut all = Vec::new();
        for part in parts {
            for der in CertificateDer::pem_slice_iter(part.as_bytes()) {
                all.push(der.map_err(|error| IdentityError::Unreadable(error.to_string()))?);
            }
        }
        let mut certificates = all.into_iter();
        let leaf = certificates.next().ok_or(IdentityError::Empty)?;
        // Roots need not be shown to peers: they have them, or do not trust them.
        let (roots, between): (Vec<_>, Vec<_>) = certificates.partition(is_self_issued);
        let (_, parsed) = X509Certificate::from_der(&leaf)
            .map_err(|error| IdentityError::Unreadable(error.to_string()))?;
        if parsed.public_key().raw != requested.public {
            return Err(IdentityError::AnotherKey);
        }
        let (not_before, not_after) = (
            time(parsed.validity().not_before.timestamp()),
            time(parsed.validity().not_after.timestamp()),
        );
        if now < not_before || now >= not_after {
            return Err(IdentityError::NotNow);
        }
        let serial = parsed.raw_serial();
        let chain: String = std::iter::once(&leaf)
            .chain(&between)
            .map(|c| pem(c))
            .collect();
        let identity = Identity {
            chain,
            key: requested.key,
            spiffe_id: uri(&parsed).unwrap_or_default(),
            serial: hex(serial),
            not_before,
            not_after,
            received: now,
        };
        Ok(Answer { identity, roots })
    }

    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn is_self_issued(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, c)| c.subject() == c.issuer())
}

pub(crate) fn uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
}

pub(crate) fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One certificate in PEM.
pub(crate) fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
            let word = byte(0) << 16 | byte(1) << 8 | byte(2);
            for at in 0..4 {
                let digit = DIGITS[(word >> (18 - 6 * at)) as usize & 63];
                text.push(if at <= group.len() {
                    char::from(digit)
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyKind;
    use crate::key::make;
    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};

    fn authority() -> (Issuer<'static, KeyPair>, String) {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), root)
    }

    fn sign(issuer: &Issuer<'static, KeyPair>, csr: &str, days: i64) -> String {
        let mut asked = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let now = time::OffsetDateTime::now_utc();
        asked.params.not_before = now - time::Duration::days(2);
        asked.params.not_after = now + time::Duration::days(days);
        asked.signed_by(issuer).unwrap().pem()
    }

    #[test]
    fn an_answer_is_taken_apart_and_pem_is_as_others_write_it() {
        for kind in [KeyKind::Ecdsa, KeyKind::Rsa] {
            let (issuer, root) = authority();
            let requested = make(kind, Some("spiffe://td/ns/a/sa/b")).unwrap();
            let key = requested.key.clone();
            let leaf = sign(&issuer, &requested.csr, 1);
            let parts = [leaf.clone(), root.clone()];
            let answer = Identity::from_answer(&parts, requested, SystemTime::now()).unwrap();
            assert_eq!(answer.identity.spiffe_id, "spiffe://td/ns/a/sa/b");
            assert_eq!(answer.identity.chain, leaf.replace("\r\n", "\n"));
            assert_eq!(answer.identity.key, key);
            assert_eq!(answer.roots.len(), 1);
            assert_eq!(pem(&answer.roots[0]), root.replace("\r\n", "\n"));
        }
    }

    #[test]
    fn what_is_not_for_our_key_or_not_valid_is_refused() {
        let (issuer, root) = authority();
        let (ours, others) = (make(KeyKind::Ecdsa, None), make(KeyKind::Ecdsa, None));
        let (ours, others) = (ours.unwrap(), others.unwrap());
        let parts = [sign(&issuer, &others.csr, 1), root.clone()];
        let refused = Identity::from_answer(&parts, ours, SystemTime::now());
        assert!(matches!(refused, Err(IdentityError::AnotherKey)));
        let ours = make(KeyKind::Ecdsa, None).unwrap();
        let parts = [sign(&issuer, &ours.csr, -1), root];
        let refused = Identity::from_answer(&parts, ours, SystemTime::now());
        assert!(matches!(refused, Err(IdentityError::NotNow)));
        let ours = make(KeyKind::Ecdsa, None).unwrap();
        let refused = Identity::from_answer(&[], ours, SystemTime::now());
        assert!(matches!(refused, Err(IdentityError::Empty)));
    }
}
