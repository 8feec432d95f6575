//! RequestAuthentications to Envoy's `jwt_authn` filter
//! (`pilot/pkg/security/authn/policy_applier.go`, `convertToEnvoyJwtConfig`; facts 52, 53).
//!
//! A request without a token passes; a token that is there has to be right.

use std::collections::BTreeSet;

use lateen_api::destination_rule::ClientTlsMode;
use lateen_api::request_authentication::{DEFAULT_KEYS_TIMEOUT, JwtRule, check_key_set};
use lateen_model::{KeyServer, KeySource, KeysFetchedBy, MeshSnapshot, Proxy, ProxyKind};
use prost::Message;

use crate::envoy::{self, Any, core, hcm, jwt, matcher};
use crate::names;
use crate::policy::Policy;
use crate::virtual_hosts::append;

use jwt::jwt_requirement::RequiresType;
use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
use matcher::value_matcher::MatchPattern;

/// Name of the filter, and of what it notes about requests.
pub const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";
/// Under which the payload of an accepted token is noted.
pub const PAYLOAD: &str = "payload";
/// Claims that Istio always reads as lists of words.
const LISTS: [&str; 2] = ["permission", "scope"];

/// Takes the place of keys that could not be fetched: the private key was thrown away when this was
/// made, so no token passes. An empty set would not do, a proxy refuses its whole listener.
const REFUSE_ALL: &str = concat!(
    r#"{"keys":[{"kty":"RSA","e":"AQAB","n":""#,
    "sDOPRR_vRW1SofRtZH1HCJyeTZ9SjS-hQJR53qrzcEMXkYwIhb0x2Y3cXNyM6jCNWCJHh10MjFMo1snr4mqdAqtt",
    "_v5bWYhMS9QSu6hWIvbPtDBj6ZZD0xVFo-DNrC1iK9t6i7OQRh1R8j_7LRo9LihgIjZs0lbkrfH7LgHyRQMBdy1e",
    "ucHacawriXTKuwxD7hXgF8KujmalY6X6B2fyCtL1WOm1ovW6XIntalVic2ixGFAHlmVMfGpwBmdxOVLRZiWZjhVI",
    "XzXW6LNkeXpD2Ui8Oqnx1MzGY2COlv4TEsutAE2edhnz6VpRfARxQWE3HzmOG6mYtx54ti_qEHP7aQ",
    r#""}]}"#
);

/// The filter for a proxy, if a rule selects it.
pub fn filter(snapshot: &MeshSnapshot, proxy: &Proxy) -> Option<hcm::HttpFilter> {
    let rules = snapshot.jwt_rules(&proxy.namespace, &proxy.labels);
    if rules.is_empty() {
        return None;
    }
    let gateway = proxy.kind == ProxyKind::Gateway;
    let providers: Vec<jwt::JwtProvider> = rules
        .iter()
        .map(|rule| provider(rule, source(snapshot, proxy, rule), gateway))
        .collect();
    Some(hcm::HttpFilter {
        name: JWT_AUTHN.to_string(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(encode(providers))),
        ..Default::default()
    })
}

/// Where the proxy has the keys of a rule from: a server that it asks itself over the cluster of a
/// service (`policy_applier.go`), else the configuration. A cluster that it does not have leads to no
/// keys, which refuses every token.
fn source(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    rule: &JwtRule,
) -> jwt::jwt_provider::JwksSourceSpecifier {
    use jwt::jwt_provider::JwksSourceSpecifier as Source;
    let local = |keys: &str| {
        Source::LocalJwks(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(keys.to_string())),
            ..Default::default()
        })
    };
    match snapshot.key_server(rule) {
        None => local(keys(snapshot, rule)),
        Some(server) if is_clear(snapshot, proxy, &server) => {
            match snapshot.settings.keys_fetched_by {
                KeysFetchedBy::Proxies => local(REFUSE_ALL),
                _ => local(keys(snapshot, rule)),
            }
        }
        Some(server) => Source::RemoteJwks(remote(snapshot, rule, &server)),
    }
}

/// Whether a proxy would ask a server in clear that is to be asked over TLS: a cluster does not know
/// the scheme of the URI, only what a DestinationRule says. (Istio asks all the same; whoever is on
/// the way could answer with keys of his own.)
fn is_clear(snapshot: &MeshSnapshot, proxy: &Proxy, server: &KeyServer) -> bool {
    let service = snapshot.service(&server.host);
    let rule = service.and_then(|service| snapshot.destination_rule_for(proxy, service));
    let tls = Policy::of(rule.map(|rule| &**rule), "", server.port).tls;
    let mode = tls.and_then(|tls| tls.mode).unwrap_or_default();
    server.https && mode == ClientTlsMode::Disable
}

fn remote(snapshot: &MeshSnapshot, rule: &JwtRule, server: &KeyServer) -> jwt::RemoteJwks {
    use core::http_uri::HttpUpstreamType;
    let cluster = names::outbound_cluster(server.port, "", &server.host);
    let timeout = rule.timeout.unwrap_or(DEFAULT_KEYS_TIMEOUT);
    jwt::RemoteJwks {
        http_uri: Some(core::HttpUri {
            uri: rule.jwks_uri.clone(),
            http_upstream_type: Some(HttpUpstreamType::Cluster(cluster)),
            timeout: Some(envoy::duration(timeout)),
        }),
        cache_duration: Some(envoy::duration(snapshot.settings.keys_cache)),
        ..Default::default()
    }
}

/// The keys of a rule; those that refuse every token when there are none that can be used.
fn keys<'a>(snapshot: &'a MeshSnapshot, rule: &'a JwtRule) -> &'a str {
    let found = match KeySource::of(rule) {
        None => check_key_set(&rule.jwks).ok().map(|()| &*rule.jwks),
        Some(source) => snapshot
            .key_set(&source)
            .and_then(|found| found.keys.as_deref()),
    };
    found.unwrap_or(REFUSE_ALL)
}

fn provider(
    rule: &JwtRule,
    source: jwt::jwt_provider::JwksSourceSpecifier,
    clear_route_cache: bool,
) -> jwt::JwtProvider {
    let claims = rule.space_delimited_claims.iter().map(String::as_str);
    let lists: BTreeSet<&str> = claims.chain(LISTS).collect();
    jwt::JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token.unwrap_or(false),
        forward_payload_header: rule.output_payload_to_header.clone(),
        payload_in_metadata: PAYLOAD.to_string(),
        normalize_payload_in_metadata: Some(jwt::jwt_provider::NormalizePayload {
            space_delimited_claims: lists.into_iter().map(str::to_string).collect(),
        }),
        // Routes of gateways may depend on what the token says.
        clear_route_cache,
        claim_to_headers: rule
            .output_claim_to_headers
            .iter()
            .map(|one| jwt::JwtClaimToHeader {
                header_name: one.header.clone(),
                claim_name: one.claim.clone(),
                ..Default::default()
            })
            .collect(),
        from_headers: rule
            .from_headers
            .iter()
            .map(|header| jwt::JwtHeader {
                name: header.name.clone(),
                value_prefix: header.prefix.clone(),
            })
            .collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        jwks_source_specifier: Some(source),
        ..Default::default()
    }
}

/// The filter's configuration. Its providers are a protobuf map, which would encode in another order
/// each time; so they are encoded here, in order.
fn encode(providers: Vec<jwt::JwtProvider>) -> Any {
    const PROVIDERS: u32 = 1;
    let rest = jwt::JwtAuthentication {
        rules: vec![jwt::RequirementRule {
            r#match: Some(crate::route_match::everything()),
            requirement_type: Some(jwt::requirement_rule::RequirementType::Requires(
                requirement(providers.len()),
            )),
        }],
        bypass_cors_preflight: true,
        ..Default::default()
    };
    let mut value = Vec::new();
    for (index, provider) in providers.into_iter().enumerate() {
        let mut entry = Vec::new();
        append(1, provider_name(index).as_bytes(), &mut entry);
        append(2, &provider.encode_to_vec(), &mut entry);
        append(PROVIDERS, &entry, &mut value);
    }
    value.extend(rest.encode_to_vec());
    Any {
        value,
        ..envoy::any(&jwt::JwtAuthentication::default())
    }
}

fn provider_name(index: usize) -> String {
    format!("origins-{index}")
}

/// One provider: it, or no token. Several: any of them, or for each of them that its token is right
/// or missing, since they may look for tokens in the same place.
fn requirement(providers: usize) -> jwt::JwtRequirement {
    let one = |index| requires(RequiresType::ProviderName(provider_name(index)));
    let any = |requirements| {
        requires(RequiresType::RequiresAny(jwt::JwtRequirementOrList {
            requirements,
        }))
    };
    let missing = || requires(RequiresType::AllowMissing(Default::default()));
    let mut each: Vec<_> = (0..providers)
        .map(|index| any(vec![one(index), missing()]))
        .collect();
    if each.len() == 1 {
        return each.remove(0);
    }
    let all = requires(RequiresType::RequiresAll(jwt::JwtRequirementAndList {
        requirements: each,
    }));
    any((0..providers).map(one).chain([all]).collect())
}

fn requires(kind: RequiresType) -> jwt::JwtRequirement {
    jwt::JwtRequirement {
        requires_type: Some(kind),
    }
}

/// The condition on a claim of an accepted token: the claim is, or is a list that has, such a text.
/// Without a pattern it has to be there.
pub fn claim_matcher(
    path: Vec<String>,
    pattern: Option<matcher::string_matcher::MatchPattern>,
    invert: bool,
) -> matcher::MetadataMatcher {
    let value = |pattern| matcher::ValueMatcher {
        match_pattern: Some(pattern),
    };
    let segment = |key: String| PathSegment {
        segment: Some(Segment::Key(key)),
    };
    let condition = match pattern {
        None => value(MatchPattern::PresentMatch(true)),
        Some(pattern) => {
            let text = value(MatchPattern::StringMatch(envoy::string_matcher(pattern)));
            let list = MatchPattern::ListMatch(Box::new(matcher::ListMatcher {
                match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(
                    text.clone(),
                ))),
            }));
            value(MatchPattern::OrMatch(matcher::OrMatcher {
                value_matchers: vec![value(list), text],
            }))
        }
    };
    matcher::MetadataMatcher {
        filter: JWT_AUTHN.to_string(),
        path: std::iter::once(PAYLOAD.to_string())
            .chain(path)
            .map(segment)
            .collect(),
        value: Some(condition),
        invert,
    }
}
