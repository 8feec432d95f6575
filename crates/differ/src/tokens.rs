//! JSON web tokens and key sets for cases: real keys, made for the run.
//!
//! In documents `{jwks:NAME,NAME}` is the key set of these keys; in what a case sends,
//! `{token:NAME}` is a token of its area. Times in claims (`exp`, `nbf`, `iat`) are seconds from
//! now, which may be negative.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::client::stream;
use crate::corpus::{Area, Case, Content, Step};
use crate::{Failure, Result, failed, wire};

/// How tokens of a key are signed (RFC 7518, 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// A token as it stands in the corpus.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TokenSpec {
    /// Name of the key that signs.
    pub key: String,
    pub claims: Map<String, Value>,
    /// Fields of the header beside `alg`, `typ` and `kid`, or in their place; null takes one away.
    pub header: Map<String, Value>,
    /// What is done to it afterwards.
    pub spoil: Option<Spoil>,
}

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spoil {
    /// A bit of the signature is another.
    Signature,
    /// The claims are not those that were signed.
    Claims,
    /// `alg: none`, and no signature.
    Unsigned,
    /// Signed with HS256, the public key being the secret.
    Confused,
    /// Two parts.
    Short,
    /// Four parts.
    Long,
}

enum Key {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// The keys and tokens of one area.
#[derive(Default)]
pub struct Tokens {
    keys: IndexMap<String, (Algorithm, Key)>,
    /// Signed, by name.
    pub signed: IndexMap<String, String>,
}

impl Tokens {
    pub fn of(area: &Area) -> Result<Tokens> {
        let mut tokens = Tokens::default();
        for (name, algorithm) in &area.keys {
            tokens
                .keys
                .insert(name.clone(), (*algorithm, make(*algorithm)?));
        }
        for (name, spec) in &area.tokens {
            let token = tokens.sign(spec).map_err(failed(format!("token {name}")))?;
            tokens.signed.insert(name.clone(), token);
        }
        Ok(tokens)
    }

    /// `{token:NAME}` replaced.
    pub fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, token) in &self.signed {
            text = text.replace(&format!("{{token:{name}}}"), token);
        }
        text
    }

    /// A document with its key sets, and with certificates of the mesh's authority: `{chain:NAME}`,
    /// `{key:NAME}` and `{ca}`.
    pub fn document(&self, value: &Value) -> Result<Value> {
        Ok(match value {
            Value::String(text) => {
                let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
                Value::String(match inner.map(|t| t.split_once(':').unwrap_or((t, ""))) {
                    Some(("jwks", names)) => self.key_set(names)?,
                    Some(("chain", name)) => stream::server(name).chain,
                    Some(("key", name)) => stream::server(name).key,
                    Some(("ca", _)) => stream::MESH.pem.clone(),
                    _ => self.fill(text),
                })
            }
            Value::Array(all) => all
                .iter()
                .map(|one| self.document(one))
                .collect::<Result<_>>()?,
            Value::Object(map) => {
                let filled = map
                    .iter()
                    .map(|(k, one)| Ok((k.clone(), self.document(one)?)));
                Value::Object(filled.collect::<Result<_>>()?)
            }
            other => other.clone(),
        })
    }

    /// A case with its tokens.
    pub fn case(&self, case: &mut Case) {
        match &mut case.content {
            Content::Requests(_, requests) => {
                for request in requests {
                    request.path = self.fill(&request.path);
                    for (_, value) in &mut request.headers {
                        *value = self.fill(value);
                    }
                }
            }
            Content::Raw(steps) => {
                for step in steps {
                    if let Step::Send(bytes) = step {
                        *bytes = wire::bytes(&self.fill(&wire::text(bytes)));
                    }
                }
            }
        }
    }

    /// The JSON web key set of keys by their names, with commas between them.
    pub fn key_set(&self, names: &str) -> Result<String> {
        let keys: Result<Vec<Value>> = names.split(',').map(|name| self.public(name)).collect();
        Ok(json!({"keys": keys?}).to_string())
    }

    fn key(&self, name: &str) -> Result<&(Algorithm, Key)> {
        let key = self.keys.get(name);
        key.ok_or_else(|| Failure(format!("there is no key {name}")))
    }

    fn public(&self, name: &str) -> Result<Value> {
        let (algorithm, key) = self.key(name)?;
        let mut public = match key {
            Key::Rsa(key) => {
                let (n, e) = rsa_numbers(key.public_key().as_ref())?;
                json!({"kty": "RSA", "n": encode(n), "e": encode(e)})
            }
            Key::Ecdsa(key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = match algorithm {
                    Algorithm::ES384 => "P-384",
                    _ => "P-256",
                };
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Key::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().as_ref())})
            }
        };
        public["kid"] = json!(name);
        public["alg"] = json!(format!("{algorithm:?}"));
        public["use"] = json!("sig");
        Ok(public)
    }

    fn sign(&self, spec: &TokenSpec) -> Result<String> {
        let (algorithm, key) = self.key(&spec.key)?;
        let mut header = json!({"alg": format!("{algorithm:?}"), "typ": "JWT", "kid": spec.key});
        match spec.spoil {
            Some(Spoil::Unsigned) => header["alg"] = json!("none"),
            Some(Spoil::Confused) => header["alg"] = json!("HS256"),
            _ => {}
        }
        if let Some(header) = header.as_object_mut() {
            for (name, value) in &spec.header {
                match value {
                    Value::Null => drop(header.remove(name)),
                    value => drop(header.insert(name.clone(), value.clone())),
                }
            }
        }
        let claims = moved(&spec.claims)?;
        let part = |value: &Value| encode(value.to_string().as_bytes());
        let head = part(&header);
        let signed = format!("{head}.{}", part(&claims));
        let mut signature = match spec.spoil {
            Some(Spoil::Unsigned) => Vec::new(),
            Some(Spoil::Confused) => {
                let secret = self.public(&spec.key)?.to_string();
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
                hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
            }
            _ => signature_of(*algorithm, key, signed.as_bytes())?,
        };
        if spec.spoil == Some(Spoil::Signature)
            && let Some(byte) = signature.first_mut()
        {
            *byte ^= 1;
        }
        let signature = encode(&signature);
        Ok(match spec.spoil {
            Some(Spoil::Claims) => {
                let mut other = claims;
                other["sub"] = json!("somebody-else");
                format!("{head}.{}.{signature}", part(&other))
            }
            Some(Spoil::Short) => signed,
            Some(Spoil::Long) => format!("{signed}.{signature}.{signature}"),
            _ => format!("{signed}.{signature}"),
        })
    }
}

/// Claims with times counted from now.
fn moved(claims: &Map<String, Value>) -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(failed("the clock"))?.as_secs().cast_signed();
    let mut claims = claims.clone();
    for name in ["exp", "nbf", "iat"] {
        if let Some(value) = claims.get_mut(name)
            && let Some(seconds) = value.as_i64()
        {
            *value = json!(now + seconds);
        }
    }
    Ok(Value::Object(claims))
}

fn make(algorithm: Algorithm) -> Result<Key> {
    let wrong = || failed::<aws_lc_rs::error::Unspecified>("a key");
    Ok(match algorithm {
        Algorithm::ES256 => {
            let kind = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
            Key::Ecdsa(EcdsaKeyPair::generate(kind).map_err(wrong())?)
        }
        Algorithm::ES384 => {
            let kind = &signature::ECDSA_P384_SHA384_FIXED_SIGNING;
            Key::Ecdsa(EcdsaKeyPair::generate(kind).map_err(wrong())?)
        }
        Algorithm::EdDSA => Key::Ed25519(Ed25519KeyPair::generate().map_err(wrong())?),
        _ => Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(wrong())?),
    })
}

fn signature_of(algorithm: Algorithm, key: &Key, data: &[u8]) -> Result<Vec<u8>> {
    let random = SystemRandom::new();
    let wrong = || failed::<aws_lc_rs::error::Unspecified>("signing");
    match key {
        Key::Ed25519(key) => Ok(key.sign(data).as_ref().to_vec()),
        Key::Ecdsa(key) => {
            let signature = key.sign(&random, data).map_err(wrong())?;
            Ok(signature.as_ref().to_vec())
        }
        Key::Rsa(key) => {
            let encoding: &dyn RsaEncoding = match algorithm {
                Algorithm::RS384 => &signature::RSA_PKCS1_SHA384,
                Algorithm::RS512 => &signature::RSA_PKCS1_SHA512,
                Algorithm::PS256 => &signature::RSA_PSS_SHA256,
                Algorithm::PS384 => &signature::RSA_PSS_SHA384,
                Algorithm::PS512 => &signature::RSA_PSS_SHA512,
                _ => &signature::RSA_PKCS1_SHA256,
            };
            let mut bytes = vec![0; key.public_modulus_len()];
            key.sign(encoding, &random, data, &mut bytes)
                .map_err(wrong())?;
            Ok(bytes)
        }
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017, A.1.1).
fn rsa_numbers(der: &[u8]) -> Result<(&[u8], &[u8])> {
    fn value<'a>(at: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (&[_, first], rest) = at.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0x80.. => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |sum, b| sum << 8 | usize::from(*b));
                (length, rest)
            }
            length => (usize::from(length), rest),
        };
        let (value, rest) = rest.split_at_checked(length)?;
        *at = rest;
        Some(value)
    }
    fn number<'a>(at: &mut &'a [u8]) -> Option<&'a [u8]> {
        let bytes = value(at)?;
        Some(bytes.strip_prefix(&[0]).unwrap_or(bytes))
    }
    let mut outer = der;
    let numbers = value(&mut outer).and_then(|mut inner| {
        let modulus = number(&mut inner)?;
        Some((modulus, number(&mut inner)?))
    });
    numbers.ok_or_else(|| Failure("not an RSA key".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_parts_they_are_meant_to_have() {
        let area: Area = serde_json::from_value(json!({
            "about": "", "keys": {"r": "RS256", "e": "ES256", "d": "EdDSA"},
            "tokens": {
                "good": {"key": "r", "claims": {"sub": "a", "exp": 60}},
                "unsigned": {"key": "e", "spoil": "unsigned"},
                "long": {"key": "d", "spoil": "long"},
                "bare": {"key": "d", "header": {"kid": null}},
            },
        }))
        .unwrap();
        let tokens = Tokens::of(&area).unwrap();
        let parts = |name: &str| tokens.signed[name].split('.').count();
        assert_eq!((parts("good"), parts("long")), (3, 4));
        assert!(tokens.signed["unsigned"].ends_with('.'));
        assert_eq!(
            tokens.fill("x {token:good}"),
            format!("x {}", tokens.signed["good"])
        );
        let head = tokens.signed["bare"].split('.').next().unwrap();
        let head: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).unwrap()).unwrap();
        assert_eq!(head, json!({"alg": "EdDSA", "typ": "JWT"}));
        let set: Value = serde_json::from_str(&tokens.key_set("r,e,d").unwrap()).unwrap();
        assert_eq!(set["keys"][0]["e"], "AQAB");
        assert_eq!(set["keys"][1]["crv"], "P-256");
        assert_eq!(set["keys"][2]["kty"], "OKP");
    }
}
