//! The store: objects in memory, every change on disk first, watchers told last.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast;

use crate::database::Database;
use crate::error::StoreError;
use crate::key::ObjectKey;
use crate::object::Stored;
use crate::plan::{Outcome, Stamp, Write, plan};
use crate::revision::{Change, Revision};
use crate::watch::Watch;

/// Bounds, so that no input can fill memory or disk.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Revisions kept in the log.
    pub revisions: u64,
    /// Bytes of log kept, whatever their number.
    pub log_bytes: u64,
    /// Size of one object as JSON.
    pub object_bytes: usize,
    /// Objects in all.
    pub objects: usize,
    /// Revisions a watcher may lag behind before it has to read everything anew.
    pub watch_lag: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            revisions: 10_000,
            log_bytes: 256 << 20,
            object_bytes: 1 << 20,
            objects: 50_000,
            watch_lag: 1_024,
        }
    }
}

/// What a transaction did. `revision` is none when nothing changed (or it was a dry run).
#[derive(Debug)]
pub struct Committed {
    pub revision: Option<u64>,
    pub outcomes: Vec<Outcome>,
}

pub struct Store {
    path: PathBuf,
    limits: Limits,
    /// Held for a whole write: plan, disk, memory, watchers. Gives revisions their order.
    database: Mutex<Database>,
    state: RwLock<State>,
    events: broadcast::Sender<Arc<Revision>>,
}

struct State {
    revision: u64,
    objects: BTreeMap<ObjectKey, Arc<Stored>>,
    /// The last revisions, oldest first, without a gap.
    recent: VecDeque<Arc<Revision>>,
}

/// Changes kept in memory for those who follow closely.
const RECENT_CHANGES: usize = 4_096;

impl Store {
    /// Opens (or creates) the database file and reads all objects.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| StoreError::Io {
                action: "create the directory of",
                path: path.to_owned(),
                source,
            })?;
        }
        let (database, loaded) = Database::open(path)?;
        let (events, _) = broadcast::channel(limits.watch_lag.max(1));
        Ok(Self {
            path: path.to_owned(),
            limits,
            database: Mutex::new(database),
            state: RwLock::new(State {
                revision: loaded.revision,
                objects: loaded.objects,
                recent: VecDeque::new(),
            }),
            events,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the last revision.
    pub fn revision(&self) -> u64 {
        self.read(|state| state.revision)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Stored>> {
        self.read(|state| state.objects.get(key).cloned())
    }

    /// All objects that `wanted` accepts, in key order, and the revision they stand at.
    pub fn list(&self, wanted: impl Fn(&Stored) -> bool) -> (u64, Vec<Arc<Stored>>) {
        self.read(|state| {
            let objects = state
                .objects
                .values()
                .filter(|o| wanted(o))
                .cloned()
                .collect();
            (state.revision, objects)
        })
    }

    /// The revisions after `revision`, oldest first; `None` when it is too long ago and everything
    /// has to be read anew.
    pub fn since(&self, revision: u64) -> Option<Vec<Arc<Revision>>> {
        self.read(|state| {
            let missed = state.revision.checked_sub(revision)?;
            let missed = usize::try_from(missed).ok()?;
            let from = state.recent.len().checked_sub(missed)?;
            Some(state.recent.range(from..).cloned().collect())
        })
    }

    /// Performs the writes as one revision, all or nothing. Blocks until they are on disk.
    pub fn commit(&self, change: &Change, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let mut database = self.database();
        let now = OffsetDateTime::now_utc();
        let planned = self.plan(change, writes, now)?;
        if planned.changes.is_empty() {
            return Ok(Committed {
                revision: None,
                outcomes: planned.outcomes,
            });
        }
        let revision = Arc::new(Revision {
            number: self.revision() + 1,
            time: rfc3339(now, 1_000_000),
            author: change.author.clone(),
            change: change.id.clone(),
            source: change.source.clone(),
            changes: planned.changes,
        });
        database.commit(&revision, &self.limits)?;
        self.publish(&revision);
        Ok(Committed {
            revision: Some(revision.number),
            outcomes: planned.outcomes,
        })
    }

    /// What [`Store::commit`] would do, without doing it.
    pub fn dry_run(&self, change: &Change, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let planned = self.plan(change, writes, OffsetDateTime::now_utc())?;
        Ok(Committed {
            revision: None,
            outcomes: planned.outcomes,
        })
    }

    /// Revisions newest first, at most `limit`, older than `before`; of one object when `key` is
    /// given.
    pub fn history(
        &self,
        key: Option<&ObjectKey>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Revision>, StoreError> {
        let mut found = Vec::new();
        let mut next = before.unwrap_or(u64::MAX);
        // In pages, so that a long log is never in memory as a whole.
        while found.len() < limit && next > 0 {
            let page = self.database().revisions(0..=next - 1, 256, true)?;
            let Some(last) = page.last() else { break };
            next = last.number;
            let wanted = |r: &Revision| key.is_none_or(|k| r.changes.iter().any(|c| c.key == *k));
            found.extend(page.into_iter().filter(wanted).take(limit - found.len()));
        }
        Ok(found)
    }

    /// One revision of the log.
    pub fn revision_at(&self, number: u64) -> Result<Revision, StoreError> {
        let found = self.database().revisions(number..=number, 1, false)?;
        found
            .into_iter()
            .next()
            .ok_or(StoreError::Compacted(number))
    }

    /// Follows all changes after revision `from`. If the log does not reach back that far, the
    /// first event is a resync.
    pub fn watch(self: &Arc<Self>, from: u64) -> Result<Watch, StoreError> {
        // Under the writer's lock no revision can fall between the log and the channel.
        let mut database = self.database();
        let receiver = self.events.subscribe();
        let current = self.revision();
        let kept = database.oldest()?.is_some_and(|oldest| oldest <= from + 1);
        // More than the channel could hold is cheaper to read anew.
        let near = current.saturating_sub(from) <= self.limits.watch_lag as u64;
        let backlog = match from < current {
            false => Vec::new(),
            true if !(kept && near) => {
                return Ok(Watch::resync(receiver, self.clone()));
            }
            true => database.revisions(from + 1..=current, usize::MAX, false)?,
        };
        Ok(Watch::new(receiver, self.clone(), backlog, from))
    }

    fn plan(
        &self,
        change: &Change,
        writes: Vec<Write>,
        now: OffsetDateTime,
    ) -> Result<crate::plan::Plan, StoreError> {
        let now = rfc3339(now, 1_000_000_000);
        self.read(|state| {
            let stamp = Stamp {
                revision: state.revision + 1,
                now: &now,
                source: &change.source,
            };
            plan(&state.objects, &self.limits, &stamp, writes)
        })
    }

    fn publish(&self, revision: &Arc<Revision>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for change in &revision.changes {
            match &change.after {
                Some(object) => state.objects.insert(change.key.clone(), object.clone()),
                None => state.objects.remove(&change.key),
            };
        }
        state.revision = revision.number;
        state.recent.push_back(revision.clone());
        let mut kept: usize = state.recent.iter().map(|one| one.changes.len()).sum();
        while kept > RECENT_CHANGES && state.recent.len() > 1 {
            let oldest = state.recent.pop_front();
            kept -= oldest.map_or(0, |one| one.changes.len());
        }
        drop(state);
        // No receiver is no error: nobody watches.
        let _ = self.events.send(revision.clone());
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 3339 in UTC, cut to a precision given in nanoseconds.
fn rfc3339(time: OffsetDateTime, precision: u32) -> String {
    let cut = time.nanosecond() - time.nanosecond() % precision;
    let time = time.replace_nanosecond(cut).unwrap_or(time);
    // Fails only for years beyond 9999.
    time.format(&Rfc3339).unwrap_or_default()
}
