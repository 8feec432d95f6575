//! TCP proxying: bytes as they come, in both directions.
//!
//! Readiness drives it: a connection that is silent holds no buffer. What the receiving side does
//! not take at once is kept (at most one read) and nothing more is read from that side until it has
//! gone. Reads are large while the receiver keeps up, and small when it does not. A side that ends its stream still receives (half-close).

mod tunnel;

use crate::access_log::LogSink;
use crate::http::hash;
use crate::io::{Backlog, Io};
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, Page, Scope, TcpStat};
use crate::tls::handshake::Offer;
use crate::upstream::health::Seen;
use crate::upstream::ticket::ConnTicket;
use crate::upstream::{ActiveCluster, Host};
use crate::worker::state::{PIECE, Worker};
use crate::worker::timers::Deadline;
use lateen_proxy_config::{ClusterKind, TcpProxy};
use lateen_telemetry::format::{Field, Headers, Source, Value};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime};

/// One TCP proxy of one listener generation.
pub(crate) struct TcpService {
    config: Arc<TcpProxy>,
    stats: Arc<Page>,
    logs: Vec<LogSink>,
}

impl TcpService {
    pub(crate) fn new(worker: &Rc<Worker>, config: &Arc<TcpProxy>) -> TcpService {
        TcpService {
            config: config.clone(),
            stats: worker.page(Scope::Tcp(config.stat_prefix.clone())),
            logs: worker.logs.sinks(worker, &config.access_log),
        }
    }
}

/// What is known about a connection when it ends.
struct Passage {
    info: Rc<ConnInfo>,
    started: Instant,
    cluster: Option<Rc<ActiveCluster>>,
    host: Option<SocketAddr>,
    /// Connections that were tried.
    attempts: u32,
    outcome: Outcome,
    /// Why this side ended it.
    details: Option<Arc<str>>,
    flags: Vec<&'static str>,
    received: u64,
    sent: u64,
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    mut down: Io,
    service: Rc<TcpService>,
    info: Rc<ConnInfo>,
    worker: Rc<Worker>,
    deadline: Rc<Deadline>,
) {
    service.stats.inc(TcpStat::DownstreamCxTotal);
    worker.shared.tcp.fetch_add(1, Relaxed);
    let mut passage = Passage::new(info);
    let mut limits = Limits::new(&service.config, &worker, &deadline);
    match connect(&mut passage, &service, &worker, &mut limits).await {
        Ok(Opened::Direct(mut up, ticket)) => {
            passage.outcome = copy(&mut down, &mut up, &mut passage, &worker, &mut limits).await;
            drop(ticket);
        }
        Ok(Opened::Tunnel(mut tunnel)) => {
            // Boxed, since it is rare and its future is large.
            let copied = Box::pin(tunnel.copy(&mut down, &mut passage, &worker, &mut limits));
            passage.outcome = copied.await;
        }
        Err(outcome) => passage.outcome = outcome,
    }
    worker.shared.tcp.fetch_sub(1, Relaxed);
    passage.finish(&service);
}

/// Counts and logs a connection that nothing was opened for.
pub(crate) fn refused(
    service: &TcpService,
    info: Rc<ConnInfo>,
    outcome: Outcome,
    details: Arc<str>,
) {
    service.stats.inc(TcpStat::DownstreamCxTotal);
    let mut passage = Passage::new(info);
    passage.outcome = outcome;
    passage.details = Some(details);
    passage.finish(service);
}

/// The way to an endpoint.
enum Opened {
    Direct(Io, ConnTicket),
    Tunnel(Box<tunnel::Tunnel>),
}

/// A connection to an endpoint, after as many attempts as configured.
async fn connect(
    passage: &mut Passage,
    service: &TcpService,
    worker: &Rc<Worker>,
    limits: &mut Limits<'_>,
) -> Result<Opened, Outcome> {
    let name = service.config.cluster.pick(worker.random());
    let Some(cluster) = worker.clusters.get(worker, name) else {
        service.stats.inc(TcpStat::DownstreamCxNoRoute);
        return Err(Outcome::NoCluster);
    };
    passage.cluster = Some(cluster.clone());
    let mut last = Outcome::NoHealthyUpstream;
    for _ in 0..service.config.max_connect_attempts.max(1) {
        let host = select(&cluster, worker, &passage.info, &service.config).await;
        let host = host.ok_or(Outcome::NoHealthyUpstream)?;
        passage.host = Some(host.address);
        if let Some(through) = &service.config.tunnel {
            passage.attempts += 1;
            // Boxed, since it is rare and its future is large.
            let opening = tunnel::open(through, &cluster, &host, &passage.info, worker, limits);
            match Box::pin(opening).await {
                Ok(tunnel) => return Ok(Opened::Tunnel(Box::new(tunnel))),
                Err(outcome) => last = outcome,
            }
            continue;
        }
        let ticket = ConnTicket::take_strictly(&cluster, &host).ok_or(Outcome::Overflow)?;
        passage.attempts += 1;
        let key = cluster.tcp_key(&passage.info);
        match cluster.connect(&host, key.as_deref(), Offer::Tcp).await {
            Ok((io, _)) => {
                host.note(&cluster, Seen::ConnectedOnly);
                return Ok(Opened::Direct(io, ticket));
            }
            Err(outcome) => {
                host.note(
                    &cluster,
                    match outcome {
                        Outcome::ConnectTimeout => Seen::LocalTimeout,
                        _ => Seen::LocalFailure,
                    },
                );
                last = outcome;
            }
        }
    }
    passage.flags.push("URX");
    Err(last)
}

async fn select(
    cluster: &Rc<ActiveCluster>,
    worker: &Worker,
    info: &ConnInfo,
    config: &TcpProxy,
) -> Option<Rc<Host>> {
    match &cluster.config.kind {
        ClusterKind::OriginalDst { port_override, .. } => {
            let mut address = info.original_destination?;
            if let Some(port) = port_override {
                address.set_port(*port);
            }
            Some(cluster.host_at(address))
        }
        ClusterKind::ByRequest { .. } => {
            let name = Some(info.server_name()).filter(|name| !name.is_empty())?;
            // Boxed: few connections wait for a name, and all would carry the room for it.
            Box::pin(cluster.host_at_name(name, config.server_name_port?)).await
        }
        _ => {
            let hash = config
                .hash_source_ip
                .then(|| hash::of_address(info.peer.ip()));
            cluster.pick(worker, hash, 0, |_| false)
        }
    }
}

/// How a passage ended.
enum Ended {
    InOrder,
    /// The client reset its connection.
    ByClient,
    ByUpstream,
    Idle,
    /// What served it is there no more.
    Drained,
}

/// Which side of a direction broke.
enum Broken {
    Sender,
    Receiver,
}

/// One direction.
#[derive(Default)]
struct Direction {
    backlog: Backlog,
    /// The sender has ended its stream.
    ended: bool,
    /// And the receiver has been told.
    done: bool,
    bytes: u64,
    /// How much the next read takes.
    want: usize,
}

/// How long a connection may last, and be silent. In milliseconds of the worker's clock.
struct Limits<'w> {
    worker: &'w Worker,
    deadline: &'w Rc<Deadline>,
    idle: Option<u64>,
    latest: Option<u64>,
    /// Bytes that had moved when the silence began to count.
    moved: u64,
    idle_at: Option<u64>,
    /// When it has to leave its filter chain.
    leaves: Option<u64>,
}

impl<'w> Limits<'w> {
    fn new(config: &TcpProxy, worker: &'w Worker, deadline: &'w Rc<Deadline>) -> Limits<'w> {
        let latest = config.max_connection_duration;
        Limits {
            worker,
            deadline,
            idle: config.idle_timeout.map(|d| d.as_millis() as u64),
            latest: latest.map(|d| worker.timers.now() + d.as_millis() as u64),
            moved: u64::MAX,
            idle_at: None,
            leaves: None,
        }
    }

    /// Ready when the connection is over; `moved` is how many bytes have moved on it.
    fn poll_over(&mut self, moved: u64, info: &ConnInfo, cx: &mut Context<'_>) -> Poll<Ended> {
        let timers = &self.worker.timers;
        let leaving = info.leaves_at();
        if self.moved != moved || self.leaves != leaving {
            if self.moved != moved {
                self.idle_at = self.idle.map(|idle| timers.now() + idle);
            }
            (self.moved, self.leaves) = (moved, leaving);
            let due = [self.idle_at, self.latest, self.leaves];
            timers.set(self.deadline, due.into_iter().flatten().min());
        }
        timers.poll(self.deadline, cx).map(|()| match self.leaves {
            Some(at) if at <= timers.now() => Ended::Drained,
            _ => Ended::Idle,
        })
    }
}

/// Copies both directions until both have ended.
async fn copy(
    down: &mut Io,
    up: &mut Io,
    passage: &mut Passage,
    worker: &Worker,
    limits: &mut Limits<'_>,
) -> Outcome {
    let (mut to_up, mut to_down) = (Direction::default(), Direction::default());
    let ended = poll_fn(|cx| {
        let mut scratch = worker.scratch.borrow_mut();
        let sending = to_up.poll(cx, down, up, &mut scratch);
        let receiving = to_down.poll(cx, up, down, &mut scratch);
        match (sending, receiving) {
            (Poll::Ready(Err(Broken::Sender)), _) | (_, Poll::Ready(Err(Broken::Receiver))) => {
                return Poll::Ready(Ended::ByClient);
            }
            (Poll::Ready(Err(Broken::Receiver)), _) | (_, Poll::Ready(Err(Broken::Sender))) => {
                return Poll::Ready(Ended::ByUpstream);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::InOrder),
            _ => {}
        }
        limits.poll_over(to_up.bytes + to_down.bytes, &passage.info, cx)
    })
    .await;
    passage.received = to_up.bytes;
    passage.sent = to_down.bytes;
    // A reset of either side is an ordinary end for a byte stream, and one for the other side too.
    match ended {
        Ended::InOrder => {}
        Ended::ByClient => up.reset_on_close(),
        Ended::ByUpstream => {
            down.reset_on_close();
            passage.flags.push("UR");
        }
        Ended::Idle => return Outcome::StreamIdle,
        Ended::Drained => passage.details = Some("filter_chain_is_being_removed".into()),
    }
    Outcome::Answered
}

impl Direction {
    /// Ready when the direction is over; an error ends the connection.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Broken>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.backlog.poll_flush(to, cx)).map_err(|_| Broken::Receiver)?;
            if self.ended {
                ready!(to.poll_shutdown(cx)).map_err(|_| Broken::Receiver)?;
                self.done = true;
                continue;
            }
            let want = self.want.clamp(PIECE, scratch.len());
            let n = ready!(from.poll_read(cx, &mut scratch[..want])).map_err(|_| Broken::Sender)?;
            if n == 0 {
                self.ended = true;
                continue;
            }
            self.bytes += n as u64;
            self.backlog
                .write(to, cx, &[&scratch[..n]])
                .map_err(|_| Broken::Receiver)?;
            self.want = match (self.backlog.is_empty(), n == want) {
                (false, _) => PIECE,
                (true, true) => want * 2,
                (true, false) => want,
            };
        }
    }
}

impl Passage {
    fn new(info: Rc<ConnInfo>) -> Passage {
        Passage {
            info,
            started: Instant::now(),
            cluster: None,
            host: None,
            outcome: Outcome::Answered,
            attempts: 0,
            details: None,
            flags: Vec::new(),
            received: 0,
            sent: 0,
        }
    }

    fn finish(mut self, service: &TcpService) {
        let row = self.outcome.row();
        if !row.flag.is_empty() {
            self.flags.insert(0, row.flag);
        }
        service
            .stats
            .add(TcpStat::DownstreamCxRxBytes, self.received);
        service.stats.add(TcpStat::DownstreamCxTxBytes, self.sent);
        if self.outcome == Outcome::StreamIdle {
            service.stats.inc(TcpStat::IdleTimeout);
        }
        if let Some(cluster) = &self.cluster {
            cluster
                .stats
                .add(ClusterStat::UpstreamCxTxBytes, self.received);
            cluster.stats.add(ClusterStat::UpstreamCxRxBytes, self.sent);
            if let Some(stat) = row.cluster_stat
                && self.outcome != Outcome::Answered
            {
                cluster.stats.inc(stat);
            }
        }
        service.logs.iter().for_each(|log| log.write(&self));
    }
}

impl Source for Passage {
    fn header(&self, _of: Headers, _name: &str) -> Option<&[u8]> {
        None
    }

    fn value(&self, field: Field) -> Value<'_> {
        match field {
            Field::StartTime => Value::Time(SystemTime::now() - self.started.elapsed()),
            Field::ResponseCode => Value::Number(0),
            Field::ResponseFlags if !self.flags.is_empty() => Value::List(&self.flags),
            Field::UpstreamTransportFailureReason => {
                let reason = self.outcome.transport_failure();
                Value::text(Some(reason).filter(|reason| !reason.is_empty()))
            }
            Field::UpstreamRequestAttemptCount => Value::Number(u64::from(self.attempts)),
            Field::ConnectionTerminationDetails => Value::text(self.details.as_deref()),
            Field::BytesReceived => Value::Number(self.received),
            Field::BytesSent => Value::Number(self.sent),
            Field::Duration => Value::Number(self.started.elapsed().as_millis() as u64),
            Field::UpstreamHost | Field::UpstreamRemoteAddress => {
                self.host.map_or(Value::Absent, Value::Address)
            }
            Field::UpstreamCluster => {
                Value::text(self.cluster.as_ref().map(|c| &*c.config.stat_name))
            }
            Field::UpstreamClusterRaw => {
                Value::text(self.cluster.as_ref().map(|c| &*c.config.name))
            }
            Field::DownstreamRemoteAddress => Value::Address(self.info.peer),
            Field::DownstreamDirectRemoteAddress => Value::Address(self.info.direct_peer()),
            Field::RequestedServerName => {
                Value::text(Some(self.info.server_name()).filter(|name| !name.is_empty()))
            }
            Field::DownstreamLocalAddress => Value::Address(self.info.local),
            Field::ConnectionId => Value::Number(self.info.id),
            Field::AccessLogType => Value::Text(b"TcpConnectionEnd"),
            field => {
                let tls = self.info.tls();
                tls.map_or(Value::Absent, |tls| tls.value(field))
            }
        }
    }
}
