//! The database file: three tables, one transaction per revision.
//!
//! `objects` holds what is, `revisions` what happened, `meta` the format and the size of the log.
//! A commit is durable when it returns (redb's immediate durability: a copy-on-write B-tree whose
//! root is switched after an fsync), so a killed process leaves the state of the last commit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database as Redb, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::StoreError;
use crate::key::ObjectKey;
use crate::object::Stored;
use crate::revision::Revision;
use crate::store::Limits;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");

/// Raised when a change makes old programs unable to read the file.
const FORMAT: u64 = 1;

/// redb's page cache. The store keeps all objects in memory itself; the default of 1 GiB would let
/// the log fill memory.
const CACHE_BYTES: usize = 4 << 20;

/// How long opening waits for a predecessor that is just letting go of the file.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_millis(1_500);

pub(crate) struct Database {
    path: PathBuf,
    /// None after a failed write: redb refuses everything from then on, so the next use reopens.
    redb: Option<Redb>,
}

/// Everything that is read at start.
pub(crate) struct Loaded {
    pub revision: u64,
    pub objects: BTreeMap<ObjectKey, Arc<Stored>>,
}

impl Database {
    pub fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let mut database = Self {
            path: path.to_owned(),
            redb: None,
        };
        database.redb = Some(database.open_file()?);
        let loaded = database.load()?;
        Ok((database, loaded))
    }

    /// A new file appears whole: a process that is killed while redb lays out its first pages would
    /// else leave one that no longer opens.
    fn create_file(&self) -> Result<(), StoreError> {
        if self.path.exists() {
            return Ok(());
        }
        let draft = self
            .path
            .with_extension(format!("redb.new-{}", std::process::id()));
        let made = Redb::builder().set_cache_size(CACHE_BYTES).create(&draft);
        let linked = made
            .map_err(|error| self.error("create", error.into()))
            .and_then(|redb| {
                drop(redb);
                match std::fs::hard_link(&draft, &self.path) {
                    // Another process was faster; which of the two may use it, its lock decides.
                    Err(_) if self.path.exists() => Ok(()),
                    linked => linked.map_err(|error| self.error("create", error.into())),
                }
            });
        let _ = std::fs::remove_file(&draft);
        linked
    }

    fn open_file(&self) -> Result<Redb, StoreError> {
        self.create_file()?;
        let started = std::time::Instant::now();
        loop {
            match Redb::builder()
                .set_cache_size(CACHE_BYTES)
                .create(&self.path)
            {
                Ok(redb) => return Ok(redb),
                Err(redb::DatabaseError::DatabaseAlreadyOpen)
                    if started.elapsed() < LOCK_PATIENCE =>
                {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Err(error) => return Err(self.error("open", error.into())),
            }
        }
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let path = self.path.clone();
        let (format, revision, objects) = self.run("read", |redb| {
            let write = redb.begin_write()?;
            let format = {
                let mut meta = write.open_table(META)?;
                let format = meta.get("format")?.map(|value| value.value());
                if format.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                write.open_table(OBJECTS)?;
                write.open_table(REVISIONS)?;
                format.unwrap_or(FORMAT)
            };
            write.commit()?;
            let read = redb.begin_read()?;
            let meta = read.open_table(META)?;
            let revision = meta.get("revision")?.map_or(0, |value| value.value());
            let mut objects = Vec::new();
            for entry in read.open_table(OBJECTS)?.iter()? {
                let (_, value) = entry?;
                objects.push(decode::<Stored>(value.value())?);
            }
            Ok((format, revision, objects))
        })?;
        if format > FORMAT {
            return Err(StoreError::Format {
                path,
                found: format,
                known: FORMAT,
            });
        }
        let objects = objects
            .into_iter()
            .map(|o| (o.key.clone(), Arc::new(o)))
            .collect();
        Ok(Loaded { revision, objects })
    }

    /// Writes one revision and its effect, and drops the oldest revisions beyond the limits.
    pub fn commit(&mut self, revision: &Revision, limits: &Limits) -> Result<(), StoreError> {
        let record = encode(revision);
        self.run("write", |redb| {
            let write = redb.begin_write()?;
            {
                let mut objects = write.open_table(OBJECTS)?;
                for change in &revision.changes {
                    let key = change.key.encode();
                    match &change.after {
                        Some(object) => objects.insert(&*key, &*encode(&**object))?,
                        None => objects.remove(&*key)?,
                    };
                }
                let mut revisions = write.open_table(REVISIONS)?;
                revisions.insert(revision.number, &*record)?;
                let mut meta = write.open_table(META)?;
                let logged = meta.get("log_bytes")?.map_or(0, |value| value.value());
                let mut logged = logged + record.len() as u64;
                while let Some(freed) = oldest_beyond(&revisions, limits, logged)? {
                    let removed = revisions.remove(freed)?.map_or(0, |r| r.value().len());
                    logged = logged.saturating_sub(removed as u64);
                }
                meta.insert("log_bytes", logged)?;
                meta.insert("revision", revision.number)?;
            }
            write.commit()?;
            Ok(())
        })
    }

    /// The kept revisions with `from <= number <= to`, oldest first, at most `limit`; newest first
    /// when `newest_first`.
    pub fn revisions(
        &mut self,
        range: std::ops::RangeInclusive<u64>,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<Revision>, StoreError> {
        self.run("read", |redb| {
            let read = redb.begin_read()?;
            let table = read.open_table(REVISIONS)?;
            let entries = table.range(range.clone())?;
            let decode_entry = |entry: Result<_, redb::StorageError>| {
                let (_, value): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>) = entry?;
                decode::<Revision>(value.value())
            };
            if newest_first {
                entries.rev().take(limit).map(decode_entry).collect()
            } else {
                entries.take(limit).map(decode_entry).collect()
            }
        })
    }

    /// The number of the oldest kept revision.
    pub fn oldest(&mut self) -> Result<Option<u64>, StoreError> {
        self.run("read", |redb| {
            let read = redb.begin_read()?;
            let table = read.open_table(REVISIONS)?;
            Ok(table.first()?.map(|(number, _)| number.value()))
        })
    }

    fn run<T>(
        &mut self,
        action: &'static str,
        work: impl Fn(&Redb) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let redb = match self.redb.take() {
            Some(redb) => redb,
            None => self.open_file()?,
        };
        match work(&redb) {
            Ok(value) => {
                self.redb = Some(redb);
                Ok(value)
            }
            // The handle is dropped: after an I/O error it refuses further use.
            Err(error) => Err(self.error(action, error)),
        }
    }

    fn error(&self, action: &'static str, error: redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::Locked { path },
            redb::Error::Io(source) => io_error(action, path, source),
            redb::Error::UpgradeRequired(version) => StoreError::Format {
                path,
                found: u64::from(version),
                known: FORMAT,
            },
            error => StoreError::Corrupt {
                path,
                detail: error.to_string(),
            },
        }
    }
}

fn io_error(action: &'static str, path: PathBuf, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
        // redb reports a file that is not a database, or is cut short, this way.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => StoreError::Corrupt {
            path,
            detail: source.to_string(),
        },
        _ => StoreError::Io {
            action,
            path,
            source,
        },
    }
}

/// The oldest revision if the log exceeds a limit. The newest is always kept.
fn oldest_beyond(
    revisions: &redb::Table<'_, u64, &[u8]>,
    limits: &Limits,
    logged: u64,
) -> Result<Option<u64>, redb::Error> {
    use redb::ReadableTableMetadata;
    let count = revisions.len()?;
    if count <= 1 || (count <= limits.revisions && logged <= limits.log_bytes) {
        return Ok(None);
    }
    Ok(revisions.first()?.map(|(number, _)| number.value()))
}

/// The records are plain data with string keys; serialising them cannot fail.
fn encode<T: serde::Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| redb::Error::Corrupted(format!("a record does not parse: {error}")))
}
