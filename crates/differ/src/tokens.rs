//! JSON web tokens and key sets for cases: real keys, made for the run.
//!
//! In documents `{jwks:NAME,NAME}` is the key set of these keys; in what a case sends,
//! `{token:NAME}` is a token of its area. Times in claims (`exp`, `nbf`, `iat`) are seconds from
//! now, which may be negative.

use std::time::{SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use lateen_testkit::signing::{SigningKey, encode, hs256};
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

impl Algorithm {
    fn name(self) -> String {
        format!("{self:?}")
    }
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

/// The keys and tokens of one area.
#[derive(Default)]
pub struct Tokens {
    keys: IndexMap<String, (Algorithm, SigningKey)>,
    /// Signed, by name.
    pub signed: IndexMap<String, String>,
}

impl Tokens {
    pub fn of(area: &Area) -> Result<Tokens> {
        let mut tokens = Tokens::default();
        for (name, algorithm) in &area.keys {
            let key = SigningKey::generate(&algorithm.name());
            tokens.keys.insert(name.clone(), (*algorithm, key));
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

    fn key(&self, name: &str) -> Result<&(Algorithm, SigningKey)> {
        let key = self.keys.get(name);
        key.ok_or_else(|| Failure(format!("there is no key {name}")))
    }

    fn public(&self, name: &str) -> Result<Value> {
        let (algorithm, key) = self.key(name)?;
        let mut public = key.jwk();
        public["kid"] = json!(name);
        public["alg"] = json!(algorithm.name());
        public["use"] = json!("sig");
        Ok(public)
    }

    fn sign(&self, spec: &TokenSpec) -> Result<String> {
        let (algorithm, key) = self.key(&spec.key)?;
        let mut header = json!({"alg": algorithm.name(), "typ": "JWT", "kid": spec.key});
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
            Some(Spoil::Confused) => hs256(&self.public(&spec.key)?.to_string(), signed.as_bytes()),
            _ => key.sign(&algorithm.name(), signed.as_bytes()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

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
