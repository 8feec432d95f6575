//! The stream interface between the request path and the protocols.
//!
//! A body moves in pieces: a [`Source`] gives one, a [`Sink`] takes it. A sink that could not pass
//! everything on says so by not being ready, and then nothing more is read: that is the
//! back-pressure, in both directions and between all protocols.
//!
//! Invariant: at most one piece per direction is held in memory.

use super::head::{RequestHead, ResponseHead};
use super::headers::HeaderBlock;
use crate::outcome::Outcome;
use crate::worker::state::{PIECE, Worker};
use bytes::Bytes;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Bytes of a body.
#[derive(Debug)]
pub(crate) enum Data<'a> {
    /// In the worker's scratch buffer.
    Slice(&'a [u8]),
    /// As the `h2` crate holds them.
    Shared(Bytes),
}

impl Data<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Data::Slice(slice) => slice,
            Data::Shared(bytes) => bytes,
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Data::Slice(slice) => Bytes::copy_from_slice(slice),
            Data::Shared(bytes) => bytes,
        }
    }
}

/// What follows a piece.
#[derive(Debug)]
pub(crate) enum End {
    More,
    Done,
    Trailers(Box<HeaderBlock>),
}

impl End {
    pub(crate) fn is_end(&self) -> bool {
        !matches!(self, End::More)
    }
}

/// Some bytes of a body, and whether they are the last.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub data: Data<'a>,
    pub end: End,
}

impl Piece<'_> {
    /// The end of a body that has no (more) bytes.
    pub(crate) const DONE: Piece<'static> = Piece {
        data: Data::Slice(&[]),
        end: End::Done,
    };
    /// Nothing yet.
    pub(crate) const NOTHING: Piece<'static> = Piece {
        data: Data::Slice(&[]),
        end: End::More,
    };
}

/// Why a stream ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the connection ended")]
    Closed,
    #[error("the peer reset the stream")]
    Reset,
    #[error("the peer refused the stream")]
    Refused,
    #[error("the peer broke the protocol")]
    Protocol,
    #[error("the head is too large")]
    TooLarge,
}

impl StreamError {
    /// What it means when the upstream's side ended so before the response.
    pub(crate) fn before_response(self) -> Outcome {
        match self {
            StreamError::Closed => Outcome::UpstreamClosedBeforeResponse,
            StreamError::Reset => Outcome::UpstreamReset,
            StreamError::Refused => Outcome::UpstreamRefusedStream,
            StreamError::Protocol | StreamError::TooLarge => Outcome::UpstreamProtocolError,
        }
    }
}

/// Where a body comes from.
pub(crate) trait Source {
    /// The next piece. `scratch` is the worker's buffer.
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>>;
}

/// Where a body goes.
pub(crate) trait Sink {
    /// Ready when everything sent so far has left, and more may be sent.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;
    /// Sends a piece; what the peer does not take at once is kept.
    fn send(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), StreamError>;
}

/// The client's side of one request.
pub(crate) trait Downstream: Source + Sink {
    /// Whether the request body has been read to its end.
    fn body_done(&self) -> bool;
    /// Ready when the client has left. Only asked while no body is being read.
    fn poll_gone(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<()>;
    /// Passes an interim response (1xx) on, or says `100 Continue`.
    fn send_interim(
        &mut self,
        cx: &mut Context<'_>,
        head: &ResponseHead,
    ) -> Result<(), StreamError>;
    /// Sends the head of the response, with the first piece of its body.
    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        head: &ResponseHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError>;
    /// The response cannot be completed: the client must notice.
    fn abort(&mut self);
    /// The response about to be sent is the last on this connection, and says so.
    fn is_last(&mut self);
    /// The deadline of this stream's task.
    fn deadline(&self) -> &Rc<crate::worker::timers::Deadline>;
    /// From here on bytes are passed on as they come, in both directions.
    fn become_tunnel(&mut self);
}

/// The upstream's side of one try.
pub(crate) trait UpstreamStream: Source + Sink {
    /// Sends the head of the request, with the first piece of its body.
    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        head: &RequestHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError>;
    /// The next head: interim ones first.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<Result<ResponseHead, StreamError>>;
}

/// On which side a transfer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Source(StreamError),
    Sink(StreamError),
}

/// Moves pieces from `source` to `sink` until the body has ended and has left the sink. `tap` sees
/// every piece.
pub(crate) fn poll_transfer(
    cx: &mut Context<'_>,
    worker: &Worker,
    source: &mut impl Source,
    sink: &mut impl Sink,
    done: &mut bool,
    tap: &mut impl FnMut(&Piece<'_>),
) -> Poll<Result<(), Broken>> {
    loop {
        ready!(sink.poll_ready(cx)).map_err(Broken::Sink)?;
        if *done {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = worker.scratch.borrow_mut();
        let piece = ready!(source.poll_piece(cx, &mut scratch[..PIECE])).map_err(Broken::Source)?;
        tap(&piece);
        *done = piece.end.is_end();
        sink.send(cx, piece).map_err(Broken::Sink)?;
    }
}
