//! `RequestAuthentication`: which JSON Web Tokens workloads accept, and what becomes of them.
//!
//! Field meaning: Istio's reference, security/request_authentication.

use std::time::Duration;

use crate::destination_rule::WorkloadSelector;
use crate::schema::message;
use crate::target_reference::PolicyTargetReference;

pub use crate::key_set::check_key_set;

/// Host and port of an `http` or `https` URI, the host in lower case and without brackets.
pub fn key_server(uri: &str) -> Option<(String, u16)> {
    let (scheme, rest) = uri.split_once("://")?;
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => default,
    };
    (!host.is_empty()).then(|| (host.to_ascii_lowercase(), port))
}

message! {
    pub struct RequestAuthentication {
        /// Without it the rules are for the whole namespace, in the root namespace for the mesh.
        effective selector: Option<WorkloadSelector>,
        /// Older form of `targetRefs`, of one.
        effective target_ref "targetRef": Option<PolicyTargetReference>,
        /// In place of a selector: the rules are for these only.
        effective target_refs "targetRefs": Vec<PolicyTargetReference>,
        effective jwt_rules "jwtRules": Vec<JwtRule>,
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
    fn servers_of_uris() {
        let check = |uri: &str, expect: Option<(&str, u16)>| {
            let found = key_server(uri);
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port));
            assert_eq!(found, expect, "{uri}");
        };
        check("http://Keys.test/x?y", Some(("keys.test", 80)));
        check("https://keys.test", Some(("keys.test", 443)));
        check("https://keys.test:8443/k", Some(("keys.test", 8443)));
        check("http://[::1]:8080/k", Some(("::1", 8080)));
        check("ftp://keys.test", None);
        check("http://:80", None);
        check("http://keys.test:none", None);
    }
}
