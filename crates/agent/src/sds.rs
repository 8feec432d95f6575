//! Envoy's secret discovery over a Unix socket, in both of its protocols.
//!
//! Only the user of the agent can connect: the directory is made with mode 0700, the socket has
//! 0600 before it has its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use crate::Material;
use crate::files::FileSecret;
use crate::secret::{self, TYPE_URL, Versioned};

/// Requests are small; certificates travel the other way.
const REQUEST_BYTES: usize = 64 * 1024;
/// Envoy opens a stream for every secret and context.
const STREAMS_PER_CONNECTION: u32 = 1_000;
/// An Envoy needs one.
const CONNECTIONS: usize = 64;
/// How often files are looked at.
pub const LOOK: Duration = Duration::from_secs(1);
/// Names per stream that are listened to.
const NAMES: usize = 64;

/// Why the socket cannot be served.
#[derive(Debug, Error)]
pub enum SdsError {
    #[error("cannot listen on the socket {path}: {source}; choose another with --sds-socket FILE")]
    Listen { path: PathBuf, source: io::Error },
    #[error("another agent answers on {0} already; choose another with --sds-socket FILE")]
    Taken(PathBuf),
}

/// Answers on a socket that [`bind`] made, for ever.
pub async fn serve(listener: UnixListener, material: watch::Receiver<Material>) {
    let service = SecretDiscoveryServiceServer::new(Sds { material })
        .max_decoding_message_size(REQUEST_BYTES);
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = listener.accept().await;
        let (Ok((socket, _)), Ok(permit)) = (accepted, permits.clone().try_acquire_owned()) else {
            // Out of descriptors, or somebody connects again and again.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = service.clone();
        // A clone of the tonic service is always ready.
        let service = service_fn(move |request| service.clone().call(request));
        tokio::spawn(async move {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(STREAMS_PER_CONNECTION);
            let served = builder
                .serve_connection(TokioIo::new(socket), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection for secrets ended");
            }
            drop(permit);
        });
    }
}

/// A socket that nobody else can use. One that a dead agent left is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, SdsError> {
    let fail = |source| SdsError::Listen {
        path: path.to_owned(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(SdsError::Taken(path.to_owned()));
    }
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(fail)?;
    }
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(fail)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(fail)?;
    fs::rename(&new, path).map_err(fail)?;
    Ok(listener)
}

struct Sds {
    material: watch::Receiver<Material>,
}

/// What one stream asks for and has.
#[derive(Default)]
struct Session {
    names: BTreeSet<String>,
    /// Those that stand in files.
    files: BTreeMap<String, FileSecret>,
    /// By name.
    sent: BTreeMap<String, String>,
    nonce: u64,
}

impl Session {
    /// What it asks for and does not have in this version.
    fn news(&mut self, material: &Material) -> Vec<Versioned> {
        let mut news = Vec::new();
        for name in &self.names {
            let secret = match self.files.get_mut(name) {
                Some(file) => file.look().cloned(),
                None => secret::of(material, name),
            };
            let Some(secret) = secret else {
                continue;
            };
            if self.sent.get(name) != Some(&secret.version) {
                self.sent.insert(name.clone(), secret.version.clone());
                news.push(secret);
            }
        }
        news
    }

    fn subscribe(&mut self, name: String) {
        if self.names.len() >= NAMES {
            return;
        }
        match FileSecret::named(&name) {
            Some(file) => drop(self.files.entry(name.clone()).or_insert(file)),
            None if secret::is_known(&name) => {}
            None => tracing::warn!(
                name,
                "a proxy asks for a secret that the agent does not have"
            ),
        }
        self.names.insert(name);
    }

    fn unsubscribe(&mut self, name: &str) {
        self.names.remove(name);
        self.files.remove(name);
        self.sent.remove(name);
    }

    fn next_nonce(&mut self) -> String {
        self.nonce += 1;
        self.nonce.to_string()
    }

    /// State of the world: the request names all that is wanted.
    fn take(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        tell_refusal(request.error_detail.map(|status| status.message));
        let wanted: BTreeSet<String> = request.resource_names.into_iter().collect();
        let gone: Vec<String> = self.names.difference(&wanted).cloned().collect();
        gone.iter().for_each(|name| self.unsubscribe(name));
        for name in wanted {
            if !self.names.contains(&name) {
                self.subscribe(name);
            }
        }
        Ok(())
    }

    fn take_delta(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        tell_refusal(request.error_detail.map(|status| status.message));
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(name);
        }
        for name in request.resource_names_subscribe {
            // Asked for again, it is sent again.
            self.sent.remove(&name);
            if let Some(version) = request.initial_resource_versions.get(&name) {
                self.sent.insert(name.clone(), version.clone());
            }
            self.subscribe(name);
        }
        Ok(())
    }
}

fn check_type(url: &str) -> Result<(), Status> {
    match url {
        "" | TYPE_URL => Ok(()),
        other => Err(Status::invalid_argument(format!(
            "this is secret discovery; {other} is not answered"
        ))),
    }
}

fn tell_refusal(reason: Option<String>) {
    if let Some(reason) = reason {
        tracing::warn!(reason, "the proxy refused a secret");
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let answer = |session: &mut Session, news: Vec<Versioned>| DiscoveryResponse {
            version_info: news
                .iter()
                .map(|s| s.version.as_str())
                .collect::<Vec<_>>()
                .join("."),
            type_url: TYPE_URL.to_owned(),
            nonce: session.next_nonce(),
            resources: news.into_iter().map(Versioned::take).collect(),
            ..Default::default()
        };
        let stream = request.into_inner();
        Ok(follow(stream, self.material.clone(), Session::take, answer))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let resource = |secret: Versioned| Resource {
            name: secret.name.to_string(),
            version: secret.version.clone(),
            resource: Some(secret.take()),
            ..Default::default()
        };
        let answer = move |session: &mut Session, news: Vec<Versioned>| DeltaDiscoveryResponse {
            type_url: TYPE_URL.to_owned(),
            nonce: session.next_nonce(),
            resources: news.into_iter().map(resource).collect(),
            ..Default::default()
        };
        let stream = request.into_inner();
        let material = self.material.clone();
        Ok(follow(stream, material, Session::take_delta, answer))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let mut session = Session::default();
        session.take(request.into_inner())?;
        let news = session.news(&self.material.borrow());
        if news.is_empty() {
            return Err(Status::unavailable("there is no such secret yet"));
        }
        Ok(Response::new(DiscoveryResponse {
            type_url: TYPE_URL.to_owned(),
            resources: news.into_iter().map(Versioned::take).collect(),
            ..Default::default()
        }))
    }
}

/// One stream: answers what is asked for as soon as it is there, and again when it changes.
fn follow<Q, A>(
    mut requests: Streaming<Q>,
    mut material: watch::Receiver<Material>,
    take: impl Fn(&mut Session, Q) -> Result<(), Status> + Send + 'static,
    answer: impl Fn(&mut Session, Vec<Versioned>) -> A + Send + 'static,
) -> Response<ReceiverStream<Result<A, Status>>>
where
    Q: Send + 'static,
    A: Send + 'static,
{
    let (sender, responses) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut session = Session::default();
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = take(&mut session, request) {
                            let _ = sender.send(Err(status)).await;
                            return;
                        }
                    }
                    Ok(None) | Err(_) => return,
                },
                changed = material.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK), if !session.files.is_empty() => {}
            }
            let news = session.news(&material.borrow_and_update());
            if !news.is_empty() {
                let message = answer(&mut session, news);
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
    });
    Response::new(ReceiverStream::new(responses))
}
