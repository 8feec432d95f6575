//! The client half: one delta ADS stream, kept open for ever.
//!
//! It owns subscriptions and the versions that were accepted, and nothing of what resources mean:
//! the owner compiles them and answers each [`Update`] through its [`Reply`]. While there is no
//! connection nothing is taken away; the owner serves on with what it has.
//!
//! Invariant: a version counts as held only after the owner accepted it, so that after a
//! reconnect (`initial_resource_versions`) exactly what is missing or was refused comes again.

mod raw;
pub mod secret;
mod state;
mod stream;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_util::either::Either;

use crate::{Node, Rejection};
pub use raw::Raw;
use state::{State, Ticket};

/// Where the control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Host (name or address) and port.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection to a target, before anything is said on it.
pub type Socket = Either<TcpStream, UnixStream>;

/// Whatever carries the bytes in the end.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that is being secured.
pub type Securing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// What turns a socket into a connection: TLS, as the owner has it. Asked at every attempt.
#[derive(Clone)]
pub struct Secure(pub Arc<dyn Fn(Socket) -> Securing + Send + Sync>);

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secure")
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub target: Target,
    /// `None`: in plaintext.
    pub secure: Option<Secure>,
    pub node: Node,
    pub backoff: Backoff,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// HTTP/2 PING interval on the stream and the time its answer may take.
    pub keepalive: Duration,
    pub keepalive_timeout: Duration,
    /// Largest response accepted, in bytes.
    pub response_bytes: usize,
}

impl Config {
    pub fn new(target: Target, node: Node) -> Self {
        Self {
            target,
            secure: None,
            node,
            backoff: Backoff::default(),
            connect_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            response_bytes: 128 << 20,
        }
    }
}

/// Exponential, with full jitter: the n-th wait is a random time between nothing and
/// `min(max, base * 2^n)`, so that ten thousand proxies do not come back in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(200),
            max: Duration::from_secs(5),
        }
    }
}

/// What happens on the stream, in order.
#[derive(Debug)]
pub enum Event {
    Connected,
    /// The stream ended or could not be opened; the next attempt comes after `retry_in`.
    Disconnected {
        reason: String,
        retry_in: Duration,
    },
    Update(Update),
}

/// One response: resources that are new or changed, and names that are gone or do not exist.
#[derive(Debug)]
pub struct Update {
    pub type_url: String,
    /// For people only.
    pub version: String,
    pub resources: Vec<Received>,
    pub removed: Vec<String>,
    pub reply: Reply,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub name: String,
    pub version: String,
    pub any: Raw,
}

/// The answer that is owed for an [`Update`]; may be given later and from elsewhere. One that is
/// dropped unanswered counts as a rejection of the whole update.
#[derive(Debug)]
pub struct Reply {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
}

impl Reply {
    /// Everything applies: ACK.
    pub fn accept(self) {
        self.reject(Vec::new());
    }

    /// These are refused, the rest applies: NACK that names each. Empty is an ACK.
    pub fn reject(mut self, rejections: Vec<Rejection>) {
        if let Some(ticket) = self.ticket.take() {
            self.shared
                .change(|state| state.verdict(ticket, Some(rejections)));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.change(|state| state.verdict(ticket, None));
        }
    }
}

/// Handle to change subscriptions. Clones share one stream; it closes when all are gone.
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
}

/// Closes the stream when the last [`Client`] goes.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = true);
        self.0.close.notify_one();
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There may be something to send.
    changed: Notify,
    close: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }

    async fn closed(&self) {
        while !self.state().closed {
            self.close.notified().await;
        }
    }
}

impl Client {
    /// Starts connecting on the current tokio runtime; events come in order. `events` that are
    /// not read hold the stream up, not the memory.
    pub fn start(config: Config) -> (Self, mpsc::Receiver<Event>) {
        let shared = Arc::new(Shared::default());
        let (sender, events) = mpsc::channel(4);
        tokio::spawn(stream::run(config, shared.clone(), sender));
        (
            Self {
                handle: Arc::new(Handle(shared)),
            },
            events,
        )
    }

    /// Everything of this type.
    pub fn subscribe_all(&self, type_url: &str) {
        self.handle.0.change(|state| state.subscribe_all(type_url));
    }

    /// These names as well. A name that does not exist is answered in [`Update::removed`].
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.handle
            .0
            .change(|state| state.subscribe(type_url, names));
    }

    /// Of what came with a subscription to everything, the owner has dropped all under names that
    /// begin so; it is not claimed to be held after a reconnect.
    pub fn forget(&self, type_url: &str, prefix: &str) {
        self.handle.0.change(|state| state.forget(type_url, prefix));
    }

    /// These names no longer; the client forgets their versions.
    pub fn unsubscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.handle
            .0
            .change(|state| state.unsubscribe(type_url, names));
    }
}
