//! What can go wrong with the store, and what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::key::ObjectKey;
use crate::object::Source;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error(
        "the store {path} is in use by another process; stop that control plane, or choose \
         another run directory"
    )]
    Locked { path: PathBuf },
    #[error(
        "the store {path} is damaged ({detail}); move the file away to start with an empty one, \
         and apply your documents again"
    )]
    Corrupt { path: PathBuf, detail: String },
    #[error(
        "the store {path} has format {found}, this program knows {known}; run the newer program, \
         or choose another run directory"
    )]
    Format {
        path: PathBuf,
        found: u64,
        known: u64,
    },
    #[error(
        "no space left on the disk of the store {path}; nothing was written. Free space and retry"
    )]
    DiskFull { path: PathBuf },
    #[error("cannot {action} the store {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("{key} not found")]
    NotFound { key: ObjectKey },
    #[error("{key} already exists")]
    AlreadyExists { key: ObjectKey },
    #[error(
        "{key} was changed since it was read: resourceVersion {expected} was given, {current} is \
         current. Read it again and retry"
    )]
    Conflict {
        key: ObjectKey,
        expected: String,
        current: u64,
    },
    #[error("{key} with uid {expected} no longer exists; the one there now has uid {current}")]
    UidConflict {
        key: ObjectKey,
        expected: String,
        current: String,
    },
    #[error("{key} belongs to {owner} and cannot be changed through {by}; change it there")]
    ForeignSource {
        key: ObjectKey,
        owner: Source,
        by: &'static str,
    },
    #[error("{key} is {size} bytes as JSON, the limit is {limit}")]
    TooLarge {
        key: ObjectKey,
        size: usize,
        limit: usize,
    },
    #[error("the store holds {limit} objects, its limit; delete some before creating more")]
    TooMany { limit: usize },
    #[error("revision {0} is not kept any more")]
    Compacted(u64),
    #[error("the configuration directory {path} cannot be read: {source}")]
    Directory { path: PathBuf, source: io::Error },
}

impl StoreError {
    /// The object that the error is about, if it is about one.
    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            StoreError::NotFound { key }
            | StoreError::AlreadyExists { key }
            | StoreError::Conflict { key, .. }
            | StoreError::UidConflict { key, .. }
            | StoreError::ForeignSource { key, .. }
            | StoreError::TooLarge { key, .. } => Some(key),
            StoreError::Locked { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Format { .. }
            | StoreError::DiskFull { .. }
            | StoreError::Io { .. }
            | StoreError::TooMany { .. }
            | StoreError::Compacted(_)
            | StoreError::Directory { .. } => None,
        }
    }
}
