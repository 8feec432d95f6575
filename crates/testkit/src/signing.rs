//! Keys that sign JSON Web Tokens, of every kind that tokens are signed with.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A key pair.
pub enum SigningKey {
    Rsa(RsaKeyPair),
    /// With the name of its curve.
    Ecdsa(&'static str, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    /// A key for an algorithm of RFC 7518 section 3.1 or RFC 8037, by its name.
    pub fn generate(algorithm: &str) -> SigningKey {
        let ecdsa = |curve, kind| {
            let key = EcdsaKeyPair::generate(kind).expect("a key");
            SigningKey::Ecdsa(curve, key)
        };
        match algorithm {
            "ES256" => ecdsa("P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ecdsa("P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            "EdDSA" => SigningKey::Ed25519(Ed25519KeyPair::generate().expect("a key")),
            _ => SigningKey::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")),
        }
    }

    /// The public half as a JSON Web Key without a name.
    pub fn jwk(&self) -> Value {
        match self {
            SigningKey::Rsa(key) => {
                let (n, e) = rsa_numbers(key.public_key().as_ref());
                json!({"kty": "RSA", "n": encode(n), "e": encode(e)})
            }
            SigningKey::Ecdsa(curve, key) => {
                // 4, x, y.
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            SigningKey::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().as_ref())})
            }
        }
    }

    /// A signature. An RSA key signs as the algorithm says, others as they are meant to.
    pub fn sign(&self, algorithm: &str, data: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            SigningKey::Ed25519(key) => key.sign(data).as_ref().to_vec(),
            SigningKey::Ecdsa(_, key) => {
                let signature = key.sign(&random, data).expect("a signature");
                signature.as_ref().to_vec()
            }
            SigningKey::Rsa(key) => {
                let encoding: &dyn RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut bytes = vec![0; key.public_modulus_len()];
                let signed = key.sign(encoding, &random, data, &mut bytes);
                signed.expect("a signature");
                bytes
            }
        }
    }
}

/// Signed with a shared secret. With a public key as the secret it is what somebody without the
/// private one would try.
pub fn hs256(secret: &str, data: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::sign(&key, data).as_ref().to_vec()
}

/// Bytes as tokens and keys have them.
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017 appendix A.1.1) in DER.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    let (inside, _) = der_value(der);
    let (n, rest) = der_value(inside);
    let (e, _) = der_value(rest);
    (n.strip_prefix(&[0]).unwrap_or(n), e)
}

/// The content of the first element, and what follows it.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let first = usize::from(der[1]);
    let (length, start) = match first.checked_sub(128) {
        None => (first, 2),
        Some(bytes) => {
            let digits = der[2..2 + bytes].iter();
            (digits.fold(0, |n, b| n * 256 + usize::from(*b)), 2 + bytes)
        }
    };
    (&der[start..start + length], &der[start + length..])
}
