//! Deadlines of a worker's connections and streams.
//!
//! A connection has one [`Deadline`] for its life and moves it as often as it likes: moving it
//! later is one store, since the queue entry finds out when it fires that it is not due yet and
//! queues itself again. So a keep-alive connection with a timeout per request costs the queue
//! nothing per request.
//!
//! Invariant: a deadline that is due wakes its task no earlier than asked and at most
//! [`COARSE_MS`] later (short ones: one tick of the runtime's clock).

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Deadlines more than a second away are rounded up to this, so that many wake the worker once.
const COARSE_MS: u64 = 100;
const NEVER: u64 = u64::MAX;
/// Deadlines kept for streams to come.
const SPARE: usize = 512;

/// One task's deadline.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// Milliseconds since the worker started.
    due: Cell<u64>,
    /// When the queue will look at it next.
    queued: Cell<u64>,
    /// The queue has found it due.
    fired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Default for Deadline {
    fn default() -> Deadline {
        Deadline {
            due: Cell::new(NEVER),
            queued: Cell::new(NEVER),
            fired: Cell::new(false),
            waker: RefCell::default(),
        }
    }
}

impl Deadline {
    /// Wakes the task now, for a reason other than time.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

struct Queued(u64, Rc<Deadline>);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// All deadlines of a worker.
pub(crate) struct Timers {
    start: Instant,
    queue: RefCell<BinaryHeap<Reverse<Queued>>>,
    driver: RefCell<Option<Waker>>,
    /// The time at the last reading of the clock.
    last: Cell<u64>,
    /// Deadlines that nobody uses, with an entry in the queue perhaps.
    spare: RefCell<Vec<Rc<Deadline>>>,
    /// At this length of the queue, entries of connections that are gone are removed.
    sweep_at: Cell<usize>,
}

impl Timers {
    pub(crate) fn new() -> Timers {
        Timers {
            start: Instant::now(),
            queue: RefCell::default(),
            driver: RefCell::default(),
            last: Cell::new(0),
            spare: RefCell::default(),
            sweep_at: Cell::new(1024),
        }
    }

    /// Milliseconds since the worker started.
    pub(crate) fn now(&self) -> u64 {
        self.read().1
    }

    /// Reads the clock, for the request that begins now.
    pub(crate) fn read(&self) -> (Instant, u64) {
        let now = Instant::now();
        let millis = self.millis(now);
        self.last.set(millis);
        (now, millis)
    }

    /// The time of the last reading, for a caller that knows that it was a moment ago. Free.
    pub(crate) fn recent(&self) -> u64 {
        self.last.get()
    }

    pub(crate) fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64
    }

    /// Moves a deadline; [`None`] is never.
    pub(crate) fn set(&self, deadline: &Rc<Deadline>, due: Option<u64>) {
        let due = due.unwrap_or(NEVER);
        deadline.due.set(due);
        deadline.fired.set(false);
        if due == NEVER {
            return;
        }
        let at = self.rounded(due);
        if at >= deadline.queued.get() {
            return;
        }
        let first = self.queue.borrow().peek().map(|Reverse(first)| first.0);
        self.enqueue(deadline, at);
        if first.is_none_or(|first| at < first)
            && let Some(driver) = self.driver.borrow().as_ref()
        {
            driver.wake_by_ref();
        }
    }

    /// A deadline of a stream that has ended, for the next one: the queue still has its entry.
    pub(crate) fn spare(&self) -> Rc<Deadline> {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn keep(&self, deadline: Rc<Deadline>) {
        self.set(&deadline, None);
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            *deadline.waker.borrow_mut() = None;
            spare.push(deadline);
        }
    }

    fn rounded(&self, due: u64) -> u64 {
        match due.saturating_sub(self.recent()) > 1000 {
            true => due.next_multiple_of(COARSE_MS),
            false => due,
        }
    }

    fn enqueue(&self, deadline: &Rc<Deadline>, at: u64) {
        deadline.queued.set(at);
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= self.sweep_at.get() {
            queue.retain(|Reverse(Queued(_, deadline))| Rc::strong_count(deadline) > 1);
            self.sweep_at.set((queue.len() * 2).max(1024));
        }
        queue.push(Reverse(Queued(at, deadline.clone())));
    }

    /// Ready when the deadline has passed; otherwise its task is woken then.
    /// Reads no clock: the queue does, when it fires.
    pub(crate) fn poll(&self, deadline: &Deadline, cx: &mut Context<'_>) -> Poll<()> {
        if deadline.fired.get() {
            return Poll::Ready(());
        }
        let mut waker = deadline.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Wakes what is due and returns when to come again.
    fn fire(&self) -> Option<u64> {
        let now = self.now();
        loop {
            let deadline = {
                let mut queue = self.queue.borrow_mut();
                match queue.peek() {
                    None => return None,
                    Some(Reverse(Queued(at, _))) if *at > now => return Some(*at),
                    Some(_) => {}
                }
                let Reverse(Queued(at, deadline)) = queue.pop()?;
                // An earlier entry was queued later; this one has nothing to say.
                if deadline.queued.get() != at {
                    continue;
                }
                deadline
            };
            deadline.queued.set(NEVER);
            // The connection is gone when only the queue still holds its deadline.
            if Rc::strong_count(&deadline) == 1 || deadline.due.get() == NEVER {
                continue;
            }
            if deadline.due.get() > now {
                self.enqueue(&deadline, self.rounded(deadline.due.get()));
            } else {
                deadline.fired.set(true);
                deadline.wake();
            }
        }
    }

    /// Runs for the life of the worker.
    pub(crate) async fn drive(self: Rc<Self>) {
        let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
        let mut armed = None;
        poll_fn(|cx| {
            if self.driver.borrow().is_none() {
                *self.driver.borrow_mut() = Some(cx.waker().clone());
            }
            loop {
                let next = self.fire();
                let Some(at) = next else {
                    return Poll::<()>::Pending;
                };
                if armed != Some(at) {
                    armed = Some(at);
                    let when = self.start + Duration::from_millis(at);
                    sleep.as_mut().reset(tokio::time::Instant::from_std(when));
                }
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                armed = None;
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait(timers: &Rc<Timers>, deadline: &Rc<Deadline>) -> u64 {
        poll_fn(|cx| timers.poll(deadline, cx)).await;
        timers.now()
    }

    #[tokio::test(flavor = "local")]
    async fn a_deadline_fires_once_due_however_often_it_moved() {
        let timers = Rc::new(Timers::new());
        tokio::task::spawn_local(timers.clone().drive());
        let deadline = Rc::new(Deadline::default());
        timers.set(&deadline, Some(timers.now() + 10_000));
        timers.set(&deadline, Some(timers.now() + 5));
        let due = timers.now() + 30;
        timers.set(&deadline, Some(due));
        let at = wait(&timers, &deadline).await;
        // Later on a busy machine, but not as late as it was due at first.
        assert!((due..due + 9_000).contains(&at), "due {due}, fired {at}");
        assert!(timers.queue.borrow().len() <= 2);
    }

    #[test]
    fn deadlines_of_connections_that_are_gone_do_not_pile_up() {
        let timers = Timers::new();
        for _ in 0..10_000 {
            timers.set(&Rc::new(Deadline::default()), Some(3_600_000));
        }
        assert!(timers.queue.borrow().len() <= 1024);
    }

    #[test]
    fn streams_one_after_the_other_share_an_entry_of_the_queue() {
        let timers = Timers::new();
        for i in 0..1000 {
            let deadline = timers.spare();
            assert!(!deadline.fired.get());
            timers.set(&deadline, Some(300_000 + i));
            timers.keep(deadline);
        }
        assert!(timers.queue.borrow().len() <= 1);
        assert_eq!(timers.spare().due.get(), NEVER);
    }

    #[test]
    fn moving_later_does_not_grow_the_queue() {
        let timers = Timers::new();
        let deadline = Rc::new(Deadline::default());
        for i in 0..1000 {
            timers.set(&deadline, Some(100 + i));
        }
        assert_eq!(timers.queue.borrow().len(), 1);
    }
}
