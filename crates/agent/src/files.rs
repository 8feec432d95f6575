//! Certificates and authorities in files that the mesh's configuration names, as secrets with what is
//! in the files: `file-cert:CERTIFICATE~KEY` and `file-root:AUTHORITIES`, Istio's names. A stock Envoy
//! reads a file once; asked for in this way it gets what is new.
//!
//! Invariant: what is half written, or does not fit together, does not replace what was good.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::{Zeroize, Zeroizing};

use crate::roots::Stamp;
use crate::secret::{Versioned, inline, versioned};

const PAIR: &str = "file-cert:";
const AUTHORITIES: &str = "file-root:";
/// Between the paths of a pair.
const AND: char = '~';
/// No certificate or bundle is longer.
const MOST_BYTES: u64 = 1 << 20;

/// A secret that stands in files, and what was last in them.
#[derive(Debug)]
pub struct FileSecret {
    name: Arc<str>,
    paths: Paths,
    stamps: Option<Vec<Option<Stamp>>>,
    last: Option<Versioned>,
    complaint: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Paths {
    Pair { chain: PathBuf, key: PathBuf },
    Authorities(PathBuf),
}

impl FileSecret {
    /// `None`: the name is not that of files.
    pub fn named(name: &str) -> Option<Self> {
        let paths = match (name.strip_prefix(PAIR), name.strip_prefix(AUTHORITIES)) {
            (Some(paths), _) => {
                let (chain, key) = paths.split_once(AND)?;
                Paths::Pair {
                    chain: absolute(chain)?,
                    key: absolute(key)?,
                }
            }
            (_, Some(path)) => Paths::Authorities(absolute(path)?),
            _ => return None,
        };
        Some(Self {
            name: name.into(),
            paths,
            stamps: None,
            last: None,
            complaint: String::new(),
        })
    }

    /// The newest that is good; reads the files when they have changed.
    pub fn look(&mut self) -> Option<&Versioned> {
        let stamps = self.paths.all().map(Stamp::of).collect();
        if self.stamps.as_ref() != Some(&stamps) {
            match self.paths.read() {
                Ok(content) => {
                    self.stamps = Some(stamps);
                    self.last = Some(versioned(self.name.clone(), content));
                    self.complaint.clear();
                }
                // Looked at again: a file may be written in pieces.
                Err(reason) if reason != self.complaint => {
                    tracing::warn!(secret = &*self.name, reason, "files are of no use (yet)");
                    self.complaint = reason;
                }
                Err(_) => {}
            }
        }
        self.last.as_ref()
    }
}

/// Whoever asks need not be where we are.
fn absolute(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    path.is_absolute().then_some(path)
}

impl Paths {
    fn all(&self) -> impl Iterator<Item = &Path> {
        let (first, second) = match self {
            Paths::Pair { chain, key } => (chain, Some(key)),
            Paths::Authorities(path) => (path, None),
        };
        std::iter::once(first).chain(second).map(PathBuf::as_path)
    }

    fn read(&self) -> Result<tls::secret::Type, String> {
        match self {
            Paths::Pair { chain, key } => {
                let (chain, key) = (read(chain)?, read(key)?);
                check_pair(&chain, &key)?;
                Ok(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                    certificate_chain: Some(inline(&chain)),
                    private_key: Some(inline(&key)),
                    ..Default::default()
                }))
            }
            Paths::Authorities(path) => {
                let authorities = read(path)?;
                certificates(&authorities).map_err(|e| format!("{}: {e}", path.display()))?;
                let validation = tls::CertificateValidationContext {
                    trusted_ca: Some(inline(&authorities)),
                    ..Default::default()
                };
                Ok(tls::secret::Type::ValidationContext(validation))
            }
        }
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read;
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    if length > MOST_BYTES {
        return Err(format!("{}: has {length} bytes", path.display()));
    }
    // Of its whole size at once: a key that moves as it grows leaves pieces behind.
    let mut content = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    let mut file = file.take(MOST_BYTES);
    file.read_to_end(&mut content).map_err(fail)?;
    Ok(content)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("has no certificate in PEM".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(error.to_string()),
    }
}

fn check_pair(chain: &[u8], key: &[u8]) -> Result<(), String> {
    use rustls::{Error, InconsistentKeys};
    let chain = certificates(chain).map_err(|error| format!("the certificate {error}"))?;
    let mut key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key: {error}"))?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key);
    key.zeroize();
    let key = signing.map_err(|error| format!("the key: {error}"))?;
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(error) => Err(format!("certificate and key do not fit: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn what_does_not_fit_together_does_not_replace_what_was_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let name = format!(
            "file-cert:{}~{}",
            path("a.crt").display(),
            path("a.key").display()
        );
        let mut secret = FileSecret::named(&name).unwrap();
        assert!(secret.look().is_none());
        let (chain, key) = pair();
        std::fs::write(path("a.crt"), &chain).unwrap();
        assert!(secret.look().is_none());
        std::fs::write(path("a.key"), &key).unwrap();
        let first = secret.look().unwrap().version.clone();
        let (other, its_key) = pair();
        std::fs::write(path("a.crt"), &other).unwrap();
        assert_eq!(secret.look().unwrap().version, first);
        std::fs::remove_file(path("a.key")).unwrap();
        assert_eq!(secret.look().unwrap().version, first);
        std::fs::write(path("a.key"), &its_key).unwrap();
        assert_ne!(secret.look().unwrap().version, first);

        let name = format!("file-root:{}", path("a.crt").display());
        assert!(FileSecret::named(&name).unwrap().look().is_some());
        for other in ["default", "file-cert:/a", "file-root:a", "file-cert:a~/b"] {
            assert!(FileSecret::named(other).is_none(), "{other}");
        }
    }
}
