//! What goes from the main thread to a worker.
//!
//! The queue is not bounded in itself: its only producer is the configuration stream, every
//! message is a few `Arc`s, and to drop one would leave workers with different views.

use lateen_proxy_config::{Cluster, EndpointSet, Listener, Secret, SecretRef, route::RouteTable};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// One change of configuration. Compiled before it gets here; applying it cannot fail, except that
/// a listener's port may be taken.
#[derive(Clone, Debug)]
pub enum WorkerUpdate {
    /// A new listener, or a new generation of the one with this name.
    Listener(Arc<Listener>),
    /// Stops listening; connections of the listener are drained.
    RemoveListener(Arc<str>),
    /// The route table that listeners name in `rds`.
    Routes(Arc<RouteTable>),
    RemoveRoutes(Arc<str>),
    /// A new cluster, or a new generation. Endpoints it already has are kept, unless it brings its own.
    Cluster(Arc<Cluster>),
    RemoveCluster(Arc<str>),
    /// The endpoints of the cluster with this name (not the EDS service name). Pools of endpoints
    /// that stay are kept.
    Endpoints(Arc<str>, Arc<EndpointSet>),
    /// A certificate or what verifies certificates. Connections that are open keep what they have.
    Secret(SecretRef, Arc<Secret>),
}

/// What a worker's mailbox carries.
pub(super) enum Command {
    Update(WorkerUpdate),
    Listener(OpenListener),
    /// Endpoints of this cluster were ejected or taken back.
    Rearrange(Arc<str>),
    Draining(bool),
    StopListening,
    /// Answered when everything before it has been applied.
    Flush(oneshot::Sender<()>),
    Stop,
}

/// A listener with the sockets this worker accepts on.
pub(super) struct OpenListener {
    pub listener: Arc<Listener>,
    /// [`None`]: the worker keeps the sockets it has for the listener of this name.
    pub sockets: Option<Vec<std::net::TcpListener>>,
}

pub(super) struct Mailbox(mpsc::UnboundedSender<Command>);
pub(super) type Inbox = mpsc::UnboundedReceiver<Command>;

pub(super) fn channel() -> (Mailbox, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Mailbox(sender), receiver)
}

impl Mailbox {
    pub(super) fn send(&self, command: Command) {
        // Only fails when the worker has stopped, and then there is nothing to configure.
        let _ = self.0.send(command);
    }
}
