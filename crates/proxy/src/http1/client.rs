//! An HTTP/1 connection to an endpoint: one request at a time, then back to the pool.
//!
//! Invariant: a connection is reusable only when request and response are both complete and
//! neither side has said `close`.

use super::body::BodyReader;
use super::encode::{self, Encoding};
use super::parse::{self, HeadError, Limits};
use super::server::{body_end, ends_head, poll_raw};
use crate::http::head::{BodyLength, Method, RequestHead, ResponseHead, Version};
use crate::http::headers::{Known, has_token};
use crate::http::stream::{Data, Piece, Sink, Source, StreamError, UpstreamStream};
use crate::io::{Backlog, Io};
use crate::upstream::ticket::ConnTicket;
use crate::worker::state::{PIECE, Worker};
use std::task::{Context, Poll, ready};

/// Reads that look for a head ask for no more, so that little of a body has to be copied aside.
const HEAD_READ: usize = 16 * 1024;

/// What an idle connection may keep allocated for the first bytes of the next response's body.
const REST_BYTES: usize = 2048;

/// One connection.
#[derive(Debug)]
pub(crate) struct ClientConn {
    io: Io,
    backlog: Backlog,
    left: Vec<u8>,
    body: BodyReader,
    encoding: Encoding,
    method: Method,
    limits: Limits,
    /// Send the absolute form of the target.
    absolute: bool,
    request_done: bool,
    /// The response head has come.
    answered: bool,
    /// What has come of a head is not all of it.
    partial: bool,
    close: bool,
    tunnel: bool,
    /// There is no HTTP on it: a tunnel from the beginning, open when it is connected.
    raw: bool,
    /// Requests sent on this connection.
    pub requests: u32,
    /// Whether any byte of the current response has come.
    pub response_begun: bool,
    /// When it was made, in the worker's milliseconds.
    pub opened: u64,
    /// When it was put into the pool, in the worker's milliseconds.
    pub idle_since: u64,
    pub received: u64,
    pub sent: u64,
    /// Counts the connection as long as it lives.
    pub ticket: ConnTicket,
}

impl ClientConn {
    pub(crate) fn new(io: Io, limits: Limits, absolute: bool, ticket: ConnTicket) -> ClientConn {
        ClientConn {
            io,
            backlog: Backlog::default(),
            left: Vec::new(),
            body: BodyReader::default(),
            encoding: Encoding::Plain,
            method: Method::Get,
            limits,
            absolute,
            request_done: true,
            answered: false,
            partial: false,
            close: false,
            tunnel: false,
            raw: false,
            requests: 0,
            response_begun: false,
            opened: 0,
            idle_since: 0,
            received: 0,
            sent: 0,
            ticket,
        }
    }

    /// Where a CONNECT ends: a connection for its bytes alone.
    pub(crate) fn raw(io: Io, ticket: ConnTicket) -> ClientConn {
        let limits = Limits {
            head_bytes: 0,
            headers: 0,
            tls: false,
        };
        ClientConn {
            raw: true,
            ..ClientConn::new(io, limits, false, ticket)
        }
    }

    /// Whether another request may be sent.
    pub(crate) fn reusable(&self) -> bool {
        self.request_done
            && self.answered
            && self.body.is_done()
            && self.left.is_empty()
            && self.backlog.is_empty()
            && !self.close
            && !self.tunnel
            && !self.raw
    }

    /// Reads what has come of a response nobody wants; the connection is reusable if that was all.
    pub(crate) fn finish_if_complete(&mut self, scratch: &mut [u8]) {
        while !self.body.is_done() && !self.left.is_empty() {
            let n = self.left.len().min(scratch.len());
            scratch[..n].copy_from_slice(&self.left[..n]);
            self.left.clear();
            match self.body.decode(&mut scratch[..n]) {
                Ok(decoded) if decoded.consumed == n => {}
                _ => {
                    self.close = true;
                    return;
                }
            }
        }
    }

    /// Prepares for the pool: what is kept while waiting is small.
    pub(crate) fn rest(&mut self, now: u64) {
        self.idle_since = now;
        if self.left.capacity() > REST_BYTES {
            self.left = Vec::new();
        }
    }

    /// Whether an idle connection has something to say: its end, or what nobody asked for. The
    /// task of `cx` is woken when that changes. No system call.
    pub(crate) fn is_stale(&self, cx: &mut Context<'_>) -> bool {
        self.io.poll_readable(cx).is_ready()
    }

    fn begin(&mut self, head: &RequestHead) {
        self.method = head.method;
        self.requests = self.requests.saturating_add(1);
        self.request_done = false;
        self.answered = false;
        self.response_begun = false;
        self.partial = false;
        self.encoding = match head.body {
            BodyLength::Unknown if !head.is_tunnel() => Encoding::Chunked,
            _ => Encoding::Plain,
        };
    }

    fn parse(
        &mut self,
        bytes: &[u8],
        worker: &Worker,
    ) -> Result<Option<ResponseHead>, StreamError> {
        let parsed = parse::response(bytes, worker.block(), self.limits, self.method);
        let (head, used) = match parsed {
            Ok(Ok(done)) => done,
            Ok(Err(block)) => {
                worker.recycle(block);
                return Ok(None);
            }
            Err(HeadError::TooLarge | HeadError::TooMany) => return Err(StreamError::TooLarge),
            Err(_) => return Err(StreamError::Protocol),
        };
        self.left.clear();
        self.left
            .extend_from_slice(bytes.get(used..).unwrap_or_default());
        if !head.is_interim() {
            self.answered = true;
            self.body = BodyReader::new(head.body);
            let says = |token| has_token(&head.headers, Known::Connection, token);
            self.close = head.body == BodyLength::UntilClose
                || says(b"close")
                || (head.version == Version::Http10 && !says(b"keep-alive"));
        }
        Ok(Some(head))
    }

    /// From here on bytes are passed on as they come.
    pub(crate) fn become_tunnel(&mut self) {
        self.tunnel = true;
        self.encoding = Encoding::Plain;
    }
}

impl Source for ClientConn {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        if self.tunnel {
            return poll_raw(
                &mut self.io,
                &mut self.left,
                &mut self.received,
                cx,
                scratch,
            );
        }
        if self.body.is_done() {
            return Poll::Ready(Ok(Piece::DONE));
        }
        loop {
            let n = if self.left.is_empty() {
                let n = ready!(self.io.poll_read(cx, scratch)).map_err(|_| StreamError::Closed)?;
                self.received += n as u64;
                n
            } else {
                let n = self.left.len();
                scratch[..n].copy_from_slice(&self.left);
                self.left.clear();
                n
            };
            if n == 0 {
                self.close = true;
                self.body.end_of_input().map_err(|_| StreamError::Closed)?;
                return Poll::Ready(Ok(Piece::DONE));
            }
            let decoded = self
                .body
                .decode(&mut scratch[..n])
                .map_err(|_| StreamError::Protocol)?;
            if decoded.consumed < n {
                // Bytes after the response that nobody asked for.
                self.close = true;
            }
            let end = body_end(&mut self.body, decoded.done)?;
            if decoded.payload > 0 || decoded.done {
                return Poll::Ready(Ok(Piece {
                    data: Data::Slice(&scratch[..decoded.payload]),
                    end,
                }));
            }
        }
    }
}

impl Sink for ClientConn {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.backlog
            .poll_flush(&mut self.io, cx)
            .map_err(|_| StreamError::Closed)
    }

    fn send(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), StreamError> {
        let data = piece.data.as_slice();
        self.sent += data.len() as u64;
        self.request_done = piece.end.is_end();
        let mut size = Vec::new();
        if self.encoding == Encoding::Chunked {
            size.reserve(20);
        }
        let (io, backlog) = (&mut self.io, &mut self.backlog);
        encode::write_piece(io, backlog, cx, &mut size, self.encoding, data, &piece.end)?;
        if self.tunnel && piece.end.is_end() {
            let _ = self.io.poll_shutdown(cx);
        }
        Ok(())
    }
}

impl UpstreamStream for ClientConn {
    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        head: &RequestHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError> {
        self.begin(head);
        if self.raw {
            return Ok(());
        }
        let mut out = worker.out.borrow_mut();
        out.clear();
        encode::request_head(&mut out, head, self.encoding, self.absolute);
        let data = first.data.as_slice();
        self.sent += (out.len() + data.len()) as u64;
        self.request_done = first.end.is_end();
        let (io, backlog) = (&mut self.io, &mut self.backlog);
        encode::write_piece(io, backlog, cx, &mut out, self.encoding, data, &first.end)
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<Result<ResponseHead, StreamError>> {
        if self.raw {
            self.answered = true;
            return Poll::Ready(Ok(ResponseHead::new(200, worker.block())));
        }
        let mut scratch = worker.scratch.borrow_mut();
        let mut have = self.left.len().min(scratch.len());
        scratch[..have].copy_from_slice(&self.left[..have]);
        let mut look = have > 0 && !self.partial;
        loop {
            if look {
                let parsed = self.parse(&scratch[..have], worker)?;
                self.partial = parsed.is_none();
                if let Some(head) = parsed {
                    return Poll::Ready(Ok(head));
                }
            }
            let end = if have < HEAD_READ / 2 {
                HEAD_READ
            } else {
                PIECE
            };
            let Some(into) = scratch.get_mut(have..end).filter(|into| !into.is_empty()) else {
                return Poll::Ready(Err(StreamError::TooLarge));
            };
            let n = match self.io.poll_read(cx, into) {
                Poll::Ready(Ok(n)) if n > 0 => n,
                // A head that was cut short is no answer, whatever cut it.
                Poll::Ready(_) if have > 0 => {
                    return Poll::Ready(Err(StreamError::Protocol));
                }
                Poll::Ready(_) => return Poll::Ready(Err(StreamError::Closed)),
                Poll::Pending => {
                    if self.left.len() != have {
                        self.left.clear();
                        self.left.extend_from_slice(&scratch[..have]);
                    }
                    return Poll::Pending;
                }
            };
            self.received += n as u64;
            self.response_begun = true;
            // As with requests: a head in small pieces is parsed when its end has come.
            look = have == 0
                || have + n >= self.limits.head_bytes
                || ends_head(&scratch[have.saturating_sub(3)..have + n]);
            have += n;
        }
    }
}
