//! Certificate, key and roots as files, for programs that read those (Istio's `OUTPUT_CERTS`).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::Material;

/// Why the files were not written.
#[derive(Debug, Error)]
#[error("cannot write {path}: {source}; OUTPUT_CERTS (--output-certs) asks for it")]
pub struct OutputError {
    path: PathBuf,
    source: io::Error,
}

/// Writes Istio's three files, each at once and for nobody else to read.
pub(crate) fn write(directory: &Path, material: &Material) -> Result<(), OutputError> {
    let fail = |path: &Path, source| OutputError {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| fail(directory, source))?;
    let identity = material.identity.as_ref();
    let files = [
        ("cert-chain.pem", identity.map(|one| one.chain.as_str())),
        ("key.pem", identity.map(|one| one.key.as_str())),
        ("root-cert.pem", material.roots.as_deref()),
    ];
    for (name, content) in files {
        let Some(content) = content else { continue };
        let path = directory.join(name);
        private(&path, content).map_err(|source| fail(&path, source))?;
    }
    Ok(())
}

/// A file of mode 0600 that is there whole or not at all.
fn private(path: &Path, content: &str) -> io::Result<()> {
    let new = path.with_extension("pem.new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content.as_bytes())?;
    fs::rename(&new, path)
}
