//! How far a request has come: its body, and the deadlines it runs against.

use super::filters::ext_authz::Held;
use super::head::BodyLength;
use super::headers::HeaderBlock;
use super::mirror::Copies;
use super::stream::{Data, Downstream, End, Piece};
use crate::outcome::Outcome;
use crate::worker::state::Worker;
use std::num::NonZeroU64;

/// How much of a request body is kept for another try when the route does not say: Envoy's default
/// limit of a connection's buffer.
const REPLAY_BYTES: u32 = 1024 * 1024;

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
    /// The trailers that ended it, for the same.
    trailers: Option<Box<HeaderBlock>>,
    limit: u32,
    /// Who else gets it.
    pub copies: Copies,
}

impl RequestBody {
    /// `limit`: bytes that may be kept.
    pub(super) fn new(length: BodyLength, tunnel: bool, limit: Option<u64>) -> RequestBody {
        let done = length == BodyLength::None && !tunnel;
        RequestBody {
            done,
            sent: false,
            refused: false,
            kept: Some(Vec::new()),
            trailers: None,
            limit: limit.map_or(REPLAY_BYTES, |limit| {
                u32::try_from(limit).unwrap_or(u32::MAX)
            }),
            copies: Copies::default(),
        }
    }

    /// Begins with what a filter has read of it already.
    pub(super) fn resume(&mut self, held: Held) {
        self.done = held.ended;
        self.trailers = held.trailers;
        self.copies.feed(&Piece {
            data: Data::Slice(&held.bytes),
            end: self.end(),
        });
        self.kept = Some(held.bytes);
    }

    pub(super) fn keep(&mut self, piece: &Piece<'_>) {
        let bytes = piece.data.as_slice();
        if let End::Trailers(trailers) = &piece.end {
            self.trailers = Some(trailers.clone());
        }
        if let Some(kept) = &mut self.kept {
            if kept.len() + bytes.len() > self.limit as usize {
                self.kept = None;
            } else {
                kept.extend_from_slice(bytes);
            }
        }
    }

    /// Nobody wants it again; a body of nothing can be sent again all the same.
    pub(super) fn forget_if_any(&mut self, piece: &Piece<'_>) {
        if !piece.data.as_slice().is_empty() || matches!(piece.end, End::Trailers(_)) {
            self.kept = None;
        }
    }

    /// What follows what was kept.
    pub(super) fn end(&self) -> End {
        match &self.trailers {
            _ if !self.done => End::More,
            Some(trailers) => End::Trailers(trailers.clone()),
            None => End::Done,
        }
    }

    pub(super) fn replayable(&self) -> bool {
        self.kept.is_some()
    }
}

/// In the worker's milliseconds, or none. Half the size of an optional number, since every waiting
/// connection holds five of them.
pub(super) type Moment = Option<NonZeroU64>;

pub(super) fn moment(millis: u64) -> Moment {
    NonZeroU64::new(millis.max(1))
}

/// The deadlines of a request.
#[derive(Default)]
pub(super) struct Due {
    pub route: Moment,
    pub per_try: Moment,
    /// Of the stream as a whole.
    pub stream: Moment,
    pub idle: Moment,
    /// How many milliseconds nothing may move.
    pub idle_for: Moment,
    /// What serves it is there no more.
    pub drained: Moment,
}

impl Due {
    /// Nothing has moved for no time.
    pub(super) fn touch(&mut self, worker: &Worker) {
        if let Some(idle) = self.idle_for {
            self.idle = moment(worker.timers.now().saturating_add(idle.get()));
        }
    }

    pub(super) fn arm(&self, worker: &Worker, down: &impl Downstream) {
        let all = [
            self.route,
            self.per_try,
            self.stream,
            self.idle,
            self.drained,
        ];
        let next = all.into_iter().flatten().min();
        worker
            .timers
            .set(down.deadline(), next.map(NonZeroU64::get));
    }

    /// Which deadline has passed.
    pub(super) fn passed(&self, now: u64) -> Option<Outcome> {
        let past = |due: Moment| due.is_some_and(|due| due.get() <= now);
        if past(self.route) {
            Some(Outcome::RouteTimeout)
        } else if past(self.per_try) {
            Some(Outcome::PerTryTimeout)
        } else if past(self.stream) {
            Some(Outcome::StreamTooLong)
        } else if past(self.idle) {
            Some(Outcome::StreamIdle)
        } else if past(self.drained) {
            Some(Outcome::Draining)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Data;
    use super::*;

    #[test]
    fn another_try_ends_as_the_client_ended_it() {
        let mut body = RequestBody::new(BodyLength::Unknown, false, Some(8));
        let mut trailers = HeaderBlock::default();
        trailers.push_name(b"x-sum", b"1");
        let mut piece = |bytes: &'static [u8], end: End| {
            let done = end.is_end();
            body.keep(&Piece {
                data: Data::Slice(bytes),
                end,
            });
            body.done = done;
            (body.kept.clone(), body.end())
        };
        let (kept, end) = piece(b"abcd", End::More);
        assert_eq!(kept.as_deref(), Some(&b"abcd"[..]));
        assert!(matches!(end, End::More));
        let (kept, end) = piece(b"efgh", End::Trailers(Box::new(trailers)));
        assert_eq!(kept.as_deref(), Some(&b"abcdefgh"[..]));
        let End::Trailers(trailers) = end else {
            panic!("{end:?}");
        };
        assert_eq!(trailers.get_name(b"x-sum"), Some(&b"1"[..]));
        // More than may be kept.
        assert_eq!(piece(b"i", End::Done).0, None);
    }
}
