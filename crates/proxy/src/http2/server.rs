//! A client's HTTP/2 connection: one task for the connection, one per stream.

use super::convert;
use super::send::Sending;
use super::socket::{Socket, Wire, socket};
use crate::http::conn::Counted;
use crate::http::head::ResponseHead;
use crate::http::request;
use crate::http::stream::{Data, Downstream, End, Piece, Sink, Source, StreamError};
use crate::io::Io;
use crate::listener::ConnInfo;
use crate::stats::HttpStat;
use crate::worker::state::Worker;
use crate::worker::timers::Deadline;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use lateen_proxy_config::HttpConnectionManager;
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::task::spawn_local;

/// Serves a connection whose first bytes may have been read already.
pub(crate) async fn serve(
    io: Io,
    first: Vec<u8>,
    info: Rc<ConnInfo>,
    worker: Rc<Worker>,
    deadline: Rc<Deadline>,
) {
    let Some(service) = info.http_service() else {
        return;
    };
    let (total, active) = (
        HttpStat::DownstreamCxHttp2Total,
        HttpStat::DownstreamCxHttp2Active,
    );
    let _counted = Counted::new(&service, total, active);
    let (socket, wire) = socket(first, io);
    let handshake = builder(&service.manager).handshake::<_, Bytes>(socket);
    let mut conn = match in_time(handshake, &service.manager, &worker, &deadline).await {
        Some(Ok(conn)) => conn,
        Some(Err(_)) => return service.stats.inc(HttpStat::DownstreamCxProtocolError),
        None => return service.stats.inc(HttpStat::DownstreamCxIdleTimeout),
    };
    let streams = Rc::new(Cell::new(0u32));
    let mut requests = 0u32;
    loop {
        let next = next_stream(&mut conn, &wire, &info, &worker, &deadline, &streams).await;
        let Some((request, mut respond)) = next else {
            return;
        };
        // Each stream takes the newest configuration.
        let Some(service) = info.http_service() else {
            return;
        };
        let (parts, recv) = request.into_parts();
        let max_headers = service.manager.max_headers_count as usize;
        if !convert::is_acceptable(&parts, max_headers) {
            // Malformed (RFC 9113 section 8.1.1).
            respond.send_reset(h2::Reason::PROTOCOL_ERROR);
            continue;
        }
        requests = requests.saturating_add(1);
        if service
            .manager
            .max_requests_per_connection
            .is_some_and(|max| requests >= max)
        {
            service.stats.inc(HttpStat::DownstreamCxDrainClose);
            conn.graceful_shutdown();
        }
        let (info, worker) = (info.clone(), worker.clone());
        let counted = Streams::open(&streams);
        // Boxed, or the runtime would copy all of it many times before it first runs
        // (docs/decisions/0004).
        spawn_local(Box::pin(async move {
            let head = convert::request(&parts, worker.block(), !recv.is_end_stream());
            drop(parts);
            let mut stream = ServerStream {
                body_done: recv.is_end_stream(),
                recv,
                respond,
                sending: None,
                deadline: worker.timers.spare(),
            };
            request::serve(&mut stream, head, &service, &info, &worker).await;
            worker.timers.keep(stream.deadline);
            drop(counted);
        }));
    }
}

/// The handshake, unless the client lets the connection idle instead; it says nothing before.
async fn in_time<F: Future>(
    handshake: F,
    manager: &HttpConnectionManager,
    worker: &Worker,
    deadline: &Rc<Deadline>,
) -> Option<F::Output> {
    let idle = manager.timeouts.idle.map(|d| d.as_millis() as u64);
    let timers = &worker.timers;
    timers.set(deadline, idle.map(|idle| timers.now() + idle));
    let mut handshake = pin!(handshake);
    poll_fn(|cx| {
        if let Poll::Ready(done) = handshake.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        timers.poll(deadline, cx).map(|()| None)
    })
    .await
}

type Next = Option<(http::Request<RecvStream>, SendResponse<Bytes>)>;

/// The next stream; [`None`] when the connection has ended.
async fn next_stream(
    conn: &mut Connection<Socket, Bytes>,
    wire: &Wire,
    info: &Rc<ConnInfo>,
    worker: &Rc<Worker>,
    deadline: &Rc<Deadline>,
    streams: &Rc<Cell<u32>>,
) -> Next {
    let idle = info
        .http_service()
        .and_then(|service| service.manager.timeouts.idle);
    let idle = idle.map(|d| d.as_millis() as u64);
    let mut going = false;
    let mut armed = false;
    let mut leaves = None;
    poll_fn(|cx| {
        match wire.drive(cx, |cx| conn.poll_accept(cx)) {
            Poll::Ready(Some(Ok(next))) => return Poll::Ready(Some(next)),
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if info.draining() && !going {
            going = true;
            // Two steps: first the client hears that it should stop, then which stream was last.
            conn.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        let leaving = info.leaves_without_chain_at();
        if leaves != leaving || (idle.is_some() && streams.get() > 0) || !armed {
            (armed, leaves) = (true, leaving);
            let idle_at = idle.map(|idle| worker.timers.now() + idle);
            let due = [idle_at, leaves].into_iter().flatten().min();
            worker.timers.set(deadline, due);
        }
        if worker.timers.poll(deadline, cx).is_pending() {
            return Poll::Pending;
        }
        // A client that goes on all the same is not served for ever by what is no more.
        if leaves.is_some_and(|at| at <= worker.timers.now()) {
            return Poll::Ready(None);
        }
        worker.timers.set(deadline, leaves);
        let _ = worker.timers.poll(deadline, cx);
        if streams.get() == 0 && !going {
            going = true;
            conn.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// Counts open streams.
struct Streams(Rc<Cell<u32>>);

impl Streams {
    fn open(count: &Rc<Cell<u32>>) -> Streams {
        count.set(count.get() + 1);
        Streams(count.clone())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

fn builder(manager: &HttpConnectionManager) -> h2::server::Builder {
    let options = &manager.http2;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.max_concurrent_streams)
        .initial_window_size(options.initial_stream_window.min(STREAM_WINDOW))
        .initial_connection_window_size(options.initial_connection_window.min(CONNECTION_WINDOW))
        .max_header_list_size(manager.max_request_headers_bytes)
        .max_send_buffer_size(SEND_BUFFER);
    if options.extended_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// What one stream, and all streams of a connection, may have in flight: memory that a slow reader
/// on the other side can make us hold. Configured values above are cut down to these.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;
pub(super) const SEND_BUFFER: usize = 128 * 1024;

/// One request.
struct ServerStream {
    recv: RecvStream,
    respond: SendResponse<Bytes>,
    /// Once the head has been sent.
    sending: Option<Sending>,
    body_done: bool,
    deadline: Rc<Deadline>,
}

impl Source for ServerStream {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        _scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        if self.body_done {
            return Poll::Ready(Ok(Piece::DONE));
        }
        let piece = ready!(poll_recv(&mut self.recv, cx))?;
        self.body_done = piece.end.is_end();
        Poll::Ready(Ok(piece))
    }
}

/// The next piece of a received body.
pub(super) fn poll_recv(
    recv: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Piece<'static>, StreamError>> {
    match ready!(recv.poll_data(cx)) {
        Some(Ok(data)) => {
            // The piece is passed on before the next is asked for, so the window may open.
            let _ = recv.flow_control().release_capacity(data.len());
            let end = if recv.is_end_stream() {
                End::Done
            } else {
                End::More
            };
            Poll::Ready(Ok(Piece {
                data: Data::Shared(data),
                end,
            }))
        }
        Some(Err(error)) => Poll::Ready(Err(convert::error(&error))),
        None => {
            let end = match ready!(recv.poll_trailers(cx)) {
                Ok(Some(map)) => End::Trailers(Box::new(convert::trailers(&map))),
                Ok(None) => End::Done,
                Err(error) => return Poll::Ready(Err(convert::error(&error))),
            };
            Poll::Ready(Ok(Piece {
                data: Data::Slice(&[]),
                end,
            }))
        }
    }
}

impl Sink for ServerStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.sending {
            Some(sending) => sending.poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), StreamError> {
        match &mut self.sending {
            Some(sending) => sending.send(cx, piece),
            None => Ok(()),
        }
    }
}

impl Downstream for ServerStream {
    fn body_done(&self) -> bool {
        self.body_done
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>, _worker: &Worker) -> Poll<()> {
        match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    fn send_interim(
        &mut self,
        _cx: &mut Context<'_>,
        head: &ResponseHead,
    ) -> Result<(), StreamError> {
        let response = convert::to_response(head)?;
        self.respond
            .send_informational(response)
            .map_err(|e| convert::error(&e))
    }

    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        _worker: &Worker,
        head: &ResponseHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError> {
        let response = convert::to_response(head)?;
        let nothing = first.data.as_slice().is_empty() && matches!(first.end, End::Done);
        let stream = self
            .respond
            .send_response(response, nothing)
            .map_err(|e| convert::error(&e))?;
        if nothing {
            return Ok(());
        }
        self.sending.insert(Sending::new(stream)).send(cx, first)
    }

    fn abort(&mut self) {
        match &mut self.sending {
            Some(sending) => sending.reset(h2::Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }

    // The connection itself says GOAWAY, see `next_stream`.
    fn is_last(&mut self) {}

    fn deadline(&self) -> &Rc<Deadline> {
        &self.deadline
    }

    fn become_tunnel(&mut self) {}
}
