//! The client's task: connects, moves messages, waits and connects again.
//!
//! It never waits for one direction while the other could move: two ends that both wait to send
//! would wait for ever.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use hyper_util::rt::TokioIo;
use rand::Rng;
use thiserror::Error as ThisError;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

use super::state::resources;
use super::{Backoff, Config, Connection, Event, Reply, Secure, Shared, Socket, Target, Update};

#[derive(Debug, ThisError)]
enum Lost {
    #[error("cannot reach the control plane at {target}: {reason}")]
    Connect { target: String, reason: String },
    #[error("the control plane at {target} ended the stream: {reason}")]
    Ended { target: String, reason: String },
}

/// The owner dropped its handle or its events.
struct Closed;

pub(super) async fn run(config: Config, shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let mut failures = 0;
    while !shared.state().closed && !events.is_closed() {
        let mut heard = false;
        let outcome = tokio::select! {
            outcome = once(&config, &shared, &events, &mut heard) => outcome,
            () = shared.closed() => return,
            () = events.closed() => return,
        };
        let Ok(lost) = outcome else { return };
        failures = if heard { 0 } else { failures + 1 };
        let retry_in = wait(config.backoff, failures);
        let event = Event::Disconnected {
            reason: lost.to_string(),
            retry_in,
        };
        if events.send(event).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(retry_in) => {}
            () = shared.closed() => return,
            () = events.closed() => return,
        }
    }
}

/// "Full jitter": anywhere between nothing and the exponential bound.
pub(super) fn wait(backoff: Backoff, failures: u32) -> Duration {
    let bound = backoff
        .base
        .saturating_mul(1 << failures.min(16))
        .min(backoff.max);
    rand::rng().random_range(Duration::ZERO..=bound)
}

/// One stream, from connecting to its end.
async fn once(
    config: &Config,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<Event>,
    heard: &mut bool,
) -> Result<Lost, Closed> {
    let target = config.target.to_string();
    let connected = tokio::time::timeout(config.connect_timeout, connect(config)).await;
    let channel = match connected {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return Ok(Lost::Connect {
                target,
                reason: chain(&error),
            });
        }
        Err(_) => {
            let reason = format!("no connection within {:?}", config.connect_timeout);
            return Ok(Lost::Connect { target, reason });
        }
    };
    let ended = |status: Status| Lost::Ended {
        target: target.clone(),
        reason: describe(&status),
    };
    shared.state().begin_stream();
    while !shared.state().has_request() {
        // Some servers open their side of a stream only after the first request.
        shared.changed.notified().await;
    }
    let (outbound, requests) = mpsc::channel(32);
    let mut sender = Sender {
        outbound,
        node: Some(config.node.to_proto()),
    };
    sender.fill(shared);
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(config.response_bytes)
        .max_encoding_message_size(usize::MAX);
    let opened = client
        .delta_aggregated_resources(ReceiverStream::new(requests))
        .await;
    let inbound = match opened {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(ended(status)),
    };
    if events.send(Event::Connected).await.is_err() {
        return Err(Closed);
    }
    exchange(inbound, sender, shared, events, heard)
        .await
        .map(ended)
}

async fn exchange(
    mut inbound: Streaming<DeltaDiscoveryResponse>,
    mut sender: Sender,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<Event>,
    heard: &mut bool,
) -> Result<Status, Closed> {
    let mut update: Option<Update> = None;
    loop {
        let pending = shared.state().has_request();
        tokio::select! {
            room = events.reserve(), if update.is_some() => match (room, update.take()) {
                (Ok(room), Some(update)) => room.send(Event::Update(update)),
                _ => return Err(Closed),
            },
            message = inbound.message(), if update.is_none() => match message {
                Ok(Some(response)) => {
                    *heard = true;
                    update = Some(read(response, shared));
                }
                Ok(None) => return Ok(Status::unavailable("closed without a reason")),
                Err(status) => return Ok(status),
            },
            room = sender.outbound.clone().reserve_owned(), if pending => match room {
                Ok(room) => {
                    if let Some(request) = sender.next(shared) {
                        room.send(request);
                    }
                }
                Err(_) => return Ok(Status::unavailable("the request side was closed")),
            },
            () = shared.changed.notified() => {}
            () = events.closed() => return Err(Closed),
        }
    }
}

fn read(response: DeltaDiscoveryResponse, shared: &Arc<Shared>) -> Update {
    let ticket = shared.state().received(&response);
    let (type_url, version) = (
        response.type_url.clone(),
        response.system_version_info.clone(),
    );
    let (resources, removed) = resources(response);
    let reply = Reply {
        shared: shared.clone(),
        ticket: Some(ticket),
    };
    Update {
        type_url,
        version,
        resources,
        removed,
        reply,
    }
}

struct Sender {
    outbound: mpsc::Sender<DeltaDiscoveryRequest>,
    /// Sent once, with the first request of the stream.
    node: Option<envoy_types::pb::envoy::config::core::v3::Node>,
}

impl Sender {
    fn next(&mut self, shared: &Arc<Shared>) -> Option<DeltaDiscoveryRequest> {
        let mut request = shared.state().next_request()?;
        request.node = self.node.take();
        Some(request)
    }

    /// As many requests as there is room for.
    fn fill(&mut self, shared: &Arc<Shared>) {
        while let Ok(room) = self.outbound.clone().try_reserve_owned() {
            match self.next(shared) {
                Some(request) => drop(room.send(request)),
                None => return,
            }
        }
    }
}

pub(super) async fn connect(config: &Config) -> Result<Channel, tonic::transport::Error> {
    // The authority is only a name here; the connector below knows where to go.
    let endpoint = Endpoint::from_static("http://lateen-xds")
        .http2_keep_alive_interval(config.keepalive)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true);
    let (target, secure) = (config.target.clone(), config.secure.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (target, secure) = (target.clone(), secure.clone());
        async move {
            let socket: Socket = match target {
                Target::Tcp { host, port } => {
                    let socket = TcpStream::connect((host.as_str(), port)).await?;
                    socket.set_nodelay(true)?;
                    Either::Left(socket)
                }
                Target::Unix(path) => Either::Right(UnixStream::connect(path).await?),
            };
            let connection: Box<dyn Connection> = match secure {
                None => Box::new(socket),
                Some(Secure(secure)) => secure(socket).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(connection))
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// The innermost texts of an error: the outer ones say only "transport error".
pub(super) fn chain(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

pub(super) fn describe(status: &Status) -> String {
    let reason = status
        .source()
        .map_or_else(|| status.message().to_owned(), chain);
    format!("{:?}: {reason}", status.code())
}
