//! A certificate authority that does what a test wants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_agent::{Backoff, Config, KeyKind};
use lateen_proto::istio_ca::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService,
    IstioCertificateServiceServer,
};
use lateen_testkit::certificates::{Authority, file};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};
use tower::Service;

pub const NAME: &str = "istiod.istio-system.svc";
pub const ID: &str = "spiffe://td/ns/shop/sa/cart";

/// What the authority does, and what it has seen.
pub struct Rules {
    pub lifetime: Duration,
    /// `None`: a certificate of the connection is proof enough.
    pub token: Option<&'static str>,
    /// How many certificates it makes before it is down.
    pub left: usize,
    /// How each caller proved who it is: its token, or `certificate`.
    pub callers: Vec<String>,
    pub asked_seconds: i64,
    /// Sent behind the certificate instead of the authority's own root.
    pub roots: Option<String>,
}

pub struct Ca {
    pub authority: Arc<Authority>,
    pub rules: Arc<Mutex<Rules>>,
    pub address: SocketAddr,
    pub directory: tempfile::TempDir,
}

struct Serving {
    authority: Arc<Authority>,
    rules: Arc<Mutex<Rules>>,
    certified: bool,
}

impl IstioCertificateService for Serving {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let mut rules = self.rules.lock().unwrap();
        let Some(left) = rules.left.checked_sub(1) else {
            return Err(Status::unavailable("down for maintenance"));
        };
        let token = request.metadata().get("authorization");
        let token = token.map(|value| value.to_str().unwrap().to_owned());
        let good = rules.token.map(|token| format!("Bearer {token}"));
        let caller = match (token, self.certified) {
            (Some(token), _) if Some(&token) == good.as_ref() => token,
            (None, true) => "certificate".to_owned(),
            _ => return Err(Status::unauthenticated("who are you?")),
        };
        rules.left = left;
        rules.callers.push(caller);
        let asked = request.into_inner();
        rules.asked_seconds = asked.validity_duration;
        let leaf = self.authority.sign(&asked.csr, rules.lifetime);
        let root = rules.roots.clone();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf, root.unwrap_or_else(|| self.authority.pem.clone())],
        }))
    }
}

impl Ca {
    pub async fn start() -> Self {
        let authority = Arc::new(Authority::new("mesh"));
        let rules = Arc::new(Mutex::new(Rules {
            lifetime: Duration::from_secs(3600),
            token: Some("good"),
            left: usize::MAX,
            callers: Vec::new(),
            asked_seconds: 0,
            roots: None,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = authority.issue("istiod", &[NAME]);
        let tls = pair.server_for_any(&authority, &["h2"]);
        tokio::spawn(accept(listener, tls, authority.clone(), rules.clone()));
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), "root.pem", &authority.pem);
        file(directory.path(), "token", "good\n");
        Self {
            authority,
            rules,
            address,
            directory,
        }
    }

    pub fn config(&self) -> Config {
        Config {
            ca: self.address.to_string(),
            ca_name: NAME.into(),
            roots: self.path("root.pem"),
            revoked: Some(self.path("ca-crl.pem")),
            token: Some(self.path("token")),
            spiffe_id: Some(ID.into()),
            key: KeyKind::Ecdsa,
            lifetime: Duration::from_secs(3600),
            grace_ratio: 0.5,
            grace_jitter: 0.01,
            output: None,
            backoff: Backoff {
                base: Duration::from_millis(20),
                max: Duration::from_millis(200),
            },
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        file(self.directory.path(), name, content);
    }

    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().unwrap());
    }

    pub fn callers(&self) -> Vec<String> {
        self.rules.lock().unwrap().callers.clone()
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    authority: Arc<Authority>,
    rules: Arc<Mutex<Rules>>,
) {
    while let Ok((socket, _)) = listener.accept().await {
        let acceptor = TlsAcceptor::from(tls.clone());
        let (authority, rules) = (authority.clone(), rules.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(socket).await else {
                return;
            };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let serving = Serving {
                authority,
                rules,
                certified,
            };
            let service = IstioCertificateServiceServer::new(Arc::new(serving), 100_000);
            let service = service_fn(move |request| service.clone().call(request));
            let builder = http2::Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
