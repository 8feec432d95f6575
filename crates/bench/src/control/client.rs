//! Delta ADS clients as sidecars are: clusters and listeners whole, endpoints and routes by name, and
//! the virtual hosts of those as resources of their own, as Envoy asks for them; everything is
//! acknowledged at once.
//!
//! A hundred of them share the machine with the control plane that is measured, so they do as
//! little as can be: of a response only names, type and nonce are read, and nothing is kept. Their
//! windows are as wide as Envoy's, so that the control plane never waits for them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use lateen_xds::{VIRTUAL_HOSTS_BY_NAME, type_url};
use prost::Message;
use prost::bytes::Buf;
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

use super::Kind;
use crate::error::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(120);
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Envoy's default for HTTP/2 towards upstreams, streams and connections.
const WINDOW: u32 = 16 << 20;

/// What a client waits for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A virtual host, whichever.
    Routes,
    /// Endpoints of this name.
    Endpoints(String),
    /// A cluster of this name, its endpoints, and a virtual host, if not of a gateway.
    Service(String),
}

/// Clients on their streams.
pub struct Clients {
    wanted: watch::Sender<(u64, Option<Wanted>)>,
    done: mpsc::Receiver<(u64, Instant)>,
    count: usize,
    round: u64,
    bytes: Arc<AtomicU64>,
    messages: Arc<AtomicU64>,
    /// Clients that have been given something of every type.
    ready: Arc<AtomicUsize>,
}

impl Clients {
    /// Connects all and asks for everything.
    pub async fn connect(
        xds: SocketAddr,
        kind: Kind,
        count: usize,
        services: usize,
    ) -> Result<Clients> {
        let (wanted, receiver) = watch::channel((0, None));
        let (sender, done) = mpsc::channel(count.max(1) * 4);
        let (bytes, messages, ready) = (Arc::default(), Arc::default(), Arc::default());
        for index in 0..count {
            let client = Client {
                kind,
                index,
                services,
                wanted: receiver.clone(),
                done: sender.clone(),
                bytes: Arc::clone(&bytes),
                messages: Arc::clone(&messages),
                ready: Arc::clone(&ready),
                types: BTreeSet::new(),
                seen: Seen::default(),
                round: 0,
                told: 0,
            };
            let uri = format!("http://{xds}");
            let channel = tonic::transport::Endpoint::from_shared(uri)
                .map_err(|error| failed("connect to the control plane", &error))?
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .connect()
                .await
                .map_err(|error| failed("connect to the control plane", &error))?;
            tokio::spawn(client.run(channel));
        }
        Ok(Clients {
            wanted,
            done,
            count,
            round: 0,
            bytes,
            messages,
            ready,
        })
    }

    /// Waits until each client has been given something of every type, and then nothing more came
    /// for a while.
    pub async fn settle(&self) {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.messages.load(Ordering::Relaxed);
            if now == before && self.ready.load(Ordering::Relaxed) >= self.count {
                return;
            }
            before = now;
        }
    }

    /// Bytes of resources that all clients got so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Says what to wait for.
    pub fn expect(&mut self, wanted: Wanted) {
        self.round += 1;
        self.wanted.send_replace((self.round, Some(wanted)));
    }

    /// When the first and the last client acknowledged what was expected.
    pub async fn acknowledged(&mut self) -> Result<(Instant, Instant)> {
        let mut last = Instant::now();
        let mut first = None;
        let mut left = self.count;
        while left > 0 {
            let answer = tokio::time::timeout(PATIENCE, self.done.recv()).await;
            match answer {
                Ok(Some((round, at))) if round == self.round => {
                    first.get_or_insert(at);
                    last = last.max(at);
                    left -= 1;
                }
                Ok(Some(_)) => {}
                _ => {
                    let reason = std::io::Error::other(format!("{left} clients did not get it"));
                    return Err(Error::io("wait for a change", reason));
                }
            }
        }
        Ok((first.unwrap_or(last), last))
    }
}

fn failed(action: &'static str, error: &dyn std::fmt::Display) -> Error {
    Error::io(action, std::io::Error::other(error.to_string()))
}

#[derive(Default)]
struct Seen {
    routes: bool,
    cluster: bool,
    endpoints: bool,
}

struct Client {
    kind: Kind,
    index: usize,
    services: usize,
    wanted: watch::Receiver<(u64, Option<Wanted>)>,
    done: mpsc::Sender<(u64, Instant)>,
    bytes: Arc<AtomicU64>,
    messages: Arc<AtomicU64>,
    ready: Arc<AtomicUsize>,
    /// Types something of which has come.
    types: BTreeSet<String>,
    seen: Seen,
    round: u64,
    /// The last round that was told to be complete.
    told: u64,
}

impl Client {
    async fn run(mut self, channel: tonic::transport::Channel) {
        let (requests, outbound) = mpsc::channel(64);
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
        if let Err(error) = client.ready().await {
            return eprintln!("client {}: {error}", self.index);
        }
        let first = DeltaDiscoveryRequest {
            node: Some(self.node()),
            type_url: type_url::CLUSTER.to_owned(),
            ..Default::default()
        };
        let _ = requests.send(first).await;
        for url in [type_url::LISTENER, type_url::ROUTE] {
            let names = if url == type_url::ROUTE {
                vec![self.table().to_owned()]
            } else {
                Vec::new()
            };
            let _ = requests.send(subscription(url, names)).await;
        }
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(METHOD);
        let outbound = Request::new(ReceiverStream::new(outbound));
        let answer = client.streaming(outbound, path, Skim).await;
        let mut inbound = match answer {
            Ok(answer) => answer.into_inner(),
            Err(error) => return eprintln!("client {}: {error}", self.index),
        };
        while let Ok(Some(response)) = inbound.message().await {
            let acknowledgement = DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce.clone(),
                ..Default::default()
            };
            let names: Vec<String> = match response.type_url == type_url::CLUSTER {
                true => added_clusters(&response),
                false => Vec::new(),
            };
            let _ = requests.send(acknowledgement).await;
            if response.type_url == type_url::ROUTE && !self.types.contains(type_url::ROUTE) {
                // Once, whatever tables come later.
                let hosts = subscription(type_url::VIRTUAL_HOST, Vec::new());
                let _ = requests.send(hosts).await;
            }
            if !names.is_empty() {
                let _ = requests.send(subscription(type_url::ENDPOINT, names)).await;
            }
            self.note(&response).await;
        }
    }

    async fn note(&mut self, response: &Skimmed) {
        self.bytes.fetch_add(response.bytes, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
        const TYPES: usize = 5;
        if self.types.len() < TYPES && self.types.insert(response.type_url.clone()) {
            let complete = self.types.len() == TYPES;
            self.ready
                .fetch_add(usize::from(complete), Ordering::Relaxed);
        }
        let (round, wanted) = self.wanted.borrow_and_update().clone();
        if round != self.round {
            self.round = round;
            self.seen = Seen::default();
        }
        let has = |name: &str| response.resources.iter().any(|one| one.name == name);
        let complete = match wanted {
            None => return,
            Some(Wanted::Routes) => response.type_url == type_url::VIRTUAL_HOST,
            Some(Wanted::Endpoints(name)) => response.type_url == type_url::ENDPOINT && has(&name),
            Some(Wanted::Service(name)) => {
                self.seen.routes |= response.type_url == type_url::VIRTUAL_HOST
                    // Its virtual hosts are those of rules.
                    || self.kind == Kind::Gateway;
                self.seen.cluster |= response.type_url == type_url::CLUSTER && has(&name);
                self.seen.endpoints |= response.type_url == type_url::ENDPOINT && has(&name);
                self.seen.routes && self.seen.cluster && self.seen.endpoints
            }
        };
        if complete && self.told != round {
            self.told = round;
            let _ = self.done.send((round, Instant::now())).await;
        }
    }

    /// The route table that it asks for.
    fn table(&self) -> &'static str {
        match self.kind {
            Kind::Sidecar => "http_proxy",
            Kind::Captured => "80",
            Kind::Gateway => "http.80",
        }
    }

    fn node(&self) -> Node {
        let service = super::mesh::name(self.index % self.services.max(1));
        let text = |text: &str| Value {
            kind: Some(value::Kind::StringValue(text.to_owned())),
        };
        let mut fields = vec![("NAMESPACE", text("n0"))];
        match self.kind {
            Kind::Sidecar => fields.extend([
                ("INTERCEPTION_MODE", text("NONE")),
                ("HTTP_PROXY_PORT", text("15101")),
            ]),
            Kind::Captured => fields.push(("INTERCEPTION_MODE", text("REDIRECT"))),
            Kind::Gateway => {
                let labels = [("bench".to_owned(), text("gateway"))];
                let labels = Struct {
                    fields: labels.into_iter().collect(),
                };
                let labels = Value {
                    kind: Some(value::Kind::StructValue(labels)),
                };
                fields.push(("LABELS", labels));
            }
        }
        let role = match self.kind {
            Kind::Gateway => "router",
            _ => "sidecar",
        };
        let fields = fields.into_iter();
        let fields = fields.map(|(key, value)| (key.to_owned(), value)).collect();
        Node {
            id: format!(
                "{role}~10.0.0.1~{service}-c{}.n0~n0.svc.cluster.local",
                self.index
            ),
            cluster: service,
            metadata: Some(Struct { fields }),
            client_features: vec![VIRTUAL_HOSTS_BY_NAME.to_owned()],
            ..Default::default()
        }
    }
}

/// What is read of a `DeltaDiscoveryResponse`; prost steps over the rest.
#[derive(Clone, PartialEq, Message)]
struct Skimmed {
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Named>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    /// Of the whole message; no field of it.
    #[prost(uint64, tag = "1000")]
    bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "3")]
    name: String,
}

struct Skim;

impl Codec for Skim {
    type Encode = DeltaDiscoveryRequest;
    type Decode = Skimmed;
    type Encoder = Skim;
    type Decoder = Skim;

    fn encoder(&mut self) -> Skim {
        Skim
    }

    fn decoder(&mut self) -> Skim {
        Skim
    }
}

impl Encoder for Skim {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn encode(
        &mut self,
        request: Self::Item,
        bytes: &mut EncodeBuf<'_>,
    ) -> std::result::Result<(), Status> {
        let encoded = request.encode(bytes);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Skim {
    type Item = Skimmed;
    type Error = Status;

    fn decode(
        &mut self,
        bytes: &mut DecodeBuf<'_>,
    ) -> std::result::Result<Option<Skimmed>, Status> {
        let length = bytes.remaining() as u64;
        let read = Skimmed::decode(bytes);
        let mut read = read.map_err(|error| Status::internal(error.to_string()))?;
        read.bytes = length;
        Ok(Some(read))
    }
}

fn subscription(url: &str, names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        resource_names_subscribe: names,
        ..Default::default()
    }
}

/// Clusters of services, whose endpoints are asked for. Asking again for known ones is answered
/// again, so only new names are given when there are few.
fn added_clusters(response: &Skimmed) -> Vec<String> {
    let names: BTreeSet<String> = response
        .resources
        .iter()
        .map(|one| one.name.clone())
        .filter(|name| name.starts_with("outbound|"))
        .collect();
    names.into_iter().collect()
}

/// Waits until the API answers.
pub async fn wait_for(api: SocketAddr) -> Result {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if request(api, "GET", "/version", "").await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(failed(
        "reach the control plane",
        &"its API does not answer",
    ))
}

/// Applies one document.
pub async fn apply(api: SocketAddr, path: &str, document: &Json) -> Result {
    let answer = request(api, "PATCH", path, &document.to_string()).await;
    let answer = answer.map_err(|source| Error::io("apply a change", source))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    match status.starts_with('2') {
        true => Ok(()),
        false => Err(failed("apply a change", &answer)),
    }
}

async fn request(api: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(api).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {api}\r\nconnection: close\r\n\
         x-lateen-advice: later\r\ncontent-type: application/apply-patch+yaml\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
