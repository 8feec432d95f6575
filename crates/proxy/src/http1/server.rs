//! A client's HTTP/1 connection: one request after the other.
//!
//! It parses heads, delimits bodies and writes responses; what a request means is not its business.
//!
//! Invariant: while it waits for a request it holds no buffer besides bytes of a request that has
//! begun to arrive.

use super::body::BodyReader;
use super::encode::{self, Encoding, Persistence};
use super::parse::{self, HeadError, Limits};
use crate::http::head::{BodyLength, Method, RequestHead, ResponseHead, Version};
use crate::http::headers::{Known, has_token};
use crate::http::stream::{Data, Downstream, End, Piece, Sink, Source, StreamError};
use crate::io::{Backlog, Io};
use crate::worker::state::{PIECE, Worker};
use crate::worker::timers::Deadline;
use lateen_proxy_config::Http1Options;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Reads that look for a head ask for no more, so that little of a body has to be copied aside.
const HEAD_READ: usize = 16 * 1024;
/// Bytes of later requests taken while one is being served; then the client has to wait.
const MAX_AHEAD: usize = 16 * 1024;

/// One connection.
#[derive(Debug)]
pub(crate) struct ServerConn {
    io: Io,
    backlog: Backlog,
    /// Read but not used yet: the start of a body, or of the next request.
    left: Vec<u8>,
    body: BodyReader,
    deadline: Rc<Deadline>,
    encoding: Encoding,
    version: Version,
    method: Method,
    /// Nothing more can be served on this connection.
    close: bool,
    tunnel: bool,
    /// Trailers of requests go on.
    takes_trailers: bool,
    /// A head has begun to arrive.
    begun: bool,
    /// Bytes on the wire, for statistics.
    pub received: u64,
    pub sent: u64,
}

/// Why there is no next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRequest {
    /// The client closed, or broke off within a head.
    Closed,
    /// What came is not a request; it is answered, then the connection ends.
    Bad(HeadError),
    /// The bytes are the start of an HTTP/2 connection.
    Http2Preface,
}

/// What every HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl ServerConn {
    pub(crate) fn new(io: Io, deadline: Rc<Deadline>) -> ServerConn {
        ServerConn {
            io,
            backlog: Backlog::default(),
            left: Vec::new(),
            body: BodyReader::default(),
            deadline,
            encoding: Encoding::Plain,
            version: Version::Http11,
            method: Method::Get,
            close: false,
            tunnel: false,
            takes_trailers: false,
            begun: false,
            received: 0,
            sent: 0,
        }
    }

    /// Of the last request.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Whether part of a head has arrived.
    pub(crate) fn begun(&self) -> bool {
        self.begun
    }

    /// Whether the next request may come on this connection.
    pub(crate) fn reusable(&self) -> bool {
        !self.close && self.body.is_done()
    }

    /// No request after the current one.
    pub(crate) fn close_after_response(&mut self) {
        self.close = true;
    }

    /// The socket and what has been read of it, for another codec.
    pub(crate) fn into_parts(self) -> (Io, Vec<u8>) {
        (self.io, self.left)
    }

    /// The next request. Cancel-safe: what has arrived is kept.
    pub(crate) fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        limits: Limits,
        options: &Http1Options,
        http2: bool,
    ) -> Poll<Result<RequestHead, NoRequest>> {
        ready!(self.backlog.poll_flush(&mut self.io, cx)).map_err(|_| NoRequest::Closed)?;
        let mut scratch = worker.scratch.borrow_mut();
        let mut have = self.left.len().min(scratch.len());
        scratch[..have].copy_from_slice(&self.left[..have]);
        // Left over from the last request: perhaps a whole one already.
        let mut look = have > 0 && !self.begun;
        loop {
            if look {
                self.begun = true;
                let bytes = &scratch[..have];
                if http2 && PREFACE.starts_with(&bytes[..have.min(PREFACE.len())]) {
                    if have >= PREFACE.len() {
                        self.left = bytes.to_vec();
                        return Poll::Ready(Err(NoRequest::Http2Preface));
                    }
                } else if let Some(head) = self.parse(bytes, worker, limits, options)? {
                    return Poll::Ready(Ok(head));
                }
            }
            let end = if have < HEAD_READ / 2 {
                HEAD_READ
            } else {
                PIECE
            };
            let Some(into) = scratch.get_mut(have..end).filter(|into| !into.is_empty()) else {
                return Poll::Ready(Err(NoRequest::Bad(HeadError::TooLarge)));
            };
            let n = match self.io.poll_read(cx, into) {
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(_) => return Poll::Ready(Err(NoRequest::Closed)),
                Poll::Pending => {
                    if self.left.len() != have {
                        keep(&mut self.left, &scratch[..have]);
                    }
                    return Poll::Pending;
                }
            };
            self.received += n as u64;
            // A head that comes in small pieces is only parsed when its end has come, or the work
            // would grow with the square of its length.
            look = have == 0
                || (http2 && have < PREFACE.len())
                || have + n >= limits.head_bytes
                || ends_head(&scratch[have.saturating_sub(3)..have + n]);
            have += n;
        }
    }

    fn parse(
        &mut self,
        bytes: &[u8],
        worker: &Worker,
        limits: Limits,
        options: &Http1Options,
    ) -> Result<Option<RequestHead>, NoRequest> {
        let mut block = worker.block();
        let Some((parts, used)) =
            parse::request(bytes, &mut block, limits, options).map_err(NoRequest::Bad)?
        else {
            worker.recycle(block);
            return Ok(None);
        };
        let rest = bytes.get(used..).unwrap_or_default();
        keep(&mut self.left, rest);
        let head = parts.with(block);
        self.takes_trailers = options.enable_trailers;
        self.begin(&head);
        Ok(Some(head))
    }

    fn begin(&mut self, head: &RequestHead) {
        self.begun = false;
        self.version = head.version;
        self.method = head.method;
        self.encoding = Encoding::Plain;
        self.body = BodyReader::new(head.body);
        let asks = |token| has_token(&head.headers, Known::Connection, token);
        // Whether it becomes a tunnel or not: what follows it is no request.
        self.close = self.close
            || head.is_tunnel()
            || match head.version {
                Version::Http10 => !asks(b"keep-alive"),
                _ => asks(b"close"),
            };
    }

    /// Writes bytes that are not the response to a request; nothing follows them.
    pub(crate) fn write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        self.close = true;
        self.sent += bytes.len() as u64;
        // If the client is gone there is nobody to tell.
        let _ = self.backlog.write(&mut self.io, cx, &[bytes]);
    }

    /// Ready when all that was sent has left.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.backlog
            .poll_flush(&mut self.io, cx)
            .map_err(|_| StreamError::Closed)
    }

    /// Closes so that the client can read the response even if it was still sending: says the end,
    /// then reads and forgets until the client closes too (RFC 9112 section 9.6). The caller limits
    /// the time.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<()> {
        if ready!(self.backlog.poll_flush(&mut self.io, cx)).is_err() {
            return Poll::Ready(());
        }
        if ready!(self.io.poll_shutdown(cx)).is_err() || self.clean() {
            return Poll::Ready(());
        }
        let mut scratch = worker.scratch.borrow_mut();
        loop {
            match ready!(self.io.poll_read(cx, &mut scratch)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }

    /// Whether nothing of the client can be on its way.
    fn clean(&self) -> bool {
        self.body.is_done() && self.left.is_empty() && !self.begun
    }

    fn persistence(&self, head: &ResponseHead) -> Persistence {
        if head.status == 101 {
            Persistence::Upgrade
        } else if self.tunnel {
            Persistence::Default
        } else if self.close {
            Persistence::Close
        } else if self.version == Version::Http10 {
            Persistence::KeepAlive
        } else {
            Persistence::Default
        }
    }

    /// How the body of a response is written to this client.
    fn choose_encoding(&mut self, head: &ResponseHead) {
        let bodiless = matches!(head.status, 100..=199 | 204 | 304) || self.method == Method::Head;
        self.encoding = match head.body {
            _ if self.tunnel => Encoding::Plain,
            _ if bodiless => Encoding::Nothing,
            BodyLength::None => Encoding::Empty,
            BodyLength::Exactly(_) => Encoding::Plain,
            BodyLength::Unknown | BodyLength::UntilClose => {
                if self.version == Version::Http10 {
                    self.close = true;
                    Encoding::Plain
                } else {
                    Encoding::Chunked
                }
            }
        };
    }
}

/// Replaces what was left; holds no memory when nothing is.
fn keep(left: &mut Vec<u8>, rest: &[u8]) {
    if rest.is_empty() {
        if left.capacity() > 0 {
            *left = Vec::new();
        }
    } else {
        left.clear();
        left.extend_from_slice(rest);
    }
}

/// Whether an empty line, be it with bare LFs, ends within `bytes`.
pub(super) fn ends_head(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .any(|(at, _)| {
            let before = bytes.get(..at).unwrap_or_default();
            before.ends_with(b"\n") || before.ends_with(b"\n\r")
        })
}

impl Source for ServerConn {
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
        if self.body.is_broken() {
            return Poll::Ready(Err(StreamError::Protocol));
        }
        loop {
            let n = if self.left.is_empty() {
                let n = ready!(self.io.poll_read(cx, scratch)).map_err(|_| StreamError::Closed)?;
                self.received += n as u64;
                n
            } else {
                let n = self.left.len();
                scratch[..n].copy_from_slice(&self.left);
                n
            };
            if n == 0 {
                return Poll::Ready(Err(StreamError::Closed));
            }
            let decoded = self
                .body
                .decode(&mut scratch[..n])
                .map_err(|_| StreamError::Protocol)?;
            keep(&mut self.left, &scratch[decoded.consumed..n]);
            let end = match body_end(&mut self.body, decoded.done)? {
                // Nobody looks at them, and applications may read them as headers.
                End::Trailers(_) if !self.takes_trailers => End::Done,
                end => end,
            };
            if decoded.payload > 0 || decoded.done {
                return Poll::Ready(Ok(Piece {
                    data: Data::Slice(&scratch[..decoded.payload]),
                    end,
                }));
            }
        }
    }
}

/// What follows the bytes just decoded.
pub(super) fn body_end(body: &mut BodyReader, done: bool) -> Result<End, StreamError> {
    if !done {
        return Ok(End::More);
    }
    let trailers = body.take_trailers().map_err(|_| StreamError::Protocol)?;
    Ok(trailers.map_or(End::Done, |block| End::Trailers(Box::new(block))))
}

/// Bytes of a tunnel as they come.
pub(super) fn poll_raw<'s>(
    io: &mut Io,
    left: &mut Vec<u8>,
    received: &mut u64,
    cx: &mut Context<'_>,
    scratch: &'s mut [u8],
) -> Poll<Result<Piece<'s>, StreamError>> {
    let n = if left.is_empty() {
        let n = ready!(io.poll_read(cx, scratch)).map_err(|_| StreamError::Closed)?;
        *received += n as u64;
        n
    } else {
        let n = left.len();
        scratch[..n].copy_from_slice(left);
        *left = Vec::new();
        n
    };
    let end = if n == 0 { End::Done } else { End::More };
    Poll::Ready(Ok(Piece {
        data: Data::Slice(&scratch[..n]),
        end,
    }))
}

impl Sink for ServerConn {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_flush(cx)
    }

    fn send(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), StreamError> {
        let data = piece.data.as_slice();
        self.sent += data.len() as u64;
        let mut size = Vec::new();
        if self.encoding == Encoding::Chunked {
            size.reserve(20);
        }
        encode::write_piece(
            &mut self.io,
            &mut self.backlog,
            cx,
            &mut size,
            self.encoding,
            data,
            &piece.end,
        )?;
        if self.tunnel && piece.end.is_end() {
            // The tunnel's other direction may go on.
            let _ = self.io.poll_shutdown(cx);
        }
        Ok(())
    }
}

impl Downstream for ServerConn {
    fn body_done(&self) -> bool {
        self.body.is_done()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<()> {
        if self.left.len() >= MAX_AHEAD {
            return Poll::Pending;
        }
        loop {
            ready!(self.io.poll_readable(cx));
            let mut scratch = worker.scratch.borrow_mut();
            match ready!(self.io.poll_read(cx, &mut scratch[..MAX_AHEAD])) {
                // As Envoy: a client that closes its sending side has left.
                Ok(0) | Err(_) => {
                    self.close = true;
                    return Poll::Ready(());
                }
                Ok(n) => {
                    self.received += n as u64;
                    self.left.extend_from_slice(&scratch[..n]);
                    if self.left.len() >= MAX_AHEAD {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn send_interim(
        &mut self,
        cx: &mut Context<'_>,
        head: &ResponseHead,
    ) -> Result<(), StreamError> {
        if self.version == Version::Http10 {
            return Ok(());
        }
        let mut out = Vec::with_capacity(128);
        let (plain, default) = (Encoding::Plain, Persistence::Default);
        encode::response_head(&mut out, head, self.version, plain, default);
        self.backlog
            .write(&mut self.io, cx, &[&out])
            .map_err(|_| StreamError::Closed)
    }

    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        head: &ResponseHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError> {
        // A response before the end of the request: the rest of the request is not waited for.
        if !self.body.is_done() && !self.tunnel {
            self.close = self.close || first.end.is_end();
        }
        self.choose_encoding(head);
        let persistence = self.persistence(head);
        let mut out = worker.out.borrow_mut();
        out.clear();
        encode::response_head(&mut out, head, self.version, self.encoding, persistence);
        let data = first.data.as_slice();
        self.sent += (out.len() + data.len()) as u64;
        encode::write_piece(
            &mut self.io,
            &mut self.backlog,
            cx,
            &mut out,
            self.encoding,
            data,
            &first.end,
        )
    }

    fn abort(&mut self) {
        self.close = true;
    }

    fn is_last(&mut self) {
        self.close = true;
    }

    fn deadline(&self) -> &Rc<Deadline> {
        &self.deadline
    }

    fn become_tunnel(&mut self) {
        self.tunnel = true;
        self.close = true;
        self.encoding = Encoding::Plain;
    }
}
