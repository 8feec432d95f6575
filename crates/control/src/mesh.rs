//! From the store to the proxies: every change becomes a snapshot, every snapshot a push.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lateen_api::Object;
use lateen_model::{Changes, KeySets, MeshSettings, MeshSnapshot, ObjectChange};
use lateen_store::{Event, ObjectKey, Revision, Store, Stored};
use lateen_xds::debounce::{self, Settings};
use lateen_xds::{Changed, Push, Server};

use crate::jwks::Keys;
use crate::source::Discovery;
use crate::stored;

/// Builds snapshots of what the store holds.
pub(crate) struct Mesh {
    store: Arc<Store>,
    settings: Arc<MeshSettings>,
    state: Mutex<State>,
    pub counters: Counters,
}

/// What happened since the start, for /metrics.
#[derive(Default)]
pub(crate) struct Counters {
    /// Revisions seen.
    pub changes: AtomicU64,
    /// Changes that were joined into the pushes made so far.
    pub debounced: AtomicU64,
    pub pushes: AtomicU64,
    /// Total and last time to build a snapshot, in microseconds.
    pub snapshot_micros: AtomicU64,
}

struct State {
    /// Typed objects by key, with the `resourceVersion` they were read at.
    objects: BTreeMap<ObjectKey, (u64, Arc<Object>)>,
    snapshot: Arc<MeshSnapshot>,
    /// What differs since [`Mesh::take`].
    untaken: Changes,
}

impl Mesh {
    /// Reads everything that is in the store by now. Objects say what differs from the settings.
    pub fn new(store: Arc<Store>, settings: MeshSettings) -> Self {
        let settings = Arc::new(settings);
        let snapshot = Arc::new(MeshSnapshot::build([], 0, settings.clone(), None));
        let state = Mutex::new(State {
            objects: BTreeMap::new(),
            snapshot,
            untaken: Changes::default(),
        });
        let mesh = Self {
            store,
            settings,
            state,
            counters: Counters::default(),
        };
        // Who begins with the first snapshot has it whole.
        mesh.take();
        mesh
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The snapshot that was made last.
    pub fn snapshot(&self) -> Arc<MeshSnapshot> {
        self.state().snapshot.clone()
    }

    /// Why nobody is served: the settings of the mesh are kept somewhere and cannot be read, and
    /// those that stand for them may be weaker.
    pub fn is_known(&self) -> Result<(), String> {
        match self.snapshot().settings.closed {
            false => Ok(()),
            true => Err(
                "the stored settings of the mesh (ConfigMap istio, or an IstioOperator) cannot be \
                 read, so nobody is served; see the log of the control plane, and apply them anew"
                    .to_owned(),
            ),
        }
    }

    /// The snapshot of what the store holds now.
    pub fn refresh(&self) -> Arc<MeshSnapshot> {
        self.brought_up_to_date().snapshot.clone()
    }

    /// The snapshot of what the store holds now, and what differs from the one that was taken
    /// before.
    pub fn take(&self) -> (Arc<MeshSnapshot>, Changes) {
        let mut state = self.brought_up_to_date();
        let changes = std::mem::take(&mut state.untaken);
        (state.snapshot.clone(), changes)
    }

    /// Takes over what fetching keys came to. Whether that differs from before.
    pub fn set_keys(&self, sets: KeySets) -> bool {
        let mut state = self.state();
        let Some(next) = state.snapshot.with_key_sets(Arc::new(sets)) else {
            return false;
        };
        state.snapshot = Arc::new(next);
        state.untaken.request_authentications = true;
        true
    }

    fn brought_up_to_date(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let started = Instant::now();
        let missed = self.store.since(state.snapshot.revision);
        let changed = match missed.as_deref() {
            Some([]) => return state,
            Some(revisions) if self.update(&mut state, revisions) => true,
            _ => self.rebuild(&mut state),
        };
        if changed {
            let micros = started.elapsed().as_micros() as u64;
            self.counters
                .snapshot_micros
                .fetch_add(micros, Ordering::Relaxed);
        }
        state
    }

    /// Takes over what some revisions changed. False when that is not enough.
    fn update(&self, state: &mut State, revisions: &[Arc<Revision>]) -> bool {
        let Some(last) = revisions.last() else {
            return true;
        };
        let mut changed: BTreeMap<&ObjectKey, Option<&Arc<Stored>>> = BTreeMap::new();
        for change in revisions.iter().flat_map(|revision| &revision.changes) {
            changed.insert(&change.key, change.after.as_ref());
        }
        let read: Vec<_> = changed
            .into_iter()
            .map(|(key, after)| {
                let before = state.objects.get(key).map(|(_, object)| object.clone());
                let after = after.and_then(|now| {
                    let object = stored::object(now, before.as_ref())?;
                    Some((now.resource_version, object))
                });
                (key, before, after)
            })
            .collect();
        let changes: Vec<ObjectChange<'_>> = read
            .iter()
            .map(|(_, before, after)| ObjectChange {
                before: before.as_deref(),
                after: after.as_ref().map(|(_, object)| &**object),
            })
            .collect();
        let Some((next, differs)) = state.snapshot.updated(&changes, last.number) else {
            return false;
        };
        state.snapshot = Arc::new(next);
        state.untaken.merge(differs);
        for (key, _, after) in read {
            match after {
                Some(object) => state.objects.insert(key.clone(), object),
                None => state.objects.remove(key),
            };
        }
        true
    }

    /// Reads everything. Identities of what did not change are kept all the same.
    fn rebuild(&self, state: &mut State) -> bool {
        let (revision, stored) = self.store.list(|_| true);
        let mut objects = BTreeMap::new();
        for stored in stored {
            let version = stored.resource_version;
            let object = match state.objects.remove(&stored.key) {
                Some((known, object)) if known == version => Some(object),
                before => stored::object(&stored, before.as_ref().map(|(_, object)| object)),
            };
            if let Some(object) = object {
                objects.insert(stored.key.clone(), (version, object));
            }
        }
        state.objects = objects;
        state.snapshot = Arc::new(MeshSnapshot::build(
            state.objects.values().map(|(_, object)| &**object),
            revision,
            self.settings.clone(),
            Some(&state.snapshot),
        ));
        state.untaken = Changes::everything();
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The push of a control plane that has just started.
pub(crate) fn first_push(snapshot: Arc<MeshSnapshot>) -> Push<MeshSnapshot> {
    Push::new(snapshot.revision.to_string(), snapshot, Changed::All)
}

/// Follows the store and the keys that are fetched for it, and pushes, until the task is dropped.
/// `pushed` is what proxies have.
pub(crate) async fn follow(
    mesh: Arc<Mesh>,
    server: Server<Discovery>,
    discovery: Arc<Discovery>,
    settings: Settings,
    pushed: Arc<MeshSnapshot>,
    keys: Keys,
) -> Result<(), lateen_store::StoreError> {
    let mut watch = mesh.store.watch(pushed.revision)?;
    let (changes, mut batches) = debounce::debouncer(settings, |_: &mut (), ()| {});
    let watching = async {
        loop {
            match watch.next().await {
                Event::Revision(_) | Event::Resync => {
                    mesh.counters.changes.fetch_add(1, Ordering::Relaxed);
                    changes.send(());
                }
            }
        }
    };
    let watching_keys = async {
        loop {
            keys.changed.notified().await;
            changes.send(());
        }
    };
    let pushing = async {
        while let Some(batch) = batches.next().await {
            let (work, connected) = (mesh.clone(), discovery.clone());
            // A large mesh takes milliseconds; the runtime's threads serve requests meanwhile.
            let made = tokio::task::spawn_blocking(move || {
                let (snapshot, changes) = work.take();
                let changed = connected.changed(&snapshot, &changes);
                (snapshot, changed)
            });
            let Ok((snapshot, changed)) = made.await else {
                tracing::error!("making a snapshot failed; the proxies keep the one before");
                continue;
            };
            mesh.counters
                .debounced
                .fetch_add(batch.events as u64, Ordering::Relaxed);
            mesh.counters.pushes.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                revision = snapshot.revision,
                changes = batch.events,
                waited = ?since(batch.since),
                "push"
            );
            let version = snapshot.revision.to_string();
            keys.want(&snapshot);
            discovery.sweep();
            server.push(Push {
                version,
                snapshot,
                changed: Arc::new(changed),
                since: batch.since,
            });
        }
    };
    tokio::select! {
        () = watching => {}
        () = watching_keys => {}
        () = pushing => {}
    }
    Ok(())
}

fn since(start: Instant) -> Duration {
    start.elapsed()
}
