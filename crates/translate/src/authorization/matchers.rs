//! Values of policies, with `*` at one end, to Envoy's matchers
//! (`pilot/pkg/security/authz/matcher`).
//!
//! What becomes part of a regular expression stands there for itself: in an unquoted one the dot of
//! a name would match any character (CVE-2026-39350).

use crate::envoy::{self, matcher, route, uri_template};

use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
use matcher::string_matcher::MatchPattern;
use matcher::value_matcher::MatchPattern as ValuePattern;
use route::header_matcher::HeaderMatchSpecifier;

/// Where a verified token's claims are in a request's dynamic metadata.
const TOKEN_FILTER: &str = "envoy.filters.http.jwt_authn";
const TOKEN: &str = "payload";
const ANYTHING: &str = ".+";
const SPIFFE: &str = "spiffe://";

/// `*`, `*suffix`, `prefix*` or the value itself.
pub fn text(value: &str) -> matcher::StringMatcher {
    envoy::string_matcher(pattern(value))
}

fn pattern(value: &str) -> MatchPattern {
    if value == "*" {
        MatchPattern::SafeRegex(envoy::regex(ANYTHING))
    } else if let Some(suffix) = value.strip_prefix('*') {
        MatchPattern::Suffix(suffix.to_string())
    } else if let Some(prefix) = value.strip_suffix('*') {
        MatchPattern::Prefix(prefix.to_string())
    } else {
        MatchPattern::Exact(value.to_string())
    }
}

fn regex(pattern: &str) -> matcher::StringMatcher {
    envoy::string_matcher(MatchPattern::SafeRegex(envoy::regex(pattern)))
}

/// Text that stands for itself in a regular expression.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '-' | '_' | '/' | ':' | '@') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// The same with `*` for `any`.
fn globbed(text: &str, any: &str) -> String {
    let parts: Vec<String> = text.split('*').map(quoted).collect();
    parts.join(any)
}

/// A peer by its SPIFFE id, given without `spiffe://`.
pub fn principal(value: &str) -> matcher::StringMatcher {
    if value == "*" {
        return regex(ANYTHING);
    }
    match value.strip_prefix('*') {
        Some(suffix) => regex(&format!("{SPIFFE}.*{}", quoted(suffix))),
        None => text(&format!("{SPIFFE}{value}")),
    }
}

/// A peer in a namespace.
pub fn namespace(value: &str) -> matcher::StringMatcher {
    regex(&format!(".*/ns/{}/.*", globbed(value, ".*")))
}

/// A peer with `NAMESPACE/ACCOUNT`, or an account of the policy's namespace.
pub fn service_account(value: &str, own_namespace: &str) -> matcher::StringMatcher {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    regex(&format!(
        "{SPIFFE}.+/ns/{}/(.+/|)sa/{}(/.+)?",
        quoted(namespace),
        quoted(account)
    ))
}

/// A peer of a trust domain.
pub fn trust_domain(value: &str) -> matcher::StringMatcher {
    match value.contains('*') {
        true => regex(&format!("{SPIFFE}{}/.*", globbed(value, "[^/]*"))),
        false => envoy::string_matcher(MatchPattern::Prefix(format!("{SPIFFE}{value}/"))),
    }
}

/// A header; `*` is any value.
pub fn header(name: &str, value: &str) -> route::HeaderMatcher {
    let specifier = match value {
        "*" => HeaderMatchSpecifier::PresentMatch(true),
        value => HeaderMatchSpecifier::StringMatch(text(value)),
    };
    route::HeaderMatcher {
        name: name.to_string(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

/// The host of a request; case does not matter.
pub fn host(value: &str) -> route::HeaderMatcher {
    let mut made = header(":authority", value);
    if let Some(HeaderMatchSpecifier::StringMatch(text)) = &mut made.header_match_specifier {
        text.ignore_case = true;
    }
    made
}

/// A path without its query.
pub fn path(value: &str) -> matcher::PathMatcher {
    matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(text(value))),
    }
}

/// A path with `{*}` and `{**}`.
pub fn path_template(value: &str) -> uri_template::UriTemplateMatchConfig {
    uri_template::UriTemplateMatchConfig {
        path_template: value.replace("{*}", "*").replace("{**}", "**"),
    }
}

/// The issuer and the subject of a verified token, given as `ISSUER/SUBJECT`. The issuer may be a
/// URL, so the last slash divides.
pub fn request_principal(principal: &str) -> [matcher::MetadataMatcher; 2] {
    let any = || regex(ANYTHING);
    let ends = |suffix: &str| match suffix {
        "" => any(),
        suffix => envoy::string_matcher(MatchPattern::Suffix(suffix.to_string())),
    };
    let begins = |prefix: &str| match prefix {
        "" => any(),
        prefix => envoy::string_matcher(MatchPattern::Prefix(prefix.to_string())),
    };
    let exact = |value: &str| envoy::string_matcher(MatchPattern::Exact(value.to_string()));
    let parts = principal.rsplit_once('/');
    let (issuer, subject) = match (principal, parts) {
        ("*", _) => (any(), any()),
        (_, Some((issuer, subject))) => match (issuer.strip_prefix('*'), subject.strip_suffix('*'))
        {
            (Some(suffix), _) => (ends(suffix), exact(subject)),
            (None, Some(prefix)) => (exact(issuer), begins(prefix)),
            (None, None) => (exact(issuer), exact(subject)),
        },
        (value, None) => match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(suffix), _) => (any(), ends(suffix)),
            (None, Some(prefix)) => (begins(prefix), any()),
            (None, None) => (exact(value), exact("")),
        },
    };
    [("iss", issuer), ("sub", subject)].map(|(claim, text)| {
        let matched = value(ValuePattern::StringMatch(text));
        metadata(TOKEN_FILTER, &[TOKEN, claim], matched)
    })
}

/// A claim of a verified token that has one of the values, or a list with one of them.
pub fn claim(path: &[&str], values: &[String]) -> matcher::MetadataMatcher {
    let one_of = any_text(values);
    let list = ValuePattern::ListMatch(Box::new(matcher::ListMatcher {
        match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(
            one_of.clone(),
        ))),
    }));
    let either = or(vec![value(list), one_of]);
    let path: Vec<&str> = std::iter::once(TOKEN).chain(path.iter().copied()).collect();
    metadata(TOKEN_FILTER, &path, either)
}

/// Dynamic metadata of another filter; a value in brackets is one of a list.
pub fn filter_metadata(filter: &str, key: &str, values: &[String]) -> matcher::MetadataMatcher {
    let listed = |text: &String| {
        let inner = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        match inner {
            None => value(ValuePattern::StringMatch(self::text(text))),
            Some(inner) => value(ValuePattern::ListMatch(Box::new(matcher::ListMatcher {
                match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(value(
                    ValuePattern::StringMatch(self::text(inner)),
                )))),
            }))),
        }
    };
    metadata(filter, &[key], or(values.iter().map(listed).collect()))
}

fn any_text(values: &[String]) -> matcher::ValueMatcher {
    let texts = values
        .iter()
        .map(|one| value(ValuePattern::StringMatch(text(one))));
    or(texts.collect())
}

fn or(mut values: Vec<matcher::ValueMatcher>) -> matcher::ValueMatcher {
    match values.len() {
        1 => values.remove(0),
        _ => value(ValuePattern::OrMatch(matcher::OrMatcher {
            value_matchers: values,
        })),
    }
}

fn value(pattern: ValuePattern) -> matcher::ValueMatcher {
    matcher::ValueMatcher {
        match_pattern: Some(pattern),
    }
}

/// Dynamic metadata of a filter, by the path of keys.
pub fn metadata(
    filter: &str,
    path: &[&str],
    value: matcher::ValueMatcher,
) -> matcher::MetadataMatcher {
    let path = path.iter().map(|key| PathSegment {
        segment: Some(Segment::Key((*key).to_string())),
    });
    matcher::MetadataMatcher {
        filter: filter.to_string(),
        path: path.collect(),
        value: Some(value),
        invert: false,
    }
}

/// Dynamic metadata of a filter that begins with a text.
pub fn metadata_prefix(filter: &str, key: &str, prefix: &str) -> matcher::MetadataMatcher {
    let text = envoy::string_matcher(MatchPattern::Prefix(prefix.to_string()));
    metadata(filter, &[key], value(ValuePattern::StringMatch(text)))
}
