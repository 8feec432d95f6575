//! A directory of YAML as a source of objects, followed while it changes.
//!
//! Every change of the directory leads to one reading of all of it and, where that differs from
//! what the store has of this directory, to one revision. A document that is wrong, or a file that cannot
//! be read, keeps what it declared when it was last good; a deleted file takes its objects with it.
//!
//! Invariant: what this source wrote is remembered in the store itself (each object's source), so a
//! restart continues where it was, also with a file that is bad by then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use serde::Serialize;
use serde_json::Value;

use crate::error::StoreError;
use crate::key::ObjectKey;
use crate::object::Source;
use crate::plan::{Draft, Write};
use crate::revision::{Author, Change};
use crate::scan::{self, FileContent, Signature};
use crate::store::Store;

#[derive(Clone, Debug)]
pub struct DirectoryOptions {
    /// How long the directory must be quiet before it is read: editors and `cp` write in steps.
    pub settle: Duration,
    /// Read at the latest this long after the first change.
    pub settle_max: Duration,
    /// How often to look for changes that no event told of (network file systems, a replaced
    /// directory, no inotify watches left).
    pub poll: Duration,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(100),
            settle_max: Duration::from_secs(2),
            poll: Duration::from_secs(2),
        }
    }
}

/// What the directory looked like when it was read last.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DirectoryStatus {
    pub directory: String,
    /// What concerns the directory as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub files: BTreeMap<String, FileStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileStatus {
    /// Objects in force from this file; the last good ones if there are errors.
    pub objects: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Follows one directory until dropped.
pub struct Directory {
    status: Arc<RwLock<DirectoryStatus>>,
    wake: mpsc::Sender<Wake>,
}

enum Wake {
    Changed,
    Stop,
}

impl Directory {
    /// Reads the directory into the store, then follows it on a thread of its own.
    pub fn start(
        store: Arc<Store>,
        directory: &Path,
        options: DirectoryOptions,
    ) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        };
        let directory = directory.canonicalize().map_err(failed)?;
        let mut follower = Follower::new(store, directory);
        follower.read();
        let status = follower.status.clone();
        let (wake, woken) = mpsc::channel();
        let events = wake.clone();
        std::thread::Builder::new()
            .name("config-dir".into())
            .spawn(move || follower.follow(&options, &woken, &events))
            .map_err(failed_thread)?;
        Ok(Self { status, wake })
    }

    pub fn status(&self) -> DirectoryStatus {
        self.status
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Deletes what directories other than `kept` left in the store: nothing follows those files
    /// any more, and nothing else may change their objects.
    pub fn retire_others(store: &Store, kept: Option<&Path>) -> Result<usize, StoreError> {
        let kept = kept.and_then(|p| p.canonicalize().ok()).map(|p| text(&p));
        let mut orphans: BTreeMap<String, Vec<Write>> = BTreeMap::new();
        for object in store.list(|_| true).1 {
            if let Source::Directory { directory, .. } = &object.source
                && Some(directory) != kept.as_ref()
            {
                let key = object.key.clone();
                let delete = Write::Delete {
                    key,
                    expected: None,
                    uid: None,
                };
                orphans.entry(directory.clone()).or_default().push(delete);
            }
        }
        let mut count = 0;
        for (directory, writes) in orphans {
            count += writes.len();
            store.commit(&change_of(&directory), writes)?;
        }
        Ok(count)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // An error means that the thread is gone already.
        let _ = self.wake.send(Wake::Stop);
    }
}

fn failed_thread(source: std::io::Error) -> StoreError {
    StoreError::Directory {
        path: PathBuf::from("(its thread)"),
        source,
    }
}

struct Follower {
    store: Arc<Store>,
    path: PathBuf,
    name: String,
    seen: BTreeMap<String, Signature>,
    /// The store refused an object: it may take it later without any file changing.
    refused: bool,
    status: Arc<RwLock<DirectoryStatus>>,
}

impl Follower {
    fn new(store: Arc<Store>, path: PathBuf) -> Self {
        let name = text(&path);
        let status = DirectoryStatus {
            directory: name.clone(),
            ..DirectoryStatus::default()
        };
        let status = Arc::new(RwLock::new(status));
        Self {
            store,
            path,
            name,
            seen: BTreeMap::new(),
            refused: false,
            status,
        }
    }

    fn follow(
        mut self,
        options: &DirectoryOptions,
        woken: &mpsc::Receiver<Wake>,
        events: &mpsc::Sender<Wake>,
    ) {
        // Kept alive by the binding; without it there are no events, only the poll.
        let _watcher = self.watcher(events.clone());
        loop {
            match woken.recv_timeout(options.poll) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Changed) => {}
                Err(RecvTimeoutError::Timeout) if self.looks_unchanged() => continue,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !settle(options, woken) {
                return;
            }
            self.read();
        }
    }

    fn watcher(&self, events: mpsc::Sender<Wake>) -> Option<notify::RecommendedWatcher> {
        let handler = move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = events.send(Wake::Changed);
            }
        };
        let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher
                .watch(&self.path, RecursiveMode::Recursive)
                .map(|()| watcher)
        });
        watcher
            .map_err(|error| {
                tracing::warn!(directory = self.name, %error, "no file events; polling instead");
            })
            .ok()
    }

    fn looks_unchanged(&self) -> bool {
        let failing = self
            .status
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .error
            .is_some();
        !failing && !self.refused && scan::list(&self.path).is_ok_and(|now| now == self.seen)
    }

    /// Reads everything and brings the store in line with it.
    fn read(&mut self) {
        let listed = match scan::list(&self.path) {
            Ok(listed) => listed,
            Err(error) => {
                let error = format!("cannot be read: {error}; its objects stay as they are");
                return self.report(Some(error), None);
            }
        };
        self.seen = listed;
        let mut reading = Reading::default();
        for file in self.seen.keys() {
            reading.add(file, scan::read(&self.path, file));
        }
        let error = self
            .reconcile(&mut reading)
            .err()
            .map(|error| error.to_string());
        let mut files = reading.files;
        for object in self.store.list(|object| self.owns(&object.source)).1 {
            if let Source::Directory { file, .. } = &object.source
                && let Some(status) = files.get_mut(file)
            {
                status.objects += 1;
            }
        }
        self.report(error, Some(files));
    }

    fn owns(&self, source: &Source) -> bool {
        matches!(source, Source::Directory { directory, .. } if *directory == self.name)
    }

    /// One revision with everything that differs. An object that the store refuses is reported with
    /// its file and left out; the others are written all the same.
    fn reconcile(&mut self, reading: &mut Reading) -> Result<(), StoreError> {
        self.refused = false;
        let mut writes = self.writes(reading);
        let change = change_of(&self.name);
        loop {
            if writes.is_empty() {
                return Ok(());
            }
            let error = match self.store.commit(&change, writes.clone()) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let Some(key) = error.key().cloned() else {
                return Err(error);
            };
            self.refused = true;
            let file = reading.wanted.get(&key).map(|(file, _)| file.clone());
            if let Some(status) = file.and_then(|file| reading.files.get_mut(&file)) {
                status.errors.push(error.to_string());
            }
            let before = writes.len();
            writes.retain(|write| *write.key() != key);
            if writes.len() == before {
                return Err(error);
            }
        }
    }

    /// What has to be written. An object of another source is refused here already, so that many
    /// of them do not cost a transaction each.
    fn writes(&mut self, reading: &mut Reading) -> Vec<Write> {
        let mut writes = Vec::new();
        for (key, (file, body)) in &reading.wanted {
            match self.store.get(key) {
                Some(object) if !self.owns(&object.source) => {
                    self.refused = true;
                    let (key, owner) = (key.clone(), object.source.clone());
                    let error = StoreError::ForeignSource {
                        key,
                        owner,
                        by: "a directory",
                    };
                    let status = reading.files.entry(file.clone()).or_default();
                    status.errors.push(error.to_string());
                }
                _ => writes.push(Write::Apply(Draft {
                    key: key.clone(),
                    body: body.clone(),
                    expected: None,
                    file: Some(file.clone()),
                })),
            }
        }
        for object in self.store.list(|object| self.owns(&object.source)).1 {
            let Source::Directory { file, .. } = &object.source else {
                continue;
            };
            if !reading.wanted.contains_key(&object.key) && !reading.incomplete.contains(file) {
                let key = object.key.clone();
                writes.push(Write::Delete {
                    key,
                    expected: None,
                    uid: None,
                });
            }
        }
        writes
    }

    /// Publishes the status and logs what is new in it.
    fn report(&self, error: Option<String>, files: Option<BTreeMap<String, FileStatus>>) {
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        let directory = &*self.name;
        if let Some(error) = error.as_ref().filter(|e| status.error.as_ref() != Some(e)) {
            tracing::error!(directory, "{error}");
        }
        status.error = error;
        let Some(files) = files else { return };
        for (file, now) in &files {
            let known = status.files.get(file).cloned().unwrap_or_default();
            for error in now.errors.iter().filter(|e| !known.errors.contains(e)) {
                tracing::error!(
                    directory,
                    "{error}; what the file declared before stays in force"
                );
            }
            for warning in now.warnings.iter().filter(|w| !known.warnings.contains(w)) {
                tracing::warn!(directory, "{warning}");
            }
        }
        status.files = files;
    }
}

/// Everything that one reading of the directory found.
#[derive(Default)]
struct Reading {
    wanted: BTreeMap<ObjectKey, (String, Value)>,
    /// Files with errors: what they declared before and do not now stays.
    incomplete: BTreeSet<String>,
    files: BTreeMap<String, FileStatus>,
}

impl Reading {
    fn add(&mut self, file: &str, content: FileContent) {
        if !content.errors.is_empty() {
            self.incomplete.insert(file.to_owned());
        }
        let mut status = FileStatus {
            objects: 0,
            errors: content.errors,
            warnings: content.warnings,
        };
        for (key, body) in content.objects {
            if let Some((first, _)) = self.wanted.get(&key) {
                status.errors.push(format!(
                    "{file}: {key} is declared in {first} already, which is used; remove one of \
                     them"
                ));
            } else {
                self.wanted.insert(key, (file.to_owned(), body));
            }
        }
        self.files.insert(file.to_owned(), status);
    }
}

/// Waits for quiet; false when told to stop.
fn settle(options: &DirectoryOptions, woken: &mpsc::Receiver<Wake>) -> bool {
    let deadline = Instant::now() + options.settle_max;
    while Instant::now() < deadline {
        match woken.recv_timeout(options.settle) {
            Ok(Wake::Changed) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => return true,
        }
    }
    true
}

fn change_of(directory: &str) -> Change {
    let source = Source::Directory {
        directory: directory.to_owned(),
        file: String::new(),
    };
    let author = Author {
        agent: "directory".into(),
        user: String::new(),
    };
    Change {
        author,
        id: String::new(),
        source,
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
