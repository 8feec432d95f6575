//! Rewritten paths and hosts, and the target of redirects. Pure text.

use super::{
    Forward, HostRewrite, PathMatcher, PathRewrite, Redirect, RedirectPath, RegexSubstitution,
    Route, SchemeRedirect,
};
use crate::RequestView;
use std::borrow::Cow;

/// `path` without query and fragment.
pub fn without_query(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .position(|b| matches!(b, b'?' | b'#'))
        .unwrap_or(path.len());
    &path[..end]
}

impl RegexSubstitution {
    /// Replaces every match in `text`.
    pub fn apply<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        self.regex.replace_all(text, self.replacement.as_ref())
    }
}

impl Route {
    /// The path to send upstream, query included; [`None`] when it stays as it is. The caller keeps
    /// the old one in `x-envoy-original-path`.
    pub fn rewritten_path(&self, forward: &Forward, path: &[u8]) -> Option<Vec<u8>> {
        match &forward.path_rewrite {
            PathRewrite::None => None,
            PathRewrite::Prefix(prefix) => Some(self.replace_matched(path, prefix)),
            PathRewrite::Regex(substitution) => Some(replace_path(path, substitution)),
        }
    }

    /// Where a redirect of this route leads (the `location` header).
    pub fn redirect_location(&self, redirect: &Redirect, request: &impl RequestView) -> Vec<u8> {
        let scheme = match &redirect.scheme {
            SchemeRedirect::Keep => request.scheme(),
            SchemeRedirect::Https => b"https",
            SchemeRedirect::To(scheme) => scheme.as_bytes(),
        };
        let host = match &redirect.host {
            Some(host) => host.as_bytes(),
            None => redirect_host(request, scheme, redirect.port.is_some()),
        };
        let mut location =
            Vec::with_capacity(scheme.len() + host.len() + request.path().len() + 10);
        location.extend_from_slice(scheme);
        location.extend_from_slice(b"://");
        location.extend_from_slice(host);
        if let Some(port) = redirect.port {
            location.extend_from_slice(format!(":{port}").as_bytes());
        }
        self.redirect_path(redirect, request.path(), &mut location);
        location
    }

    fn redirect_path(&self, redirect: &Redirect, path: &[u8], location: &mut Vec<u8>) {
        let rewritten = match &redirect.path {
            RedirectPath::Keep => Cow::Borrowed(path),
            RedirectPath::Prefix(prefix) => Cow::Owned(self.replace_matched(path, prefix)),
            RedirectPath::Regex(substitution) => Cow::Owned(replace_path(path, substitution)),
            RedirectPath::Full(full) => {
                location.extend_from_slice(full.as_bytes());
                // A query of its own replaces the request's and is never stripped.
                if let (false, false, Some(query)) = (
                    full.contains('?'),
                    redirect.strip_query,
                    path.iter().position(|b| *b == b'?'),
                ) {
                    location.extend_from_slice(&path[query..]);
                }
                return;
            }
        };
        let end = match rewritten.iter().position(|b| *b == b'?') {
            Some(query) if redirect.strip_query => query,
            _ => rewritten.len(),
        };
        location.extend_from_slice(&rewritten[..end]);
    }

    /// Replaces what the route matched: the prefix, or the whole path of an exact or regex route.
    fn replace_matched(&self, path: &[u8], replacement: &str) -> Vec<u8> {
        let matched = match &self.matcher.path {
            PathMatcher::Prefix(p) | PathMatcher::SeparatedPrefix(p) | PathMatcher::Exact(p) => {
                p.len().min(path.len())
            }
            PathMatcher::Regex(_) | PathMatcher::Connect => without_query(path).len(),
        };
        [replacement.as_bytes(), &path[matched..]].concat()
    }
}

impl Forward {
    /// The authority to send upstream; [`None`] when it stays, or is the endpoint's
    /// ([`HostRewrite::Auto`]).
    pub fn rewritten_host<'r>(&'r self, request: &'r impl RequestView) -> Option<Cow<'r, [u8]>> {
        let host = match &self.host_rewrite {
            HostRewrite::None | HostRewrite::Auto => return None,
            HostRewrite::Literal(host) => Cow::Borrowed(host.as_ref()),
            HostRewrite::Header(name) => request.header(name)?,
            HostRewrite::PathRegex(substitution) => {
                substitution.apply(without_query(request.path()))
            }
        };
        (!host.is_empty()).then_some(host)
    }
}

fn replace_path(path: &[u8], substitution: &RegexSubstitution) -> Vec<u8> {
    let just_path = without_query(path);
    let mut out = substitution.apply(just_path).into_owned();
    out.extend_from_slice(&path[just_path.len()..]);
    out
}

/// The request's host for a redirect. Its port goes when the redirect brings one, and when it is the
/// default port of the protocol the request came over and the scheme changes (Envoy,
/// `processRequestHost`).
fn redirect_host<'r>(request: &'r impl RequestView, scheme: &[u8], new_port: bool) -> &'r [u8] {
    let host = request.authority();
    let bare = super::domains::without_port(host);
    let port = &host[bare.len()..];
    if port.is_empty() {
        return host;
    }
    let protocol = request.header("x-forwarded-proto");
    let protocol = protocol.as_deref().unwrap_or_default();
    let default_port =
        scheme != protocol && matches!((protocol, port), (b"https", b":443") | (b"http", b":80"));
    if new_port || default_port { bare } else { host }
}
