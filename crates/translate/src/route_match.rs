//! One `http[].match` item to an Envoy route match, and whether it applies to a proxy at all.

use std::collections::BTreeMap;

use lateen_api::request_authentication::routing_claim;
use lateen_api::virtual_service::{HttpMatchRequest, StringMatch};
use lateen_model::{labels_match, resolve_gateway};

use crate::envoy::{self, matcher, route};
use crate::jwt_authn::claim_matcher;

use matcher::string_matcher::MatchPattern;
use route::header_matcher::HeaderMatchSpecifier;
use route::route_match::PathSpecifier;

/// For whom routes are made: the parts of a proxy that a match item may ask about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Audience {
    /// `mesh` for sidecars, else the `namespace/name` of the gateways of the port.
    pub gateways: Vec<String>,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// Port of the listener, as rules know it.
    pub port: u32,
}

/// Whether a match item of a rule in `rule_namespace` concerns this audience.
pub fn applies(item: &HttpMatchRequest, rule_namespace: &str, audience: &Audience) -> bool {
    if item
        .port
        .is_some_and(|port| port != 0 && port != audience.port)
    {
        return false;
    }
    if !item.gateways.is_empty() {
        // The gateways of the item stand in for source labels and namespace (fact 6).
        let named: Vec<String> = item
            .gateways
            .iter()
            .map(|g| resolve_gateway(g, rule_namespace))
            .collect();
        return audience.gateways.iter().any(|g| named.contains(g));
    }
    labels_match(&item.source_labels, &audience.labels)
        && (item.source_namespace.is_empty() || item.source_namespace == audience.namespace)
}

/// Whether a match item takes every request: nothing after it can be reached (fact 1).
pub fn is_catch_all(item: &HttpMatchRequest) -> bool {
    let any_path = match &item.uri {
        None | Some(StringMatch::Present) => true,
        Some(StringMatch::Prefix(prefix)) => prefix == "/",
        Some(StringMatch::Regex(pattern)) => pattern == "*" || pattern == ".*",
        Some(StringMatch::Exact(_)) => false,
    };
    any_path
        && item.headers.is_empty()
        && item.without_headers.is_empty()
        && item.query_params.is_empty()
        && item.method.is_none()
        && item.scheme.is_none()
        && item.authority.is_none()
}

/// The match that takes every request.
pub fn everything() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_string())),
        ..Default::default()
    }
}

/// The Envoy match of an item.
pub fn translate(item: &HttpMatchRequest) -> route::RouteMatch {
    let mut made = everything();
    match &item.uri {
        None | Some(StringMatch::Present) => {}
        Some(StringMatch::Exact(path)) => {
            made.path_specifier = Some(PathSpecifier::Path(path.clone()))
        }
        Some(StringMatch::Prefix(prefix)) => {
            made.path_specifier = Some(PathSpecifier::Prefix(prefix.clone()))
        }
        Some(StringMatch::Regex(pattern)) => {
            made.path_specifier = Some(PathSpecifier::SafeRegex(envoy::regex(pattern)));
        }
    }
    if item.ignore_uri_case == Some(true) {
        made.case_sensitive = envoy::bool_value(false);
    }
    for (name, value) in &item.headers {
        match routing_claim(name) {
            Some(path) => made
                .dynamic_metadata
                .push(claim_matcher(path, pattern(value), false)),
            None => made.headers.push(header(name, value)),
        }
    }
    for (name, value) in &item.without_headers {
        match routing_claim(name) {
            Some(path) => made
                .dynamic_metadata
                .push(claim_matcher(path, pattern(value), true)),
            None => made.headers.push(without_header(name, value)),
        }
    }
    for (name, value) in [
        (":method", &item.method),
        (":authority", &item.authority),
        (":scheme", &item.scheme),
    ] {
        if let Some(value) = value {
            made.headers.push(header(name, value));
        }
    }
    for (name, value) in &item.query_params {
        made.query_parameters.push(query_parameter(name, value));
    }
    made
}

fn header(name: &str, value: &StringMatch) -> route::HeaderMatcher {
    let specifier = match pattern(value) {
        None => HeaderMatchSpecifier::PresentMatch(true),
        Some(pattern) => HeaderMatchSpecifier::StringMatch(envoy::string_matcher(pattern)),
    };
    route::HeaderMatcher {
        name: name.to_string(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

/// The header is missing or differs; a missing header counts as empty text (fact 5).
fn without_header(name: &str, value: &StringMatch) -> route::HeaderMatcher {
    let mut made = header(name, value);
    made.invert_match = true;
    made.treat_missing_header_as_empty = !matches!(
        made.header_match_specifier,
        Some(HeaderMatchSpecifier::PresentMatch(_))
    );
    made
}

fn query_parameter(name: &str, value: &StringMatch) -> route::QueryParameterMatcher {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let specifier = match pattern(value) {
        None => Specifier::PresentMatch(true),
        Some(pattern) => Specifier::StringMatch(envoy::string_matcher(pattern)),
    };
    route::QueryParameterMatcher {
        name: name.to_string(),
        query_parameter_match_specifier: Some(specifier),
    }
}

/// `None` means "present": an empty match, or the literal regex `*` (fact 3).
pub fn pattern(value: &StringMatch) -> Option<MatchPattern> {
    match value {
        StringMatch::Present => None,
        StringMatch::Regex(pattern) if pattern == "*" => None,
        StringMatch::Exact(text) => Some(MatchPattern::Exact(text.clone())),
        StringMatch::Prefix(text) => Some(MatchPattern::Prefix(text.clone())),
        StringMatch::Regex(pattern) => Some(MatchPattern::SafeRegex(envoy::regex(pattern))),
    }
}
