//! SPIFFE identities of workloads: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
//!
//! Strict: an identity has exactly one spelling. Whatever decides on an identity decides on this
//! type and never on text, so `..`, `%2e`, upper case, empty segments, ports, queries and
//! fragments never come to a decision.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Istio's default.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// SPIFFE-ID section 2.1: at most 255 bytes.
const MAX_TRUST_DOMAIN: usize = 255;
/// SPIFFE-ID section 2.3: at most 2048 bytes in all.
const MAX_ID: usize = 2048;
/// Kubernetes: names of namespaces are DNS labels, names of service accounts DNS subdomains.
const MAX_NAMESPACE: usize = 63;
const MAX_SERVICE_ACCOUNT: usize = 253;

/// Whom an authority speaks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// A workload: the service account it runs as.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why text is no identity.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpiffeError {
    #[error(
        "the trust domain {0:?} is not 1 to 255 lower case letters, digits, '.', '-' and '_', as in cluster.local"
    )]
    TrustDomain(String),
    #[error(
        "{0:?} is no name of a namespace: up to 63 lower case letters, digits and '-' inside, as in default"
    )]
    Namespace(String),
    #[error(
        "{0:?} is no name of a service account: up to 253 lower case letters, digits, '-' and '.' inside, as in bookinfo-reviews"
    )]
    ServiceAccount(String),
    #[error(
        "{0:?} is not the identity of a workload, as in spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
    )]
    Form(String),
}

impl TrustDomain {
    pub fn new(name: &str) -> Result<Self, SpiffeError> {
        let fits = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
        };
        match (1..=MAX_TRUST_DOMAIN).contains(&name.len()) && name.bytes().all(fits) {
            true => Ok(Self(name.into())),
            false => Err(SpiffeError::TrustDomain(shortened(name))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl SpiffeId {
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        if namespace.len() > MAX_NAMESPACE || !is_label(namespace) {
            return Err(SpiffeError::Namespace(shortened(namespace)));
        }
        let is_subdomain = service_account.split('.').all(is_label);
        if service_account.len() > MAX_SERVICE_ACCOUNT || !is_subdomain {
            return Err(SpiffeError::ServiceAccount(shortened(service_account)));
        }
        Ok(Self {
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// Reads the URI form. The scheme must be in lower case, as it is in every certificate that
    /// Istio or SPIRE makes: two spellings of one identity would be two identities to a matcher.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        let form = || SpiffeError::Form(shortened(uri));
        if uri.len() > MAX_ID {
            return Err(form());
        }
        let rest = uri.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        let trust_domain = TrustDomain::new(parts.next().unwrap_or_default())?;
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account)) if parts.next().is_none() => {
                Self::new(trust_domain, namespace, account)
            }
            _ => Err(form()),
        }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

/// RFC 1123, in lower case.
fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= MAX_NAMESPACE
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// What a message shows of text that may be long.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN: usize = 100;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(uri: &str) -> Result<Self, SpiffeError> {
        Self::parse(uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_one_spelling() {
        let good = [
            "spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
            "spiffe://td/ns/a/sa/b.c.d",
            "spiffe://my_domain-1.example/ns/istio-system/sa/istio-ingressgateway-service-account",
        ];
        for uri in good {
            assert_eq!(SpiffeId::parse(uri).unwrap().to_string(), uri);
        }
        let long = format!("spiffe://td/ns/{}/sa/b", "a".repeat(64));
        let bad = [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "cluster.local/ns/default/sa/x",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/ns/a/../b/sa/c",
            "spiffe://td/ns/../sa/c",
            "spiffe://td/ns/a%2fb/sa/c",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/ns/a/sa/b ",
            " spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a.b/sa/c",
            "spiffe://td/ns/-a/sa/c",
            "spiffe://td/ns/a/sa/c-",
            "spiffe://td/ns/a/sa/c..d",
            "spiffe://td/ns/A/sa/c",
            "spiffe://t\u{e4}/ns/a/sa/c",
            &long,
        ];
        for uri in bad {
            assert!(SpiffeId::parse(uri).is_err(), "{uri:?}");
        }
    }
}
