//! The workload's key, and the request to certify it.

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    RsaKeySize, SanType,
};
use zeroize::Zeroizing;

use crate::KeyKind;

/// A key that was just made, with the request for its certificate.
pub(crate) struct Requested {
    /// PKCS #8 in PEM.
    pub(crate) key: Zeroizing<String>,
    /// In PEM.
    pub(crate) csr: String,
    /// The DER of the public key (SubjectPublicKeyInfo).
    pub(crate) public: Vec<u8>,
}

/// Makes a key. RSA takes a good part of a second: not for the thread that does everything else.
pub(crate) fn make(kind: KeyKind, spiffe_id: Option<&str>) -> Result<Requested, rcgen::Error> {
    let key = match kind {
        KeyKind::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyKind::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
    }?;
    let mut params = CertificateParams::default();
    // As in Istio: the name of a workload is its URI, and nothing else.
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = spiffe_id {
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    }
    let csr = params.serialize_request(&key)?;
    Ok(Requested {
        key: Zeroizing::new(key.serialize_pem()),
        csr: csr.pem()?,
        public: rcgen::PublicKeyData::subject_public_key_info(&key),
    })
}
