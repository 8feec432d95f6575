//! Certificates, keys and revocation lists: read from where the configuration says, and parsed.

use lateen_proxy_config::{Certificate, DataSource, Validation};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use zeroize::{Zeroize, Zeroizing};

/// Where systems keep the certificates they trust, in the order in which they are looked for.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a TLS context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what}: cannot read {path}: {source}")]
    Read {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{what}: the environment variable {name} is not set")]
    Environment { what: &'static str, name: String },
    #[error("{what}: {reason}; PEM is expected")]
    Pem { what: &'static str, reason: String },
    #[error("private_key: does not belong to the certificate")]
    Mismatch,
    #[error("{what}: {reason}")]
    Unusable { what: &'static str, reason: String },
    #[error("there is no file of trusted certificates on this system; name one in trusted_ca")]
    NoSystemRoots,
    #[error("the secret {0} has not arrived")]
    Missing(Arc<str>),
    #[error("the secret {name} is not a {wanted}")]
    WrongKind {
        name: Arc<str>,
        wanted: &'static str,
    },
}

fn read(source: &DataSource, what: &'static str) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    match source {
        DataSource::Inline(bytes) => Ok(Zeroizing::clone(bytes)),
        DataSource::File(path) => read_file(path, what),
        DataSource::Environment(name) => match std::env::var(&**name) {
            Ok(value) => Ok(Zeroizing::new(value.into_bytes())),
            Err(_) => Err(TlsError::Environment {
                what,
                name: name.to_string(),
            }),
        },
    }
}

fn read_file(path: &Path, what: &'static str) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let read = std::fs::read(path).map_err(|source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    Ok(Zeroizing::new(read))
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|error| TlsError::Pem {
        what,
        reason: error.to_string(),
    })?;
    if parsed.is_empty() {
        return Err(TlsError::Pem {
            what,
            reason: "there is no certificate in it".to_owned(),
        });
    }
    Ok(parsed)
}

/// A certificate and its key, ready to sign.
pub(super) fn identity(certificate: &Certificate) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(
        &read(&certificate.chain, "certificate_chain")?,
        "certificate_chain",
    )?;
    let pem = read(&certificate.key, "private_key")?;
    let mut key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Pem {
        what: "private_key",
        reason: error.to_string(),
    })?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key);
    key.zeroize();
    let signing = signing.map_err(|error| TlsError::Unusable {
        what: "private_key",
        reason: error.to_string(),
    })?;
    let mut identity = CertifiedKey::new(chain, signing);
    match identity.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err(TlsError::Mismatch),
        Err(error) => {
            return Err(TlsError::Unusable {
                what: "certificate_chain",
                reason: error.to_string(),
            });
        }
    }
    if let Some(staple) = &certificate.ocsp_staple {
        identity.ocsp = Some(read(staple, "ocsp_staple")?.to_vec());
    }
    Ok(Arc::new(identity))
}

/// Certificates that are trusted, and those that are not any more.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) crls: Vec<CertRevocationList<'static>>,
}

/// [`None`]: no certificate authority is configured.
pub(super) fn trusted(validation: &Validation) -> Result<Option<Trusted>, TlsError> {
    const WHAT: &str = "trusted_ca";
    let pem = match &validation.trusted_ca {
        Some(DataSource::File(path)) if is_system(path) && !path.exists() => system_roots()?,
        Some(source) => read(source, WHAT)?,
        None if validation.system_roots => system_roots()?,
        None => return Ok(None),
    };
    let mut trusted = Trusted::default();
    let mut last = None;
    for certificate in certificates(&pem, WHAT)? {
        match webpki::anchor_from_trusted_cert(&certificate) {
            Ok(anchor) => trusted.anchors.push(anchor.to_owned()),
            // Bundles of systems have certificates that nobody reads any more.
            Err(error) => {
                last = Some(error);
                continue;
            }
        }
        trusted.certificates.push(certificate);
    }
    if let (true, Some(error)) = (trusted.anchors.is_empty(), last) {
        return Err(TlsError::Unusable {
            what: WHAT,
            reason: error.to_string(),
        });
    }
    if let Some(crl) = &validation.crl {
        trusted.crls = revocation_lists(&read(crl, "crl")?)?;
    }
    Ok(Some(trusted))
}

fn is_system(path: &Path) -> bool {
    SYSTEM_ROOTS.iter().any(|known| Path::new(known) == path)
}

fn system_roots() -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let found = SYSTEM_ROOTS.iter().map(Path::new).find(|p| p.exists());
    read_file(found.ok_or(TlsError::NoSystemRoots)?, "trusted_ca")
}

fn revocation_lists(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, TlsError> {
    let failed = |reason: String| TlsError::Pem {
        what: "crl",
        reason,
    };
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| failed(error.to_string()))?;
        let list = OwnedCertRevocationList::from_der(&der);
        lists.push(list.map_err(|error| failed(error.to_string()))?.into());
    }
    if lists.is_empty() {
        return Err(failed("there is no revocation list in it".to_owned()));
    }
    Ok(lists)
}
