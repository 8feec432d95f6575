//! What a request must be for a route (`envoy.config.route.v3.RouteMatch`).

use super::StringMatcher;
use crate::rbac::MetadataMatcher;
use crate::{Metadata, RequestView};
use regex::bytes::Regex;

/// All conditions of one route; all must hold.
#[derive(Clone, Debug)]
pub struct RouteMatcher {
    pub path: PathMatcher,
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    pub metadata: Vec<MetadataMatcher>,
    /// Only gRPC requests (`content-type: application/grpc`).
    pub grpc: bool,
    pub runtime_fraction: Option<Fraction>,
}

/// The condition on the path, which never includes the query.
#[derive(Clone, Debug)]
pub enum PathMatcher {
    Prefix(Box<str>),
    Exact(Box<str>),
    /// Matches the whole path.
    Regex(Regex),
    /// The path itself, or below it: `/api` takes `/api` and `/api/x`, not `/apix`.
    SeparatedPrefix(Box<str>),
    /// The CONNECT method.
    Connect,
}

impl RouteMatcher {
    /// Whether all conditions hold. `path` is the request's path as [`matched_path`] cuts it, and
    /// `metadata` what filters have found out so far.
    pub fn matches(
        &self,
        request: &impl RequestView,
        metadata: Option<&Metadata>,
        path: &[u8],
        random: u64,
    ) -> bool {
        self.matches_path(request, path)
            && self.runtime_fraction.is_none_or(|f| f.includes(random))
            && (!self.grpc || is_grpc(request))
            && self.headers.iter().all(|h| h.matches(request))
            && self.query.iter().all(|q| q.matches(request.path()))
            && self.metadata.iter().all(|m| m.matches(metadata))
    }

    fn matches_path(&self, request: &impl RequestView, path: &[u8]) -> bool {
        let starts = |prefix: &str| {
            path.get(..prefix.len()).is_some_and(|start| {
                if self.case_sensitive {
                    start == prefix.as_bytes()
                } else {
                    start.eq_ignore_ascii_case(prefix.as_bytes())
                }
            })
        };
        // A CONNECT without a path only takes routes made for it.
        if path.is_empty() && !matches!(self.path, PathMatcher::Connect) {
            return false;
        }
        match &self.path {
            PathMatcher::Prefix(prefix) => starts(prefix),
            PathMatcher::Exact(exact) => path.len() == exact.len() && starts(exact),
            PathMatcher::Regex(regex) => regex.is_match(path),
            PathMatcher::SeparatedPrefix(prefix) => {
                starts(prefix) && path.get(prefix.len()).is_none_or(|b| *b == b'/')
            }
            PathMatcher::Connect => request.method() == b"CONNECT",
        }
    }
}

/// The part of `:path` that routes match: without query and fragment, and without `;parameters` when
/// the table ignores them.
pub fn matched_path(path: &[u8], ignore_parameters: bool) -> &[u8] {
    let path = super::without_query(path);
    match path.iter().position(|b| *b == b';') {
        Some(end) if ignore_parameters => &path[..end],
        _ => path,
    }
}

fn is_grpc(request: &impl RequestView) -> bool {
    request.header("content-type").is_some_and(|value| {
        value
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
    })
}

/// A share of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Fraction {
    /// Whether the request with this random number is in.
    pub fn includes(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// The condition on one header or pseudo header.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Lower case.
    pub name: Box<str>,
    pub test: HeaderTest,
    pub invert: bool,
    pub treat_missing_as_empty: bool,
}

/// The kind of test.
#[derive(Clone, Debug)]
pub enum HeaderTest {
    Present(bool),
    String(StringMatcher),
    /// Start inclusive, end exclusive.
    Range(std::ops::Range<i64>),
}

impl HeaderMatcher {
    /// Whether the request passes. A header that is missing (and not taken as empty) passes no test
    /// on its value, inverted or not (Envoy, `HeaderUtility::matchHeaders`).
    pub fn matches(&self, request: &impl RequestView) -> bool {
        if self.name.starts_with(':') || &*self.name == "host" {
            let value = request.header_or_pseudo(&self.name);
            return self.matches_value(value.as_deref());
        }
        match request.any_value(&self.name, |value| self.passes(value)) {
            Some(passes) => passes != self.invert,
            None => self.matches_value(None),
        }
    }

    /// The same for a value already at hand (response headers).
    pub fn matches_value(&self, value: Option<&[u8]>) -> bool {
        let passes = match (value, &self.test) {
            (None, HeaderTest::Present(present)) => !present,
            (Some(value), _) => self.passes(value),
            (None, _) if self.treat_missing_as_empty => self.passes(b""),
            (None, _) => return false,
        };
        passes != self.invert
    }

    /// The test on a header that is there, before it is inverted.
    fn passes(&self, value: &[u8]) -> bool {
        match &self.test {
            HeaderTest::Present(present) => *present,
            HeaderTest::String(test) => test.matches(value),
            HeaderTest::Range(range) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim_ascii().parse::<i64>().ok())
                .is_some_and(|n| range.contains(&n)),
        }
    }
}

/// The first value of a query parameter in a path, as it stands there.
pub fn query_value<'p>(path: &'p [u8], name: &[u8]) -> Option<&'p [u8]> {
    let question = path.iter().position(|b| *b == b'?')?;
    let query = &path[question + 1..];
    let query = query.split(|b| *b == b'#').next().unwrap_or_default();
    query.split(|b| *b == b'&').find_map(|pair| {
        let (found, value) = match pair.iter().position(|b| *b == b'=') {
            Some(equals) => (&pair[..equals], &pair[equals + 1..]),
            None => (pair, &b""[..]),
        };
        (found == name).then_some(value)
    })
}

/// The condition on one query parameter. Names and values are compared as they are in the path,
/// without percent-decoding; the first of several values counts.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    pub name: Box<str>,
    /// [`None`]: it must be there.
    pub test: Option<StringMatcher>,
}

impl QueryMatcher {
    /// Whether a path with its query passes.
    pub fn matches(&self, path: &[u8]) -> bool {
        match (&self.test, query_value(path, self.name.as_bytes())) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(test), Some(value)) => test.matches(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::StringTest;

    fn string(test: StringTest) -> HeaderTest {
        HeaderTest::String(StringMatcher {
            test,
            ignore_case: false,
        })
    }

    fn header(test: HeaderTest, value: Option<&str>) -> [bool; 3] {
        let with = |invert, treat_missing_as_empty| HeaderMatcher {
            name: "x".into(),
            test: test.clone(),
            invert,
            treat_missing_as_empty,
        };
        [(false, false), (true, false), (true, true)]
            .map(|(i, m)| with(i, m).matches_value(value.map(str::as_bytes)))
    }

    #[test]
    fn header_tests_plain_inverted_and_inverted_with_missing_as_empty() {
        let exact = || string(StringTest::Exact("v2".into()));
        assert_eq!(header(exact(), Some("v2")), [true, false, false]);
        assert_eq!(header(exact(), Some("v1")), [false, true, true]);
        assert_eq!(header(exact(), None), [false, false, true]);
        assert_eq!(header(HeaderTest::Present(true), None), [false, true, true]);
        assert_eq!(
            header(HeaderTest::Present(true), Some("")),
            [true, false, false]
        );
        assert_eq!(
            header(HeaderTest::Present(false), None),
            [true, false, false]
        );
        assert_eq!(
            header(HeaderTest::Range(1..10), Some("9")),
            [true, false, false]
        );
        assert_eq!(
            header(HeaderTest::Range(1..10), Some("10")),
            [false, true, true]
        );
        assert_eq!(
            header(HeaderTest::Range(-5..0), Some("-5")),
            [true, false, false]
        );
        assert_eq!(
            header(HeaderTest::Range(1..10), Some("9x")),
            [false, true, true]
        );
    }

    #[test]
    fn query_parameters_are_compared_undecoded_and_the_first_counts() {
        let check = |path: &str, expect: bool| {
            let matcher = QueryMatcher {
                name: "v".into(),
                test: Some(StringMatcher {
                    test: StringTest::Exact("1".into()),
                    ignore_case: false,
                }),
            };
            assert_eq!(matcher.matches(path.as_bytes()), expect, "{path}");
        };
        check("/?v=1", true);
        check("/?a=2&v=1#f", true);
        check("/?v=2&v=1", false);
        check("/?v", false);
        check("/?v=%31", false);
        check("/v=1", false);
    }

    #[test]
    fn path_parameters_are_part_of_the_path_unless_ignored() {
        assert_eq!(matched_path(b"/a;b=c?q", false), b"/a;b=c");
        assert_eq!(matched_path(b"/a;b=c?q", true), b"/a");
    }
}
