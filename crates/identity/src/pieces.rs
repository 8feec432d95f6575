//! An authority that is given: the files of Istio's `cacerts`, from a directory or a Secret.
//!
//! `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`, `ca-crl.pem`; or, in the form that
//! cert-manager writes, `tls.crt`, `tls.key`, `ca.crt`. Every complaint names its file.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::authority::{Authority, IssueError};
use crate::certificate::{self, About};
use crate::key::SigningKey;
use crate::revocation::Revocations;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// The most certificates in one.
const MAX_CERTIFICATES: usize = 100;

/// Why an authority cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{file}: {reason}")]
pub struct CaError {
    /// The file, or the key of the Secret.
    pub file: String,
    pub reason: String,
}

impl CaError {
    pub(crate) fn new(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            reason: reason.into(),
        }
    }
}

/// The parts of an authority as they were found.
#[derive(Clone, PartialEq, Eq)]
pub struct Pieces {
    certificate: Piece,
    key: Piece,
    chain: Option<Piece>,
    roots: Piece,
    revocations: Option<Piece>,
}

#[derive(Clone, PartialEq, Eq)]
struct Piece {
    name: String,
    content: Zeroizing<Vec<u8>>,
}

/// Lists of revoked certificates, beside the files of either form.
const REVOCATIONS: &str = "ca-crl.pem";

/// Certificate, key, chain, roots.
type Names = (&'static str, &'static str, &'static str, &'static str);
const ISTIO: Names = (
    "ca-cert.pem",
    "ca-key.pem",
    "cert-chain.pem",
    "root-cert.pem",
);
const TLS: Names = ("tls.crt", "tls.key", "tls.crt", "ca.crt");

impl Pieces {
    /// Takes the parts from where `read` finds them by name. `None` when none of them is there.
    pub fn find(
        place: &str,
        read: impl Fn(&str) -> Result<Option<Zeroizing<Vec<u8>>>, CaError>,
    ) -> Result<Option<Self>, CaError> {
        for (certificate, key, chain, roots) in [ISTIO, TLS] {
            let path = |name: &str| format!("{place}/{name}");
            let piece = |name: &str| {
                let content = read(name)?;
                Ok(content.map(|content| Piece {
                    name: path(name),
                    content,
                }))
            };
            let found = (
                piece(certificate)?,
                piece(key)?,
                piece(chain)?,
                piece(roots)?,
            );
            let missing = |name| {
                let reason = format!(
                    "is missing; an authority needs {certificate}, {key} and {roots} (and {chain} when {certificate} is not itself a root)"
                );
                CaError::new(path(name), reason)
            };
            match found {
                (None, None, _, None) => {}
                (None, ..) => return Err(missing(certificate)),
                (_, None, ..) => return Err(missing(key)),
                (.., None) => return Err(missing(roots)),
                (Some(certificate), Some(key), chain, Some(roots)) => {
                    let revocations = piece(REVOCATIONS)?;
                    return Ok(Some(Self {
                        certificate,
                        key,
                        chain,
                        roots,
                        // An empty file takes back what was revoked.
                        revocations: revocations.filter(|one| !one.content.trim_ascii().is_empty()),
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Takes the parts from a directory.
    pub fn in_directory(directory: &Path) -> Result<Option<Self>, CaError> {
        let place = directory.display().to_string();
        Self::find(&place, |name| {
            let path = directory.join(name);
            match read_bounded(&path) {
                Ok(content) => Ok(Some(content)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(CaError::new(
                    path.display().to_string(),
                    format!("cannot be read: {error}"),
                )),
            }
        })
    }

    /// Puts the parts together and checks that what is issued with them can be verified.
    pub fn authority(&self, now: SystemTime) -> Result<Authority, CaError> {
        let chain = self.certificate.certificates()?;
        let certificate = chain[0].clone();
        let about = self.certificate.about(&certificate)?;
        let wrong = |reason: &str| Err(CaError::new(&self.certificate.name, reason));
        if !about.is_ca {
            return wrong("is not the certificate of an authority (basic constraints CA:TRUE)");
        }
        if !about.may_sign {
            return wrong("may not sign certificates (its key usage lacks keyCertSign)");
        }
        if now >= about.not_after {
            return wrong("has expired");
        }
        if now < about.not_before {
            return wrong("is not yet valid");
        }
        let key = SigningKey::from_pem(&self.key.content)
            .map_err(|reason| CaError::new(&self.key.name, reason))?;
        if rcgen::PublicKeyData::der_bytes(&key) != about.public_key {
            let reason = format!("is not the key of {}", self.certificate.name);
            return Err(CaError::new(&self.key.name, reason));
        }
        let roots = self.roots.certificates()?;
        for root in &roots {
            if !self.roots.about(root)?.is_ca {
                let reason = "has a certificate that is not that of an authority";
                return Err(CaError::new(&self.roots.name, reason));
            }
        }
        let intermediates = self.intermediates(&certificate, chain, &roots)?;
        let authority = self.signing(key, &certificate, intermediates, roots, now)?;
        let Some(piece) = &self.revocations else {
            return Ok(authority);
        };
        let wrong = |reason: String| CaError::new(&piece.name, reason);
        let lists = Revocations::read(&piece.content).map_err(wrong)?;
        authority.with_revocations(lists, now).map_err(wrong)
    }

    fn signing(
        &self,
        key: SigningKey,
        certificate: &CertificateDer<'static>,
        intermediates: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Authority, CaError> {
        Authority::new(key, certificate, intermediates, roots, now).map_err(|error| match error {
            IssueError::Unverifiable(why) => {
                let reason = format!(
                    "what {} signs cannot be verified with it and {}: {why}",
                    self.certificate.name,
                    self.chain_name(),
                );
                CaError::new(&self.roots.name, reason)
            }
            IssueError::Expired => {
                let reason = "the chain, or its root, has a certificate that has expired";
                CaError::new(self.chain_name(), reason)
            }
            other => CaError::new(&self.certificate.name, other.to_string()),
        })
    }

    /// What stands between a workload's certificate and the roots: the signing certificate, then
    /// those above it. Roots are left out wherever they are repeated.
    fn intermediates(
        &self,
        certificate: &CertificateDer<'static>,
        own: Vec<CertificateDer<'static>>,
        roots: &[CertificateDer<'static>],
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let given = match &self.chain {
            None => Vec::new(),
            Some(chain) if chain.content.trim_ascii().is_empty() => Vec::new(),
            Some(chain) => chain.certificates()?,
        };
        let mut intermediates: Vec<CertificateDer<'static>> = Vec::new();
        for one in [certificate.clone()].into_iter().chain(own).chain(given) {
            if !roots.contains(&one) && !intermediates.contains(&one) {
                intermediates.push(one);
            }
        }
        Ok(intermediates)
    }

    fn chain_name(&self) -> &str {
        self.chain
            .as_ref()
            .map_or(&self.certificate.name, |chain| &chain.name)
    }
}

impl Piece {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let found =
            certificate::read(&self.content).map_err(|reason| CaError::new(&self.name, reason))?;
        match found.len() {
            0..=MAX_CERTIFICATES => Ok(found),
            more => Err(CaError::new(
                &self.name,
                format!("has {more} certificates, more than {MAX_CERTIFICATES}"),
            )),
        }
    }

    fn about(&self, certificate: &CertificateDer<'_>) -> Result<About, CaError> {
        About::read(certificate)
            .ok_or_else(|| CaError::new(&self.name, "has a certificate that cannot be read"))
    }
}

/// Reads a file into memory that is cleared afterwards.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read as _;
    let file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_FILE {
        return Err(io::Error::other(format!(
            "has {length} bytes, more than {MAX_FILE}"
        )));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    file.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}
