//! How far a request has come: its body, and the deadlines it runs against.

use super::head::BodyLength;
use super::mirror::Copies;
use super::stream::Downstream;
use crate::outcome::Outcome;
use crate::worker::state::Worker;

/// How much of a request body is kept for another try.
const REPLAY_BYTES: usize = 64 * 1024;

/// Where the request body stands.
pub(super) struct RequestBody {
    /// Its end has been read from the client.
    pub done: bool,
    /// Its end has left for the upstream of the current try.
    pub sent: bool,
    /// The upstream does not take it any more.
    pub refused: bool,
    /// What was read, for another try; [`None`]: too much, or nobody wants it.
    pub kept: Option<Vec<u8>>,
    /// Who else gets it.
    pub copies: Copies,
}

impl RequestBody {
    pub(super) fn new(length: BodyLength, tunnel: bool) -> RequestBody {
        let done = length == BodyLength::None && !tunnel;
        RequestBody {
            done,
            sent: false,
            refused: false,
            kept: Some(Vec::new()),
            copies: Copies::default(),
        }
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if let Some(kept) = &mut self.kept {
            if kept.len() + bytes.len() > REPLAY_BYTES {
                self.kept = None;
            } else {
                kept.extend_from_slice(bytes);
            }
        }
    }

    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    pub(super) fn replayable(&self) -> bool {
        self.kept.is_some()
    }
}

/// The deadlines of a request; each in the worker's milliseconds.
#[derive(Default)]
pub(super) struct Due {
    pub route: Option<u64>,
    pub per_try: Option<u64>,
    pub idle: Option<u64>,
    pub idle_for: Option<u64>,
}

impl Due {
    /// Nothing has moved for no time.
    pub(super) fn touch(&mut self, worker: &Worker) {
        if let Some(idle) = self.idle_for {
            self.idle = Some(worker.timers.now() + idle);
        }
    }

    pub(super) fn arm(&self, worker: &Worker, down: &impl Downstream) {
        let next = [self.route, self.per_try, self.idle]
            .into_iter()
            .flatten()
            .min();
        worker.timers.set(down.deadline(), next);
    }

    /// Which deadline has passed.
    pub(super) fn passed(&self, now: u64) -> Option<Outcome> {
        let past = |due: Option<u64>| due.is_some_and(|due| due <= now);
        if past(self.route) {
            Some(Outcome::RouteTimeout)
        } else if past(self.per_try) {
            Some(Outcome::PerTryTimeout)
        } else if past(self.idle) {
            Some(Outcome::StreamIdle)
        } else {
            None
        }
    }
}
