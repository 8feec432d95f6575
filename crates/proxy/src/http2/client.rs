//! HTTP/2 connections to endpoints, shared by the requests of a worker.

use super::convert;
use super::send::Sending;
use super::server::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW, poll_recv};
use super::socket::socket;
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::headers::Known;
use crate::http::stream::{End, Piece, Sink, Source, StreamError, UpstreamStream};
use crate::io::Io;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, Page};
use crate::upstream::connect::ConnKey;
use crate::upstream::ticket::ConnTicket;
use crate::upstream::{ActiveCluster, Host};
use crate::worker::state::Worker;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::task::spawn_local;

/// One connection.
pub(crate) struct Http2Conn {
    /// [`None`] when it takes no new streams; dropping it lets the connection end after the last.
    send: RefCell<Option<SendRequest<Bytes>>>,
    active: Cell<u32>,
    requests: Cell<u32>,
    max_requests: u32,
    max_streams: u32,
    /// Of the cluster.
    stats: Arc<Page>,
    /// Requests at the sweeper's last look, and since when there were no others.
    seen: Cell<(u32, u64)>,
    /// When it was made, in the worker's milliseconds.
    pub opened: u64,
    /// Which requests it may serve.
    key: Option<Rc<ConnKey>>,
    /// Where requests wait for room.
    host: Weak<Host>,
}

impl fmt::Debug for Http2Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Conn")
            .field("active", &self.active.get())
            .finish()
    }
}

/// A connection of the endpoint that can take another stream now.
pub(crate) fn usable(host: &Host, key: &Option<Rc<ConnKey>>) -> Option<Rc<Http2Conn>> {
    let mut conns = host.http2.borrow_mut();
    conns.retain(|conn| conn.is_open());
    let fits = |conn: &&Rc<Http2Conn>| conn.has_room() && conn.key == *key;
    conns.iter().find(fits).cloned()
}

/// Makes a connection ready, and drives it in a task of its own that holds `ticket`.
pub(crate) async fn handshake(
    worker: &Rc<Worker>,
    cluster: &Rc<ActiveCluster>,
    io: Io,
    ticket: ConnTicket,
) -> Result<Rc<Http2Conn>, Outcome> {
    let http = &cluster.config.http;
    let (socket, wire) = socket(Vec::new(), io);
    let handshake = h2::client::Builder::new()
        .initial_window_size(http.http2.initial_stream_window.min(STREAM_WINDOW))
        .initial_connection_window_size(http.http2.initial_connection_window.min(CONNECTION_WINDOW))
        .max_header_list_size(http.max_response_headers_bytes)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake::<_, Bytes>(socket);
    let limited = tokio::time::timeout(cluster.config.connect_timeout, handshake).await;
    let (send, mut connection) = match limited {
        Ok(Ok(made)) => made,
        Ok(Err(_)) => return Err(Outcome::ConnectFailure),
        Err(_) => return Err(Outcome::ConnectTimeout),
    };
    let conn = Rc::new(Http2Conn {
        send: RefCell::new(Some(send)),
        active: Cell::new(0),
        requests: Cell::new(0),
        max_requests: http.max_requests_per_connection.unwrap_or(u32::MAX),
        max_streams: http.http2.max_concurrent_streams,
        stats: cluster.stats.clone(),
        seen: Cell::new((0, worker.timers.now())),
        opened: worker.timers.now(),
        key: ticket.key().clone(),
        host: Rc::downgrade(ticket.host()),
    });
    let driven = Rc::downgrade(&conn);
    let pings = http.http2.keepalive_interval.zip(connection.ping_pong());
    let patience = http.http2.keepalive_timeout.unwrap_or(Duration::MAX);
    let stats = cluster.stats.clone();
    spawn_local(async move {
        let mut driving = poll_fn(|cx| wire.drive(cx, |cx| Pin::new(&mut connection).poll(cx)));
        // How it ended is told to each stream; here there is nothing left to do but to let go.
        match pings {
            None => drop(driving.await),
            Some((interval, pings)) => tokio::select! {
                _ = &mut driving => {}
                () = unanswered(pings, interval, patience) => {
                    stats.inc(ClusterStat::UpstreamHttp2KeepaliveTimeout);
                }
            },
        }
        if let Some(conn) = driven.upgrade() {
            conn.retire();
        }
        let host = ticket.host().clone();
        host.http2.borrow_mut().retain(|conn| conn.is_open());
        drop(ticket);
    });
    Ok(conn)
}

/// Pings the peer regularly; returns when an answer did not come in time.
async fn unanswered(mut pings: PingPong, interval: Duration, patience: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let ping = pings.ping(Ping::opaque());
        if !matches!(tokio::time::timeout(patience, ping).await, Ok(Ok(_))) {
            return;
        }
    }
}

impl Http2Conn {
    /// Takes no new streams from now on.
    pub(crate) fn retire(&self) {
        let send = self.send.borrow_mut().take();
        drop(send);
    }

    /// Whether it takes new streams.
    pub(crate) fn is_in_use(&self) -> bool {
        self.send.borrow().is_some()
    }

    /// Whether nothing has happened for `limit` milliseconds. Asked now and then.
    pub(crate) fn is_idle(&self, now: u64, limit: u64) -> bool {
        let (requests, since) = self.seen.get();
        if self.active.get() > 0 || self.requests.get() != requests {
            self.seen.set((self.requests.get(), now));
            return false;
        }
        now >= since.saturating_add(limit)
    }

    fn is_open(&self) -> bool {
        let mut send = self.send.borrow_mut();
        let Some(request) = send.as_mut() else {
            return false;
        };
        // Not ready only means that the last stream is still being opened.
        let mut cx = Context::from_waker(Waker::noop());
        let failed = matches!(request.poll_ready(&mut cx), Poll::Ready(Err(_)));
        if failed {
            *send = None;
        }
        !failed
    }

    fn has_room(&self) -> bool {
        let send = self.send.borrow();
        let Some(request) = send.as_ref() else {
            return false;
        };
        let peer = u32::try_from(request.current_max_send_streams()).unwrap_or(u32::MAX);
        self.active.get() < self.max_streams.min(peer)
    }
}

/// One request on a connection.
pub(crate) struct Http2Stream {
    conn: Rc<Http2Conn>,
    response: Option<ResponseFuture>,
    sending: Option<Sending>,
    recv: Option<RecvStream>,
    /// What an extended CONNECT asked for.
    upgrade: Option<Box<[u8]>>,
    done: bool,
}

/// How long a new connection is waited for to say whether it takes extended CONNECT.
const SETTINGS_WAIT: Duration = Duration::from_secs(1);

impl Http2Stream {
    /// Whether the peer takes upgrades (RFC 8441). It says so in the first thing it sends, which a
    /// new connection may still have to wait for.
    pub(crate) async fn takes_upgrades(&self) -> bool {
        let says = || {
            let send = self.conn.send.borrow();
            let send = send.as_ref();
            send.is_some_and(|send| send.is_extended_connect_protocol_enabled())
        };
        let begun = Instant::now();
        while !says() && self.conn.is_in_use() && begun.elapsed() < SETTINGS_WAIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        says()
    }

    pub(crate) fn new(conn: Rc<Http2Conn>) -> Http2Stream {
        conn.active.set(conn.active.get() + 1);
        Http2Stream {
            conn,
            response: None,
            sending: None,
            recv: None,
            upgrade: None,
            done: false,
        }
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        self.conn
            .active
            .set(self.conn.active.get().saturating_sub(1));
        if !self.done
            && let Some(sending) = &mut self.sending
        {
            sending.reset(h2::Reason::CANCEL);
        }
        if let Some(host) = self.conn.host.upgrade() {
            host.has_room(&self.conn.key);
        }
    }
}

impl UpstreamStream for Http2Stream {
    fn send_head(
        &mut self,
        cx: &mut Context<'_>,
        _worker: &Worker,
        head: &RequestHead,
        first: Piece<'_>,
    ) -> Result<(), StreamError> {
        let request = convert::to_request(head)?;
        let asked = head.headers.get(Known::Upgrade).filter(|_| head.upgrade);
        self.upgrade = asked.map(Box::from);
        let nothing = first.data.as_slice().is_empty() && matches!(first.end, End::Done);
        let requests = self.conn.requests.get().saturating_add(1);
        self.conn.requests.set(requests);
        let (response, stream) = {
            let mut send = self.conn.send.borrow_mut();
            let sender = send.as_mut().ok_or(StreamError::Refused)?;
            sender
                .send_request(request, nothing)
                .map_err(|e| convert::error(&e))?
        };
        if requests >= self.conn.max_requests {
            self.conn.stats.inc(ClusterStat::UpstreamCxMaxRequests);
            self.conn.retire();
        }
        self.response = Some(response);
        let sending = self.sending.insert(Sending::new(stream));
        if nothing {
            Ok(())
        } else {
            sending.send(cx, first)
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<Result<ResponseHead, StreamError>> {
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(StreamError::Protocol));
        };
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            let (parts, ()) = interim.into_parts();
            let head = convert::response(parts.status, &parts.headers, worker.block(), false);
            return Poll::Ready(Ok(head));
        }
        let result = ready!(Pin::new(response).poll(cx));
        self.response = None;
        let (parts, recv) = result.map_err(|e| convert::error(&e))?.into_parts();
        let has_body = !recv.is_end_stream();
        self.done = !has_body;
        self.recv = has_body.then_some(recv);
        let mut head = convert::response(parts.status, &parts.headers, worker.block(), has_body);
        if let Some(protocol) = self.upgrade.take()
            && head.status == 200
        {
            // As HTTP/1 would have said it, whatever the client speaks.
            head.status = 101;
            head.body = BodyLength::None;
            head.headers.remove(Known::ContentLength);
            head.headers.set(Known::Upgrade, &protocol);
        }
        Poll::Ready(Ok(head))
    }
}

impl Source for Http2Stream {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        _scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        let Some(recv) = &mut self.recv else {
            return Poll::Ready(Ok(Piece::DONE));
        };
        let piece = ready!(poll_recv(recv, cx))?;
        self.done = piece.end.is_end();
        Poll::Ready(Ok(piece))
    }
}

impl Sink for Http2Stream {
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
