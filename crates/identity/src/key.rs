//! The private keys of the authority, and of the control plane's own certificates.
//!
//! A key lives in the cryptographic library, which clears its memory when it is freed; the forms
//! that are read and written are cleared here. Nothing prints a key.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

/// A key that signs certificates.
pub(crate) struct SigningKey {
    pair: Pair,
    public: Vec<u8>,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

/// What an authority that makes its own key uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    #[default]
    EcdsaP256,
    /// RSA of 2048 bits, as Istio's self-signed authority has it by default.
    Rsa2048,
}

/// The cryptographic library has failed: no memory, or no randomness.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoError;

impl SigningKey {
    pub fn generate(kind: KeyKind) -> Result<Self, CryptoError> {
        let pair = match kind {
            KeyKind::EcdsaP256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
                Pair::P256(pair.map_err(|_| CryptoError)?)
            }
            KeyKind::Rsa2048 => {
                Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| CryptoError)?)
            }
        };
        Ok(Self::new(pair))
    }

    fn new(pair: Pair) -> Self {
        let public = match &pair {
            Pair::P256(pair) | Pair::P384(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
        };
        Self { pair, public }
    }

    /// Reads the first private key of a PEM text: PKCS#8, PKCS#1 or SEC1.
    pub fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                "has no private key in PEM form (-----BEGIN PRIVATE KEY-----); one with a passphrase cannot be used"
            }
            _ => "is no valid PEM",
        })?;
        let key = Zeroizing::new(KeyBytes(key));
        let der = key.0.secret_der();
        let ecdsa = |algorithm| EcdsaKeyPair::from_private_key_der(algorithm, der).ok();
        let pair = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Pair::P256)
            .or_else(|| ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING).map(Pair::P384))
            .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Pair::Rsa))
            .or_else(|| RsaKeyPair::from_der(der).ok().map(Pair::Rsa));
        pair.map(Self::new).ok_or(
            "holds a key that cannot be used; ECDSA (P-256, P-384) and RSA of at least 2048 bits can",
        )
    }

    /// PKCS#8 in PEM.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, CryptoError> {
        let encoded = |der: &[u8]| {
            // Large enough from the start: a buffer that grows leaves a copy behind.
            let mut pem = Zeroizing::new(String::with_capacity(der.len() * 2 + 64));
            let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
            pem.push_str("-----BEGIN PRIVATE KEY-----\n");
            for line in body.as_bytes().chunks(64) {
                pem.push_str(std::str::from_utf8(line).unwrap_or_default());
                pem.push('\n');
            }
            pem.push_str("-----END PRIVATE KEY-----\n");
            pem
        };
        match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) => Ok(encoded(
                pair.to_pkcs8v1().map_err(|_| CryptoError)?.as_ref(),
            )),
            Pair::Rsa(pair) => {
                let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> =
                    pair.as_der().map_err(|_| CryptoError)?;
                Ok(encoded(der.as_ref()))
            }
        }
    }
}

struct KeyBytes(PrivateKeyDer<'static>);

impl zeroize::Zeroize for KeyBytes {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

impl rcgen::PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.pair {
            Pair::P256(_) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Pair::P384(_) => &rcgen::PKCS_ECDSA_P384_SHA384,
            Pair::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) => {
                let signature = pair.sign(&random, message);
                let signature = signature.map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::PublicKeyData as _;

    #[test]
    fn keys_survive_their_text() {
        for kind in [KeyKind::EcdsaP256, KeyKind::Rsa2048] {
            let key = SigningKey::generate(kind).unwrap();
            let pem = key.to_pem().unwrap();
            let again = SigningKey::from_pem(pem.as_bytes()).unwrap();
            assert_eq!(key.der_bytes(), again.der_bytes());
        }
        assert!(SigningKey::from_pem(b"").is_err());
        assert!(
            SigningKey::from_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
                .is_err()
        );
    }
}
