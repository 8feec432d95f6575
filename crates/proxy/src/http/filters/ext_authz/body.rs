//! The request body as far as the server is to see it: read ahead, and kept for the upstream.

use crate::http::exchange::Exchange;
use crate::http::forward;
use crate::http::headers::HeaderBlock;
use crate::http::stream::{Downstream, End};
use crate::outcome::Outcome;
use crate::worker::state::PIECE;
use lateen_proxy_config::AuthzBody;
use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

/// What has been read of a body. At most the configured limit and one piece.
#[derive(Default)]
pub(in crate::http) struct Held {
    pub(in crate::http) bytes: Vec<u8>,
    /// It is all there is.
    pub(in crate::http) ended: bool,
    pub(in crate::http) trailers: Option<Box<HeaderBlock>>,
    /// How much of it is for the server.
    shown: usize,
    /// Texts are checked, bytes are not.
    pub(super) as_bytes: bool,
    pub(super) asked_for: bool,
}

impl Held {
    /// What the server sees.
    pub(super) fn shown(&self) -> &[u8] {
        self.bytes.get(..self.shown).unwrap_or(&self.bytes)
    }

    /// The server does not see all of it.
    pub(super) fn is_part(&self) -> bool {
        !self.ended || self.shown < self.bytes.len()
    }
}

/// Reads until the end of the body, or as much as is wanted, on from what was read `before`.
pub(super) async fn read<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    wanted: AuthzBody,
    before: Option<Held>,
) -> Result<Held, Outcome> {
    let is_first = before.is_none();
    let mut held = Held {
        as_bytes: wanted.as_bytes,
        asked_for: true,
        ..before.unwrap_or_default()
    };
    held.ended |= down.body_done();
    if is_first && !held.ended {
        forward::expect_continue(x, down).await;
    }
    let limit = x.service.manager.timeouts.stream_idle;
    let limit = limit.unwrap_or(Duration::from_secs(3600));
    while !held.ended && held.bytes.len() <= wanted.max_bytes {
        let worker = x.worker.clone();
        let piece = poll_fn(|cx| {
            let mut scratch = worker.scratch.borrow_mut();
            let piece = ready!(down.poll_piece(cx, &mut scratch[..PIECE]));
            Poll::Ready(piece.map(|piece| {
                held.bytes.extend_from_slice(piece.data.as_slice());
                let end = piece.end.is_end();
                let length = piece.data.as_slice().len();
                if let End::Trailers(trailers) = piece.end {
                    held.trailers = Some(trailers);
                }
                (length, end)
            }))
        });
        let piece = tokio::time::timeout(limit, piece).await;
        let (length, end) = piece
            .map_err(|_| Outcome::StreamIdle)?
            .map_err(|_| Outcome::ClientGone)?;
        x.received += length as u64;
        held.ended = end;
    }
    if held.bytes.len() > wanted.max_bytes && !wanted.allow_partial {
        return Err(Outcome::BodyTooLarge);
    }
    held.shown = held.bytes.len().min(wanted.max_bytes);
    Ok(held)
}
