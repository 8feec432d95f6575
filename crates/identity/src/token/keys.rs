//! Public keys that tokens are verified with. Each has exactly one way to be used.

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use thiserror::Error;

/// The most keys of one issuer.
const MAX_KEYS: usize = 100;
/// Bytes of a key set.
const MAX_SET: usize = 1 << 20;

/// Whose tokens are believed, and with which keys.
#[derive(Clone)]
pub struct TrustedIssuer {
    pub(super) name: String,
    pub(super) keys: Vec<Key>,
}

#[derive(Clone)]
pub(super) struct Key {
    pub id: Option<String>,
    /// Only this algorithm, when the set says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
}

/// Asymmetric ones only: with a shared secret, whoever can check could issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Es256,
    Es384,
    Rs256,
    Rs384,
    Rs512,
}

impl Algorithm {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            _ => return None,
        })
    }
}

/// Why a key set cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("is no JSON Web Key Set: {0}")]
    Form(String),
    #[error("has {0} keys; 1 to {MAX_KEYS} can be used")]
    Number(usize),
    #[error("keys[{index}]: {reason}")]
    Key { index: usize, reason: &'static str },
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl TrustedIssuer {
    /// An issuer with the keys of its JSON Web Key Set.
    pub fn from_jwks(name: &str, jwks: &str) -> Result<Self, KeyError> {
        if jwks.len() > MAX_SET {
            return Err(KeyError::Form(format!("more than {MAX_SET} bytes")));
        }
        let set: Set =
            serde_json::from_str(jwks).map_err(|error| KeyError::Form(error.to_string()))?;
        if !(1..=MAX_KEYS).contains(&set.keys.len()) {
            return Err(KeyError::Number(set.keys.len()));
        }
        let keys = set.keys.iter().enumerate();
        let keys: Result<Vec<Key>, KeyError> = keys
            .map(|(index, key)| Key::read(key).map_err(|reason| KeyError::Key { index, reason }))
            .collect();
        Ok(Self {
            name: name.to_owned(),
            keys: keys?,
        })
    }

    pub(super) fn with_p256(name: &str, id: &str, point: &[u8]) -> Self {
        let key = Key {
            id: Some(id.to_owned()),
            algorithm: Some(Algorithm::Es256),
            material: Material::P256(point.to_vec()),
        };
        Self {
            name: name.to_owned(),
            keys: vec![key],
        }
    }
}

impl Key {
    fn read(key: &Jwk) -> Result<Self, &'static str> {
        if key.usage.as_ref().is_some_and(|usage| usage != "sig") {
            return Err("is not for signatures (use)");
        }
        let bytes = |text: &Option<String>| {
            let text = text.as_ref().ok_or("lacks a part of the key")?;
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| "has a part that is no base64url")
        };
        let material = match (key.kty.as_str(), key.crv.as_deref()) {
            ("EC", Some("P-256")) => Material::P256(point(bytes(&key.x)?, bytes(&key.y)?, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(bytes(&key.x)?, bytes(&key.y)?, 48)?),
            ("RSA", _) => {
                let modulus = trimmed(bytes(&key.n)?);
                if !(256..=1024).contains(&modulus.len()) {
                    return Err("is RSA of less than 2048 or more than 8192 bits");
                }
                let exponent = trimmed(bytes(&key.e)?);
                Material::Rsa { modulus, exponent }
            }
            _ => return Err("is neither RSA nor EC on P-256 or P-384"),
        };
        let mut read = Self {
            id: key.kid.clone(),
            algorithm: None,
            material,
        };
        if let Some(name) = &key.alg {
            let algorithm = Algorithm::parse(name).filter(|algorithm| read.fits(*algorithm));
            read.algorithm =
                Some(algorithm.ok_or("has an algorithm that is not supported for it")?);
        }
        Ok(read)
    }

    /// Whether this key may be used with an algorithm.
    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        let kind = match self.material {
            Material::P256(_) => algorithm == A::Es256,
            Material::P384(_) => algorithm == A::Es384,
            Material::Rsa { .. } => matches!(algorithm, A::Rs256 | A::Rs384 | A::Rs512),
        };
        kind && self.algorithm.is_none_or(|only| only == algorithm)
    }

    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.fits(algorithm) {
            return false;
        }
        let parameters: &RsaParameters = match algorithm {
            Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            _ => &RSA_PKCS1_2048_8192_SHA256,
        };
        let verified =
            match &self.material {
                Material::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature),
                Material::P384(point) => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature),
                Material::Rsa { modulus, exponent } => PublicKeyComponents {
                    n: modulus,
                    e: exponent,
                }
                .verify(parameters, message, signature),
            };
        verified.is_ok()
    }
}

/// The uncompressed form of a point (SEC1 2.3.3).
fn point(x: Vec<u8>, y: Vec<u8>, width: usize) -> Result<Vec<u8>, &'static str> {
    if x.len() != width || y.len() != width {
        return Err("has coordinates of the wrong length");
    }
    Ok([&[4], x.as_slice(), &y].concat())
}

fn trimmed(number: Vec<u8>) -> Vec<u8> {
    number.into_iter().skip_while(|byte| *byte == 0).collect()
}
