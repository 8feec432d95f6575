//! JSON Web Key Sets (RFC 7517): whether a proxy could check a signature with one.
//!
//! Only what can be seen without cryptography is looked at: kind, algorithm, curve and sizes. That a
//! point is on its curve is not.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value as Json;

/// Padding may be there or not.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Bytes of a modulus: 2,048 bits at least (RFC 7518 section 3.3), 8,192 at most.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// Whether a text is a JSON Web Key Set of which a proxy can use a key. With a set without any, a
/// proxy refuses every token.
pub fn check_key_set(text: &str) -> Result<(), String> {
    let set: Json = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    let Some(keys) = set.get("keys") else {
        return Err("it has no \"keys\"".to_owned());
    };
    let Some(keys) = keys.as_array() else {
        return Err("\"keys\" is not a list".to_owned());
    };
    let mut unusable = "\"keys\" is empty".to_owned();
    for key in keys {
        match check_key(key) {
            Ok(()) => return Ok(()),
            Err(reason) => unusable = reason,
        }
    }
    Err(format!("it has no key that can be used: {unusable}"))
}

/// RFC 7518 section 6, RFC 8037.
fn check_key(key: &Json) -> Result<(), String> {
    let kind = text(key, "kty");
    let algorithms: &[&str] = match kind {
        "RSA" => &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
        "EC" => &["ES256", "ES384", "ES512"],
        "OKP" => &["EdDSA"],
        "oct" => &["HS256", "HS384", "HS512"],
        "" => return Err("a key has no \"kty\"".to_owned()),
        other => return Err(format!("a key has the unknown kty {other:?}")),
    };
    let algorithm = text(key, "alg");
    if !algorithm.is_empty() && !algorithms.contains(&algorithm) {
        return Err(format!(
            "the alg {algorithm:?} does not go with kty {kind:?}"
        ));
    }
    match kind {
        "RSA" => rsa(key),
        "EC" => ec(key, algorithm),
        "OKP" => okp(key),
        _ => bytes(key, "k").map(drop),
    }
}

fn rsa(key: &Json) -> Result<(), String> {
    let modulus = number(key, "n")?.len();
    number(key, "e")?;
    match MODULUS.contains(&modulus) {
        true => Ok(()),
        false => Err(format!(
            "an RSA key has {} bits, not 2048 to 8192",
            modulus * 8
        )),
    }
}

fn ec(key: &Json, algorithm: &str) -> Result<(), String> {
    let curve = text(key, "crv");
    // Without a word of either it is P-256 in Envoy.
    let (of_curve, length) = match (curve, algorithm) {
        ("P-256", _) | ("", "" | "ES256") => ("ES256", 32),
        ("P-384", _) | ("", "ES384") => ("ES384", 48),
        ("P-521", _) | ("", "ES512") => ("ES512", 66),
        _ => {
            return Err(format!(
                "the curve {curve:?} is none of P-256, P-384, P-521"
            ));
        }
    };
    if !algorithm.is_empty() && algorithm != of_curve {
        return Err(format!(
            "the alg {algorithm:?} does not go with the curve {curve:?}"
        ));
    }
    for name in ["x", "y"] {
        if number(key, name)?.len() > length {
            return Err(format!(
                "{name:?} of a key has more than the {length} bytes of its curve"
            ));
        }
    }
    Ok(())
}

fn okp(key: &Json) -> Result<(), String> {
    const ED25519: usize = 32;
    let curve = text(key, "crv");
    if curve != "Ed25519" {
        return Err(format!("the curve {curve:?} is not Ed25519"));
    }
    match bytes(key, "x")?.len() {
        ED25519 => Ok(()),
        other => Err(format!(
            "\"x\" of an Ed25519 key has {other} bytes, not {ED25519}"
        )),
    }
}

fn text<'k>(key: &'k Json, name: &str) -> &'k str {
    key.get(name).and_then(Json::as_str).unwrap_or_default()
}

fn bytes(key: &Json, name: &str) -> Result<Vec<u8>, String> {
    match text(key, name) {
        "" => Err(format!("a key has no {name:?}")),
        text => BASE64URL
            .decode(text)
            .map_err(|_| format!("{name:?} of a key is not base64url")),
    }
}

/// The bytes of a number, without leading zeros.
fn number(key: &Json, name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = bytes(key, name)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_set_needs_a_key_that_can_be_used() {
        let zeros = |length: usize| BASE64URL.encode([vec![1], vec![0; length - 1]].concat());
        let rsa = |length: usize| json!({"kty": "RSA", "n": zeros(length), "e": "AQAB"});
        let ec = |curve: &str, length: usize| json!({"kty": "EC", "crv": curve, "x": zeros(length), "y": zeros(length)});
        let with = |mut key: Json, name: &str, value: &str| {
            key[name] = json!(value);
            key
        };
        let good = |key: Json| {
            let set = json!({"keys": [{"kty": "x"}, key]}).to_string();
            assert_eq!(check_key_set(&set), Ok(()), "{key}");
        };
        good(rsa(256));
        good(with(rsa(1024), "alg", "PS512"));
        good(ec("P-256", 32));
        good(with(ec("P-384", 47), "alg", "ES384"));
        good(ec("P-521", 66));
        good(json!({"kty": "EC", "alg": "ES384", "x": zeros(48), "y": zeros(48)}));
        good(json!({"kty": "EC", "x": zeros(32), "y": zeros(32)}));
        good(json!({"kty": "OKP", "crv": "Ed25519", "x": zeros(32)}));
        good(json!({"kty": "oct", "k": "c2VjcmV0"}));

        let bad = |key: Json, expect: &str| {
            let set = json!({"keys": [key]}).to_string();
            let expect = format!("it has no key that can be used: {expect}");
            assert_eq!(check_key_set(&set), Err(expect), "{key}");
        };
        bad(json!({"kty": "RSA", "n": "AQ"}), "a key has no \"e\"");
        bad(rsa(128), "an RSA key has 1024 bits, not 2048 to 8192");
        // Leading zeros are no bits.
        let short = BASE64URL.encode([vec![0; 200], vec![1; 56]].concat());
        bad(
            with(rsa(256), "n", &short),
            "an RSA key has 448 bits, not 2048 to 8192",
        );
        bad(
            with(rsa(256), "n", "a+b"),
            "\"n\" of a key is not base64url",
        );
        bad(
            ec("secp256k1", 32),
            "the curve \"secp256k1\" is none of P-256, P-384, P-521",
        );
        bad(
            ec("P-256", 33),
            "\"x\" of a key has more than the 32 bytes of its curve",
        );
        bad(
            with(ec("P-256", 32), "alg", "ES384"),
            "the alg \"ES384\" does not go with the curve \"P-256\"",
        );
        bad(
            with(ec("P-256", 32), "alg", "RS256"),
            "the alg \"RS256\" does not go with kty \"EC\"",
        );
        for curve in ["Ed448", "X25519"] {
            bad(
                json!({"kty": "OKP", "crv": curve, "x": zeros(32)}),
                &format!("the curve {curve:?} is not Ed25519"),
            );
        }
        bad(
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AQ"}),
            "\"x\" of an Ed25519 key has 1 bytes, not 32",
        );
        let check = |text: &str, expect: &str| {
            assert_eq!(check_key_set(text), Err(expect.to_owned()), "{text}");
        };
        check("{}", "it has no \"keys\"");
        check(r#"{"keys": 1}"#, "\"keys\" is not a list");
        check(
            r#"{"keys": []}"#,
            "it has no key that can be used: \"keys\" is empty",
        );
    }
}
