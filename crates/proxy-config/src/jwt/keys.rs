//! JSON Web Key Sets (RFC 7517, RFC 7518 section 6, RFC 8037): read once when the configuration is
//! compiled, used for every token.
//!
//! Invariant: a key checks signatures of the algorithms of its own kind only, whatever the token
//! says. So no token can turn a public key into a secret one.

use super::failure::JwtFailure;
use super::token::{Algorithm, Token, base64url};
use aws_lc_rs::{hmac, signature};
use serde_json::Value;
use signature::ParsedPublicKey;

/// The keys of one provider. Without any it refuses every token.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Vec<Key>);

/// One key.
#[derive(Clone, Debug)]
struct Key {
    /// May be empty.
    id: Box<str>,
    /// What the set says that it is for.
    algorithm: Option<Algorithm>,
    uses: Vec<(Algorithm, Use)>,
}

#[derive(Clone, Debug)]
enum Use {
    Public(ParsedPublicKey),
    Shared(Box<hmac::Key>),
}

impl KeySet {
    /// Reads a key set. Keys that cannot be used are left out and told to `unusable`; a set without
    /// any other is an error.
    pub fn parse(
        text: &str,
        mut unusable: impl FnMut(usize, &str),
    ) -> Result<KeySet, &'static str> {
        let set: Value = serde_json::from_str(text).map_err(|_| "Jwks is an invalid JSON")?;
        let keys = set.get("keys").ok_or("Jwks does not have [keys] field")?;
        let keys = keys.as_array().ok_or("[keys] in Jwks is not an array")?;
        let mut usable = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            match Key::parse(key) {
                Ok(key) => usable.push(key),
                Err(reason) => unusable(index, reason),
            }
        }
        match usable.is_empty() {
            true => Err("Jwks doesn't have any valid public key"),
            false => Ok(KeySet(usable)),
        }
    }

    /// Checks the signature of a token with every key that may have made it.
    pub fn verify(&self, token: &Token<'_>) -> Result<(), JwtFailure> {
        let mut failure = match self.0.is_empty() {
            true => JwtFailure::NoKeys,
            false => JwtFailure::NoSuchKey,
        };
        for key in &self.0 {
            let other_id = |id: &str| !key.id.is_empty() && *key.id != *id;
            if token.key_id.as_deref().is_some_and(other_id)
                || key.algorithm.is_some_and(|only| only != token.algorithm)
            {
                continue;
            }
            failure = JwtFailure::Signature;
            match key.verify(token) {
                Err(JwtFailure::Signature) => {}
                done => return done,
            }
        }
        Err(failure)
    }
}

impl Key {
    fn parse(key: &Value) -> Result<Key, &'static str> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let kind = text("kty").ok_or("[kty] is missing in [keys]")?;
        let said = text("alg").filter(|alg| !alg.is_empty());
        let uses = match kind {
            "RSA" => rsa(key, said)?,
            "EC" => ec(key, said)?,
            "OKP" => okp(key, said)?,
            "oct" => oct(key, said)?,
            _ => return Err("[kty] is not supported in [keys]"),
        };
        Ok(Key {
            id: text("kid").unwrap_or_default().into(),
            algorithm: said.and_then(Algorithm::from_name),
            uses,
        })
    }

    fn verify(&self, token: &Token<'_>) -> Result<(), JwtFailure> {
        let fits = |(algorithm, _): &&(Algorithm, Use)| *algorithm == token.algorithm;
        let Some((algorithm, key)) = self.uses.iter().find(fits) else {
            return Err(JwtFailure::Signature);
        };
        if *algorithm == Algorithm::EdDsa
            && token.signature.len() != signature::ED25519_PUBLIC_KEY_LEN * 2
        {
            return Err(JwtFailure::Ed25519Length);
        }
        let right = match key {
            Use::Public(key) => key.verify_sig(token.signed, &token.signature).is_ok(),
            Use::Shared(key) => hmac::verify(key, token.signed, &token.signature).is_ok(),
        };
        right.then_some(()).ok_or(JwtFailure::Signature)
    }
}

/// The bytes of a member.
fn bytes(
    key: &Value,
    name: &str,
    missing: &'static str,
    bad: &'static str,
) -> Result<Vec<u8>, &'static str> {
    let text = key.get(name).ok_or(missing)?.as_str().ok_or(bad)?;
    base64url(text.as_bytes())
        .filter(|b| !b.is_empty())
        .ok_or(bad)
}

/// Those of `all` that the set names; a name that is none of them is an error.
fn of_kind(
    said: Option<&str>,
    all: &[Algorithm],
    bad: &'static str,
) -> Result<Vec<Algorithm>, &'static str> {
    match said {
        None => Ok(all.to_vec()),
        Some(name) => {
            let named = Algorithm::from_name(name).filter(|one| all.contains(one));
            named.map(|one| vec![one]).ok_or(bad)
        }
    }
}

/// RSA keys of 2,048 to 8,192 bits (RFC 7518 section 3.3 asks for 2,048 at least).
fn rsa(key: &Value, said: Option<&str>) -> Result<Vec<(Algorithm, Use)>, &'static str> {
    use Algorithm::*;
    const PARSE: &str = "Jwks RSA [n] or [e] field is missing or has a parse error";
    let all = [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512];
    let bad = "[alg] is not started with [RS] or [PS] for an RSA key";
    let algorithms = of_kind(said, &all, bad)?;
    let number = |name, missing| {
        let bytes = bytes(key, name, missing, PARSE)?;
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Ok::<_, &'static str>(bytes[zeros..].to_vec())
    };
    let n = number("n", "[n] field is missing for a RSA key")?;
    let e = number("e", "[e] field is missing for a RSA key")?;
    if !(256..=1024).contains(&n.len()) {
        return Err("an RSA key has 2048 to 8192 bits");
    }
    let components = signature::RsaPublicKeyComponents { n, e };
    let one = |algorithm: Algorithm| {
        let parameters = match algorithm {
            Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => &signature::RSA_PKCS1_2048_8192_SHA256,
        };
        let parsed = components.to_parsed_public_key(parameters);
        parsed
            .map(|key| (algorithm, Use::Public(key)))
            .map_err(|_| PARSE)
    };
    algorithms.into_iter().map(one).collect()
}

fn ec(key: &Value, said: Option<&str>) -> Result<Vec<(Algorithm, Use)>, &'static str> {
    use Algorithm::*;
    const PARSE: &str = "Jwks EC [x] and [y] fields have a parse error.";
    let bad = "[alg] is not started with [ES] for an EC key";
    let algorithms = of_kind(said, &[Es256, Es384, Es512], bad)?;
    let curve = match key.get("crv") {
        None => None,
        Some(curve) => Some(
            curve
                .as_str()
                .ok_or("[crv] field is not string for an EC key")?,
        ),
    };
    let algorithm = match (curve, said) {
        // Without a word of either it is P-256 in Envoy.
        (Some("P-256"), _) | (None, None) => Es256,
        (Some("P-384"), _) => Es384,
        (Some("P-521"), _) => Es512,
        (None, Some(_)) => algorithms.first().copied().unwrap_or(Es256),
        (Some(_), _) => return Err("[crv] or [alg] field is not supported for an EC key"),
    };
    if !algorithms.contains(&algorithm) {
        return Err("[crv] field specified is not compatible with [alg] for an EC key");
    }
    let (parameters, length): (_, usize) = match algorithm {
        Es384 => (&signature::ECDSA_P384_SHA384_FIXED, 48),
        Es512 => (&signature::ECDSA_P521_SHA512_FIXED, 66),
        _ => (&signature::ECDSA_P256_SHA256_FIXED, 32),
    };
    // An uncompressed point (SEC 1 section 2.3.3); leading zeros may be missing.
    let mut point = vec![4];
    for (name, missing) in [
        ("x", "[x] field is missing for an EC key"),
        ("y", "[y] field is missing for an EC key"),
    ] {
        let bytes = bytes(
            key,
            name,
            missing,
            "Jwks EC [x] or [y] field is an invalid Base64.",
        )?;
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        let number = &bytes[zeros..];
        let padding = length.checked_sub(number.len()).ok_or(PARSE)?;
        point.resize(point.len() + padding, 0);
        point.extend_from_slice(number);
    }
    let parsed = ParsedPublicKey::new(parameters, point).map_err(|_| PARSE)?;
    Ok(vec![(algorithm, Use::Public(parsed))])
}

fn okp(key: &Value, said: Option<&str>) -> Result<Vec<(Algorithm, Use)>, &'static str> {
    of_kind(
        said,
        &[Algorithm::EdDsa],
        "[alg] is not [EdDSA] for an OKP key",
    )?;
    match key.get("crv").map(Value::as_str) {
        Some(Some("Ed25519")) => {}
        Some(Some(_)) => return Err("[crv] field is not supported for an OKP key"),
        Some(None) => return Err("[crv] field is not string for an OKP key"),
        None => return Err("[crv] field is missing for an OKP key"),
    }
    let missing = "[x] field is missing for an OKP key";
    let x = bytes(
        key,
        "x",
        missing,
        "Jwks OKP [x] field is an invalid Base64.",
    )?;
    let parsed = ParsedPublicKey::new(&signature::ED25519, x);
    let parsed = parsed.map_err(|_| "Jwks OKP [x] field is wrong length.")?;
    Ok(vec![(Algorithm::EdDsa, Use::Public(parsed))])
}

fn oct(key: &Value, said: Option<&str>) -> Result<Vec<(Algorithm, Use)>, &'static str> {
    use Algorithm::*;
    let bad = "[alg] does not start with [HS] for an HMAC key";
    let algorithms = of_kind(said, &[Hs256, Hs384, Hs512], bad)?;
    let missing = "[k] field is missing for an HMAC key";
    let secret = bytes(key, "k", missing, "Jwks Oct key is an invalid Base64")?;
    let one = |algorithm| {
        let with = match algorithm {
            Hs384 => hmac::HMAC_SHA384,
            Hs512 => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        (
            algorithm,
            Use::Shared(Box::new(hmac::Key::new(with, &secret))),
        )
    };
    Ok(algorithms.into_iter().map(one).collect())
}
