//! Connections to endpoints: from the pool, new, or waited for.
//!
//! Invariant: a connection is in exactly one place: a request's, or its endpoint's idle list.

use super::ticket::{ConnTicket, PendingTicket};
use super::{ActiveCluster, Host};
use crate::http1::client::ClientConn;
use crate::http1::parse::Limits;
use crate::http2::client::{self as http2, Http2Conn};
use crate::io::Io;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, EndpointStat};
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub priority: Priority,
    pub downstream_http2: bool,
    /// Not one from the pool: the last one from there turned out to be dead.
    pub fresh: bool,
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
            .balancer_outside(tried, hash)?
            .pick(hash, 0, || worker.random())?;
        for attempt in 1..=attempts {
            if !avoid(host) {
                break;
            }
            host = hosts
                .balancer_outside(tried, hash)?
                .pick(hash, attempt, || worker.random())?;
        }
        Some(host.clone())
    }

    fn speaks_http2(&self, wanted: Wanted) -> bool {
        match self.config.http.protocol {
            HttpProtocol::Http1 | HttpProtocol::Auto => false,
            HttpProtocol::Http2 => true,
            HttpProtocol::UseDownstream => wanted.downstream_http2,
        }
    }

    /// A connection to `host` that is there already.
    pub(crate) fn take(&self, host: &Rc<Host>, wanted: Wanted) -> Option<Acquired> {
        if self.speaks_http2(wanted) {
            http2::usable(host).map(Acquired::Http2)
        } else if wanted.fresh {
            None
        } else {
            take_idle(host).map(Acquired::Http1)
        }
    }

    /// A connection to `host` when none was there: made, or waited for.
    pub(crate) async fn acquire(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        host: &Rc<Host>,
        wanted: Wanted,
    ) -> Result<Acquired, Outcome> {
        if self.speaks_http2(wanted) {
            return self
                .acquire_http2(worker, host, wanted)
                .await
                .map(Acquired::Http2);
        }
        let mut conn = self.connect_http1(host, wanted).await?;
        if conn.requests == 0 {
            conn.opened = worker.timers.now();
        }
        Ok(Acquired::Http1(conn))
    }

    async fn connect_http1(
        self: &Rc<Self>,
        host: &Rc<Host>,
        wanted: Wanted,
    ) -> Result<Box<ClientConn>, Outcome> {
        let pending = PendingTicket::take(self, wanted.priority).ok_or(Outcome::Overflow)?;
        let ticket = loop {
            if let Some(ticket) = ConnTicket::take(self, host) {
                break ticket;
            }
            // The limit is reached: a connection comes back, or one is closed.
            self.waiting.wait().await;
            if let Some(conn) = take_idle(host) {
                return Ok(conn);
            }
        };
        let io = self.connect(host).await?;
        drop(pending);
        self.stats.inc(ClusterStat::UpstreamCxHttp1Total);
        let limits = Limits {
            head_bytes: self.config.http.max_response_headers_bytes as usize,
            headers: self.config.http.max_headers_count as usize,
            tls: false,
        };
        let absolute = self.config.http.http1.send_fully_qualified_url;
        Ok(Box::new(ClientConn::new(io, limits, absolute, ticket)))
    }

    async fn acquire_http2(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        host: &Rc<Host>,
        wanted: Wanted,
    ) -> Result<Rc<Http2Conn>, Outcome> {
        let mut pending = None;
        let mut failures = 0;
        loop {
            if let Some(conn) = http2::usable(host) {
                return Ok(conn);
            }
            if pending.is_none() {
                let ticket = PendingTicket::take(self, wanted.priority);
                pending = Some(ticket.ok_or(Outcome::Overflow)?);
            }
            if host.http2_connecting.get() {
                let before = host.http2_failed.get();
                host.http2_waiting.wait().await;
                failures += u32::from(host.http2_failed.get() != before);
                // Whoever was connecting failed again and again; fail with them.
                if failures > 3 && http2::usable(host).is_none() {
                    return Err(Outcome::ConnectFailure);
                }
                continue;
            }
            let Some(ticket) = ConnTicket::take(self, host) else {
                self.waiting.wait().await;
                continue;
            };
            let mut connecting = Connecting::begin(host);
            let io = self.connect(host).await?;
            let conn = http2::handshake(worker, self, io, ticket).await?;
            connecting.failed = false;
            self.stats.inc(ClusterStat::UpstreamCxHttp2Total);
            if !host.retired.get() {
                host.http2.borrow_mut().push(conn.clone());
            }
            return Ok(conn);
        }
    }

    /// A new socket to the endpoint.
    pub(crate) async fn connect(&self, host: &Host) -> Result<Io, Outcome> {
        let limit = self.config.connect_timeout;
        let connected = tokio::time::timeout(limit, self.dial(host.address)).await;
        let failed = |stat, outcome| {
            self.stats.inc(ClusterStat::UpstreamCxConnectFail);
            if let Some(stat) = stat {
                self.stats.inc(stat);
            }
            host.stats(self).inc(EndpointStat::CxConnectFail);
            outcome
        };
        match connected {
            Ok(Ok(tcp)) => {
                if let Some(keepalive) = &self.config.tcp_keepalive {
                    set_keepalive(&tcp, keepalive);
                }
                Ok(Io::new(tcp))
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Err(failed(None, Outcome::ConnectRefused))
            }
            Ok(Err(_)) => Err(failed(None, Outcome::ConnectFailure)),
            Err(_) => {
                let stat = ClusterStat::UpstreamCxConnectTimeout;
                Err(failed(Some(stat), Outcome::ConnectTimeout))
            }
        }
    }

    /// A socket from the address that connections of this cluster come from.
    async fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
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
        if self.is_too_old(conn.opened, worker.timers.now()) {
            return;
        }
        let host = conn.ticket.host().clone();
        // The connection belongs to an older generation of the cluster, or its endpoint has gone.
        if host.retired.get() {
            return;
        }
        conn.rest(worker.timers.now());
        // The sweeper is woken when the peer closes it.
        let stale = worker.clusters_sweeper(|cx| conn.is_stale(cx));
        if stale {
            return;
        }
        host.idle.borrow_mut().push(conn);
        self.waiting.call_one();
    }
}

/// The idle connection used last that is still open.
fn take_idle(host: &Host) -> Option<Box<ClientConn>> {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let conn = host.idle.borrow_mut().pop()?;
        if !conn.is_stale(&mut cx) {
            return Some(conn);
        }
    }
}

/// Marks that a connection is being made, and lets the others go on when it is made or not.
struct Connecting<'a> {
    host: &'a Host,
    failed: bool,
}

impl<'a> Connecting<'a> {
    fn begin(host: &'a Host) -> Connecting<'a> {
        host.http2_connecting.set(true);
        Connecting { host, failed: true }
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        let failed = self.host.http2_failed.get();
        self.host
            .http2_failed
            .set(failed.wrapping_add(u32::from(self.failed)));
        self.host.http2_connecting.set(false);
        self.host.http2_waiting.call_all();
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
