//! The server half: accepts ADS streams and keeps each in step with the last push.
//!
//! Not a cache and not a generator: resources are asked of the [`Source`] per proxy and compared
//! by version with what that proxy holds.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::{Metric, Node, ProxyStatus, Push, Resource};

/// What the server asks of the control plane.
pub trait Source: Send + Sync + 'static {
    /// The control plane's immutable view of the mesh.
    type Snapshot: Send + Sync + 'static;

    /// Whether this proxy may connect; the text of a refusal reaches it as the gRPC status.
    fn connect(&self, node: &Node) -> Result<(), String>;

    /// The stream of an accepted proxy has ended.
    fn disconnect(&self, node: &Node);

    /// The resources of one type for one proxy. `names`: `None` is everything the proxy may see,
    /// otherwise only these; a name that does not exist is left out. Called from the proxy's own
    /// task and never for two types of one proxy at once; must not block on I/O.
    fn generate(
        &self,
        snapshot: &Self::Snapshot,
        node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>>;
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
    /// Unanswered responses per type after which nothing more of it is pushed.
    pub outstanding: usize,
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
            outstanding: 8,
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// The ADS server. A cheap handle: clones share one server.
pub struct Server<S: Source> {
    source: Arc<S>,
}

impl<S: Source> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self {
            source: self.source.clone(),
        }
    }
}

impl<S: Source> Server<S> {
    /// `initial` is what proxies get that connect before the first push.
    pub fn new(source: Arc<S>, initial: Push<S::Snapshot>, limits: Limits) -> Self {
        let _ = (initial, limits);
        Self { source }
    }

    /// Makes `push` the truth and wakes every stream. Returns at once; a stream that lags merges.
    pub fn push(&self, push: Push<S::Snapshot>) {
        let _ = push;
    }

    /// Every open stream, ordered by proxy name.
    pub fn status(&self) -> Vec<ProxyStatus> {
        Vec::new()
    }

    /// Counters under Istio's names.
    pub fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// Accepts connections (plaintext HTTP/2) until `shutdown`; then ends every stream with
    /// `UNAVAILABLE`, so that clients reconnect elsewhere, and returns.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
        let _ = listener;
        shutdown.await;
    }
}
