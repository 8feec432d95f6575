//! Tokens of requests (`envoy.filters.http.jwt_authn`): found, checked, and told to those after.
//!
//! A request without the tokens that are required of it, or with one that is not right, is answered
//! here. Which tokens may be missing is the requirement's word; Istio lets requests without one pass
//! (fact 52).
//!
//! Keys that are not in the configuration are fetched before a request is looked at (`remote.rs`).
//!
//! Invariant: headers and metadata that tell of a token are those of a token whose signature was
//! checked; what a client sends under their names is removed first.

mod accepted;
mod place;
mod remote;

use crate::http::exchange::Exchange;
use crate::http::head::{Method, RequestHead};
use crate::http::local;
use crate::http::request::Routed;
use crate::http::stream::Downstream;
use crate::outcome::Outcome;
use crate::stats::HttpStat;
use lateen_proxy_config::jwt::{
    AnyOf, Audiences, JwtAuthn, JwtFailure, JwtProvider, JwtRequirement, Token,
};
use place::Found;
pub(crate) use remote::{FetchedKeys, KeySets};
pub(super) use remote::{fetch, missing};
use serde_json::Value;
use smallvec::SmallVec;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Namespace of what this filter finds out.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
const WWW_AUTHENTICATE: &[u8] = b"www-authenticate";
/// Bytes of a path that the answer repeats (Envoy, `MaximumUriLength`).
const MAX_REALM_PATH: usize = 256;

/// What is to become of a request.
pub(super) enum Verdict {
    Pass,
    /// Its route has to be looked for again.
    PassAnew,
    Refuse(JwtFailure),
}

/// Looks at the tokens of a request, with what there is of keys that are fetched.
pub(super) fn check(x: &mut Exchange, filter: &JwtAuthn, keys: Option<&FetchedKeys>) -> Verdict {
    for name in &filter.own_headers {
        x.request.headers.remove_name(name.as_bytes());
    }
    if filter.bypass_cors_preflight && is_preflight(&x.request) {
        x.service.stats.inc(HttpStat::JwtAuthnCorsPreflightBypassed);
        x.service.stats.inc(HttpStat::JwtAuthnAllowed);
        return Verdict::Pass;
    }
    let path = lateen_proxy_config::route::matched_path(x.request.path_bytes(), false);
    let rule = filter.rules.iter().find(|rule| {
        rule.matcher
            .matches(&x.request, x.metadata.all(), path, x.random)
    });
    let Some(requirement) = rule.and_then(|rule| rule.requirement.as_ref()) else {
        x.service.stats.inc(HttpStat::JwtAuthnAllowed);
        return Verdict::Pass;
    };
    let mut check = Check {
        filter,
        keys,
        request: &mut x.request,
        now: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
        failed: SmallVec::new(),
        noted: Vec::new(),
        reroute: false,
    };
    let verdict = check.requirement(requirement);
    let (noted, reroute) = (check.noted, check.reroute);
    if !noted.is_empty() {
        x.metadata.merge(NAMESPACE, noted);
    }
    match verdict {
        Ok(()) => {
            x.service.stats.inc(HttpStat::JwtAuthnAllowed);
            match reroute {
                true => Verdict::PassAnew,
                false => Verdict::Pass,
            }
        }
        Err(failure) => {
            x.service.stats.inc(HttpStat::JwtAuthnDenied);
            Verdict::Refuse(failure)
        }
    }
}

/// Answers a request whose token is refused.
pub(super) async fn refuse<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    failure: JwtFailure,
) {
    x.outcome = Outcome::JwtRefused(failure);
    let row = x.outcome.row();
    let mut head = local::head(x, row.status, None, row.body.len());
    let challenge = challenge(&x.request, failure);
    head.headers.push_name(WWW_AUTHENTICATE, &challenge);
    local::send(x, down, routed, head, row.body.as_bytes()).await;
}

/// RFC 6750 section 3, with the request's own URI as realm.
fn challenge(request: &RequestHead, failure: JwtFailure) -> Vec<u8> {
    let path = request.path_bytes();
    let path = &path[..path.len().min(MAX_REALM_PATH)];
    let scheme: &[u8] = if request.https { b"https" } else { b"http" };
    let error: &[u8] = match failure {
        JwtFailure::Missing => b"\"",
        _ => b"\", error=\"invalid_token\"",
    };
    [
        b"Bearer realm=\"",
        scheme,
        b"://",
        request.authority_bytes(),
        path,
        error,
    ]
    .concat()
}

/// The preflight of a cross-origin request (Fetch, section 3.3.3).
fn is_preflight(request: &RequestHead) -> bool {
    let has = |name: &[u8]| {
        request
            .headers
            .get_name(name)
            .is_some_and(|v| !v.is_empty())
    };
    request.method == Method::Options && has(b"origin") && has(b"access-control-request-method")
}

/// One request under test.
struct Check<'a> {
    filter: &'a JwtAuthn,
    keys: Option<&'a FetchedKeys>,
    request: &'a mut RequestHead,
    now: Duration,
    /// Providers that found their token wrong since the request changed last: checking a signature
    /// twice for one answer helps only those who send wrong ones.
    failed: SmallVec<[(usize, JwtFailure); 4]>,
    noted: Vec<(String, Value)>,
    reroute: bool,
}

impl Check<'_> {
    fn requirement(&mut self, requirement: &JwtRequirement) -> Result<(), JwtFailure> {
        match requirement {
            JwtRequirement::Nothing => Ok(()),
            JwtRequirement::Provider(index, audiences) => self.provider(*index, audiences.as_ref()),
            JwtRequirement::Any(any) => self.any(any),
            JwtRequirement::All(all) => all.iter().try_for_each(|one| self.requirement(one)),
            JwtRequirement::Optional { or_failed } => match self.anywhere() {
                Err(JwtFailure::Missing) => Ok(()),
                Err(_) if *or_failed => Ok(()),
                other => other,
            },
        }
    }

    /// Of several failures the most telling one is told: one that is about a token, of a provider
    /// that knows it (Envoy, `AnyVerifierImpl`).
    fn any(&mut self, any: &AnyOf) -> Result<(), JwtFailure> {
        let mut told = JwtFailure::Missing;
        for one in &any.requirements {
            let Err(failure) = self.requirement(one) else {
                return Ok(());
            };
            let vague = matches!(failure, JwtFailure::Missing | JwtFailure::UnknownIssuer);
            if !vague || told == JwtFailure::Missing {
                told = failure;
            }
        }
        match any.allow_failed || any.allow_missing && told == JwtFailure::Missing {
            true => Ok(()),
            false => Err(told),
        }
    }

    /// Every token where a provider looks for one has to be its own, and right.
    fn provider(&mut self, index: usize, audiences: Option<&Audiences>) -> Result<(), JwtFailure> {
        let Some(provider) = self.filter.providers.get(index) else {
            return Err(JwtFailure::UnknownIssuer);
        };
        let known = self.failed.iter().find(|(failed, _)| *failed == index);
        if let Some((_, failure)) = known.filter(|_| audiences.is_none()) {
            return Err(*failure);
        }
        let mut found: Vec<Found<'_>> = provider
            .locations
            .iter()
            .flat_map(|place| place::tokens(self.request, place))
            .collect();
        if found.is_empty() {
            return Err(JwtFailure::Missing);
        }
        while let Some(found) = found.pop() {
            let audiences = audiences.unwrap_or(&provider.audiences);
            if let Err(failure) = self.token(&found, Some(provider), audiences) {
                self.failed.push((index, failure));
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Every token where any provider looks for one; the result of the last counts, as in Envoy.
    fn anywhere(&mut self) -> Result<(), JwtFailure> {
        let filter = self.filter;
        let mut found = Vec::new();
        for (place, issuers) in &filter.anywhere {
            let here = place::tokens(self.request, place);
            found.extend(here.into_iter().map(|one| (one, issuers)));
        }
        let mut result = Err(JwtFailure::Missing);
        while let Some((one, issuers)) = found.pop() {
            let provider = Token::parse(&one.token).ok().and_then(|token| {
                let own = |p: &&JwtProvider| *p.issuer == *token.issuer;
                let any = |p: &&JwtProvider| p.issuer.is_empty();
                let mut all = filter.providers.iter();
                let named = all.find(own).or_else(|| filter.providers.iter().find(any));
                named.filter(|_| issuers.admit(&token.issuer))
            });
            let none = Audiences::default();
            let audiences = provider.map_or(&none, |provider| &provider.audiences);
            result = self.token(&one, provider, audiences);
        }
        result
    }

    /// Checks one token, in the order of Envoy's checks, and does what an accepted one asks for.
    fn token(
        &mut self,
        found: &Found<'_>,
        provider: Option<&JwtProvider>,
        audiences: &Audiences,
    ) -> Result<(), JwtFailure> {
        let token = Token::parse(&found.token)?;
        let own = |p: &&JwtProvider| p.issuer.is_empty() || *p.issuer == *token.issuer;
        let provider = provider.filter(own).ok_or(JwtFailure::UnknownIssuer)?;
        token.check_time(self.now, provider.clock_skew)?;
        if !audiences.admit(&token.audiences) {
            return Err(JwtFailure::AudienceNotAllowed);
        }
        let fetched = self.keys.and_then(|keys| keys.of(self.filter, provider));
        provider.keys.verify(&token, fetched.as_deref())?;
        let payload = serde_json::from_slice(&token.payload);
        let payload = payload.map_err(|_| JwtFailure::PayloadJson)?;
        self.accept(found, provider, &token, payload);
        Ok(())
    }

    fn accept(
        &mut self,
        found: &Found<'_>,
        provider: &JwtProvider,
        token: &Token<'_>,
        payload: Value,
    ) {
        let headers = &mut self.request.headers;
        let any_claim = accepted::set_headers(headers, provider, token, &payload);
        if !provider.forward {
            place::remove(self.request, found.place);
        }
        if let Some(key) = &provider.header_in_metadata {
            let header = serde_json::from_slice(&token.header).unwrap_or(Value::Null);
            self.noted.push((key.to_string(), header));
        }
        if let Some(key) = &provider.payload_in_metadata {
            let payload = accepted::normalized(payload, provider);
            self.noted.push((key.to_string(), payload));
        }
        self.reroute |=
            provider.clear_route_cache && (any_claim || provider.payload_in_metadata.is_some());
        self.failed.clear();
    }
}
