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
    /// Contains it and is one line of UTF-8: the regex `.*TEXT.*`, by which Istio's policies name
    /// namespaces. A compiled regex would take kilobytes and microseconds for each.
    Within(Box<str>),
    /// Matches the whole value.
    Regex(Regex),
}

impl StringTest {
    /// A regex for whole values ([`crate::re2::full_match`]).
    pub(crate) fn of_regex(regex: Regex) -> StringTest {
        let inner = regex.as_str().strip_prefix(r"\A(?:.*");
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/:-_".contains(&b);
        match inner.and_then(|rest| rest.strip_suffix(r".*)\z")) {
            Some(text) if text.bytes().all(plain) => StringTest::Within(text.into()),
            _ => StringTest::Regex(regex),
        }
    }
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
            StringTest::Within(s) => {
                holds(value, s.as_bytes())
                    && !value.contains(&b'\n')
                    && std::str::from_utf8(value).is_ok()
            }
            StringTest::Contains(s) if !self.ignore_case => holds(value, s.as_bytes()),
            StringTest::Contains(s) => s.is_empty() || value.windows(s.len()).any(|w| equal(w, s)),
            StringTest::Regex(r) => r.is_match(value),
        }
    }
}

fn holds(value: &[u8], text: &[u8]) -> bool {
    let Some(first) = text.first() else {
        return true;
    };
    let mut all = value.windows(text.len());
    all.any(|part| part.first() == Some(first) && part == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_in_anything_decides_as_the_regex_it_was() {
        let full = |pattern| crate::re2::full_match(pattern).unwrap();
        for (pattern, plain) in [
            (".*/ns/a-b/.*", true),
            (".*.*", true),
            (".*a.*b.*", false),
            (".*a.+", false),
            (".*a|b.*", false),
            ("a.*", false),
            (".*[a].*", false),
        ] {
            let test = StringTest::of_regex(full(pattern));
            assert_eq!(matches!(test, StringTest::Within(_)), plain, "{pattern}");
            let matcher = StringMatcher {
                test,
                ignore_case: true,
            };
            for value in [
                b"".as_slice(),
                b"/ns/a-b/",
                b"spiffe://td/ns/a-b/sa/c",
                b"spiffe://td/ns/A-b/sa/c",
                b"/ns/a-b",
                b"/ns/a-b/\n",
                b"\n/ns/a-b/",
                b"/ns/a-b/\xff",
                b"\xc3\xa4/ns/a-b/",
                b"ab",
                b"a",
            ] {
                let expect = full(pattern).is_match(value);
                assert_eq!(matcher.matches(value), expect, "{pattern} {value:?}");
            }
        }
    }
}
