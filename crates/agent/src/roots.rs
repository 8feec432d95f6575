//! Which authorities are trusted: those of the file, and those that the authority itself names.
//!
//! While a root is replaced both lists hold the old and the new one, so that workloads with either
//! certificate talk to each other. The file is followed; who changes it needs not tell anybody.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;

use crate::identity::pem;

/// Why the roots cannot be read.
#[derive(Debug, Error)]
pub enum RootsError {
    #[error("cannot read the roots {path}: {source}; name them with --ca-root FILE")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {reason}; certificates in PEM are expected")]
    Pem { path: PathBuf, reason: String },
}

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    /// `None`: there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: found.modified().ok(),
            length: found.len(),
            inode: found.ino(),
        })
    }
}

/// A file of roots and what was last in it.
#[derive(Debug)]
pub(crate) struct Roots {
    path: PathBuf,
    stamp: Option<Stamp>,
    file: Vec<CertificateDer<'static>>,
    named: Vec<CertificateDer<'static>>,
}

impl Roots {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stamp: None,
            file: Vec::new(),
            named: Vec::new(),
        }
    }

    /// Reads the file when it has changed. What cannot be read leaves the last roots.
    pub(crate) fn refresh(&mut self) -> Result<bool, RootsError> {
        let stamp = Stamp::of(&self.path);
        if stamp.is_some() && stamp == self.stamp {
            return Ok(false);
        }
        let text = std::fs::read(&self.path).map_err(|source| RootsError::Read {
            path: self.path.clone(),
            source,
        })?;
        let wrong = |reason: String| RootsError::Pem {
            path: self.path.clone(),
            reason,
        };
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(error.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
        let changed = certificates != self.file;
        (self.file, self.stamp) = (certificates, stamp);
        Ok(changed)
    }

    /// Those that came with a certificate, instead of those that came with the one before.
    pub(crate) fn set_named(&mut self, named: Vec<CertificateDer<'static>>) {
        self.named = named;
    }

    fn all(&self) -> Vec<&CertificateDer<'static>> {
        let mut all: Vec<&CertificateDer<'static>> = Vec::new();
        for root in self.file.iter().chain(&self.named) {
            if !all.contains(&root) {
                all.push(root);
            }
        }
        all
    }

    /// All of them in PEM, each once; `None`: there are none yet.
    pub(crate) fn pem(&self) -> Option<String> {
        let all = self.all();
        (!all.is_empty()).then(|| all.into_iter().map(|root| pem(root)).collect())
    }

    /// For a connection to the authority.
    pub(crate) fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.all().into_iter().cloned());
        store
    }
}
