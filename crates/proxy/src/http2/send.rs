//! The sending half of an HTTP/2 stream, within the peer's window.

use super::convert;
use crate::http::stream::{End, Piece, StreamError};
use bytes::Bytes;
use h2::SendStream;
use std::task::{Context, Poll, ready};

/// What waits for window, and the stream it goes to.
pub(super) struct Sending {
    stream: SendStream<Bytes>,
    data: Bytes,
    end: Option<End>,
}

impl Sending {
    pub(super) fn new(stream: SendStream<Bytes>) -> Sending {
        Sending {
            stream,
            data: Bytes::new(),
            end: None,
        }
    }

    pub(super) fn send(
        &mut self,
        cx: &mut Context<'_>,
        piece: Piece<'_>,
    ) -> Result<(), StreamError> {
        self.data = piece.data.into_bytes();
        self.end = piece.end.is_end().then_some(piece.end);
        match self.poll_flush(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Ready when the piece has gone to the connection.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.data.is_empty() {
            self.stream.reserve_capacity(self.data.len());
            let mut window = self.stream.capacity();
            if window == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(n)) => window = n,
                    Some(Err(error)) => return Poll::Ready(Err(convert::error(&error))),
                    None => return Poll::Ready(Err(StreamError::Reset)),
                }
            }
            let part = self.data.split_to(window.min(self.data.len()));
            let last = self.data.is_empty() && matches!(self.end, Some(End::Done));
            self.stream
                .send_data(part, last)
                .map_err(|e| convert::error(&e))?;
            if last {
                self.end = None;
            }
        }
        match self.end.take() {
            Some(End::Trailers(block)) => {
                let trailers = convert::to_map(&block);
                self.stream
                    .send_trailers(trailers)
                    .map_err(|e| convert::error(&e))?;
            }
            Some(End::Done) => {
                self.stream
                    .send_data(Bytes::new(), true)
                    .map_err(|e| convert::error(&e))?;
            }
            Some(End::More) | None => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the peer does not want the stream any more.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(|_| ())
    }

    pub(super) fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }
}
