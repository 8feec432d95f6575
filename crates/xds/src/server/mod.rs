//! The server half: accepts ADS streams and keeps each in step with the last push.
//!
//! Not a cache and not a generator: resources are asked of the [`Source`] per proxy and compared
//! by version with what that proxy holds.

mod connection;
mod listen;
mod service;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::metrics::Metrics;
use crate::status::Detail;
use crate::{Metric, Names, Node, Protocol, ProxyStatus, Push, Resource};
pub use connection::passed;
use connection::{Connection, Pace, Stream};
pub use listen::Caller;
pub use service::Service;
use service::{Pieces, Requests};
use wire::Wire;

/// What the server asks of the control plane.
pub trait Source: Send + Sync + 'static {
    /// The control plane's immutable view of the mesh.
    type Snapshot: Send + Sync + 'static;

    /// Whether this proxy may connect, being who its connection proved it to be
    /// ([`Node::identity`]); the text of a refusal reaches it as the gRPC status.
    fn connect(&self, node: &Node) -> Result<(), String>;

    /// The stream of an accepted proxy has ended.
    fn disconnect(&self, node: &Node);

    /// The number of the last change that was accepted. A proxy that connects is not served without
    /// what was accepted before it came, though the push that has it may still wait for quiet: a
    /// policy would not be in force yet.
    fn accepted(&self) -> u64 {
        0
    }

    /// The number of the last change that a snapshot has.
    fn has(&self, _snapshot: &Self::Snapshot) -> u64 {
        0
    }

    /// The resources of one type for one proxy. `names`: `None` is everything the proxy may see,
    /// otherwise only these; a name that does not exist is left out. Called from the proxy's own
    /// task and never for two types of one proxy at once; must not block on I/O.
    ///
    /// Of virtual hosts, `TABLE/` stands for all of a route table.
    fn generate(
        &self,
        snapshot: &Self::Snapshot,
        node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>>;

    /// Names of a type that only this client has, and that may differ whenever a push names any of the
    /// type: [`Names::Some`] of a push need not have them.
    fn own_names(&self, _snapshot: &Self::Snapshot, _node: &Node, _type_url: &str) -> Names {
        Names::Some(BTreeSet::new())
    }

    /// Names of the virtual hosts of these route tables that came, went or changed for one proxy
    /// from one snapshot to another; `None`: not known, so that all have to be looked at. Not asked
    /// for tables alone: a table that went has lost none.
    fn changed_hosts(
        &self,
        _before: &Self::Snapshot,
        _now: &Self::Snapshot,
        _node: &Node,
        _tables: &BTreeSet<String>,
    ) -> Option<BTreeSet<String>> {
        None
    }
}

/// Bounds against slow and hostile clients, and timing.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP connections and ADS streams at one time.
    pub connections: usize,
    /// Names one client may subscribe to, per type.
    pub names: usize,
    /// Bytes of one request.
    pub request_bytes: usize,
    /// Requests per second of one stream; what comes faster waits.
    pub requests_per_second: u32,
    /// How long one response may take to leave; then the stream is closed.
    pub send_timeout: Duration,
    /// How long the next push waits for the answers to the one before.
    pub ack_patience: Duration,
    /// How long a stream that begins waits for the push that has what was accepted before; longer
    /// than a push waits for quiet at most.
    pub catch_up: Duration,
    /// Unanswered responses per type after which nothing more of it is pushed.
    pub outstanding: usize,
    /// Who connects, or opens a stream, has to have sent a request by then; the PINGs below begin
    /// with HTTP/2.
    pub first_request: Duration,
    /// HTTP/2 PING interval and how long to wait for its answer (Istio: 30 s, 10 s).
    pub keepalive: Duration,
    pub keepalive_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            names: 100_000,
            request_bytes: 16 << 20,
            requests_per_second: 1_000,
            send_timeout: Duration::from_secs(30),
            ack_patience: Duration::from_secs(1),
            catch_up: Duration::from_secs(15),
            outstanding: 8,
            first_request: Duration::from_secs(30),
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// The ADS server. A cheap handle: clones share one server.
pub struct Server<S: Source> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Source> {
    source: Arc<S>,
    limits: Limits,
    /// Sent as `control_plane.identifier`.
    identifier: String,
    metrics: Metrics,
    shutdown: watch::Sender<bool>,
    state: Mutex<State<S::Snapshot>>,
}

/// One lock for both, so that a stream that opens during a push either starts from it or gets it.
struct State<S> {
    current: Push<S>,
    connections: BTreeMap<u64, Arc<Connection<S>>>,
    next_id: u64,
}

impl<S: Source> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<S: Source> Server<S> {
    /// `initial` is what proxies get that connect before the first push.
    pub fn new(source: Arc<S>, initial: Push<S::Snapshot>, limits: Limits) -> Self {
        let state = State {
            current: initial,
            connections: BTreeMap::new(),
            next_id: 1,
        };
        Self {
            inner: Arc::new(Inner {
                source,
                limits,
                identifier: concat!("lateen/", env!("CARGO_PKG_VERSION")).to_owned(),
                metrics: Metrics::new(),
                shutdown: watch::Sender::new(false),
                state: Mutex::new(state),
            }),
        }
    }

    /// Makes `push` the truth and wakes every stream. Returns at once; a stream that lags merges.
    pub fn push(&self, push: Push<S::Snapshot>) {
        let mut state = self.inner.state();
        for connection in state.connections.values() {
            connection.offer(&push);
        }
        state.current = push;
    }

    /// Every open stream, ordered by proxy name.
    pub fn status(&self) -> Vec<ProxyStatus> {
        self.status_in(Detail::Resources)
    }

    fn status_in(&self, detail: Detail) -> Vec<ProxyStatus> {
        let connections: Vec<_> = self.inner.state().connections.values().cloned().collect();
        let mut all: Vec<_> = connections
            .iter()
            .filter_map(|connection| connection.status(detail))
            .collect();
        all.sort_by_cached_key(|proxy| (proxy.node.short_id(), proxy.connected_at));
        all
    }

    /// Counters under Istio's names.
    pub fn metrics(&self) -> Vec<Metric> {
        self.inner.metrics.read(&self.status_in(Detail::Types))
    }

    /// The version of the last push.
    pub fn version(&self) -> String {
        self.inner.state().current.version.clone()
    }

    /// The gRPC service, to be served beside others. [`Server::serve`] serves it alone.
    pub fn service(&self) -> Service<S> {
        Service(self.clone())
    }

    /// Ends every stream with `UNAVAILABLE`; clients reconnect, here or elsewhere.
    pub fn stop(&self) {
        self.inner.shutdown.send_replace(true);
    }

    /// Accepts connections (plaintext HTTP/2) until `shutdown`; then ends every stream and
    /// returns.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
        listen::serve(self, listener, shutdown).await;
    }

    fn open<W: Wire>(
        &self,
        caller: Option<Caller>,
        inbound: Requests<W>,
    ) -> Result<(mpsc::Receiver<Pieces>, oneshot::Receiver<Status>), Status> {
        // Two: one response on its way, one being made; more would only grow old here.
        let (outbound, responses) = mpsc::channel(2);
        let (end, ended) = oneshot::channel();
        let (connection, current) = self.inner.register(caller, W::PROTOCOL)?;
        let stream = Stream::<S, W> {
            server: self.inner.clone(),
            connection,
            outbound,
            wire: PhantomData,
            current,
            pace: Pace::new(),
            pushing_since: None,
            known_since: Instant::now(),
        };
        tokio::spawn(stream.run(inbound, end));
        Ok((responses, ended))
    }
}

type Connected<S> = (Arc<Connection<S>>, Push<S>);

impl<S: Source> Inner<S> {
    fn state(&self) -> MutexGuard<'_, State<S::Snapshot>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(
        &self,
        caller: Option<Caller>,
        protocol: Protocol,
    ) -> Result<Connected<S::Snapshot>, Status> {
        if *self.shutdown.borrow() {
            return Err(Status::unavailable("the control plane is stopping"));
        }
        let mut state = self.state();
        if state.connections.len() >= self.limits.connections {
            self.metrics.internal_error();
            return Err(Status::resource_exhausted(format!(
                "{} discovery streams are open, the most this control plane allows",
                state.connections.len()
            )));
        }
        let id = state.next_id;
        state.next_id += 1;
        let connection = Arc::new(Connection::new(id, caller, protocol, &self.limits));
        state.connections.insert(id, connection.clone());
        Ok((connection, state.current.clone()))
    }

    fn close(&self, id: u64) {
        self.state().connections.remove(&id);
    }
}
