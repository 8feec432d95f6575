//! Matching one string (`envoy.type.matcher.v3.StringMatcher`).

use regex::bytes::Regex;

/// A test on a string.
#[derive(Clone, Debug)]
pub struct StringMatcher {
    pub test: StringTest,
    /// ASCII case does not matter. Not used by regexes.
    pub ignore_case: bool,
}

/// The kind of test.
#[derive(Clone, Debug)]
pub enum StringTest {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Contains(Box<str>),
    /// Matches the whole value.
    Regex(Regex),
}

impl StringMatcher {
    /// Whether `value` passes.
    pub fn matches(&self, value: &[u8]) -> bool {
        let equal = |a: &[u8], b: &str| {
            if self.ignore_case {
                a.eq_ignore_ascii_case(b.as_bytes())
            } else {
                a == b.as_bytes()
            }
        };
        match &self.test {
            StringTest::Exact(s) => equal(value, s),
            StringTest::Prefix(s) => value.get(..s.len()).is_some_and(|v| equal(v, s)),
            StringTest::Suffix(s) => value
                .len()
                .checked_sub(s.len())
                .is_some_and(|at| equal(&value[at..], s)),
            StringTest::Contains(s) => s.is_empty() || value.windows(s.len()).any(|w| equal(w, s)),
            StringTest::Regex(r) => r.is_match(value),
        }
    }
}
