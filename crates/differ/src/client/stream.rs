//! A client's connection, plain or encrypted.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use lateen_testkit::certificates::{Authority, Pair};
use lateen_testkit::tls_client;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{PATIENCE, Seen};
use crate::corpus::ClientTls;
use crate::{Result, failed};

/// The authority of the mesh; its key signs what clients show.
pub static MESH: LazyLock<Authority> = LazyLock::new(|| Authority::new("Mesh"));
static UNKNOWN: LazyLock<Authority> = LazyLock::new(|| Authority::new("Unknown"));

/// What came of a try to connect.
pub enum Opened {
    Stream(Stream),
    /// No handshake; what the client saw of it.
    Refused(Seen),
}

/// A connection.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Closes it with a reset.
    pub fn reset(self) {
        let tcp = match &self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        };
        let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
    }

    /// What the handshake came to.
    pub fn agreed(&self) -> Option<Value> {
        let Stream::Tls(tls) = self else {
            return None;
        };
        let state = tls.get_ref().1;
        let version = match state.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            _ => "1.2",
        };
        let protocol = state.alpn_protocol().unwrap_or_default();
        Some(json!({"version": version, "alpn": String::from_utf8_lossy(protocol)}))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// The client's side of a handshake.
pub async fn encrypt(tcp: TcpStream, tls: &ClientTls) -> Result<Opened> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config(tls)));
    let name = match tls.sni.as_str() {
        // An address is not sent.
        "" => ServerName::try_from("127.0.0.1"),
        name => ServerName::try_from(name.to_owned()),
    };
    let name = name.map_err(failed(&tls.sni))?;
    let shaken = tokio::time::timeout(PATIENCE, connector.connect(name, tcp)).await;
    let connection = match shaken {
        Ok(Ok(stream)) => return Ok(Opened::Stream(Stream::Tls(Box::new(stream)))),
        Ok(Err(error)) => json!({"end": "no handshake", "why": why(&error)}),
        Err(_) => json!({"end": "no handshake", "why": "nothing came"}),
    };
    Ok(Opened::Refused(Seen {
        answers: Vec::new(),
        connection,
    }))
}

fn why(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => format!("alert {alert:?}"),
        Some(other) => other.to_string(),
        None => format!("{:?}", error.kind()),
    }
}

/// What a proxy shows is not what cases are about, so every server is taken.
fn config(tls: &ClientTls) -> ClientConfig {
    let alpn: Vec<&str> = tls.alpn.iter().map(String::as_str).collect();
    let mut config = tls_client::config(pair(&tls.identity).as_ref(), &alpn);
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// The certificate of an identity as [`ClientTls::identity`] says it.
fn pair(identity: &str) -> Option<Pair> {
    let (kind, account) = identity.split_once(':').unwrap_or(("", identity));
    let (namespace, account) = account.split_once('/')?;
    let domain = match kind {
        "foreign" => "elsewhere.example",
        _ => "cluster.local",
    };
    let uri = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
    Some(once(identity, || match kind {
        "expired" => MESH.issue_expired("", &[&uri]),
        "unknown" => UNKNOWN.issue("", &[&uri]),
        _ => MESH.issue("", &[&uri]),
    }))
}

/// The certificate of a server with this DNS name.
pub fn server(name: &str) -> Pair {
    once(name, || MESH.issue(name, &[name]))
}

/// What was made for a name before: both planes see the same certificates.
fn once(name: &str, make: impl FnOnce() -> Pair) -> Pair {
    static PAIRS: LazyLock<Mutex<HashMap<String, Pair>>> = LazyLock::new(Mutex::default);
    let mut pairs = PAIRS.lock().unwrap_or_else(PoisonError::into_inner);
    pairs.entry(name.to_owned()).or_insert_with(make).clone()
}
