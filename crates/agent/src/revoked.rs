//! Which certificates count no more: lists in a file, as Istio mounts its ConfigMap `istio-ca-crl`.
//!
//! An empty file takes back what was revoked. A file that goes away or cannot be read does not:
//! whoever was refused stays refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;

use crate::roots::Stamp;

/// Why the lists cannot be used.
#[derive(Debug, Error)]
pub(crate) enum RevokedError {
    #[error("cannot read the lists of revoked certificates {path}: {source}; the last ones count")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}: has no list of revoked certificates in PEM; the last ones count")]
    Pem(PathBuf),
}

/// A file of lists and what was last in it.
#[derive(Debug)]
pub(crate) struct Revoked {
    path: Option<PathBuf>,
    stamp: Option<Stamp>,
    lists: Option<Arc<str>>,
}

impl Revoked {
    pub(crate) fn new(path: Option<&Path>) -> Self {
        Self {
            path: path.map(Path::to_owned),
            stamp: None,
            lists: None,
        }
    }

    /// In PEM.
    pub(crate) fn lists(&self) -> Option<Arc<str>> {
        self.lists.clone()
    }

    /// Reads the file when it has changed. Whether the lists have.
    pub(crate) fn refresh(&mut self) -> Result<bool, RevokedError> {
        let Some(path) = &self.path else {
            return Ok(false);
        };
        let stamp = Stamp::of(path);
        if stamp.is_none() || stamp == self.stamp {
            return Ok(false);
        }
        let text = std::fs::read_to_string(path).map_err(|source| RevokedError::Read {
            path: path.clone(),
            source,
        })?;
        let lists = match text.trim().is_empty() {
            true => None,
            false if is_readable(&text) => Some(text.into()),
            false => return Err(RevokedError::Pem(path.clone())),
        };
        self.stamp = stamp;
        let changed = lists != self.lists;
        self.lists = lists;
        Ok(changed)
    }
}

fn is_readable(text: &str) -> bool {
    let mut lists = CertificateRevocationListDer::pem_slice_iter(text.as_bytes()).peekable();
    lists.peek().is_some() && lists.all(|list| list.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_file_takes_back_what_was_revoked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca-crl.pem");
        let mut revoked = Revoked::new(Some(&path));
        assert!(!revoked.refresh().unwrap());
        let list = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        std::fs::write(&path, list).unwrap();
        assert!(revoked.refresh().unwrap());
        assert_eq!(revoked.lists().as_deref(), Some(list));
        std::fs::write(&path, "nonsense").unwrap();
        assert!(revoked.refresh().is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(!revoked.refresh().unwrap());
        assert_eq!(revoked.lists().as_deref(), Some(list));
        std::fs::write(&path, "").unwrap();
        assert!(revoked.refresh().unwrap());
        assert_eq!(revoked.lists(), None);
    }
}
