//! The keys that RequestAuthentications name by URI or by issuer: fetched, kept, refreshed.
//!
//! Istio's way (`pilot/pkg/model/jwks_resolver.go`): the control plane fetches, so proxies need no way
//! out; keys are refreshed every 20 minutes; a set that was good stays when a refresh fails. What
//! differs: nothing waits for a fetch, so a slow issuer does not hold up configuration for others.
//! Until its keys are there, a rule accepts no token. And what was fetched is kept over a restart
//! ([`kept`]), so that an issuer that cannot be reached then is no outage.
//!
//! Invariants: at most [`MAX_SOURCES`] sources are asked, each by one request at a time; no source keeps
//! others waiting for longer than [`LONGEST_FETCH`] at a place.

mod fetch;
mod kept;
mod uri;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_model::{KeySet, KeySets, KeySource, MeshSnapshot};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

pub use fetch::Cidr;
use fetch::{Fetcher, FetcherError};
use kept::Kept;

use crate::mesh::Mesh;
use crate::options::KeyOptions;

/// Beyond this many further sources are told to be too many.
const MAX_SOURCES: usize = 1000;
/// Fetches at the same time: of sources that have not failed, and of such as have. Who does not answer
/// takes a place of the first kind once.
const PARALLEL: usize = 16;
/// No fetch takes longer, whatever its rule says: a place is for everybody.
const LONGEST_FETCH: Duration = Duration::from_secs(30);
/// How long a start waits for keys.
const FIRST_FETCH: Duration = Duration::from_secs(3);
/// Waits between tries that fail double from [`Settings::retry`] up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// When keys are fetched again.
#[derive(Clone, Copy, Debug)]
struct Settings {
    refresh: Duration,
    /// After the first failure.
    retry: Duration,
}

/// Sources with how long fetching from them may take.
type Wanted = BTreeMap<KeySource, Duration>;

/// What the rest of the control plane has of this: it says what is wanted, and hears of changes.
pub(crate) struct Keys {
    wanted: watch::Sender<Wanted>,
    pub changed: Arc<Notify>,
}

impl Keys {
    /// Begins to fetch for a mesh. Keys that can be had soon are there when it returns: a control
    /// plane that starts anew must not take them from the proxies.
    pub async fn start(
        mesh: Arc<Mesh>,
        options: &KeyOptions,
        directory: &Path,
    ) -> Result<(Keys, Fetching), String> {
        let policy = mesh.snapshot().settings.compliance;
        let roots = options.extra_roots.as_ref();
        let fetcher = Fetcher::new(options.blocked.clone(), roots, policy)?;
        let settings = Settings {
            refresh: options.refresh,
            retry: options.retry,
        };
        let sources = mesh.snapshot().key_sources();
        let first = sources.len();
        let (wanted, wants) = watch::channel(sources);
        let changed = Arc::new(Notify::new());
        let tell = changed.clone();
        let known = mesh.clone();
        let found = move |sets| {
            if known.set_keys(sets) {
                tell.notify_one();
            }
        };
        let resolving = resolve(
            Arc::new(fetcher),
            settings,
            wants,
            Kept::in_(directory),
            found,
        );
        let task = tokio::spawn(resolving);
        if first > 0 {
            let all = async {
                while mesh.snapshot().known_key_sets() < first {
                    changed.notified().await;
                }
            };
            // Later ones come with a push of their own.
            let _ = tokio::time::timeout(FIRST_FETCH, all).await;
        }
        Ok((Keys { wanted, changed }, Fetching(task)))
    }

    /// Says what is wanted from now on.
    pub fn want(&self, snapshot: &MeshSnapshot) {
        let sources = snapshot.key_sources();
        self.wanted.send_if_modified(|wanted| {
            let differs = *wanted != sources;
            *wanted = sources;
            differs
        });
    }
}

/// The task that fetches; it ends when this is dropped.
pub(crate) struct Fetching(tokio::task::JoinHandle<()>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Fetches what is wanted, for as long as somebody wants it. `found` is told of every change.
async fn resolve(
    fetcher: Arc<Fetcher>,
    settings: Settings,
    mut wanted: watch::Receiver<Wanted>,
    mut kept: Kept,
    found: impl Fn(KeySets),
) {
    let mut resolver = Resolver {
        fetcher,
        settings,
        known: kept.load().await,
        entries: BTreeMap::new(),
        under_way: JoinSet::new(),
        first: Arc::new(Semaphore::new(PARALLEL)),
        again: Arc::new(Semaphore::new(PARALLEL)),
    };
    let mut told = KeySets::new();
    loop {
        resolver.want(&wanted.borrow_and_update());
        resolver.start_due(Instant::now());
        let now = resolver.sets();
        if now != told {
            told.clone_from(&now);
            found(now);
            kept.save(&told).await;
        }
        let next = resolver.next_due();
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep_until(next.into()) => {}
            Some(ended) = resolver.under_way.join_next() => resolver.end(ended),
        }
    }
}

struct Resolver {
    fetcher: Arc<Fetcher>,
    settings: Settings,
    /// Keys of before the start, until somebody wants them.
    known: BTreeMap<KeySource, Arc<str>>,
    entries: BTreeMap<KeySource, Entry>,
    under_way: JoinSet<Ended>,
    /// Places of sources that have not failed.
    first: Arc<Semaphore>,
    /// Places of the others.
    again: Arc<Semaphore>,
}

type Ended = (KeySource, Result<Arc<str>, FetcherError>);

struct Entry {
    set: KeySet,
    timeout: Duration,
    state: State,
    failures: u32,
}

enum State {
    /// To be fetched then.
    Due(Instant),
    UnderWay(AbortHandle),
    /// One too many.
    Excess,
}

impl Entry {
    fn new(timeout: Duration, keys: Option<Arc<str>>) -> Entry {
        Entry {
            set: KeySet { keys, error: None },
            timeout,
            state: State::Due(Instant::now()),
            failures: 0,
        }
    }

    fn excess(timeout: Duration) -> Entry {
        let error = format!("there are more than {MAX_SOURCES} sources of keys; use fewer issuers");
        Entry {
            set: KeySet {
                keys: None,
                error: Some(Arc::from(error)),
            },
            state: State::Excess,
            ..Entry::new(timeout, None)
        }
    }

    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) => Some(at),
            State::UnderWay(_) | State::Excess => None,
        }
    }
}

impl Resolver {
    fn want(&mut self, wanted: &Wanted) {
        self.entries.retain(|source, entry| {
            let stays = wanted.contains_key(source);
            // Its place is for others.
            if let (false, State::UnderWay(task)) = (stays, &entry.state) {
                task.abort();
            }
            stays
        });
        let asked = |entry: &&Entry| !matches!(entry.state, State::Excess);
        let mut room = MAX_SOURCES.saturating_sub(self.entries.values().filter(asked).count());
        for (source, timeout) in wanted {
            let known = self.entries.get_mut(source);
            if let Some(entry) = known
                && asked(&&*entry)
            {
                entry.timeout = *timeout;
                continue;
            }
            let entry = match room {
                0 => Entry::excess(*timeout),
                _ => Entry::new(*timeout, self.known.remove(source)),
            };
            room = room.saturating_sub(1);
            self.entries.insert(source.clone(), entry);
        }
        // What the configuration of the start does not name is old.
        self.known.clear();
    }

    fn start_due(&mut self, now: Instant) {
        for (source, entry) in &mut self.entries {
            if entry.due().is_none_or(|due| due > now) {
                continue;
            }
            let (source, limit) = (source.clone(), entry.timeout.min(LONGEST_FETCH));
            let fetcher = self.fetcher.clone();
            let places = match entry.failures {
                0 => self.first.clone(),
                _ => self.again.clone(),
            };
            let task = self.under_way.spawn(async move {
                // It is never closed.
                let _place = places.acquire().await;
                let fetched = fetcher.keys(&source, limit).await;
                (source, fetched)
            });
            entry.state = State::UnderWay(task);
        }
    }

    fn next_due(&self) -> Instant {
        let due = self.entries.values().filter_map(Entry::due).min();
        due.unwrap_or_else(|| Instant::now() + self.settings.refresh)
    }

    fn end(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok((source, fetched)) = ended else {
            return;
        };
        // One that ended while nobody wanted it says nothing of one that was begun after.
        let Some(entry) = self
            .entries
            .get_mut(&source)
            .filter(|entry| matches!(&entry.state, State::UnderWay(task) if task.is_finished()))
        else {
            return;
        };
        let wait = match fetched {
            Ok(keys) => {
                if entry.set.keys.as_ref() != Some(&keys) {
                    tracing::info!(issuer = source.issuer, uri = source.uri, "fetched keys");
                }
                entry.failures = 0;
                entry.set = KeySet {
                    keys: Some(keys),
                    error: None,
                };
                self.settings.refresh
            }
            Err(error) => {
                tracing::warn!(
                    issuer = source.issuer,
                    uri = source.uri,
                    kept = entry.set.keys.is_some(),
                    "cannot fetch keys: {error}"
                );
                let doubled = self.settings.retry * 2u32.saturating_pow(entry.failures.min(16));
                entry.failures += 1;
                entry.set.error = Some(Arc::from(error.to_string()));
                doubled.min(LONGEST_RETRY)
            }
        };
        entry.state = State::Due(Instant::now() + wait);
    }

    /// What is known by now.
    fn sets(&self) -> KeySets {
        let tried = |entry: &&Entry| entry.set != KeySet::default();
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| tried(entry))
            .map(|(source, entry)| (source.clone(), entry.set.clone()))
            .collect()
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
