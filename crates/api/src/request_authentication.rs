//! `RequestAuthentication`: which JSON Web Tokens workloads accept, and what becomes of them.
//!
//! Field meaning: Istio's reference, security/request_authentication.

use std::time::Duration;

use serde_json::Value as Json;

use crate::destination_rule::WorkloadSelector;
use crate::schema::message;

message! {
    pub struct RequestAuthentication {
        /// Without it the rules are for the whole namespace, in the root namespace for the mesh.
        effective selector: Option<WorkloadSelector>,
        effective target_ref "targetRef": Option<PolicyTargetReference>,
        effective target_refs "targetRefs": Vec<PolicyTargetReference>,
        effective jwt_rules "jwtRules": Vec<JwtRule>,
    }
}

message! {
    /// What a policy is attached to, in Kubernetes' Gateway API.
    pub struct PolicyTargetReference {
        effective group: String,
        effective kind: String,
        effective name: String,
        effective namespace: String,
    }
}

message! {
    /// Tokens of one issuer.
    pub struct JwtRule {
        /// `iss` of the tokens. Without `jwks` and `jwksUri` its keys are found by OpenID discovery.
        effective issuer: String,
        /// One of these has to be an `aud` of the token; empty allows any.
        effective audiences: Vec<String>,
        /// Where the keys are fetched from.
        effective jwks_uri "jwksUri": String,
        /// The keys themselves.
        effective jwks: String,
        effective from_headers "fromHeaders": Vec<JwtHeader>,
        effective from_params "fromParams": Vec<String>,
        effective from_cookies "fromCookies": Vec<String>,
        /// Base64url of the payload of an accepted token.
        effective output_payload_to_header "outputPayloadToHeader": String,
        /// Let the token through to the application.
        effective forward_original_token "forwardOriginalToken": Option<bool>,
        effective output_claim_to_headers "outputClaimToHeaders": Vec<ClaimToHeader>,
        /// Of fetching the keys; default 5 s.
        effective timeout: Option<Duration>,
        /// Claims that hold a list as text, beside `scope` and `permission`.
        effective space_delimited_claims "spaceDelimitedClaims": Vec<String>,
    }
}

message! {
    pub struct JwtHeader {
        effective name: String,
        /// What stands before the token, as `Bearer `.
        effective prefix: String,
    }
}

message! {
    pub struct ClaimToHeader {
        effective header: String,
        /// `.` leads into objects.
        effective claim: String,
    }
}

/// How long fetching keys may take where a rule does not say.
pub const DEFAULT_KEYS_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a text is a JSON Web Key Set of which a proxy can use a key. A proxy refuses a whole
/// listener for a set without any.
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
    let text = |name: &str| key.get(name).and_then(Json::as_str).unwrap_or_default();
    let (needed, algorithms): (&[&str], &[&str]) = match text("kty") {
        "RSA" => (&["n", "e"], &["RS", "PS"]),
        "EC" => (&["x", "y"], &["ES"]),
        "OKP" => (&["crv", "x"], &["EdDSA"]),
        "oct" => (&["k"], &["HS"]),
        "" => return Err("a key has no \"kty\"".to_owned()),
        other => return Err(format!("a key has the unknown kty {other:?}")),
    };
    for name in needed {
        let value = text(name);
        if value.is_empty() {
            return Err(format!("a key has no {name:?}"));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || "-_=.".contains(c);
        if !value.chars().all(word) {
            return Err(format!("{name:?} of a key is not base64url"));
        }
    }
    let algorithm = text("alg");
    let fits = |prefix: &&str| algorithm.starts_with(*prefix);
    if !algorithm.is_empty() && !algorithms.iter().any(fits) {
        return Err(format!(
            "the alg {algorithm:?} does not go with kty {:?}",
            text("kty")
        ));
    }
    Ok(())
}

/// What names of claims begin with where VirtualServices match them as if they were headers.
const CLAIMS: &str = "@request.auth.claims";

/// The way to a claim in the payload of a token, if a header name of a VirtualService stands for
/// one: `@request.auth.claims.a.b` and `@request.auth.claims[a][b]`
/// (Istio, `pkg/jwt/routing.go`, `ToRoutingClaim`).
pub fn routing_claim(header: &str) -> Option<Vec<String>> {
    let prefix = header.get(..CLAIMS.len())?;
    if !prefix.eq_ignore_ascii_case(CLAIMS) {
        return None;
    }
    let rest = &header[CLAIMS.len()..];
    let parts = |text: &str, separator: &str| {
        let parts: Vec<String> = text.split(separator).map(str::to_owned).collect();
        parts.iter().all(|part| !part.is_empty()).then_some(parts)
    };
    if let Some(dotted) = rest.strip_prefix('.') {
        return parts(dotted, ".");
    }
    let inner = rest.strip_prefix('[')?.strip_suffix(']')?;
    parts(inner, "][")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_claims_in_virtual_services() {
        let check = |name: &str, expect: Option<&[&str]>| {
            let expect = expect.map(|parts| parts.iter().map(|p| (*p).to_owned()).collect());
            assert_eq!(routing_claim(name), expect, "{name}");
        };
        check("@request.auth.claims.group", Some(&["group"]));
        check("@REQUEST.Auth.claims.Group", Some(&["Group"]));
        check("@request.auth.claims.a.b-c", Some(&["a", "b-c"]));
        check("@request.auth.claims[a.b][c]", Some(&["a.b", "c"]));
        check(
            "@request.auth.claims[https://a.test/roles]",
            Some(&["https://a.test/roles"]),
        );
        check("@request.auth.claims", None);
        check("@request.auth.claims.", None);
        check("@request.auth.claims-a", None);
        check("@request.auth.claims[]", None);
        check("@request.auth.claims[a", None);
        check("request.auth.claims.a", None);
        check("x", None);
    }

    #[test]
    fn a_key_set_needs_a_key_that_can_be_used() {
        let check = |text: &str, expect: Result<(), &str>| {
            let found = check_key_set(text);
            let found = found.as_ref().copied().map_err(String::as_str);
            assert_eq!(found, expect, "{text}");
        };
        let none = "it has no key that can be used: ";
        check(
            r#"{"keys": [{"kty": "RSA", "n": "AQ", "e": "AQAB"}]}"#,
            Ok(()),
        );
        check(
            r#"{"keys": [{"kty": "x"}, {"kty": "EC", "x": "AQ", "y": "AQ", "alg": "ES256"}]}"#,
            Ok(()),
        );
        check(r#"{"keys": []}"#, Err(&format!("{none}\"keys\" is empty")));
        check(
            r#"{"keys": [{"kty": "RSA", "n": "AQ"}]}"#,
            Err(&format!("{none}a key has no \"e\"")),
        );
        check(
            r#"{"keys": [{"kty": "EC", "x": "A", "y": "A", "alg": "RS256"}]}"#,
            Err(&format!(
                "{none}the alg \"RS256\" does not go with kty \"EC\""
            )),
        );
        check("{}", Err("it has no \"keys\""));
        check(r#"{"keys": 1}"#, Err("\"keys\" is not a list"));
    }
}
