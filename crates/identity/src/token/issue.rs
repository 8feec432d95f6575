//! Issues tokens for service accounts where no Kubernetes does, with a key that is kept.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::SUBJECT_PREFIX;
use super::keys::TrustedIssuer;
use super::verify::Subject;
use crate::authority::{hexadecimal, serial};
use crate::key::{CryptoError, KeyKind, SigningKey};
use crate::pieces::{CaError, read_bounded};
use crate::self_signed::{keep_private, write_private};

/// Issues tokens in its own name.
pub struct TokenIssuer {
    name: String,
    key: EcdsaKeyPair,
    key_id: String,
}

/// A token and when it expires.
#[derive(Clone)]
pub struct Token {
    pub token: String,
    pub expires: SystemTime,
}

impl TokenIssuer {
    /// Reads the key of an issuer, or makes one.
    pub fn open(path: &Path, name: &str) -> Result<Self, CaError> {
        let wrong = |reason: String| CaError::new(path.display().to_string(), reason);
        let failed = |error: CryptoError| wrong(error.to_string());
        let pem = match read_bounded(path) {
            Ok(pem) => {
                keep_private(path)
                    .map_err(|error| wrong(format!("cannot be made private: {error}")))?;
                pem
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = SigningKey::generate(KeyKind::EcdsaP256).map_err(failed)?;
                let pem = key.to_pem().map_err(failed)?;
                write_private(path, pem.as_bytes())
                    .map_err(|error| wrong(format!("cannot be written: {error}")))?;
                zeroize::Zeroizing::new(pem.as_bytes().to_vec())
            }
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        };
        let unusable = || {
            wrong("is no ECDSA key on P-256 in PEM (PKCS#8); remove the file to have a new one made, which ends the tokens issued so far".to_owned())
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| unusable())?;
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key =
            EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der()).map_err(|_| unusable())?;
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(digest.as_ref());
        Ok(Self {
            name: name.to_owned(),
            key,
            key_id,
        })
    }

    /// A token for a service account. The names must be those of Kubernetes: whoever verifies the
    /// token refuses others.
    pub fn issue(
        &self,
        subject: &Subject,
        audiences: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Token, CryptoError> {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        };
        let expires = now + lifetime;
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"});
        let claims = json!({
            "aud": audiences,
            "exp": seconds(expires),
            "iat": seconds(now),
            "iss": self.name,
            "jti": hexadecimal(&serial()?),
            "kubernetes.io": {
                "namespace": subject.namespace,
                "serviceaccount": {"name": subject.service_account},
            },
            "nbf": seconds(now),
            "sub": format!("{SUBJECT_PREFIX}{}:{}", subject.namespace, subject.service_account),
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature.map_err(|_| CryptoError)?.as_ref());
        Ok(Token {
            token: format!("{signed}.{signature}"),
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(expires)),
        })
    }

    /// What it calls itself, and the audience of tokens that are for no one in particular.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For a [`super::TokenVerifier`].
    pub fn trusted(&self) -> TrustedIssuer {
        TrustedIssuer::with_p256(&self.name, &self.key_id, self.key.public_key().as_ref())
    }

    /// Its JSON Web Key Set, for others that verify its tokens.
    pub fn jwks(&self) -> serde_json::Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
        json!({"keys": [{
            "kty": "EC",
            "crv": "P-256",
            "use": "sig",
            "alg": "ES256",
            "kid": self.key_id,
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}
