//! Who calls: by the certificate of the connection, or by the token of the request.

use std::time::SystemTime;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use lateen_identity::{SpiffeId, identity_of, not_after};
use rustls::pki_types::CertificateDer;

use crate::trust::Trust;

/// The certificate that a client showed; TLS has verified it against the roots of the mesh.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Nothing,
    Workload {
        id: SpiffeId,
        expires: SystemTime,
    },
    /// A certificate that names no workload, with the reason.
    Other(String),
}

impl Shown {
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(certificate) = certificates.and_then(<[_]>::first) else {
            return Self::Nothing;
        };
        match (identity_of(certificate), not_after(certificate)) {
            (Ok(id), Some(expires)) => Self::Workload { id, expires },
            (Ok(_), None) => Self::Other("the certificate cannot be read".to_owned()),
            (Err(error), _) => Self::Other(error.to_string()),
        }
    }
}

impl Shown {
    /// Until when the certificate proves something.
    pub fn until(&self) -> Option<SystemTime> {
        match self {
            Self::Workload { expires, .. } => Some(*expires),
            Self::Nothing | Self::Other(_) => None,
        }
    }
}

/// What the caller wants, which decides how far its trust domain counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A certificate is only renewed for the mesh's own trust domain: an alias may be somebody
    /// else's, whose authority is not to decide who is who here.
    Certificate,
    /// Configuration is for the aliases as well.
    Discovery,
}

/// Who calls, and until when that is proved.
#[derive(Clone, Debug)]
pub(super) struct Proved {
    pub id: SpiffeId,
    pub until: SystemTime,
}

/// The identity of the caller, or why it has none; the text reaches the caller.
pub(super) fn authenticate(
    trust: &Trust,
    shown: &Shown,
    headers: &HeaderMap,
    purpose: Purpose,
) -> Result<Proved, String> {
    let by_certificate = match shown {
        Shown::Nothing => Err("no client certificate".to_owned()),
        Shown::Other(reason) => Err(reason.clone()),
        // TLS looked at the beginning of the connection, which may be long ago.
        Shown::Workload { expires, .. } if SystemTime::now() >= *expires => {
            Err("the client certificate has expired".to_owned())
        }
        Shown::Workload { id, expires } => {
            let own = *id.trust_domain() == trust.domain();
            match own || purpose == Purpose::Discovery && trust.knows(id.trust_domain()) {
                true => Ok(Proved {
                    id: id.clone(),
                    until: *expires,
                }),
                false => Err(format!(
                    "the client certificate is of the trust domain {}",
                    id.trust_domain()
                )),
            }
        }
    };
    by_certificate.or_else(|of_certificate| {
        let by_token = bearer(headers).and_then(|token| trust.bearer(token));
        let by_token = by_token.map(|(id, until)| Proved { id, until });
        by_token.map_err(|of_token| format!("authentication failure: {of_certificate}; {of_token}"))
    })
}

/// The one token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, String> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value,
        (None, _) => return Err("no token (authorization: Bearer ...)".to_owned()),
        (Some(_), Some(_)) => return Err("several authorization headers".to_owned()),
    };
    let value = value.to_str().ok();
    let token = value.and_then(|value| value.strip_prefix("Bearer "));
    token.ok_or_else(|| "the authorization is no Bearer token".to_owned())
}
