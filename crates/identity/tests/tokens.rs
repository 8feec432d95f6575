//! Tokens: which are believed, and each way in which one is not.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use lateen_identity::token::{
    CA_AUDIENCE, Proof, Subject, TokenError, TokenIssuer, TokenVerifier, TrustedIssuer,
};
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.example";
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn reviews() -> Subject {
    Subject {
        namespace: "default".into(),
        service_account: "reviews".into(),
    }
}

/// An issuer of our own with keys of both kinds, which can make any token.
struct Forge {
    ec: EcdsaKeyPair,
    rsa: RsaKeyPair,
}

impl Forge {
    fn new() -> Self {
        Self {
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        }
    }

    fn jwks(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        let rsa = self.rsa.public_key();
        json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..])},
            {"kty": "RSA", "kid": "rsa", "use": "sig", "n": BASE64.encode(rsa.modulus().big_endian_without_leading_zero()),
             "e": BASE64.encode(rsa.exponent().big_endian_without_leading_zero())},
        ]})
    }

    fn verifier(&self) -> TokenVerifier {
        TokenVerifier::new(vec![
            TrustedIssuer::from_jwks(ISSUER, &self.jwks().to_string()).unwrap(),
        ])
    }

    fn ec(&self, header: Value, claims: Value) -> String {
        let signed = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims.to_string())
        );
        let signature = self
            .ec
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", BASE64.encode(signature.as_ref()))
    }

    fn rsa(&self, header: Value, claims: Value) -> String {
        let signed = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims.to_string())
        );
        let mut signature = vec![0; 256];
        self.rsa
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .unwrap();
        format!("{signed}.{}", BASE64.encode(signature))
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:default:reviews",
        "aud": [CA_AUDIENCE],
        "iat": NOW, "nbf": NOW, "exp": NOW + 3600,
        "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "reviews", "uid": "x"}, "pod": {"name": "p"}},
    })
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

#[test]
fn tokens_of_known_issuers_are_believed() {
    let forge = Forge::new();
    let verifier = forge.verifier();
    let believed = |token: &str, now: u64| {
        assert_eq!(
            verifier
                .verify(token, CA_AUDIENCE, at(now))
                .map(|proof| proof.subject),
            Ok(reviews())
        )
    };
    believed(
        &forge.ec(json!({"alg": "ES256", "kid": "ec"}), claims()),
        NOW,
    );
    believed(&forge.ec(json!({"alg": "ES256"}), claims()), NOW + 3599);
    believed(
        &forge.rsa(
            json!({"alg": "RS256", "kid": "rsa", "typ": "JWT"}),
            claims(),
        ),
        NOW,
    );
    believed(
        &forge.ec(json!({"alg": "ES256"}), with("aud", json!("istio-ca"))),
        NOW,
    );
    believed(
        &forge.ec(
            json!({"alg": "ES256"}),
            with("aud", json!(["other", "istio-ca"])),
        ),
        NOW,
    );
    believed(
        &forge.ec(json!({"alg": "ES256"}), without("kubernetes.io")),
        NOW,
    );
    believed(&forge.ec(json!({"alg": "ES256"}), claims()), NOW - 30);
}

#[test]
fn what_is_not_right_is_not_believed() {
    let forge = Forge::new();
    let verifier = forge.verifier();
    let check = |token: &str, expect: &str| {
        let error = verifier
            .verify(token, CA_AUDIENCE, at(NOW))
            .expect_err(expect)
            .to_string();
        assert!(error.contains(expect), "{error}");
    };
    let es256 = || json!({"alg": "ES256"});
    let claim =
        |key: &str, value: Value, expect: &str| check(&forge.ec(es256(), with(key, value)), expect);
    claim("iss", json!("https://other.example"), "issuer");
    claim("iss", json!(""), "issuer");
    claim("aud", json!(["kubernetes"]), "not for");
    claim("aud", json!([]), "not for");
    claim("aud", json!("istio-ca2"), "not for");
    claim("aud", json!("Istio-CA"), "not for");
    claim("aud", json!({"istio-ca": 1}), "no signed");
    claim("exp", json!(NOW), "expired");
    claim("exp", json!(NOW - 1), "expired");
    claim("exp", json!(0), "expired");
    claim("exp", json!(-1), "expired");
    claim("exp", json!("never"), "no signed");
    claim("exp", Value::Null, "no signed");
    claim("nbf", json!(NOW + 61), "not yet");
    claim("iat", json!(NOW + 3600), "not yet");
    claim("sub", json!("reviews"), "subject");
    claim("sub", json!("system:serviceaccount:default"), "subject");
    claim("sub", json!("system:serviceaccount::reviews"), "subject");
    claim("sub", json!("system:serviceaccount:default:"), "subject");
    claim("sub", json!("system:serviceaccount:default:a:b"), "subject");
    claim(
        "sub",
        json!("system:serviceaccount:default:../x"),
        "subject",
    );
    claim(
        "sub",
        json!("system:serviceaccount:kube-system:a/sa/b"),
        "subject",
    );
    claim("sub", json!("system:node:default:reviews"), "subject");
    claim(
        "kubernetes.io",
        json!({"namespace": "other"}),
        "two different",
    );
    claim(
        "kubernetes.io",
        json!({"serviceaccount": {"name": "admin"}}),
        "two different",
    );
    for key in ["iss", "sub", "aud", "exp"] {
        check(&forge.ec(es256(), without(key)), "no signed");
    }
    for alg in [
        "none", "None", "HS256", "ES384", "PS256", "EdDSA", "", "es256",
    ] {
        let token = forge.ec(json!({"alg": alg}), claims());
        assert!(
            verifier.verify(&token, CA_AUDIENCE, at(NOW)).is_err(),
            "{alg}"
        );
    }
    check(
        &forge.ec(
            json!({"alg": "ES256", "crit": ["b64"], "b64": false}),
            claims(),
        ),
        "crit",
    );
    check(
        &forge.ec(json!({"alg": "ES256", "kid": "rsa"}), claims()),
        "signature",
    );
    check(
        &forge.ec(json!({"alg": "ES256", "kid": "unknown"}), claims()),
        "signature",
    );
    // The keys of one kind with the algorithm of another.
    check(&forge.ec(json!({"alg": "RS256"}), claims()), "signature");
    check(&forge.rsa(json!({"alg": "ES256"}), claims()), "signature");
    check(&forge.rsa(json!({"alg": "RS384"}), claims()), "signature");
    // A key that the token brings itself, and a foreign one.
    let foreign = Forge::new();
    let jwk = foreign.jwks()["keys"][0].clone();
    check(
        &foreign.ec(json!({"alg": "ES256", "jwk": jwk}), claims()),
        "signature",
    );
    check(
        &foreign.ec(json!({"alg": "ES256", "kid": "ec"}), claims()),
        "signature",
    );
}

#[test]
fn text_that_is_no_token_is_refused() {
    let forge = Forge::new();
    let verifier = forge.verifier();
    let good = forge.ec(json!({"alg": "ES256"}), claims());
    let refused = |token: &str| {
        assert!(
            verifier.verify(token, CA_AUDIENCE, at(NOW)).is_err(),
            "{token}"
        )
    };
    let parts: Vec<&str> = good.split('.').collect();
    refused("");
    refused("..");
    refused(&parts[..2].join("."));
    refused(&format!("{}.{}.", parts[0], parts[1]));
    refused(&format!("{good}."));
    refused(&format!("{good}="));
    refused(&format!(" {good}"));
    refused(&format!("{good}\n"));
    refused(&good.replace('.', ".."));
    let none = BASE64.encode(json!({"alg": "none"}).to_string());
    refused(&format!("{none}.{}.", parts[1]));
    // HMAC with the public key as the secret.
    let hs256 = BASE64.encode(json!({"alg": "HS256"}).to_string());
    let signed = format!("{hs256}.{}", parts[1]);
    let secret =
        aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, forge.ec.public_key().as_ref());
    let tag = aws_lc_rs::hmac::sign(&secret, signed.as_bytes());
    refused(&format!("{signed}.{}", BASE64.encode(tag.as_ref())));
    // Other claims under the same signature.
    let other =
        BASE64.encode(with("sub", json!("system:serviceaccount:kube-system:admin")).to_string());
    refused(&format!("{}.{other}.{}", parts[0], parts[2]));
    assert_eq!(
        verifier.verify(&"a".repeat(1 << 20), CA_AUDIENCE, at(NOW)),
        Err(TokenError::TooLong(1 << 20))
    );
    let twice = r#"{"alg":"ES256","alg":"none"}"#;
    refused(&format!(
        "{}.{}.{}",
        BASE64.encode(twice),
        parts[1],
        parts[2]
    ));
}

#[test]
fn the_local_issuer_keeps_its_key_and_its_tokens_are_believed_within_their_bounds() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca/token-key.pem");
    let issuer = TokenIssuer::open(&path, ISSUER).unwrap();
    let audiences = [CA_AUDIENCE.to_owned(), "other".to_owned()];
    let token = issuer
        .issue(&reviews(), &audiences, Duration::from_secs(600), at(NOW))
        .unwrap();
    assert_eq!(token.expires, at(NOW + 600));
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let proof = || Proof {
        subject: reviews(),
        expires: at(NOW + 600),
    };
    let again = TokenIssuer::open(&path, ISSUER).unwrap();
    let verifier = TokenVerifier::new(vec![again.trusted()]);
    assert_eq!(
        verifier.verify(&token.token, CA_AUDIENCE, at(NOW + 599)),
        Ok(proof())
    );
    assert_eq!(verifier.verify(&token.token, "other", at(NOW)), Ok(proof()));
    assert_eq!(
        verifier.verify(&token.token, CA_AUDIENCE, at(NOW + 600)),
        Err(TokenError::Expired)
    );
    assert!(verifier.verify(&token.token, "third", at(NOW)).is_err());
    let from_jwks = TrustedIssuer::from_jwks(ISSUER, &issuer.jwks().to_string()).unwrap();
    assert_eq!(
        TokenVerifier::new(vec![from_jwks]).verify(&token.token, CA_AUDIENCE, at(NOW)),
        Ok(proof())
    );
    let other = TokenIssuer::open(&directory.path().join("other.pem"), ISSUER).unwrap();
    assert_eq!(
        TokenVerifier::new(vec![other.trusted()]).verify(&token.token, CA_AUDIENCE, at(NOW)),
        Err(TokenError::Signature)
    );

    std::fs::write(&path, "damaged").unwrap();
    let error = TokenIssuer::open(&path, ISSUER).err().unwrap().to_string();
    assert!(
        error.contains("token-key.pem") && error.contains("remove the file"),
        "{error}"
    );
}

#[test]
fn key_sets_that_cannot_be_used_are_refused_with_the_place() {
    let refused = |jwks: Value, expect: &str| {
        let error = TrustedIssuer::from_jwks(ISSUER, &jwks.to_string())
            .err()
            .expect(expect)
            .to_string();
        assert!(error.contains(expect), "{error}");
    };
    let keys = Forge::new().jwks()["keys"].clone();
    let changed = |index: usize, name: &str, value: Value| {
        let mut keys = keys.clone();
        keys[index][name] = value;
        json!({"keys": keys})
    };
    assert!(TrustedIssuer::from_jwks(ISSUER, &json!({"keys": keys}).to_string()).is_ok());
    refused(json!({}), "keys");
    refused(json!({"keys": []}), "0 keys");
    refused(json!({"keys": vec![keys[0].clone(); 101]}), "101 keys");
    refused(changed(0, "kty", json!("oct")), "keys[0]");
    refused(changed(0, "crv", json!("secp256k1")), "keys[0]");
    refused(changed(0, "x", json!("AAAA")), "length");
    refused(changed(0, "x", json!("+/+/")), "base64url");
    refused(changed(0, "alg", json!("RS256")), "algorithm");
    refused(changed(1, "alg", json!("HS256")), "keys[1]");
    refused(changed(1, "n", json!("AQAB")), "2048");
    refused(changed(1, "use", json!("enc")), "signatures");
}
