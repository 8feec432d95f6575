//! `envoy.type.matcher.v3`: string matchers, regexes and substitutions.

use super::scope::{At, report};
use super::values::required;
use crate::route::{RegexSubstitution, StringMatcher, StringTest};
use crate::{ConfigError, re2};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use regex::bytes::Regex;

pub(crate) fn string_matcher(
    value: matcher::StringMatcher,
    at: At<'_>,
) -> Result<StringMatcher, ConfigError> {
    use matcher::string_matcher::MatchPattern;
    let matcher::StringMatcher {
        ignore_case,
        match_pattern,
    } = value;
    let literal = |text: String, field: &str| {
        if text.is_empty() {
            Err(at.field(field).error("must not be empty"))
        } else {
            Ok(text.into_boxed_str())
        }
    };
    let test = match required(match_pattern, at)? {
        MatchPattern::Exact(text) => StringTest::Exact(text.into()),
        MatchPattern::Prefix(text) => StringTest::Prefix(literal(text, "prefix")?),
        MatchPattern::Suffix(text) => StringTest::Suffix(literal(text, "suffix")?),
        MatchPattern::Contains(text) => StringTest::Contains(literal(text, "contains")?),
        MatchPattern::SafeRegex(value) => {
            StringTest::of_regex(full_match(value, at.field("safe_regex"))?)
        }
        MatchPattern::Custom(_) => return Err(at.field("custom").not_supported()),
    };
    Ok(StringMatcher { test, ignore_case })
}

/// A regex that must match the whole value.
pub(crate) fn full_match(value: matcher::RegexMatcher, at: At<'_>) -> Result<Regex, ConfigError> {
    let pattern = pattern(value, at)?;
    re2::full_match(&pattern).map_err(|e| at.field("regex").error(e))
}

fn pattern(value: matcher::RegexMatcher, at: At<'_>) -> Result<String, ConfigError> {
    let matcher::RegexMatcher { regex, engine_type } = value;
    if let Some(matcher::regex_matcher::EngineType::GoogleRe2(google_re2)) = engine_type {
        let matcher::regex_matcher::GoogleRe2 { max_program_size } = google_re2;
        let at = at.field("google_re2");
        report!(at, "the limit of a regex is 1 MiB"; max_program_size);
    }
    if regex.is_empty() {
        return Err(at.field("regex").error("must not be empty"));
    }
    Ok(regex)
}

/// A regex that is searched for, and what replaces its matches.
pub(crate) fn substitution(
    value: matcher::RegexMatchAndSubstitute,
    at: At<'_>,
) -> Result<RegexSubstitution, ConfigError> {
    let matcher::RegexMatchAndSubstitute {
        pattern: regex,
        substitution,
    } = value;
    let pattern_at = at.field("pattern");
    let pattern = pattern(required(regex, pattern_at)?, pattern_at)?;
    let regex = re2::search(&pattern).map_err(|e| pattern_at.field("regex").error(e))?;
    let replacement = re2::replacement(&substitution, regex.captures_len() - 1)
        .map_err(|e| at.field("substitution").error(e))?;
    Ok(RegexSubstitution {
        regex,
        replacement: replacement.into(),
    })
}
