//! The keys that RequestAuthentications name by URI or by issuer: fetched, kept, refreshed.
//!
//! Istio's way (`pilot/pkg/model/jwks_resolver.go`): the control plane fetches, so proxies need no way
//! out; keys are refreshed every 20 minutes; a set that was good stays when a refresh fails. What
//! differs: nothing waits for a fetch, so a slow issuer does not hold up configuration for others.
//! Until its keys are there, a rule accepts no token. And what was fetched is kept over a restart
//! ([`kept`]), so that an issuer that cannot be reached then is no outage.
//!
//! Invariant: at most [`MAX_SOURCES`] sources are asked, each by one request at a time.

mod fetch;
mod kept;
mod uri;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_model::{KeySet, KeySets, KeySource, MeshSnapshot};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

pub use fetch::Cidr;
use fetch::{Fetcher, FetcherError};
use kept::Kept;

use crate::mesh::Mesh;
use crate::options::KeyOptions;

/// Beyond this many further sources are told to be too many.
const MAX_SOURCES: usize = 1000;
/// Fetches at the same time.
const PARALLEL: usize = 16;
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
        permits: Arc::new(Semaphore::new(PARALLEL)),
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
    permits: Arc<Semaphore>,
}

type Ended = (KeySource, Result<Arc<str>, FetcherError>);

struct Entry {
    set: KeySet,
    timeout: Duration,
    /// `None`: under way.
    due: Option<Instant>,
    failures: u32,
}

impl Resolver {
    fn want(&mut self, wanted: &Wanted) {
        self.entries.retain(|source, _| wanted.contains_key(source));
        for (source, timeout) in wanted {
            if let Some(entry) = self.entries.get_mut(source) {
                entry.timeout = *timeout;
                continue;
            }
            let full = self.entries.len() >= MAX_SOURCES;
            let error = full.then(|| Arc::from("there are too many sources of keys"));
            let entry = Entry {
                set: KeySet {
                    keys: self.known.remove(source),
                    error,
                },
                timeout: *timeout,
                due: Some(Instant::now()),
                failures: 0,
            };
            if !full {
                self.entries.insert(source.clone(), entry);
            }
        }
        // What the configuration of the start does not name is old.
        self.known.clear();
    }

    fn start_due(&mut self, now: Instant) {
        for (source, entry) in &mut self.entries {
            if entry.due.is_none_or(|due| due > now) {
                continue;
            }
            entry.due = None;
            let (source, timeout) = (source.clone(), entry.timeout);
            let (fetcher, permits) = (self.fetcher.clone(), self.permits.clone());
            self.under_way.spawn(async move {
                // It is never closed.
                let _permit = permits.acquire().await;
                let fetched = fetcher.keys(&source, timeout).await;
                (source, fetched)
            });
        }
    }

    fn next_due(&self) -> Instant {
        let due = self.entries.values().filter_map(|entry| entry.due).min();
        due.unwrap_or_else(|| Instant::now() + self.settings.refresh)
    }

    fn end(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok((source, fetched)) = ended else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&source) else {
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
        entry.due = Some(Instant::now() + wait);
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
