//! `RouteMatch`: paths, headers, query parameters.

use super::rbac::metadata_matcher;
use super::scope::{At, reject};
use super::strings::{full_match, string_matcher};
use super::values::{flag, header_name, known, required};
use crate::ConfigError;
use crate::route::{
    Fraction, HeaderMatcher, HeaderTest, PathMatcher, QueryMatcher, RouteMatcher, StringMatcher,
    StringTest,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;

pub(crate) fn route_matcher(
    message: pb::RouteMatch,
    at: At<'_>,
) -> Result<RouteMatcher, ConfigError> {
    let pb::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = message;
    reject!(at; cookies, tls_context, filter_state);
    let query = |(i, q)| query_matcher(q, at.item("query_parameters", i));
    Ok(RouteMatcher {
        path: path_matcher(required(path_specifier, at.field("path_specifier"))?, at)?,
        case_sensitive: flag(case_sensitive, true),
        headers: header_matchers(headers, "headers", at)?,
        query: query_parameters
            .into_iter()
            .enumerate()
            .map(query)
            .collect::<Result<_, _>>()?,
        metadata: dynamic_metadata
            .into_iter()
            .enumerate()
            .map(|(i, m)| metadata_matcher(m, at.item("dynamic_metadata", i)))
            .collect::<Result<_, _>>()?,
        grpc: grpc
            .map(|pb::route_match::GrpcRouteMatchOptions {}| ())
            .is_some(),
        runtime_fraction: runtime_fraction
            .map(|f| runtime_fractional_percent(f, at.field("runtime_fraction")))
            .transpose()?,
    })
}

fn path_matcher(
    specifier: pb::route_match::PathSpecifier,
    at: At<'_>,
) -> Result<PathMatcher, ConfigError> {
    use pb::route_match::PathSpecifier;
    Ok(match specifier {
        PathSpecifier::Prefix(prefix) => PathMatcher::Prefix(prefix.into()),
        PathSpecifier::Path(path) => PathMatcher::Exact(path.into()),
        PathSpecifier::SafeRegex(regex) => {
            PathMatcher::Regex(full_match(regex, at.field("safe_regex"))?)
        }
        PathSpecifier::ConnectMatcher(pb::route_match::ConnectMatcher {}) => PathMatcher::Connect,
        PathSpecifier::PathSeparatedPrefix(prefix) => {
            // route_components.proto: pattern ^[^?#]+[^?#/]$
            if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                return Err(at.field("path_separated_prefix").error(format!(
                    "'{prefix}' must be longer than one character, without '?' and '#', and must not \
                     end in '/'"
                )));
            }
            PathMatcher::SeparatedPrefix(prefix.into())
        }
        PathSpecifier::PathMatchPolicy(_) => {
            return Err(at.field("path_match_policy").not_supported());
        }
    })
}

pub(crate) fn header_matchers(
    messages: Vec<pb::HeaderMatcher>,
    field: &str,
    at: At<'_>,
) -> Result<Vec<HeaderMatcher>, ConfigError> {
    messages
        .into_iter()
        .enumerate()
        .map(|(i, m)| header_matcher(m, at.item(field, i)))
        .collect()
}

pub(crate) fn header_matcher(
    message: pb::HeaderMatcher,
    at: At<'_>,
) -> Result<HeaderMatcher, ConfigError> {
    use pb::header_matcher::HeaderMatchSpecifier as Specifier;
    let pb::HeaderMatcher {
        name,
        invert_match,
        treat_missing_header_as_empty,
        header_match_specifier,
    } = message;
    let literal = |test| {
        HeaderTest::String(StringMatcher {
            test,
            ignore_case: false,
        })
    };
    let test = match header_match_specifier {
        None => HeaderTest::Present(true),
        Some(Specifier::PresentMatch(present)) => HeaderTest::Present(present),
        // Deprecated form: an empty value stands for presence (Envoy, `HeaderUtility::matchHeaders`).
        Some(Specifier::ExactMatch(text)) if text.is_empty() => HeaderTest::Present(true),
        Some(Specifier::ExactMatch(text)) => literal(StringTest::Exact(text.into())),
        Some(Specifier::PrefixMatch(text)) => literal(StringTest::Prefix(text.into())),
        Some(Specifier::SuffixMatch(text)) => literal(StringTest::Suffix(text.into())),
        Some(Specifier::ContainsMatch(text)) => literal(StringTest::Contains(text.into())),
        Some(Specifier::SafeRegexMatch(regex)) => literal(StringTest::of_regex(full_match(
            regex,
            at.field("safe_regex_match"),
        )?)),
        Some(Specifier::StringMatch(matcher)) => {
            HeaderTest::String(string_matcher(matcher, at.field("string_match"))?)
        }
        Some(Specifier::RangeMatch(range)) => HeaderTest::Range(range.start..range.end),
    };
    Ok(HeaderMatcher {
        name: header_name(&name, at.field("name"))?,
        test,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
    })
}

fn query_matcher(
    message: pb::QueryParameterMatcher,
    at: At<'_>,
) -> Result<QueryMatcher, ConfigError> {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let pb::QueryParameterMatcher {
        name,
        query_parameter_match_specifier,
    } = message;
    if name.is_empty() || name.len() > 1024 {
        return Err(at.field("name").error("must have 1 to 1024 bytes"));
    }
    let test = match query_parameter_match_specifier {
        None | Some(Specifier::PresentMatch(true)) => None,
        Some(Specifier::PresentMatch(false)) => {
            return Err(at.field("present_match").error("only true is supported"));
        }
        Some(Specifier::StringMatch(matcher)) => {
            Some(string_matcher(matcher, at.field("string_match"))?)
        }
    };
    Ok(QueryMatcher {
        name: name.into(),
        test,
    })
}

/// A fraction. There are no runtime overrides in this proxy, so the default value is the value.
pub(crate) fn runtime_fractional_percent(
    message: core::RuntimeFractionalPercent,
    at: At<'_>,
) -> Result<Fraction, ConfigError> {
    let core::RuntimeFractionalPercent {
        default_value,
        runtime_key,
    } = message;
    if !runtime_key.is_empty() {
        at.field("runtime_key")
            .notice("there is no runtime; the default value holds");
    }
    let at = at.field("default_value");
    fraction(required(default_value, at)?, at)
}

pub(crate) fn fraction(message: FractionalPercent, at: At<'_>) -> Result<Fraction, ConfigError> {
    let FractionalPercent {
        numerator,
        denominator,
    } = message;
    let denominator = match known(denominator, at.field("denominator"))? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok(Fraction {
        numerator,
        denominator,
    })
}
