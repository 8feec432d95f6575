//! Configuration objects with revisions, persisted; sources: API and directory.
//!
//! The store knows objects as keys and JSON. It gives every write a revision (who, when, what was
//! there before and after), keeps that log, and tells watchers about it. It knows no xDS and does
//! not judge an object's content: the `api` crate validates before anything gets here (the
//! directory source calls it itself).
//!
//! Invariants:
//! - Only this crate touches the database file.
//! - A write is acknowledged after it is on disk; a killed process loses no acknowledged write and
//!   leaves no half of a transaction.
//! - What readers and watchers see is what is on disk, in revision order.
//! - An object belongs to the source that made it; another source cannot write it.

mod database;
mod directory;
mod error;
mod key;
mod object;
mod plan;
mod revision;
mod scan;
mod store;
mod watch;

pub use directory::{Directory, DirectoryOptions, DirectoryStatus, FileStatus};
pub use error::StoreError;
pub use key::{DEFAULT_NAMESPACE, ObjectKey};
pub use object::{Body, Source, Stored};
pub use plan::{Draft, Outcome, Verdict, Write};
pub use revision::{Author, Change, ObjectChange, Revision};
pub use store::{Committed, Limits, Store};
pub use watch::{Event, Watch};
