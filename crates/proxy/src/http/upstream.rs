//! The upstream's side of one try, whatever protocol it speaks.

use super::head::{RequestHead, ResponseHead};
use super::retry::Failure;
use super::stream::{Piece, Sink, Source, StreamError, UpstreamStream};
use crate::http1::client::ClientConn;
use crate::http2::client::Http2Stream;
use crate::outcome::Outcome;
use crate::worker::state::Worker;
use std::task::{Context, Poll};

/// The upstream's side of one try, by protocol. Boxed: an HTTP/1 connection is made once and served
/// by many requests, and the future of a request stays small.
pub(crate) enum Upstream {
    Http1(Box<ClientConn>),
    Http2(Box<Http2Stream>),
}

impl Upstream {
    /// What a failure of this try means for another one.
    pub(super) fn failure(&self, outcome: Outcome, reused: bool) -> Failure {
        let response_begun = match self {
            Upstream::Http1(conn) => conn.response_begun,
            Upstream::Http2(_) => false,
        };
        Failure {
            outcome,
            sent: true,
            response_begun,
            reused,
        }
    }

    /// From here on bytes are passed on as they come.
    pub(crate) fn become_tunnel(&mut self) {
        if let Upstream::Http1(conn) = self {
            conn.become_tunnel();
        }
    }
}

impl Source for Upstream {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        match self {
            Upstream::Http1(conn) => conn.poll_piece(cx, scratch),
            Upstream::Http2(stream) => stream.poll_piece(cx, scratch),
        }
    }
}

impl Sink for Upstream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            Upstream::Http1(conn) => conn.poll_ready(cx),
            Upstream::Http2(stream) => stream.poll_ready(cx),
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), StreamError> {
        match self {
            Upstream::Http1(conn) => conn.send(cx, piece),
            Upstream::Http2(stream) => stream.send(cx, piece),
        }
    }
}

impl UpstreamStream for Upstream {
    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        head: &RequestHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError> {
        match self {
            Upstream::Http1(conn) => conn.send_head(cx, worker, head, first),
            Upstream::Http2(stream) => stream.send_head(cx, worker, head, first),
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<Result<ResponseHead, StreamError>> {
        match self {
            Upstream::Http1(conn) => conn.poll_head(cx, worker),
            Upstream::Http2(stream) => stream.poll_head(cx, worker),
        }
    }
}
