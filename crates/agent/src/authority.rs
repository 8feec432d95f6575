//! The call of Istio's `IstioCertificateService/CreateCertificate` over TLS.
//!
//! One connection per call: there is one call in half a day.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lateen_proto::istio_ca::{IstioCertificateRequest, IstioCertificateServiceClient};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};
use zeroize::Zeroize;

use crate::{Config, Identity};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(10);
/// No chain is longer.
const ANSWER_BYTES: usize = 1 << 20;
/// No token is longer.
const TOKEN_BYTES: u64 = 64 * 1024;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CallError {
    #[error("cannot read the token {path}: {source}; name it with --token FILE")]
    Token { path: PathBuf, source: io::Error },
    #[error("the token {0} is empty or no token")]
    NoToken(PathBuf),
    #[error("there is neither a token (--token FILE) nor a valid certificate to prove who we are")]
    NoProof,
    #[error("the present certificate cannot be used: {0}")]
    OwnCertificate(String),
    #[error("cannot reach the certificate authority at {ca}: {reason}")]
    Connect { ca: String, reason: String },
    #[error(
        "the certificate authority at {ca} is not trusted: {reason}; is it the mesh's, and are its \
         roots in {roots}?"
    )]
    Untrusted {
        ca: String,
        reason: String,
        roots: PathBuf,
    },
    #[error("the certificate authority at {ca} refused: {reason}")]
    Refused { ca: String, reason: String },
    #[error("no answer of the certificate authority at {0} within {LIMIT:?}")]
    Late(String),
}

/// What proves who we are.
enum Proof {
    Token(MetadataValue<Ascii>),
    Certificate(Arc<Identity>),
}

/// Has a certificate made. `present` stands in for the token where there is none.
pub(crate) async fn create_certificate(
    config: &Config,
    roots: RootCertStore,
    present: Option<Arc<Identity>>,
    csr: String,
) -> Result<Vec<String>, CallError> {
    let proof = proof(config, present).await?;
    let called = tokio::time::timeout(LIMIT, call(config, roots, proof, csr)).await;
    called.map_err(|_| CallError::Late(config.ca.clone()))?
}

async fn proof(config: &Config, present: Option<Arc<Identity>>) -> Result<Proof, CallError> {
    let token = match &config.token {
        None => Err(CallError::NoProof),
        Some(path) => read_token(path).await,
    };
    match (token, present) {
        (Ok(token), _) => Ok(Proof::Token(token)),
        (Err(_), Some(present)) => Ok(Proof::Certificate(present)),
        (Err(error), None) => Err(error),
    }
}

async fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, CallError> {
    let read = async {
        use tokio::io::AsyncReadExt;
        let mut text = String::new();
        let file = tokio::fs::File::open(path).await?;
        file.take(TOKEN_BYTES).read_to_string(&mut text).await?;
        Ok(text)
    };
    let text = read.await.map_err(|source| CallError::Token {
        path: path.to_owned(),
        source,
    })?;
    let no_token = || CallError::NoToken(path.to_owned());
    let token = text.trim();
    if token.is_empty() {
        return Err(no_token());
    }
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| no_token())?;
    value.set_sensitive(true);
    Ok(value)
}

async fn call(
    config: &Config,
    roots: RootCertStore,
    proof: Proof,
    csr: String,
) -> Result<Vec<String>, CallError> {
    let (token, certificate) = match proof {
        Proof::Token(token) => (Some(token), None),
        Proof::Certificate(certificate) => (None, Some(certificate)),
    };
    let stream = connect(config, roots, certificate.as_deref()).await?;
    let fail = |reason: String| CallError::Connect {
        ca: config.ca.clone(),
        reason,
    };
    let channel = channel(stream).await.map_err(|e| fail(innermost(&e)))?;
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(config.lifetime.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    let mut client =
        IstioCertificateServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
    match client.create_certificate(request).await {
        Ok(answer) => Ok(answer.into_inner().cert_chain),
        Err(status) => {
            let reason = match status.code() {
                // The connection broke: a server that refuses our certificate does just that.
                Code::Unknown | Code::Unavailable if status.source().is_some() => {
                    return Err(fail(status.source().map(innermost).unwrap_or_default()));
                }
                code => format!("{code:?}: {}", status.message()),
            };
            let ca = config.ca.clone();
            Err(CallError::Refused { ca, reason })
        }
    }
}

async fn connect(
    config: &Config,
    roots: RootCertStore,
    certificate: Option<&Identity>,
) -> Result<TlsStream<TcpStream>, CallError> {
    let fail = |reason: String| CallError::Connect {
        ca: config.ca.clone(),
        reason,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.to_string()))?
        .with_root_certificates(roots);
    let mut tls = match certificate {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let wrong = |reason: String| CallError::OwnCertificate(reason);
            let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|error| wrong(error.to_string()))?;
            let mut key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())
                .map_err(|error| wrong(error.to_string()))?;
            let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key);
            key.zeroize();
            let signing = signing.map_err(|error| wrong(error.to_string()))?;
            let pair = CertifiedKey::new(chain, signing);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(config.ca_name.clone())
        .map_err(|error| fail(format!("{}: {error}", config.ca_name)))?;
    let tcp = TcpStream::connect(&config.ca)
        .await
        .map_err(|error| fail(error.to_string()))?;
    // One request and one answer: nothing to gain by waiting.
    let _ = tcp.set_nodelay(true);
    let connector = TlsConnector::from(Arc::new(tls));
    connector.connect(name, tcp).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(rustls::Error::InvalidCertificate(reason)) => CallError::Untrusted {
                ca: config.ca.clone(),
                reason: reason.to_string(),
                roots: config.roots.clone(),
            },
            _ => fail(error.to_string()),
        }
    })
}

/// gRPC over a connection that is there.
async fn channel(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::other("the connection is gone")) }
    });
    // The authority is only a name here; TLS is there already.
    Endpoint::from_static("http://lateen-ca")
        .connect_with_connector(connector)
        .await
}

/// The innermost text of an error: the outer ones say only "transport error".
fn innermost(error: &dyn StdError) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
