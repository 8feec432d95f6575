//! Joins a burst of changes into one: quiet for 100 ms, at most 10 s after the first (Istio's
//! `PILOT_DEBOUNCE_AFTER` and `PILOT_DEBOUNCE_MAX`). Knows nothing of what changed; the owner
//! says how two changes merge.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// When a batch is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// No change for this long.
    pub quiet: Duration,
    /// Or this long since the first change of the batch.
    pub max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(100),
            max: Duration::from_secs(10),
        }
    }
}

/// A finished batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<T> {
    pub value: T,
    /// How many changes were joined.
    pub events: usize,
    /// When the first of them came.
    pub since: std::time::Instant,
}

/// Makes the two ends. `merge` joins a later change into the pending one.
pub fn debouncer<T: Send>(
    settings: Settings,
    merge: impl Fn(&mut T, T) + Send + Sync + 'static,
) -> (Sender<T>, Debouncer<T>) {
    let shared = Arc::new(Shared {
        merge: Box::new(merge),
        pending: Mutex::new(State {
            pending: None,
            senders: 1,
        }),
        changed: Notify::new(),
    });
    (
        Sender {
            shared: shared.clone(),
        },
        Debouncer { shared, settings },
    )
}

/// Takes changes; never blocks and never grows: pending changes are merged.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Gives batches.
pub struct Debouncer<T> {
    shared: Arc<Shared<T>>,
    settings: Settings,
}

type Merge<T> = Box<dyn Fn(&mut T, T) + Send + Sync>;

struct Shared<T> {
    merge: Merge<T>,
    pending: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    pending: Option<Pending<T>>,
    senders: usize,
}

struct Pending<T> {
    value: T,
    events: usize,
    first: Instant,
    last: Instant,
    since: std::time::Instant,
}

impl<T> Sender<T> {
    pub fn send(&self, change: T) {
        self.send_at(change, Instant::now());
    }

    fn send_at(&self, change: T, now: Instant) {
        let mut state = self
            .shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &mut state.pending {
            Some(pending) => {
                (self.shared.merge)(&mut pending.value, change);
                pending.events += 1;
                pending.last = now;
            }
            None => {
                state.pending = Some(Pending {
                    value: change,
                    events: 1,
                    first: now,
                    last: now,
                    since: std::time::Instant::now(),
                });
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .senders += 1;
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .senders -= 1;
        self.shared.changed.notify_one();
    }
}

enum Wait<T> {
    Done(Batch<T>),
    Until(Instant),
    ForChange,
    Closed,
}

impl<T> Debouncer<T> {
    /// The next batch; `None` when every sender is gone and nothing is pending. Changes that come
    /// while the owner works on a batch wait for the next call, so that there is never more than
    /// one batch in work.
    pub async fn next(&mut self) -> Option<Batch<T>> {
        loop {
            match self.poll(Instant::now()) {
                Wait::Done(batch) => return Some(batch),
                Wait::Closed => return None,
                Wait::ForChange => self.shared.changed.notified().await,
                // A later change moves the deadline; it is looked at when this one is reached.
                Wait::Until(deadline) => tokio::time::sleep_until(deadline).await,
            }
        }
    }

    fn poll(&self, now: Instant) -> Wait<T> {
        let mut state = self
            .shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let closed = state.senders == 0;
        let Some(pending) = &state.pending else {
            return if closed {
                Wait::Closed
            } else {
                Wait::ForChange
            };
        };
        let deadline = (pending.last + self.settings.quiet).min(pending.first + self.settings.max);
        if !closed && now < deadline {
            return Wait::Until(deadline);
        }
        match state.pending.take() {
            Some(Pending {
                value,
                events,
                since,
                ..
            }) => Wait::Done(Batch {
                value,
                events,
                since,
            }),
            None => Wait::ForChange,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            quiet: Duration::from_millis(100),
            max: Duration::from_secs(1),
        }
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Sends a change at each of `changes` (ms), then asks at which ms the batch is due.
    fn due_after(changes: &[u64]) -> u64 {
        let (sender, batches) = debouncer(settings(), |a: &mut u32, b| *a += b);
        let start = Instant::now();
        for change in changes {
            sender.send_at(1, start + ms(*change));
        }
        let last = start + ms(*changes.last().unwrap_or(&0));
        match batches.poll(last) {
            Wait::Until(deadline) => (deadline - start).as_millis() as u64,
            Wait::Done(_) => (last - start).as_millis() as u64,
            Wait::ForChange | Wait::Closed => u64::MAX,
        }
    }

    #[test]
    fn a_batch_is_due_after_the_quiet_time_or_the_maximum() {
        let check = |changes: &[u64], due| assert_eq!(due_after(changes), due, "{changes:?}");
        check(&[], u64::MAX);
        check(&[0], 100);
        check(&[0, 50, 99], 199);
        check(&[0, 400, 800], 900);
        check(&[0, 950], 1000);
        check(&[0, 500, 1000], 1000);
    }

    #[test]
    fn a_batch_is_not_given_before_it_is_due() {
        let (sender, batches) = debouncer(settings(), |a: &mut u32, b| *a += b);
        let start = Instant::now();
        sender.send_at(1, start);
        sender.send_at(2, start + ms(60));
        assert!(matches!(batches.poll(start + ms(159)), Wait::Until(_)));
        let Wait::Done(batch) = batches.poll(start + ms(160)) else {
            panic!("due")
        };
        assert_eq!((batch.value, batch.events), (3, 2));
        assert!(matches!(batches.poll(start + ms(161)), Wait::ForChange));
    }

    #[tokio::test]
    async fn changes_during_work_form_the_next_batch_and_the_end_is_seen() {
        let (sender, mut batches) = debouncer(
            Settings {
                quiet: ms(5),
                max: ms(50),
            },
            |a: &mut u32, b| *a += b,
        );
        sender.send(1);
        assert_eq!(batches.next().await.unwrap().value, 1);
        sender.send(2);
        let other = sender.clone();
        drop(sender);
        other.send(3);
        drop(other);
        assert_eq!(batches.next().await.unwrap().value, 5);
        assert_eq!(batches.next().await, None);
    }
}
