//! Following the store: revisions in order, or the order to read everything anew.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::revision::Revision;
use crate::store::Store;

#[derive(Clone, Debug)]
pub enum Event {
    /// The next revision; none is left out and none comes twice.
    Revision(Arc<Revision>),
    /// The watcher fell too far behind: read all objects with [`Store::list`], then go on. Revisions
    /// up to the one that `list` names are history by then and do not follow.
    Resync,
}

/// A place in the stream of revisions. Bounded: a watcher that lags gets a resync, not a queue.
pub struct Watch {
    receiver: broadcast::Receiver<Arc<Revision>>,
    store: Arc<Store>,
    backlog: VecDeque<Arc<Revision>>,
    resync: bool,
    /// The last revision that was delivered or superseded.
    seen: u64,
}

impl Watch {
    pub(crate) fn new(
        receiver: broadcast::Receiver<Arc<Revision>>,
        store: Arc<Store>,
        backlog: Vec<Revision>,
        seen: u64,
    ) -> Self {
        let backlog = backlog.into_iter().map(Arc::new).collect();
        Self {
            receiver,
            store,
            backlog,
            resync: false,
            seen,
        }
    }

    pub(crate) fn resync(receiver: broadcast::Receiver<Arc<Revision>>, store: Arc<Store>) -> Self {
        Self {
            receiver,
            store,
            backlog: VecDeque::new(),
            resync: true,
            seen: 0,
        }
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Event {
        if self.resync {
            return self.deliver_resync();
        }
        if let Some(revision) = self.backlog.pop_front() {
            self.seen = revision.number;
            return Event::Revision(revision);
        }
        loop {
            match self.receiver.recv().await {
                Ok(revision) if revision.number <= self.seen => continue,
                Ok(revision) => {
                    self.seen = revision.number;
                    return Event::Revision(revision);
                }
                Err(RecvError::Lagged(_)) => return self.deliver_resync(),
                // The watch itself keeps the store, and with it the sender, alive.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    fn deliver_resync(&mut self) -> Event {
        self.resync = false;
        // From the newest on: the channel's old end would overflow again at the next revision.
        // Whatever was sent before this is in the store already.
        self.receiver = self.receiver.resubscribe();
        // What is current now is the least that a `list` after this will show.
        self.seen = self.store.revision();
        Event::Resync
    }
}
