//! Whether certificates and keys in PEM can be served with.

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Which of the two parts is wrong, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairError {
    Certificate(&'static str),
    Key(&'static str),
}

/// Whether a certificate chain can be served with a key.
pub fn check_pair(chain: &[u8], key: &[u8]) -> Result<(), PairError> {
    let chain = certificates(chain).map_err(PairError::Certificate)?;
    let key = private_key(key).map_err(PairError::Key)?;
    let signing = any_supported_type(&key).map_err(|_| {
        PairError::Key("this key cannot be used; RSA of at least 2048 bits, ECDSA (P-256, P-384, P-521) and Ed25519 can")
    })?;
    match CertifiedKey::new(chain, signing).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(PairError::Key(
            "the private key does not fit the certificate; the certificate of the server has to be the first of its chain",
        )),
        Err(_) => Err(PairError::Certificate(
            "the first certificate cannot be read",
        )),
    }
}

/// Whether a bundle of authorities can be used to verify others.
pub fn check_authorities(bundle: &[u8]) -> Result<(), &'static str> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(bundle)? {
        store
            .add(certificate)
            .map_err(|_| "a certificate in it cannot be read")?;
    }
    Ok(())
}

/// Whether there are revocation lists.
pub fn check_revocations(lists: &[u8]) -> Result<(), &'static str> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(lists).collect();
    match found {
        Ok(lists) if !lists.is_empty() => Ok(()),
        _ => Err("no revocation list in PEM form (-----BEGIN X509 CRL-----)"),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("no certificate in PEM form (-----BEGIN CERTIFICATE-----)"),
        Err(_) => Err("the PEM form is broken"),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            "no private key in PEM form (-----BEGIN PRIVATE KEY-----); one with a passphrase cannot be used"
        }
        _ => "the PEM form is broken",
    })
}
