//! The client half: one delta ADS stream, kept open for ever.
//!
//! It owns subscriptions and the versions that were accepted, and nothing of what resources mean:
//! the owner compiles them and answers each [`Update`] through its [`Reply`]. While there is no
//! connection nothing is taken away; the owner serves on with what it has.
//!
//! Invariant: a version counts as held only after the owner accepted it, so that after a
//! reconnect (`initial_resource_versions`) exactly what is missing or was refused comes again.

use std::path::PathBuf;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use tokio::sync::mpsc;

use crate::{Node, Rejection};

/// Where the control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Host (name or address) and port; plaintext HTTP/2.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Config {
    pub target: Target,
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
    pub any: Any,
}

/// The answer that is owed for an [`Update`]; may be given later and from elsewhere. One that is
/// dropped unanswered counts as a rejection of the whole update.
#[derive(Debug)]
pub struct Reply {
    _private: (),
}

impl Reply {
    /// Everything applies: ACK.
    pub fn accept(self) {}

    /// These are refused, the rest applies: NACK that names each. Empty is an ACK.
    pub fn reject(self, rejections: Vec<Rejection>) {
        let _ = rejections;
    }
}

/// Handle to change subscriptions. Clones share one stream; it closes when all are gone.
#[derive(Clone, Debug)]
pub struct Client {
    _private: (),
}

impl Client {
    /// Starts connecting on the current tokio runtime; events come in order.
    pub fn start(config: Config) -> (Self, mpsc::Receiver<Event>) {
        let _ = config;
        let (_sender, events) = mpsc::channel(1);
        (Self { _private: () }, events)
    }

    /// Everything of this type.
    pub fn subscribe_all(&self, type_url: &str) {
        let _ = type_url;
    }

    /// These names as well. A name that does not exist is answered in [`Update::removed`].
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let _ = (type_url, names.into_iter().count());
    }

    /// These names no longer; the client forgets their versions.
    pub fn unsubscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let _ = (type_url, names.into_iter().count());
    }
}
