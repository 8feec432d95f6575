//! One condition of a policy, and what it looks at. Semantics are those of Envoy's
//! `source/extensions/filters/common/rbac/matchers.cc`.

use super::ip_set::IpSet;
use crate::route::{HeaderMatcher, StringMatcher, StringTest};
use crate::{Metadata, RequestView};
use regex::bytes::Regex;
use serde_json::Value;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// From how many alternatives on texts are looked up rather than compared one by one.
const SET_FROM: usize = 8;

/// A condition.
#[derive(Clone, Debug)]
pub enum Rule {
    All(Box<[Rule]>),
    Any(Box<[Rule]>),
    Not(Box<Rule>),
    Always,
    Header(HeaderMatcher),
    /// On the path without its query.
    Path(StringMatcher),
    PathIn(HashSet<Box<[u8]>>),
    /// The same, as a URI template compiles to it.
    Template(Regex),
    DestinationIp(IpSet),
    DestinationPort(Range<u32>),
    ServerName(StringMatcher),
    Metadata(MetadataSource, MetadataMatcher),
    /// On TLS connections: any of the names of the client's certificate; [`None`]: whoever it is.
    Authenticated(Option<StringMatcher>),
    AuthenticatedAs(HashSet<Box<[u8]>>),
    /// Where the connection comes from, as a PROXY header says.
    SourceIp(IpSet),
    /// The other end of the socket.
    DirectRemoteIp(IpSet),
    /// Where the request comes from, as trusted proxies say.
    RemoteIp(IpSet),
}

/// Which metadata a rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataSource {
    /// What filters have found out about the request.
    Dynamic,
    /// Of the route.
    Route,
}

/// A condition on a value in metadata.
#[derive(Clone, Debug)]
pub struct MetadataMatcher {
    pub namespace: Box<str>,
    pub path: Box<[Box<str>]>,
    pub value: ValueMatcher,
    pub invert: bool,
}

/// A condition on one value.
#[derive(Clone, Debug)]
pub enum ValueMatcher {
    Null,
    /// From, and up to but without.
    Range(Range<f64>),
    Number(f64),
    Text(StringMatcher),
    Bool(bool),
    Present(bool),
    /// One element of a list.
    OneOf(Box<ValueMatcher>),
    Any(Box<[ValueMatcher]>),
}

/// What is decided on: a request, or with no `request` a connection.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a, R> {
    pub request: Option<&'a R>,
    /// Where the client was going.
    pub local: SocketAddr,
    /// Where the connection comes from.
    pub peer: IpAddr,
    /// The other end of the socket.
    pub direct_peer: IpAddr,
    /// Where the request comes from.
    pub remote: IpAddr,
    /// Empty without one.
    pub server_name: &'a str,
    /// [`None`]: the connection is plain.
    pub identity: Option<Identity<'a>>,
    pub metadata: Option<&'a Metadata>,
    pub has_route: bool,
    pub route_metadata: Option<&'a Metadata>,
}

/// The names of a client's certificate; all empty without one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity<'a> {
    pub uris: &'a [String],
    pub dns: &'a [String],
    /// RFC 2253.
    pub subject: &'a str,
}

impl<'a> Identity<'a> {
    /// In the order in which they are tried. The subject counts even when there are others.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let names = self.uris.iter().chain(self.dns).map(String::as_bytes);
        names.chain([self.subject.as_bytes()])
    }
}

impl Rule {
    pub fn all(rules: Vec<Rule>) -> Rule {
        one_or(rules, |rules| Rule::All(rules.into()))
    }

    /// One of these, what can be looked up joined together.
    pub fn any(rules: Vec<Rule>) -> Rule {
        let mut rest = Vec::new();
        for rule in rules {
            match rule {
                Rule::Any(inner) => rest.extend(inner),
                rule => rest.push(rule),
            }
        }
        if rest.iter().any(|rule| matches!(rule, Rule::Always)) {
            return Rule::Always;
        }
        let mut joined = Vec::new();
        for (of, make) in IP_KINDS {
            if rest.iter().filter_map(of).nth(1).is_some() {
                joined.push(make(IpSet::union(rest.iter().filter_map(of))));
                rest.retain(|rule| of(rule).is_none());
            }
        }
        for (of, make) in TEXT_KINDS {
            if rest.iter().filter_map(of).count() >= SET_FROM {
                let texts = rest.iter().filter_map(of).map(|t| t.as_bytes().into());
                joined.push(make(texts.collect()));
                rest.retain(|rule| of(rule).is_none());
            }
        }
        joined.extend(rest);
        one_or(joined, |rules| Rule::Any(rules.into()))
    }

    /// Whether `test` holds for the rule or one inside it.
    pub(super) fn any_part(&self, test: &impl Fn(&Rule) -> bool) -> bool {
        test(self)
            || match self {
                Rule::All(rules) | Rule::Any(rules) => rules.iter().any(|r| r.any_part(test)),
                Rule::Not(rule) => rule.any_part(test),
                _ => false,
            }
    }

    /// Whether the condition holds.
    pub fn matches<R: RequestView>(&self, subject: &Subject<'_, R>) -> bool {
        match self {
            Rule::All(rules) => rules.iter().all(|rule| rule.matches(subject)),
            Rule::Any(rules) => rules.iter().any(|rule| rule.matches(subject)),
            Rule::Not(rule) => !rule.matches(subject),
            Rule::Always => true,
            Rule::Header(matcher) => match subject.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches_value(None),
            },
            Rule::Path(matcher) => subject.path().is_some_and(|path| matcher.matches(path)),
            Rule::PathIn(paths) => subject.path().is_some_and(|path| paths.contains(path)),
            Rule::Template(regex) => subject.path().is_some_and(|path| regex.is_match(path)),
            Rule::DestinationIp(set) => set.contains(subject.local.ip()),
            Rule::DestinationPort(range) => range.contains(&u32::from(subject.local.port())),
            Rule::ServerName(matcher) => matcher.matches(subject.server_name.as_bytes()),
            Rule::Metadata(source, matcher) => match source {
                MetadataSource::Dynamic => matcher.matches(subject.metadata),
                // Without a route there is nothing to match, inverted or not.
                MetadataSource::Route => {
                    subject.has_route && matcher.matches(subject.route_metadata)
                }
            },
            Rule::Authenticated(None) => subject.identity.is_some(),
            Rule::Authenticated(Some(matcher)) => subject
                .identity
                .is_some_and(|identity| identity.names().any(|name| matcher.matches(name))),
            Rule::AuthenticatedAs(names) => subject
                .identity
                .is_some_and(|identity| identity.names().any(|name| names.contains(name))),
            Rule::SourceIp(set) => set.contains(subject.peer),
            Rule::DirectRemoteIp(set) => set.contains(subject.direct_peer),
            Rule::RemoteIp(set) => set.contains(subject.remote),
        }
    }
}

impl<R: RequestView> Subject<'_, R> {
    /// The path without query and fragment; none when the request has none.
    pub(super) fn path(&self) -> Option<&[u8]> {
        let path = self.request?.path();
        (!path.is_empty()).then(|| crate::route::without_query(path))
    }
}

fn one_or(mut rules: Vec<Rule>, join: impl FnOnce(Vec<Rule>) -> Rule) -> Rule {
    match (rules.pop(), rules.is_empty()) {
        (Some(rule), true) => rule,
        (last, _) => {
            rules.extend(last);
            join(rules)
        }
    }
}

type Kind<T, U> = (fn(&Rule) -> Option<&T>, fn(U) -> Rule);

const IP_KINDS: [Kind<IpSet, IpSet>; 4] = [
    (
        |rule| match rule {
            Rule::DestinationIp(set) => Some(set),
            _ => None,
        },
        Rule::DestinationIp,
    ),
    (
        |rule| match rule {
            Rule::SourceIp(set) => Some(set),
            _ => None,
        },
        Rule::SourceIp,
    ),
    (
        |rule| match rule {
            Rule::DirectRemoteIp(set) => Some(set),
            _ => None,
        },
        Rule::DirectRemoteIp,
    ),
    (
        |rule| match rule {
            Rule::RemoteIp(set) => Some(set),
            _ => None,
        },
        Rule::RemoteIp,
    ),
];

const TEXT_KINDS: [Kind<str, HashSet<Box<[u8]>>>; 2] = [
    (
        |rule| match rule {
            Rule::Path(matcher) => exact(matcher),
            _ => None,
        },
        Rule::PathIn,
    ),
    (
        |rule| match rule {
            Rule::Authenticated(Some(matcher)) => exact(matcher),
            _ => None,
        },
        Rule::AuthenticatedAs,
    ),
];

/// The one text that a matcher takes.
pub(super) fn exact(matcher: &StringMatcher) -> Option<&str> {
    match &matcher.test {
        StringTest::Exact(text) if !matcher.ignore_case => Some(text),
        _ => None,
    }
}

impl MetadataMatcher {
    pub fn matches(&self, metadata: Option<&Metadata>) -> bool {
        let namespace = metadata.and_then(|all| all.get(&*self.namespace));
        let value = namespace.and_then(|values| {
            let mut path = self.path.iter();
            path.try_fold(values, |value, key| value.get(&**key))
        });
        self.value.matches(value) != self.invert
    }
}

impl ValueMatcher {
    /// [`None`]: there is no such value.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        match self {
            ValueMatcher::Null => matches!(value, Some(Value::Null)),
            ValueMatcher::Range(range) => {
                number(value).is_some_and(|number| range.contains(&number))
            }
            ValueMatcher::Number(wanted) => number(value).is_some_and(|number| number == *wanted),
            ValueMatcher::Text(matcher) => match value {
                Some(Value::String(text)) => matcher.matches(text.as_bytes()),
                _ => false,
            },
            ValueMatcher::Bool(wanted) => matches!(value, Some(Value::Bool(b)) if b == wanted),
            ValueMatcher::Present(wanted) => value.is_some() == *wanted,
            ValueMatcher::OneOf(matcher) => match value {
                Some(Value::Array(values)) => values.iter().any(|v| matcher.matches(Some(v))),
                _ => false,
            },
            ValueMatcher::Any(matchers) => matchers.iter().any(|m| m.matches(value)),
        }
    }
}

fn number(value: Option<&Value>) -> Option<f64> {
    match value {
        Some(Value::Number(number)) => number.as_f64(),
        _ => None,
    }
}
