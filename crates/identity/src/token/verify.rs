//! Checks a token: form, signature, issuer, audience, time, subject.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use thiserror::Error;

use super::SUBJECT_PREFIX;
use super::keys::{Algorithm, TrustedIssuer};
use crate::spiffe::{SpiffeError, SpiffeId, TrustDomain, shortened};

/// Bytes of a token. Those of Kubernetes have one to two thousand.
const MAX_TOKEN: usize = 16 << 10;

/// By how much the clock of an issuer may be ahead.
const LEEWAY: Duration = Duration::from_secs(60);

/// Why a token is not believed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("the token has {0} bytes, more than {MAX_TOKEN}")]
    TooLong(usize),
    #[error("the token is no signed JSON Web Token")]
    Form,
    #[error("the token's algorithm {0:?} is not accepted; use ES256, ES384, RS256, RS384 or RS512")]
    Algorithm(String),
    #[error("the token has header parameters that must be understood and are not (crit)")]
    Critical,
    #[error("tokens of the issuer {0:?} are not accepted here")]
    Issuer(String),
    #[error("the token's signature is not that of its issuer")]
    Signature,
    #[error("the token is for {got:?} and not for {wanted:?}; have one made with this audience")]
    Audience { wanted: String, got: Vec<String> },
    #[error("the token has expired")]
    Expired,
    #[error("the token is not yet valid")]
    NotYetValid,
    #[error(
        "the token's subject {0:?} is no service account (system:serviceaccount:NAMESPACE:NAME)"
    )]
    Subject(String),
    #[error("the token says two different things of its service account")]
    Contradiction,
}

/// What a token proves: for whom it is, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub subject: Subject,
    pub expires: SystemTime,
}

/// The service account that a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub namespace: String,
    pub service_account: String,
}

impl Subject {
    /// As an identity of a trust domain.
    pub fn identity(&self, trust_domain: TrustDomain) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(trust_domain, &self.namespace, &self.service_account)
    }

    fn parse(text: &str) -> Option<Self> {
        let (namespace, service_account) = text.strip_prefix(SUBJECT_PREFIX)?.split_once(':')?;
        SpiffeId::new(TrustDomain::default(), namespace, service_account).ok()?;
        Some(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }
}

/// Verifies tokens of some issuers.
#[derive(Clone, Default)]
pub struct TokenVerifier {
    issuers: Vec<TrustedIssuer>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Option<String>,
    serviceaccount: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl TokenVerifier {
    pub fn new(issuers: Vec<TrustedIssuer>) -> Self {
        Self { issuers }
    }

    /// Whose token this is.
    pub fn verify(
        &self,
        token: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<Proof, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong(token.len()));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Form)?;
        // What was signed is the text; two texts for the same bytes are not accepted.
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Form)?;
        let claims = decode(claims)?;
        let signature = decode(signature)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let algorithm = Algorithm::parse(&header.alg)
            .ok_or_else(|| TokenError::Algorithm(shortened(&header.alg)))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Form)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.name == claims.iss);
        let issuer = issuer.ok_or_else(|| TokenError::Issuer(shortened(&claims.iss)))?;
        let is_meant = |id: &Option<String>| match (id, &header.kid) {
            (Some(id), Some(named)) => id == named,
            _ => true,
        };
        let mut candidates = issuer.keys.iter().filter(|key| is_meant(&key.id));
        if !candidates.any(|key| key.verifies(algorithm, signed.as_bytes(), &signature)) {
            return Err(TokenError::Signature);
        }
        claims.check(audience, now)
    }
}

impl Claims {
    /// What a token of a known issuer says, against the wish of who asks.
    fn check(self, audience: &str, now: SystemTime) -> Result<Proof, TokenError> {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let now = now.as_secs_f64();
        if now >= self.exp {
            return Err(TokenError::Expired);
        }
        let mut begins = [self.nbf, self.iat].into_iter().flatten();
        if begins.any(|at| at > now + LEEWAY.as_secs_f64()) {
            return Err(TokenError::NotYetValid);
        }
        let got = match self.aud {
            Audiences::One(one) => vec![one],
            Audiences::Several(several) => several,
        };
        if !got.iter().any(|one| one == audience) {
            return Err(TokenError::Audience {
                wanted: audience.to_owned(),
                got: got.iter().take(5).map(|one| shortened(one)).collect(),
            });
        }
        let subject = Subject::parse(&self.sub);
        let subject = subject.ok_or_else(|| TokenError::Subject(shortened(&self.sub)))?;
        if let Some(kubernetes) = &self.kubernetes {
            let differs = |said: Option<&String>, is: &str| said.is_some_and(|said| said != is);
            let account = kubernetes
                .serviceaccount
                .as_ref()
                .map(|account| &account.name);
            if differs(kubernetes.namespace.as_ref(), &subject.namespace)
                || differs(account, &subject.service_account)
            {
                return Err(TokenError::Contradiction);
            }
        }
        // A number that is no time is far away; nothing lives for longer.
        let expires = Duration::try_from_secs_f64(self.exp).unwrap_or(FAR);
        let expires = SystemTime::UNIX_EPOCH + expires.min(FAR);
        Ok(Proof { subject, expires })
    }
}

/// The year 9999, in seconds since 1970.
const FAR: Duration = Duration::from_secs(253_402_300_799);
