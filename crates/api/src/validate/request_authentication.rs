//! Rules of `RequestAuthentication` (Istio, `pkg/config/validation`, `validateJwtRule`).

use super::{Checker, Validate, names, target_reference};
use crate::request_authentication::*;

impl Validate for RequestAuthentication {
    fn validate(&self, check: &mut Checker) {
        check.some("selector", &self.selector, |check, selector| {
            names::selector(check, "matchLabels", &selector.match_labels);
        });
        target_reference::attachment(check, &self.selector, &self.target_ref, &self.target_refs);
        check.list("jwtRules", &self.jwt_rules, jwt_rule);
    }
}

fn jwt_rule(check: &mut Checker, rule: &JwtRule) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        check.missing("issuer", "issuer or jwksUri must be set");
    }
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() == rule.jwks.is_empty() {
        // Nothing to say beside the line above.
    } else if rule.jwks.is_empty() && rule.jwks_uri.is_empty() {
        // The keys are found by discovery, so the issuer is where to ask.
        check.field("issuer", |check| {
            check.syntax(key_location(&rule.issuer).map_err(|reason| {
                format!(
                    "without jwks or jwksUri the keys are looked for at the issuer, but {reason}"
                )
            }));
        });
    }
    not_empty(check, "audiences", &rule.audiences, "an audience");
    if !rule.jwks_uri.is_empty() {
        check.field("jwksUri", |check| {
            check.syntax(key_location(&rule.jwks_uri));
        });
    }
    check.at_most_one(&[
        ("jwksUri", !rule.jwks_uri.is_empty()),
        ("jwks", !rule.jwks.is_empty()),
    ]);
    if !rule.jwks.is_empty() {
        check.field("jwks", |check| {
            check.syntax(
                check_key_set(&rule.jwks)
                    .map_err(|reason| format!("the key set cannot be used: {reason}")),
            );
        });
    }
    check.list("fromHeaders", &rule.from_headers, |check, header| {
        check.field("name", |check| {
            check.syntax(names::header_name(&header.name))
        });
        check.field("prefix", |check| {
            check.syntax(names::header_value(&header.prefix))
        });
    });
    not_empty(check, "fromParams", &rule.from_params, "a query parameter");
    not_empty(check, "fromCookies", &rule.from_cookies, "a cookie");
    if !rule.output_payload_to_header.is_empty() {
        check.field("outputPayloadToHeader", |check| {
            check.syntax(names::header_name(&rule.output_payload_to_header));
        });
    }
    check.list(
        "outputClaimToHeaders",
        &rule.output_claim_to_headers,
        |check, one| {
            check.field("header", |check| {
                check.syntax(names::header_name(&one.header))
            });
            if one.claim.is_empty() {
                check.missing("claim", "the claim cannot be empty");
            }
        },
    );
    check.duration("timeout", &rule.timeout);
    not_empty(
        check,
        "spaceDelimitedClaims",
        &rule.space_delimited_claims,
        "a claim",
    );
}

fn not_empty(check: &mut Checker, name: &str, items: &[String], what: &str) {
    check.list(name, items, |check, item| {
        if item.is_empty() {
            check.error(format!("the name of {what} cannot be empty"));
        }
    });
}

/// `http://` or `https://`, a host, perhaps a port.
fn key_location(uri: &str) -> Result<(), String> {
    let rest = uri
        .strip_prefix("http://")
        .or_else(|| uri.strip_prefix("https://"));
    let Some(rest) = rest else {
        return Err(format!("{uri:?} does not begin with http:// or https://"));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.starts_with(':') {
        return Err(format!("{uri:?} names no host"));
    }
    if authority.contains('@') {
        return Err(format!(
            "{uri:?} holds credentials, which everybody could read"
        ));
    }
    let port = match authority.rsplit_once(']') {
        Some((_, after)) => after.strip_prefix(':'),
        None => authority.split_once(':').map(|(_, port)| port),
    };
    match port {
        Some(port) if !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Err(format!("{uri:?} has the port {port:?}, which is none"))
        }
        _ => Ok(()),
    }
}
