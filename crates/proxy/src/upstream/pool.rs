//! Connections to endpoints: from the pool, new, or waited for.
//!
//! Invariant: a connection is in exactly one place: a request's, or its endpoint's idle list.

use super::connect::ConnKey;
use super::ticket::{ConnTicket, PendingTicket};
use super::{ActiveCluster, Host};
use crate::http1::client::ClientConn;
use crate::http1::parse::Limits;
use crate::http2::client::{self as http2, Http2Conn};
use crate::io::Io;
use crate::outcome::Outcome;
use crate::stats::ClusterStat;
use crate::tls::handshake::Offer;
use crate::worker::state::Worker;
use lateen_proxy_config::{HttpProtocol, Priority, TcpKeepalive};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Waker};
use tokio::net::{TcpSocket, TcpStream};

/// A connection for one request.
pub(crate) enum Acquired {
    Http1(Box<ClientConn>),
    Http2(Rc<Http2Conn>),
}

/// What a request needs of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub priority: Priority,
    pub downstream_http2: bool,
    /// Not one from the pool: the last one from there turned out to be dead.
    pub fresh: bool,
    /// Bytes as they come, not HTTP: the end of a CONNECT.
    pub raw: bool,
    /// What the connection is tied to.
    pub key: Option<Rc<ConnKey>>,
}

impl ActiveCluster {
    /// Chooses an endpoint, by the hash of the request if it has one. `avoid` is asked `attempts` times whether another should be taken.
    pub(crate) fn pick(
        &self,
        worker: &Worker,
        hash: Option<u64>,
        attempts: u32,
        avoid: impl FnMut(&Rc<Host>) -> bool,
    ) -> Option<Rc<Host>> {
        self.pick_outside(worker, hash, &[], attempts, avoid)
    }

    /// The same in a priority that is not among `tried`, if there is one.
    pub(crate) fn pick_outside(
        &self,
        worker: &Worker,
        hash: Option<u64>,
        tried: &[u32],
        attempts: u32,
        mut avoid: impl FnMut(&Rc<Host>) -> bool,
    ) -> Option<Rc<Host>> {
        let hosts = self.hosts();
        let hash = hash.unwrap_or_else(|| worker.random());
        let mut host = hosts
            .balancer_outside(tried, hash, worker, &self.stats)?
            .pick(hash, 0, || worker.random())?;
        for attempt in 1..=attempts {
            if !avoid(host) {
                break;
            }
            host = hosts
                .balancer_outside(tried, hash, worker, &self.stats)?
                .pick(hash, attempt, || worker.random())?;
        }
        Some(host.clone())
    }

    /// What a connection for the request is to speak.
    fn speaks(&self, wanted: &Wanted) -> Offer {
        match self.config.http.protocol {
            HttpProtocol::Http1 => Offer::Http1,
            HttpProtocol::Auto => Offer::Either,
            HttpProtocol::Http2 => Offer::Http2,
            HttpProtocol::UseDownstream if wanted.downstream_http2 => Offer::Http2,
            HttpProtocol::UseDownstream => Offer::Http1,
        }
    }

    /// A connection to `host` that is there already.
    pub(crate) fn take(&self, host: &Rc<Host>, wanted: &Wanted) -> Option<Acquired> {
        if wanted.raw {
            return None;
        }
        let offer = self.speaks(wanted);
        if matches!(offer, Offer::Http2 | Offer::Either)
            && let Some(conn) = http2::usable(host, &wanted.key)
        {
            return Some(Acquired::Http2(conn));
        }
        if wanted.fresh || offer == Offer::Http2 {
            return None;
        }
        take_idle(host, &wanted.key).map(Acquired::Http1)
    }

    /// A connection to `host` when none was there: made, or waited for.
    pub(crate) async fn acquire(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        host: &Rc<Host>,
        wanted: &Wanted,
    ) -> Result<Acquired, Outcome> {
        if wanted.raw {
            return self.connect_raw(host, wanted).await;
        }
        match self.speaks(wanted) {
            Offer::Http2 => self
                .acquire_http2(worker, host, wanted)
                .await
                .map(Acquired::Http2),
            offer => self.connect_http1(worker, host, wanted, offer).await,
        }
    }

    /// A connection of bytes, for one tunnel.
    async fn connect_raw(
        self: &Rc<Self>,
        host: &Rc<Host>,
        wanted: &Wanted,
    ) -> Result<Acquired, Outcome> {
        let ticket = ConnTicket::take(self, host, &wanted.key).ok_or(Outcome::Overflow)?;
        let (io, _) = self
            .connect(host, wanted.key.as_deref(), Offer::Tcp)
            .await?;
        Ok(Acquired::Http1(Box::new(ClientConn::raw(io, ticket))))
    }

    /// A connection of HTTP/1, unless the server chooses otherwise.
    async fn connect_http1(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        host: &Rc<Host>,
        wanted: &Wanted,
        offer: Offer,
    ) -> Result<Acquired, Outcome> {
        let pending = PendingTicket::take(self, wanted.priority).ok_or(Outcome::Overflow)?;
        let mut called = false;
        let ticket = loop {
            if let Some(ticket) = ConnTicket::take(self, host, &wanted.key) {
                break ticket;
            }
            // The limit is reached: a connection comes back, or one is closed.
            host.waiting.wait(&wanted.key, called).await?;
            called = true;
            if offer == Offer::Either
                && let Some(conn) = http2::usable(host, &wanted.key)
            {
                return Ok(Acquired::Http2(conn));
            }
            if let Some(conn) = take_idle(host, &wanted.key) {
                return Ok(Acquired::Http1(conn));
            }
        };
        let made = self.connect(host, wanted.key.as_deref(), offer).await;
        let (io, http2) =
            made.inspect_err(|outcome| host.waiting.fail_all(&wanted.key, *outcome))?;
        drop(pending);
        if http2 && offer == Offer::Either {
            let conn = self.open_http2(worker, host, io, ticket).await?;
            // It has room for more than this request.
            host.waiting.call_all(&wanted.key);
            return Ok(Acquired::Http2(conn));
        }
        self.stats.inc(ClusterStat::UpstreamCxHttp1Total);
        let limits = Limits {
            head_bytes: self.config.http.max_response_headers_bytes as usize,
            headers: self.config.http.max_headers_count as usize,
            tls: false,
        };
        let absolute = self.config.http.http1.send_fully_qualified_url;
        let mut conn = ClientConn::new(io, limits, absolute, ticket);
        conn.opened = worker.timers.now();
        Ok(Acquired::Http1(Box::new(conn)))
    }

    async fn open_http2(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        host: &Rc<Host>,
        io: Io,
        ticket: ConnTicket,
    ) -> Result<Rc<Http2Conn>, Outcome> {
        let conn = http2::handshake(worker, self, io, ticket).await?;
        self.stats.inc(ClusterStat::UpstreamCxHttp2Total);
        if !host.retired.get() {
            host.http2.borrow_mut().push(conn.clone());
        }
        Ok(conn)
    }

    async fn acquire_http2(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        host: &Rc<Host>,
        wanted: &Wanted,
    ) -> Result<Rc<Http2Conn>, Outcome> {
        let key = &wanted.key;
        let mut pending = None;
        let mut called = false;
        let ticket = loop {
            if let Some(conn) = http2::usable(host, key) {
                return Ok(conn);
            }
            if pending.is_none() {
                let ticket = PendingTicket::take(self, wanted.priority);
                pending = Some(ticket.ok_or(Outcome::Overflow)?);
            }
            if !host.connecting.borrow().contains(key)
                && let Some(ticket) = ConnTicket::take(self, host, key)
            {
                break ticket;
            }
            // Somebody is making one already, or the limit is reached: a stream or a connection
            // ends.
            host.waiting.wait(key, called).await?;
            called = true;
        };
        let mut connecting = Connecting::begin(host, key);
        let made = match self.connect(host, key.as_deref(), Offer::Http2).await {
            Ok((io, _)) => self.open_http2(worker, host, io, ticket).await,
            Err(outcome) => Err(outcome),
        };
        connecting.failed = made.as_ref().err().copied();
        made
    }

    /// A socket from the address that connections of this cluster come from.
    pub(super) async fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let Some(from) = self.config.source_address else {
            return TcpStream::connect(to).await;
        };
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // The port is chosen with the destination, so it may be used again for another one.
        #[cfg(target_os = "linux")]
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::IpBindAddressNoPort,
            &true,
        )?;
        socket.bind(from)?;
        socket.connect(to).await
    }

    /// Whether a connection made at `opened` has reached its age; counts it.
    pub(super) fn is_too_old(&self, opened: u64, now: u64) -> bool {
        let limit = self.config.http.max_connection_duration;
        let old = limit.is_some_and(|limit| now >= opened + limit.as_millis() as u64);
        if old {
            self.stats.inc(ClusterStat::UpstreamCxMaxDuration);
        }
        old
    }

    /// Puts a connection back, if another request may use it; otherwise closes it.
    pub(crate) fn release(self: &Rc<Self>, worker: &Worker, mut conn: Box<ClientConn>) {
        let max = self
            .config
            .http
            .max_requests_per_connection
            .unwrap_or(u32::MAX);
        if !conn.reusable() {
            return;
        }
        if conn.requests >= max {
            self.stats.inc(ClusterStat::UpstreamCxMaxRequests);
            return;
        }
        // The request has just ended, and read the clock for that.
        let now = worker.timers.recent();
        if self.is_too_old(conn.opened, now) {
            return;
        }
        let host = conn.ticket.host().clone();
        // The connection belongs to an older generation of the cluster, or its endpoint has gone.
        if host.retired.get() {
            return;
        }
        conn.rest(now);
        // The sweeper is woken when the peer closes it.
        let stale = worker.clusters_sweeper(|cx| conn.is_stale(cx));
        if stale {
            return;
        }
        let key = conn.ticket.key().clone();
        host.idle.borrow_mut().push(conn);
        host.waiting.call_one(&key);
    }
}

/// The idle connection used last that is still open, of those with the same key.
fn take_idle(host: &Host, key: &Option<Rc<ConnKey>>) -> Option<Box<ClientConn>> {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let conn = {
            let mut idle = host.idle.borrow_mut();
            match key {
                None => idle.pop()?,
                key => {
                    let at = idle.iter().rposition(|conn| conn.ticket.key() == key)?;
                    idle.remove(at)
                }
            }
        };
        if !conn.is_stale(&mut cx) && conn.ticket.key() == key {
            return Some(conn);
        }
    }
}

/// Marks that a connection is being made, and tells those who wait for it how that ended.
struct Connecting<'a> {
    host: &'a Host,
    key: &'a Option<Rc<ConnKey>>,
    failed: Option<Outcome>,
}

impl<'a> Connecting<'a> {
    fn begin(host: &'a Host, key: &'a Option<Rc<ConnKey>>) -> Connecting<'a> {
        host.connecting.borrow_mut().push(key.clone());
        Connecting {
            host,
            key,
            failed: None,
        }
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        let (host, key) = (self.host, self.key);
        let mut connecting = host.connecting.borrow_mut();
        if let Some(at) = connecting.iter().position(|other| other == key) {
            connecting.swap_remove(at);
        }
        drop(connecting);
        match self.failed {
            Some(outcome) => host.waiting.fail_all(key, outcome),
            // Made, or given up by the request it was made for.
            None => host.waiting.call_all(key),
        }
    }
}

pub(crate) fn set_keepalive(tcp: &TcpStream, keepalive: &TcpKeepalive) {
    let mut options = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    #[cfg(not(any(target_os = "openbsd", target_os = "windows")))]
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    // A socket without probes still works.
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&options);
}
