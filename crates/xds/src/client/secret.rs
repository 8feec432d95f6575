//! Secret discovery (SDS) as Envoy does it: for every secret a state-of-the-world stream of its own,
//! because the agents that answer (Istio's, SPIRE) expect no other.
//!
//! As with the aggregated stream, what came stays while there is no connection.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::rpc;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::stream::{chain, connect, describe, wait};
use super::{Config, Received};
use crate::type_url;

/// Whether a secret applies; the reason if not.
pub type Verdict = Result<(), String>;

/// What happens to one secret, in order.
#[derive(Debug)]
pub enum SecretEvent {
    /// It is there, or there is a newer one. The answer that is owed may be given later.
    Arrived {
        received: Received,
        verdict: oneshot::Sender<Verdict>,
    },
    /// The stream ended or could not be opened; the next attempt comes after `retry_in`.
    Lost { reason: String, retry_in: Duration },
}

/// Asks for one secret for ever; to be spawned. Ends when `events` is no longer read.
pub async fn follow(config: Config, name: String, events: mpsc::Sender<SecretEvent>) {
    let mut failures = 0;
    loop {
        let mut heard = false;
        let Err(reason) = once(&config, &name, &events, &mut heard).await else {
            return;
        };
        failures = if heard { 0 } else { failures + 1 };
        let retry_in = wait(config.backoff, failures);
        let lost = SecretEvent::Lost { reason, retry_in };
        if events.send(lost).await.is_err() {
            return;
        }
        tokio::time::sleep(retry_in).await;
    }
}

/// One stream. `Ok`: nobody reads the events any more.
async fn once(
    config: &Config,
    name: &str,
    events: &mpsc::Sender<SecretEvent>,
    heard: &mut bool,
) -> Result<(), String> {
    let target = &config.target;
    let connected = tokio::time::timeout(config.connect_timeout, connect(config)).await;
    let channel = match connected {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(format!("cannot reach {target}: {}", chain(&error))),
        Err(_) => return Err(format!("no connection to {target} in time")),
    };
    let (requests, outbound) = mpsc::channel(4);
    let mut request = DiscoveryRequest {
        node: Some(config.node.to_proto()),
        type_url: type_url::SECRET.to_owned(),
        resource_names: vec![name.to_owned()],
        ..DiscoveryRequest::default()
    };
    let ended = |status| format!("{target} ended the stream: {}", describe(&status));
    let gone = || format!("{target} ended the stream");
    requests.send(request.clone()).await.map_err(|_| gone())?;
    let mut client =
        SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(config.response_bytes);
    let opened = client.stream_secrets(ReceiverStream::new(outbound)).await;
    let mut inbound = opened.map_err(ended)?.into_inner();
    request.node = None;
    loop {
        let response = tokio::select! {
            message = inbound.message() => message.map_err(ended)?.ok_or_else(gone)?,
            () = events.closed() => return Ok(()),
        };
        *heard = true;
        let (version, nonce) = (response.version_info.clone(), response.nonce.clone());
        let verdict = match received(response, name) {
            // Nothing for us: it is as good as no answer.
            None => Ok(()),
            Some(received) => {
                let (verdict, decided) = oneshot::channel();
                let arrived = SecretEvent::Arrived { received, verdict };
                if events.send(arrived).await.is_err() {
                    return Ok(());
                }
                let stopped = || Err("the proxy stopped working on this secret".to_owned());
                decided.await.unwrap_or_else(|_| stopped())
            }
        };
        request.response_nonce = nonce;
        request.error_detail = None;
        match verdict {
            Ok(()) => request.version_info = version,
            Err(message) => {
                request.error_detail = Some(rpc::Status {
                    code: Code::InvalidArgument as i32,
                    message,
                    ..rpc::Status::default()
                });
            }
        }
        requests.send(request.clone()).await.map_err(|_| gone())?;
    }
}

fn received(response: DiscoveryResponse, name: &str) -> Option<Received> {
    let DiscoveryResponse {
        version_info,
        resources,
        ..
    } = response;
    // One name was asked for. What it is called inside is checked by who compiles it.
    let any = resources.into_iter().next()?;
    Some(Received {
        name: name.to_owned(),
        version: version_info,
        any: any.into(),
    })
}
