//! The policies as a plain reading of the rules: one condition after the other, nothing prepared. Random
//! tests and fuzzing compare the compiled policies with it.

#![cfg_attr(not(test), allow(dead_code, reason = "fuzzing uses a part of it"))]
#![allow(
    clippy::expect_used,
    reason = "only for tests, which give it patterns that compile"
)]

use super::{
    Identity, IpSet, MetadataMatcher, MetadataSource, RbacRules, Rule, Subject, ValueMatcher,
    Verdict,
};
use crate::route::{HeaderMatcher, HeaderTest, StringMatcher, StringTest};
use crate::{CidrRange, RequestView, re2};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

/// The index of the first policy that has a permission and a principal that hold.
pub fn first_match(policies: &[(Vec<Said>, Vec<Said>)], request: &Request) -> Option<usize> {
    policies.iter().position(|(permissions, principals)| {
        permissions.iter().any(|rule| rule.holds(request))
            && principals.iter().any(|rule| rule.holds(request))
    })
}

/// A request as plain lists.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub host: &'static str,
    pub headers: Vec<(&'static str, &'static str)>,
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub name: String,
    pub tls: bool,
    pub ip: IpAddr,
    pub remote: IpAddr,
    pub port: u16,
    pub server_name: &'static str,
    pub claim: Value,
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn authority(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let found = self.headers.iter().filter(|(n, _)| *n == name);
        let all: Vec<&str> = found.map(|(_, v)| *v).collect();
        (!all.is_empty()).then(|| all.join(",").into_bytes().into())
    }
    fn any_value(&self, name: &str, mut test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        let mut found = self.headers.iter().filter(|(n, _)| *n == name).peekable();
        found.peek()?;
        Some(found.any(|(_, v)| test(v.as_bytes())))
    }
}

/// A rule as it is written down.
#[derive(Clone, Debug)]
pub enum Said {
    All(Vec<Said>),
    Any(Vec<Said>),
    Not(Box<Said>),
    Always,
    Method(&'static str),
    Host(&'static str),
    Header(&'static str, Text, bool),
    Path(Text),
    Template(String),
    Principal(Option<Text>),
    Ip(CidrRange),
    Remote(CidrRange),
    Port(u16, u16),
    ServerName(Text),
    Claim(Text),
    HasClaim(bool),
}

#[derive(Clone, Debug)]
pub enum Text {
    Exact(String),
    ExactAnyCase(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(String),
}

impl Text {
    /// What the words mean.
    pub fn takes(&self, value: &str) -> bool {
        match self {
            Text::Exact(text) => value == text,
            Text::ExactAnyCase(text) => value.eq_ignore_ascii_case(text),
            Text::Prefix(text) => value.starts_with(text.as_str()),
            Text::Suffix(text) => value.ends_with(text.as_str()),
            Text::Contains(text) => value.contains(text.as_str()),
            Text::Regex(text) => {
                regex::Regex::new(&format!("^(?:{text})$")).is_ok_and(|regex| regex.is_match(value))
            }
        }
    }

    fn compiled(&self) -> StringMatcher {
        let (test, ignore_case) = match self.clone() {
            Text::Exact(text) => (StringTest::Exact(text.into()), false),
            Text::ExactAnyCase(text) => (StringTest::Exact(text.into()), true),
            Text::Prefix(text) => (StringTest::Prefix(text.into()), false),
            Text::Suffix(text) => (StringTest::Suffix(text.into()), false),
            Text::Contains(text) => (StringTest::Contains(text.into()), false),
            Text::Regex(text) => (StringTest::of_regex(full(&text)), false),
        };
        StringMatcher { test, ignore_case }
    }
}

impl Said {
    /// The reference: one condition after the other, nothing prepared.
    pub fn holds(&self, r: &Request) -> bool {
        let values = |name: &str| -> Vec<&str> {
            let found = r.headers.iter().filter(|(n, _)| *n == name);
            found.map(|(_, v)| *v).collect()
        };
        let path = r.path.split(['?', '#']).next().unwrap_or_default();
        match self {
            Said::All(rules) => rules.iter().all(|rule| rule.holds(r)),
            Said::Any(rules) => rules.iter().any(|rule| rule.holds(r)),
            Said::Not(rule) => !rule.holds(r),
            Said::Always => true,
            Said::Method(method) => r.method == *method,
            Said::Host(host) => r.host.eq_ignore_ascii_case(host),
            Said::Header(name, text, invert) => {
                let all = values(name);
                !all.is_empty() && all.iter().any(|v| text.takes(v)) != *invert
            }
            // Without a path, as with CONNECT, there is nothing to compare.
            Said::Path(text) => !r.path.is_empty() && text.takes(path),
            Said::Template(text) => template(&plain_template(text), path.as_bytes()),
            Said::Principal(None) => r.tls,
            Said::Principal(Some(text)) => {
                let names = r.uris.iter().chain(&r.dns).chain([&r.name]);
                r.tls && names.into_iter().any(|name| text.takes(name))
            }
            Said::Ip(range) => range.contains(r.ip),
            Said::Remote(range) => range.contains(r.remote),
            Said::Port(from, to) => (*from..*to).contains(&r.port),
            Said::ServerName(text) => text.takes(r.server_name),
            Said::Claim(text) => match &r.claim {
                Value::String(claim) => text.takes(claim),
                Value::Array(all) => all
                    .iter()
                    .any(|c| c.as_str().is_some_and(|c| text.takes(c))),
                _ => false,
            },
            Said::HasClaim(wanted) => r.claim.is_null() != *wanted,
        }
    }

    pub fn compiled(&self) -> Rule {
        let header = |name: &str, test: StringMatcher, invert| {
            Rule::Header(HeaderMatcher {
                name: name.into(),
                test: HeaderTest::String(test),
                invert,
                treat_missing_as_empty: false,
            })
        };
        let all = |rules: &[Said]| rules.iter().map(Said::compiled).collect::<Vec<_>>();
        let claim = |value| {
            let matcher = MetadataMatcher {
                namespace: "jwt".into(),
                path: ["claim".into()].into(),
                value,
                invert: false,
            };
            Rule::Metadata(MetadataSource::Dynamic, matcher)
        };
        match self {
            Said::All(rules) => Rule::all(all(rules)),
            Said::Any(rules) => Rule::any(all(rules)),
            Said::Not(rule) => Rule::Not(Box::new(rule.compiled())),
            Said::Always => Rule::Always,
            Said::Method(method) => header(
                ":method",
                Text::Exact((*method).to_owned()).compiled(),
                false,
            ),
            Said::Host(host) => {
                let host = Text::ExactAnyCase((*host).to_owned());
                header(":authority", host.compiled(), false)
            }
            Said::Header(name, text, invert) => header(name, text.compiled(), *invert),
            Said::Path(text) => Rule::Path(text.compiled()),
            Said::Template(text) => {
                let regex = crate::compile::uri_template::regex(text).unwrap_or_default();
                Rule::Template(full(&regex))
            }
            Said::Principal(text) => Rule::Authenticated(text.as_ref().map(Text::compiled)),
            Said::Ip(range) => Rule::DirectRemoteIp(IpSet::new(&[*range])),
            Said::Remote(range) => Rule::RemoteIp(IpSet::new(&[*range])),
            Said::Port(from, to) => Rule::DestinationPort((*from).into()..(*to).into()),
            Said::ServerName(text) => Rule::ServerName(text.compiled()),
            Said::Claim(text) => {
                let text = ValueMatcher::Text(text.compiled());
                let one = ValueMatcher::OneOf(Box::new(text.clone()));
                claim(ValueMatcher::Any([text, one].into()))
            }
            Said::HasClaim(wanted) => claim(ValueMatcher::Present(*wanted)),
        }
    }
}

impl Request {
    /// A request of nobody in particular.
    pub fn to(path: String) -> Request {
        Request {
            method: "GET",
            path,
            host: "a.test",
            headers: Vec::new(),
            uris: Vec::new(),
            dns: Vec::new(),
            name: String::new(),
            tls: false,
            ip: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 1].into(),
            port: 8080,
            server_name: "",
            claim: Value::Null,
        }
    }

    pub fn decide<'v>(&self, rules: &'v RbacRules) -> Verdict<'v> {
        let metadata = json!({ "jwt": { "claim": self.claim } });
        let mut metadata = metadata.as_object().cloned().unwrap_or_default();
        if self.claim.is_null() {
            metadata.clear();
        }
        rules.decide(&self.subject(Some(&metadata)))
    }

    pub fn subject<'a>(&'a self, metadata: Option<&'a crate::Metadata>) -> Subject<'a, Request> {
        Subject {
            request: Some(self),
            local: SocketAddr::new([127, 0, 0, 1].into(), self.port),
            peer: self.ip,
            direct_peer: self.ip,
            remote: self.remote,
            server_name: self.server_name,
            identity: self.tls.then_some(Identity {
                uris: &self.uris,
                dns: &self.dns,
                subject: &self.name,
            }),
            metadata,
            has_route: true,
            route_metadata: None,
        }
    }
}

fn full(pattern: &str) -> regex::bytes::Regex {
    re2::full_match(pattern).expect("a pattern of a test")
}

/// A URI template with the patterns of its variables in their place.
fn plain_template(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, variable)) = rest.split_once('{') {
        let (inner, after) = variable.split_once('}').unwrap_or((variable, ""));
        plain.push_str(before);
        plain.push_str(inner.split_once('=').map_or("*", |(_, pattern)| pattern));
        rest = after;
    }
    plain + rest
}

/// `*` is one segment, `**` any number of them.
fn template(pattern: &str, path: &[u8]) -> bool {
    const OTHERS: &[u8] = b"-._~%!$&'()+,;:@=*";
    let fits = |b: u8| b.is_ascii_alphanumeric() || OTHERS.contains(&b);
    let run = |slash: bool| {
        let inside = |b: &&u8| fits(**b) || (slash && **b == b'/');
        path.iter().take_while(inside).count()
    };
    if let Some(rest) = pattern.strip_prefix("**") {
        (0..=run(true)).any(|length| template(rest, &path[length..]))
    } else if let Some(rest) = pattern.strip_prefix('*') {
        (1..=run(false)).any(|length| template(rest, &path[length..]))
    } else {
        match (pattern.as_bytes().first(), path.first()) {
            (Some(wanted), Some(found)) => wanted == found && template(&pattern[1..], &path[1..]),
            (None, None) => true,
            _ => false,
        }
    }
}
