//! What a connected client was sent and what it answered, as plain serialisable values for
//! `proxy-status` and `/debug/syncz`. A copy made for the reader, not the live state.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use crate::Node;
use crate::type_url;

/// How much a copy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// The types, without their resources: some hundred bytes for a client with thousands of them.
    Types,
    Resources,
}

/// One open stream.
#[derive(Clone, Debug)]
pub struct ProxyStatus {
    /// Unique while the control plane runs; `name.namespace-N` as Istio forms it.
    pub connection: String,
    pub node: Node,
    pub peer: String,
    pub protocol: Protocol,
    pub connected_at: SystemTime,
    /// The push that the types below stand at; older than the server's while one is on its way.
    pub version: String,
    /// By type URL; only types the client asked for.
    pub types: BTreeMap<String, TypeStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Delta,
    Sotw,
}

/// State of one type on one stream.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TypeStatus {
    pub wildcard: bool,
    /// Names asked for one by one.
    pub subscribed: usize,
    pub sent: Option<Stamp>,
    pub acked: Option<Stamp>,
    /// The last rejection, until a later response is accepted.
    pub nack: Option<Nack>,
    /// Responses without an answer yet.
    pub outstanding: usize,
    /// A change waits because earlier responses have no answer.
    pub held_back: bool,
    pub resources: BTreeMap<String, ResourceStatus>,
}

/// One response and when it was sent or answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stamp {
    pub version: String,
    pub nonce: String,
    #[serde(serialize_with = "unix_seconds")]
    pub at: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nack {
    pub version: String,
    pub nonce: String,
    /// gRPC status code, `google.rpc.Code`.
    pub code: i32,
    /// The client's whole text.
    pub message: String,
    #[serde(serialize_with = "unix_seconds")]
    pub at: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResourceStatus {
    /// Version last sent.
    pub sent: String,
    /// Version last accepted.
    pub acked: Option<String>,
    pub state: ResourceState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum ResourceState {
    Acked,
    /// Sent, no answer yet.
    Sent,
    /// The client's reason.
    Rejected(String),
}

/// The word `istioctl proxy-status` shows for a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SyncState {
    #[serde(rename = "SYNCED")]
    Synced,
    #[serde(rename = "NOT SENT")]
    NotSent,
    #[serde(rename = "STALE")]
    Stale,
    #[serde(rename = "ERROR")]
    Error,
}

impl SyncState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::NotSent => "NOT SENT",
            Self::Stale => "STALE",
            Self::Error => "ERROR",
        }
    }
}

impl TypeStatus {
    pub fn state(&self) -> SyncState {
        if self.nack.is_some() {
            return SyncState::Error;
        }
        if self.held_back {
            return SyncState::Stale;
        }
        match (&self.sent, &self.acked) {
            // After a reconnect the client may hold everything already.
            (None, _) if !self.resources.is_empty() => SyncState::Synced,
            (None, _) => SyncState::NotSent,
            (Some(sent), Some(acked)) if sent.nonce == acked.nonce => SyncState::Synced,
            _ => SyncState::Stale,
        }
    }
}

impl ProxyStatus {
    /// State of a type; `NotSent` when the client never asked for it.
    pub fn state(&self, type_url: &str) -> SyncState {
        self.types
            .get(type_url)
            .map_or(SyncState::NotSent, TypeStatus::state)
    }

    /// Everything sent was accepted. Secrets that are asked for and not there are not waited for:
    /// nothing is sent of them, not even that they are missing.
    pub fn synced(&self) -> bool {
        self.types.iter().all(|(url, status)| match status.state() {
            SyncState::Synced => true,
            SyncState::NotSent => url == type_url::SECRET,
            SyncState::Stale | SyncState::Error => false,
        })
    }

    /// JSON for `/debug/syncz`: one object per proxy, types by short name.
    pub fn to_json(&self) -> serde_json::Value {
        let types: serde_json::Map<_, _> = self
            .types
            .iter()
            .map(|(url, status)| {
                let mut value = serde_json::to_value(status).unwrap_or_default();
                if let Some(object) = value.as_object_mut() {
                    object.insert("state".into(), status.state().as_str().into());
                }
                (type_url::short(url).to_owned(), value)
            })
            .collect();
        serde_json::json!({
            "connection": self.connection,
            "proxy": self.node.short_id(),
            "id": self.node.id,
            "cluster": self.node.cluster,
            "namespace": self.node.parsed.as_ref().map(|id| id.namespace.clone()),
            "kind": self.node.parsed.as_ref().map(|id| id.kind.as_str()),
            "cluster_id": self.node.metadata_str("CLUSTER_ID"),
            "istio_version": self.node.metadata_str("ISTIO_VERSION"),
            "user_agent": self.node.user_agent,
            "user_agent_version": self.node.user_agent_version,
            "peer": self.peer,
            "protocol": self.protocol,
            "connected_at": seconds(self.connected_at),
            "version": self.version,
            "types": types,
        })
    }
}

fn seconds(at: SystemTime) -> f64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis() as f64 / 1000.0
}

fn unix_seconds<S: serde::Serializer>(at: &SystemTime, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(seconds(*at))
}
