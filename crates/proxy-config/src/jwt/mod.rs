//! `envoy.filters.http.jwt_authn`: which tokens requests must bring, and how tokens are checked.
//!
//! Everything here is pure. Where a token stands in a request, and what an accepted one changes in
//! it, is the data plane's part.

mod failure;
mod keys;
mod remote;
mod token;

pub use failure::JwtFailure;
pub use keys::KeySet;
pub use remote::{Keys, RemoteKeys};
pub use token::{Algorithm, Token};

use crate::route::RouteMatcher;
use std::time::Duration;

/// The filter of one connection manager.
#[derive(Clone, Debug)]
pub struct JwtAuthn {
    pub providers: Vec<JwtProvider>,
    /// The first rule that matches a request decides; without one nothing is asked.
    pub rules: Vec<JwtRule>,
    /// Preflights bring no credentials.
    pub bypass_cors_preflight: bool,
    /// Where tokens of any provider may stand, and of which issuers there.
    pub anywhere: Vec<(JwtLocation, Issuers)>,
    /// Headers that only an accepted token sets.
    pub own_headers: Vec<Box<str>>,
}

/// Tokens of one issuer.
#[derive(Clone, Debug)]
pub struct JwtProvider {
    /// Empty: any.
    pub issuer: Box<str>,
    pub audiences: Audiences,
    pub keys: Keys,
    /// In the order in which Envoy looks.
    pub locations: Vec<JwtLocation>,
    /// Leave the token in the request.
    pub forward: bool,
    pub payload_header: Option<PayloadHeader>,
    pub claim_headers: Vec<ClaimHeader>,
    /// Key of the payload in the filter's metadata.
    pub payload_in_metadata: Option<Box<str>>,
    /// Key of the header in the filter's metadata.
    pub header_in_metadata: Option<Box<str>>,
    /// Claims that the metadata has as lists of words.
    pub lists: Vec<Box<str>>,
    pub clock_skew: Duration,
    /// What the token says may change the route.
    pub clear_route_cache: bool,
}

/// A header with the payload of an accepted token.
#[derive(Clone, Debug)]
pub struct PayloadHeader {
    pub name: Box<str>,
    pub padded: bool,
}

/// A header with a claim of an accepted token.
#[derive(Clone, Debug)]
pub struct ClaimHeader {
    pub name: Box<str>,
    /// Leads into objects.
    pub path: Vec<Box<str>>,
}

/// Where a token stands in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtLocation {
    /// A header, lower case, and what stands before the token.
    Header {
        name: Box<str>,
        prefix: Box<str>,
    },
    /// A query parameter.
    Param(Box<str>),
    Cookie(Box<str>),
}

/// Issuers whose tokens may stand in a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuers {
    Any,
    Only(Vec<Box<str>>),
}

impl Issuers {
    /// Whether an issuer is one of them.
    pub fn admit(&self, issuer: &str) -> bool {
        match self {
            Issuers::Any => true,
            Issuers::Only(names) => names.iter().any(|name| **name == *issuer),
        }
    }
}

/// For which requests something is required.
#[derive(Clone, Debug)]
pub struct JwtRule {
    pub matcher: RouteMatcher,
    /// [`None`]: nothing.
    pub requirement: Option<JwtRequirement>,
}

/// What is required of a request.
#[derive(Clone, Debug)]
pub enum JwtRequirement {
    Nothing,
    /// A token of the provider with this index, for these audiences or its own.
    Provider(usize, Option<Audiences>),
    Any(AnyOf),
    All(Vec<JwtRequirement>),
    /// Tokens are right if there are any; with `or_failed` they may be wrong, too.
    Optional {
        or_failed: bool,
    },
}

/// One of several requirements.
#[derive(Clone, Debug, Default)]
pub struct AnyOf {
    pub requirements: Vec<JwtRequirement>,
    pub allow_missing: bool,
    pub allow_failed: bool,
}

/// The audiences that are accepted; empty accepts any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audiences(Vec<Box<str>>);

impl Audiences {
    pub fn new<'a>(audiences: impl IntoIterator<Item = &'a str>) -> Audiences {
        let bare = audiences.into_iter().map(|one| bare_audience(one).into());
        Audiences(bare.collect())
    }

    /// Whether one of a token's audiences is accepted.
    pub fn admit(&self, of_token: &[String]) -> bool {
        self.0.is_empty()
            || of_token.iter().any(|one| {
                self.0
                    .iter()
                    .any(|accepted| **accepted == *bare_audience(one))
            })
    }
}

/// Scheme and closing slash do not count (Envoy, `source/common/jwt/check_audience.cc`).
fn bare_audience(audience: &str) -> &str {
    let bare = audience
        .strip_prefix("http://")
        .or_else(|| audience.strip_prefix("https://"))
        .unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

#[cfg(test)]
mod tests;
