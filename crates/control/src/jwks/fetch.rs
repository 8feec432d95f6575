//! One fetch of keys: discovery if needed, redirects, bounds.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lateen_api::request_authentication::check_key_set;
use lateen_model::{Compliance, KeySource};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::uri::Uri;
use crate::compliance;

/// Bytes of a discovery document or a key set; those of large issuers have some 10 KiB.
const MAX_BODY: usize = 1 << 20;
const MAX_REDIRECTS: usize = 5;
/// Where systems keep the certificates they trust (as Go's crypto/x509 looks).
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// OpenID Connect Discovery 1.0 section 4.
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Why there are no keys.
#[derive(Debug, Error)]
pub(crate) enum FetcherError {
    #[error("{0}")]
    Uri(String),
    #[error("{uri}: no answer within {limit:?}")]
    TooSlow { uri: String, limit: Duration },
    #[error("{uri}: {reason}")]
    Failed { uri: String, reason: String },
}

/// Addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    bits: u8,
}

impl Cidr {
    /// Reads `ADDRESS/BITS`.
    pub fn parse(text: &str) -> Result<Cidr, String> {
        let bad = || format!("{text:?} is not a CIDR, as 10.0.0.0/8");
        let (network, bits) = text.split_once('/').ok_or_else(bad)?;
        let network: IpAddr = network.parse().map_err(|_| bad())?;
        let bits: u8 = bits.parse().map_err(|_| bad())?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        match bits <= most {
            true => Ok(Cidr { network, bits }),
            false => Err(bad()),
        }
    }

    /// Whether an address is one of them; an IPv4 address in IPv6 form is that IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let bits = u32::from(self.bits);
            bits == 0 || (a ^ b) >> (width - bits) == 0
        };
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

/// Fetches over HTTP and HTTPS.
pub(crate) struct Fetcher {
    tls: TlsConnector,
    /// Nothing is fetched from these.
    blocked: Vec<Cidr>,
}

impl Fetcher {
    /// Trusts what the system trusts, and the certificates of a file.
    pub fn new(
        blocked: Vec<Cidr>,
        extra_roots: Option<&PathBuf>,
        policy: Option<Compliance>,
    ) -> Result<Fetcher, String> {
        let mut roots = RootCertStore::empty();
        let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let known = SYSTEM_ROOTS.iter().map(PathBuf::from);
        let system = given.into_iter().chain(known).find(|path| path.exists());
        if let Some(path) = system
            && let Ok(certificates) = read_certificates(&path)
        {
            roots.add_parsable_certificates(certificates);
        }
        if let Some(path) = extra_roots {
            let certificates = read_certificates(path)?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(format!("{}: there is no certificate in it", path.display()));
            }
        }
        let (provider, versions) = compliance::tls(policy);
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Fetcher {
            tls: TlsConnector::from(Arc::new(config)),
            blocked,
        })
    }

    /// The keys of a source. All of it takes no longer than `limit`.
    pub async fn keys(
        &self,
        source: &KeySource,
        limit: Duration,
    ) -> Result<Arc<str>, FetcherError> {
        let until = Instant::now() + limit;
        let uri = match source.uri.is_empty() {
            false => source.uri.clone(),
            true => self.discover(&source.issuer, until, limit).await?,
        };
        let text = self.get(&uri, until, limit).await?;
        // What a proxy would refuse does not take the place of what it has.
        check_key_set(&text).map_err(|reason| FetcherError::Failed {
            reason: format!("the key set cannot be used: {reason}"),
            uri,
        })?;
        Ok(Arc::from(text))
    }

    /// Where an issuer says that its keys are. As with redirects, from https nothing leads to http.
    async fn discover(
        &self,
        issuer: &str,
        until: Instant,
        limit: Duration,
    ) -> Result<String, FetcherError> {
        let uri = format!("{}{DISCOVERY}", issuer.trim_end_matches('/'));
        let text = self.get(&uri, until, limit).await?;
        let document: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let secure = |uri: &str| Uri::parse(uri).is_ok_and(|uri| uri.https);
        let reason = match document["jwks_uri"].as_str() {
            Some(keys) if secure(&uri) && !secure(keys) => {
                format!("its jwks_uri {keys:?} gives up TLS")
            }
            Some(keys) => return Ok(keys.to_owned()),
            None => "it does not say a jwks_uri".to_owned(),
        };
        Err(FetcherError::Failed { uri, reason })
    }

    async fn get(
        &self,
        uri: &str,
        until: Instant,
        limit: Duration,
    ) -> Result<String, FetcherError> {
        let parsed = Uri::parse(uri).map_err(FetcherError::Uri)?;
        let failed = |reason| FetcherError::Failed {
            uri: uri.to_owned(),
            reason,
        };
        match tokio::time::timeout_at(until, self.follow(parsed)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(FetcherError::TooSlow {
                uri: uri.to_owned(),
                limit,
            }),
        }
    }

    async fn follow(&self, mut uri: Uri) -> Result<String, String> {
        for _ in 0..=MAX_REDIRECTS {
            match self.once(&uri).await? {
                Answer::Text(text) => return Ok(text),
                Answer::Elsewhere(location) => uri = uri.redirected(&location)?,
            }
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }

    async fn once(&self, uri: &Uri) -> Result<Answer, String> {
        let stream = self.connect(uri).await?;
        if !uri.https {
            return ask(stream, uri).await;
        }
        let name = ServerName::try_from(uri.host.clone()).map_err(|e| e.to_string())?;
        let stream = self.tls.connect(name, stream).await;
        ask(stream.map_err(|e| format!("TLS: {e}"))?, uri).await
    }

    /// Connects to one of the host's addresses. That they are allowed is asked of the very addresses
    /// that are connected to, so no name can point elsewhere in between.
    async fn connect(&self, uri: &Uri) -> Result<TcpStream, String> {
        let found = tokio::net::lookup_host((uri.host.as_str(), uri.port)).await;
        let found: Vec<SocketAddr> = found
            .map_err(|e| format!("{} is not found: {e}", uri.host))?
            .collect();
        let mut last = format!("{} has no address", uri.host);
        for address in found {
            if let Some(block) = self.blocked.iter().find(|b| b.contains(address.ip())) {
                last = format!("{} is in {block}, which is blocked", address.ip());
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    }
}

fn read_certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: rustls::pki_types::pem::Error| format!("{}: {error}", path.display());
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(wrong)
}

enum Answer {
    Text(String),
    /// A redirect to this location.
    Elsewhere(String),
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
) -> Result<Answer, String> {
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(words)?;
    let request = axum::http::Request::get(&uri.target)
        .header(header::HOST, &uri.authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "lateen")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(words)?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(header::LOCATION);
            let location = location.and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| format!("status {status} without location"))?;
            return Ok(Answer::Elsewhere(location.to_owned()));
        }
        if !status.is_success() {
            return Err(format!("status {status}"));
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body =
            body.map_err(|_| format!("the body is cut off, or larger than {MAX_BODY} bytes"))?;
        let text = String::from_utf8(body.to_bytes().to_vec());
        text.map(Answer::Text)
            .map_err(|_| "the body is not text".to_owned())
    };
    // The connection moves while the answer is waited for, and ends with it.
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
