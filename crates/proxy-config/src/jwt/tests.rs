//! Tokens of other programs: those of RFC 7515, and some of each algorithm made by Python's
//! `cryptography` (`vectors.json`).

use super::*;
use crate::jwt::failure::JwtFailure as F;
use proptest::prelude::*;
use serde_json::{Value, json};

/// RFC 7515 appendix A.2: RS256.
const RFC_RS256: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
const RFC_RS256_KEY: &str = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
/// RFC 7515 appendix A.3: ES256.
const RFC_ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const RFC_ES256_KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
/// RFC 7515 appendix A.1: HS256.
const RFC_HS256: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const RFC_HS256_KEY: &str = r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn key_set(keys: &[Value]) -> KeySet {
    let text = json!({ "keys": keys }).to_string();
    KeySet::parse(&text, |index, reason| panic!("{index}: {reason}")).unwrap()
}

fn verify(token: &str, keys: &KeySet) -> Result<(), F> {
    keys.verify(&Token::parse(token.as_bytes())?)
}

/// A token with these parts, signed by nobody.
fn unsigned(header: &str, payload: &str) -> String {
    let encode = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    format!("{}.{}.c2ln", encode(header), encode(payload))
}

#[test]
fn the_tokens_of_the_rfc_are_verified_and_one_changed_bit_is_found() {
    for (token, key) in [
        (RFC_RS256, RFC_RS256_KEY),
        (RFC_ES256, RFC_ES256_KEY),
        (RFC_HS256, RFC_HS256_KEY),
    ] {
        let keys = key_set(&[serde_json::from_str(key).unwrap()]);
        assert_eq!(verify(token, &keys), Ok(()));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{signed}.{other}{}", &signature[1..]);
        assert_eq!(verify(&forged, &keys), Err(F::Signature));
        // Another payload under the same signature.
        let (header, _) = signed.split_once('.').unwrap();
        let payload = "eyJpc3MiOiJqb2UiLCJhZG1pbiI6dHJ1ZX0";
        let forged = format!("{header}.{payload}.{signature}");
        assert_eq!(verify(&forged, &keys), Err(F::Signature));
        let token = Token::parse(token.as_bytes()).unwrap();
        assert_eq!(token.issuer, "joe");
        let at = |seconds| token.check_time(Duration::from_secs(seconds), Duration::from_secs(60));
        assert_eq!(at(1_300_819_440), Ok(()));
        assert_eq!(at(1_300_819_441), Err(F::Expired));
    }
}

#[test]
fn each_algorithm_is_verified_with_its_own_kind_of_key_only() {
    let vectors = vectors();
    let keys = vectors["keys"].as_array().unwrap();
    for (algorithm, token) in vectors["tokens"].as_object().unwrap() {
        let token = token.as_str().unwrap();
        assert_eq!(verify(token, &key_set(keys)), Ok(()), "{algorithm}");
        let parsed = Token::parse(token.as_bytes()).unwrap();
        assert_eq!(parsed.audiences, ["one", "two"]);
        for key in keys {
            // Without ids every key is tried; with one only the key of that id.
            let mut nameless = key.clone();
            nameless.as_object_mut().unwrap().remove("kid");
            let right = key["kid"] == json!(parsed.key_id);
            let expect = if right { Ok(()) } else { Err(F::Signature) };
            let found = verify(token, &key_set(&[nameless.clone()]));
            assert_eq!(found, expect, "{algorithm} with {key}");
            let expect = if right { Ok(()) } else { Err(F::NoSuchKey) };
            let found = verify(token, &key_set(std::slice::from_ref(key)));
            assert_eq!(found, expect, "{algorithm} with {key}");
            if right {
                nameless["alg"] = json!(algorithm);
                assert_eq!(verify(token, &key_set(&[nameless])), Ok(()), "{algorithm}");
            }
        }
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    // HS256 with the text of the public key as secret, the classic confusion.
    let vectors = vectors();
    let rsa = &vectors["keys"][0];
    let header = r#"{"alg":"HS256","kid":"rsa"}"#;
    let token = unsigned(header, r#"{"iss":"a"}"#);
    let (signed, _) = token.rsplit_once('.').unwrap();
    let secret = serde_json::to_string(rsa).unwrap();
    for secret in [secret.as_bytes(), rsa["n"].as_str().unwrap().as_bytes()] {
        use base64::Engine as _;
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
        let tag = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(tag);
        let forged = format!("{signed}.{tag}");
        let keys = key_set(std::slice::from_ref(rsa));
        assert_eq!(verify(&forged, &keys), Err(F::Signature));
    }
}

#[test]
fn what_is_no_token_is_refused_in_the_order_of_envoys_checks() {
    let check = |token: &str, expect: F| {
        assert_eq!(
            Token::parse(token.as_bytes()).unwrap_err(),
            expect,
            "{token}"
        );
    };
    let with_header = |header: &str, expect| check(&unsigned(header, r#"{"iss":"a"}"#), expect);
    let with_claims = |claims: &str, expect| check(&unsigned(r#"{"alg":"RS256"}"#, claims), expect);
    for text in ["", "a", "a.b", "a.b.c.d", "..", "a..c", ".b.c", "a.b."] {
        check(text, F::BadFormat);
    }
    check(&format!("a.{}.c", "b".repeat(64 * 1024)), F::BadFormat);
    check("!.b.c", F::HeaderBase64);
    check("YQ.b.c", F::HeaderJson);
    with_header("[]", F::HeaderJson);
    with_header(r#"["RS256","kid"]"#, F::HeaderJson);
    with_header(r#"{"alg":"RS256""#, F::HeaderJson);
    with_header("{}", F::HeaderAlgorithm);
    with_header(r#"{"alg":1}"#, F::HeaderAlgorithm);
    with_header(r#"{"alg":null}"#, F::HeaderAlgorithm);
    for none in ["none", "None", "NONE", "", "rs256", "RS1", "HS1"] {
        with_header(&json!({ "alg": none }).to_string(), F::AlgorithmUnknown);
    }
    with_header(r#"{"alg":"RS256","kid":1}"#, F::HeaderKeyId);
    check("eyJhbGciOiJSUzI1NiJ9.!.c", F::PayloadBase64);
    check("eyJhbGciOiJSUzI1NiJ9.YQ.c", F::PayloadJson);
    with_claims("[1]", F::PayloadJson);
    with_claims(r#""text""#, F::PayloadJson);
    with_claims(r#"{"iss":["a"]}"#, F::Issuer);
    with_claims(r#"{"iss":null}"#, F::Issuer);
    with_claims(r#"{"sub":1}"#, F::Subject);
    with_claims(r#"{"iat":"1"}"#, F::IssuedAt);
    with_claims(r#"{"iat":-1}"#, F::IssuedAtRange);
    with_claims(r#"{"nbf":"1"}"#, F::NotBefore);
    with_claims(r#"{"nbf":1e30}"#, F::NotBeforeRange);
    with_claims(r#"{"exp":true}"#, F::Expiry);
    with_claims(r#"{"exp":{}}"#, F::Expiry);
    with_claims(r#"{"exp":-5}"#, F::ExpiryRange);
    with_claims(r#"{"jti":{}}"#, F::Id);
    with_claims(r#"{"aud":1}"#, F::Audience);
    with_claims(r#"{"aud":["a",1]}"#, F::Audience);
    with_claims(r#"{"aud":[["a"]]}"#, F::Audience);
    check("eyJhbGciOiJSUzI1NiJ9.e30.!", F::SignatureBase64);
    // Nesting costs nothing here; the data plane refuses it when it reads what is signed.
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(Token::parse(unsigned(r#"{"alg":"RS256"}"#, &deep).as_bytes()).is_ok());
}

#[test]
fn times_may_have_fractions_and_clocks_may_differ() {
    let token = unsigned(r#"{"alg":"RS256"}"#, r#"{"nbf":1000.9,"exp":2000}"#);
    let token = Token::parse(token.as_bytes()).unwrap();
    let at = |now| token.check_time(Duration::from_secs(now), Duration::from_secs(60));
    assert_eq!(at(939), Err(F::NotYetValid));
    assert_eq!(at(940), Ok(()));
    assert_eq!(at(2060), Ok(()));
    assert_eq!(at(2061), Err(F::Expired));
    let never = unsigned(r#"{"alg":"RS256"}"#, "{}");
    let never = Token::parse(never.as_bytes()).unwrap();
    assert_eq!(
        never.check_time(Duration::from_secs(u64::MAX), Duration::ZERO),
        Ok(())
    );
}

#[test]
fn audiences_compare_without_scheme_and_closing_slash() {
    let accepted = Audiences::new(["https://api.test/", "plain"]);
    let check = |of_token: &[&str], expect| {
        let of_token: Vec<String> = of_token.iter().map(|a| (*a).to_owned()).collect();
        assert_eq!(accepted.admit(&of_token), expect, "{of_token:?}");
    };
    check(&["api.test"], true);
    check(&["http://api.test"], true);
    check(&["other", "plain/"], true);
    check(&["api.test/v1"], false);
    check(&[""], false);
    check(&[], false);
    assert!(Audiences::default().admit(&[]));
}

#[test]
fn without_any_key_every_token_is_refused() {
    assert_eq!(verify(RFC_RS256, &KeySet::default()), Err(F::NoKeys));
}

#[test]
fn keys_that_cannot_be_used_are_left_out_and_told() {
    let good = vectors()["keys"][1].clone();
    let check = |key: Value, expect: &str| {
        let mut told = Vec::new();
        let text = json!({"keys": [key, good]}).to_string();
        KeySet::parse(&text, |index, reason| {
            told.push(format!("{index}: {reason}"))
        })
        .unwrap();
        assert_eq!(told, [format!("0: {expect}")]);
        let alone = json!({"keys": [key]}).to_string();
        let error = KeySet::parse(&alone, |_, _| {}).unwrap_err();
        assert_eq!(error, "Jwks doesn't have any valid public key");
    };
    check(json!({}), "[kty] is missing in [keys]");
    check(json!({"kty": "XX"}), "[kty] is not supported in [keys]");
    check(json!({"kty": "RSA"}), "[n] field is missing for a RSA key");
    let short = json!({"kty": "RSA", "n": "sXchDaQebHnPiGvyDOAT4sav", "e": "AQAB"});
    check(short, "an RSA key has 2048 to 8192 bits");
    let curve = json!({"kty": "EC", "crv": "secp256k1", "x": "AQ", "y": "AQ"});
    check(curve, "[crv] or [alg] field is not supported for an EC key");
    let off_curve = json!({"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"});
    check(off_curve, "Jwks EC [x] and [y] fields have a parse error.");
    let mut other = good.clone();
    other["alg"] = json!("ES384");
    let expect = "[crv] field specified is not compatible with [alg] for an EC key";
    check(other, expect);
    let mut confused = good.clone();
    confused["alg"] = json!("HS256");
    check(confused, "[alg] is not started with [ES] for an EC key");
    let okp = json!({"kty": "OKP", "crv": "X25519", "x": "AQ"});
    check(okp, "[crv] field is not supported for an OKP key");
    let okp = json!({"kty": "OKP", "crv": "Ed25519", "x": "AQ"});
    check(okp, "Jwks OKP [x] field is wrong length.");
    check(
        json!({"kty": "oct", "k": ""}),
        "Jwks Oct key is an invalid Base64",
    );
    check(json!("text"), "[kty] is missing in [keys]");
    for (text, expect) in [
        ("", "Jwks is an invalid JSON"),
        ("{}", "Jwks does not have [keys] field"),
        (r#"{"keys":{}}"#, "[keys] in Jwks is not an array"),
        (r#"{"keys":[]}"#, "Jwks doesn't have any valid public key"),
    ] {
        assert_eq!(
            KeySet::parse(text, |_, _| {}).unwrap_err(),
            expect,
            "{text}"
        );
    }
}

/// Pieces of JSON of which some look like what a token or a key has.
fn pieces() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| json!(n).to_string()),
        "[a-zA-Z0-9_-]{0,90}".prop_map(|s| json!(s).to_string()),
        prop::sample::select(vec![
            "RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "RS256", "ES256"
        ])
        .prop_map(|s| json!(s).to_string()),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let names = vec![
            "alg", "kid", "iss", "aud", "exp", "keys", "kty", "n", "e", "x", "y", "crv", "k",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((prop::sample::select(names), inner), 0..6).prop_map(|v| {
                let entries = v.iter().map(|(k, v)| format!("\"{k}\":{v}"));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Token::parse(&bytes);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = KeySet::parse(text, |_, _| {});
        }
    }

    #[test]
    fn any_json_is_read_or_refused_and_verifies_nothing(header in pieces(), payload in pieces(), set in pieces()) {
        let token = unsigned(&header, &payload);
        let token = Token::parse(token.as_bytes());
        if let Ok(keys) = KeySet::parse(&set, |_, _| {}) && let Ok(token) = &token {
            prop_assert!(keys.verify(token).is_err());
        }
        let vectors = vectors();
        if let Ok(token) = &token {
            let keys = key_set(vectors["keys"].as_array().unwrap());
            prop_assert!(keys.verify(token).is_err());
        }
    }

    #[test]
    fn a_token_with_one_changed_byte_is_refused(which in 0usize..13, at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let vectors = vectors();
        let (_, token) = vectors["tokens"].as_object().unwrap().iter().nth(which).unwrap();
        let mut bytes = token.as_str().unwrap().as_bytes().to_vec();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        let keys = key_set(vectors["keys"].as_array().unwrap());
        let accepted = Token::parse(&bytes).and_then(|token| keys.verify(&token));
        prop_assert!(accepted.is_err());
    }
}
