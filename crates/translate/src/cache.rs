//! A memo of generated values, keyed by exactly the inputs that made them.
//!
//! Invariant: a generator is a plain function of its key, so it cannot read what is not in the
//! key. Inputs that are shared by `Arc` are compared by identity ([`ById`]); the snapshot keeps
//! the identity of what did not change, so an unrelated change finds every entry again.
//!
//! Entries that no generation used for a while are dropped, which bounds the memo by what the
//! connected proxies use.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An input compared by identity. It keeps the value alive, so that an address is never reused
/// for another value while an entry still names it.
pub struct ById<T: ?Sized>(pub Arc<T>);

impl<T: ?Sized> Clone for ById<T> {
    fn clone(&self) -> Self {
        ById(self.0.clone())
    }
}

impl<T: ?Sized> PartialEq for ById<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: ?Sized> Eq for ById<T> {}

impl<T: ?Sized> Hash for ById<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}

impl<T: ?Sized> std::ops::Deref for ById<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// How many sweeps an entry survives without being used.
const UNUSED_SWEEPS: u64 = 3;

/// A memo from inputs `K` to a shared generated value `V`.
pub struct Memo<K, V: ?Sized> {
    inner: Mutex<Inner<K, V>>,
}

struct Inner<K, V: ?Sized> {
    entries: HashMap<K, Entry<V>>,
    sweep: u64,
}

struct Entry<V: ?Sized> {
    value: Value<V>,
    last_used: u64,
    /// How many generations put it there since somebody asked for it.
    carried: u32,
}

/// Empty while it is being made.
type Value<V> = Arc<OnceLock<Arc<V>>>;

impl<K, V: ?Sized> Default for Memo<K, V> {
    fn default() -> Self {
        Memo {
            inner: Mutex::new(Inner {
                entries: HashMap::new(),
                sweep: 0,
            }),
        }
    }
}

impl<K: Hash + Eq + Clone, V: ?Sized> Memo<K, V> {
    /// The value for `key`, made by `generate` unless it is known.
    ///
    /// Of threads that miss at once one generates, and the others wait for it: after a push all
    /// connections ask for the same at the same moment.
    pub fn get(&self, key: K, generate: impl FnOnce(&K) -> Arc<V>) -> Arc<V> {
        let (value, key) = {
            let mut inner = self.lock();
            let sweep = inner.sweep;
            match inner.entries.get_mut(&key) {
                Some(entry) => {
                    entry.last_used = sweep;
                    entry.carried = 0;
                    if let Some(value) = entry.value.get() {
                        return value.clone();
                    }
                    (entry.value.clone(), key)
                }
                None => {
                    let value = Value::<V>::default();
                    let entry = Entry {
                        value: value.clone(),
                        last_used: sweep,
                        carried: 0,
                    };
                    inner.entries.insert(key.clone(), entry);
                    (value, key)
                }
            }
        };
        // A generator that panics leaves it empty, for the next to try.
        value.get_or_init(|| generate(&key)).clone()
    }

    /// What is remembered under keys of a kind, and how often it was put there since somebody asked
    /// for it.
    pub fn known(&self, is_wanted: impl Fn(&K) -> bool) -> Vec<(K, Arc<V>, u32)> {
        let inner = self.lock();
        let wanted = inner.entries.iter().filter(|(key, _)| is_wanted(key));
        let made = wanted.filter_map(|(key, entry)| {
            let value = entry.value.get()?.clone();
            Some((key.clone(), value, entry.carried))
        });
        made.collect()
    }

    /// Remembers what was made from a known value and a difference; it must be what a generator makes
    /// of the key.
    pub fn put(&self, key: K, value: Arc<V>, carried: u32) {
        let mut inner = self.lock();
        let entry = Entry {
            value: Value::<V>::from(OnceLock::from(value)),
            last_used: inner.sweep,
            carried,
        };
        inner.entries.insert(key, entry);
    }

    /// Forgets what was not used since a few sweeps. Called once per snapshot.
    pub fn sweep(&self) {
        let mut inner = self.lock();
        inner.sweep += 1;
        let oldest = inner.sweep.saturating_sub(UNUSED_SWEEPS);
        inner.entries.retain(|_, entry| entry.last_used >= oldest);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    // A poisoned lock only means that a generator panicked; the map itself is whole.
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_inputs_are_generated_once_and_equal_but_other_inputs_again() {
        let memo: Memo<ById<str>, String> = Memo::default();
        let input: Arc<str> = Arc::from("a");
        let twin: Arc<str> = Arc::from("a");
        let mut runs = 0;
        for key in [&input, &input, &twin] {
            memo.get(ById(key.clone()), |k| {
                runs += 1;
                Arc::new(k.to_string())
            });
        }
        assert_eq!(runs, 2);
    }

    #[test]
    fn entries_nobody_uses_are_dropped_after_a_few_sweeps() {
        let memo: Memo<u32, u32> = Memo::default();
        memo.get(1, |_| Arc::new(1));
        memo.get(2, |_| Arc::new(2));
        for _ in 0..=UNUSED_SWEEPS {
            memo.get(1, |_| unreachable!());
            memo.sweep();
        }
        assert_eq!(memo.len(), 1);
    }
}
