//! From a socket to a connection that is encrypted.

use super::peer::Peer;
use super::store::{ClientSlot, ServerSlot};
use super::stream::TlsStream;
use crate::io::Io;
use crate::listener::client_hello::{self, Look};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// No ClientHello is longer that is of use.
const HELLO: usize = 16 * 1024;

/// Why there is no encrypted connection.
#[derive(Debug)]
pub(crate) enum Failed {
    /// A secret has not arrived.
    NoSecret,
    Timeout,
    /// The peer closed, or the socket broke.
    Closed,
    Tls(Box<rustls::Error>),
}

impl Failed {
    fn of(error: &io::Error) -> Failed {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(error) => Failed::Tls(Box::new(rustls::Error::clone(error))),
            None => Failed::Closed,
        }
    }

    /// As Envoy says it in `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, with the words people look for.
    pub(crate) fn reason(&self) -> Box<str> {
        let text = match self {
            Failed::NoSecret => "TLS_error:|Secret is not supplied by SDS".to_owned(),
            Failed::Timeout => String::new(),
            Failed::Closed => "TLS_error:|the peer closed within the handshake".to_owned(),
            Failed::Tls(error) => match &**error {
                rustls::Error::InvalidCertificate(reason) => format!(
                    "TLS_error:|268435581:SSL routines:OPENSSL_internal:\
                     CERTIFICATE_VERIFY_FAILED:{reason}:TLS_error_end"
                ),
                error => format!("TLS_error:|{error}:TLS_error_end"),
            },
        };
        // It may stand in a header or a log line.
        let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        clean.collect::<String>().into()
    }
}

/// The server's side of a handshake.
pub(crate) async fn accept(
    mut tcp: TcpStream,
    slot: &Arc<ServerSlot>,
    limit: Option<Duration>,
) -> Result<(Io, Peer), Failed> {
    let context = slot.get().ok_or(Failed::NoSecret)?;
    let _ = tcp.set_nodelay(true);
    let shaken = tokio::time::timeout(limit.unwrap_or(Duration::MAX), async {
        let (first, look) = client_hello(&tcp).await?;
        let seen = match look {
            Look::Hello(seen) => seen,
            // The handshake will say what is wrong with it.
            _ => Default::default(),
        };
        if context.require_sni && seen.server_name.is_empty() {
            return Err(Failed::Tls(Box::new(rustls::Error::General(
                "the client asked for no server name".to_owned(),
            ))));
        }
        let config = context.config_for(&seen).clone();
        let connection = UnbufferedServerConnection::new(config)
            .map_err(|error| Failed::Tls(Box::new(error)))?;
        let mut stream = Box::new(TlsStream::server(connection, first));
        poll_fn(|cx| stream.poll_handshake(&mut tcp, cx))
            .await
            .map_err(|error| Failed::of(&error))?;
        Ok((stream, seen.server_name))
    })
    .await;
    let (stream, server_name) = shaken.map_err(|_| Failed::Timeout)??;
    let local = context.certificates.description(&server_name);
    let peer = Peer::of(stream.state(), server_name, local);
    Ok((Io::with_tls(tcp, stream), peer))
}

/// Reads the client's first message, and what it asks for.
async fn client_hello(tcp: &TcpStream) -> Result<(Vec<u8>, Look), Failed> {
    let mut first = Vec::with_capacity(2048);
    loop {
        tcp.readable().await.map_err(|_| Failed::Closed)?;
        match tcp.try_read_buf(&mut first) {
            Ok(0) => return Err(Failed::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Err(Failed::Closed),
        }
        match client_hello::look(&first, HELLO) {
            Look::More => first.reserve(2048),
            look => return Ok((first, look)),
        }
    }
}

/// What a client's connection is for, which decides what it offers by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    Tcp,
    Http1,
    Http2,
    /// The server chooses between the two.
    Either,
}

/// The client's side of a handshake; and whether the server chose HTTP/2. The caller limits the
/// time.
pub(crate) async fn connect(
    mut tcp: TcpStream,
    slot: &ClientSlot,
    offer: Offer,
    server_name: Option<&str>,
    address: IpAddr,
) -> Result<(Io, bool), Failed> {
    let context = slot.get().ok_or(Failed::NoSecret)?;
    let _ = tcp.set_nodelay(true);
    let config = match offer {
        Offer::Tcp => &context.tcp,
        Offer::Http1 => &context.http1,
        Offer::Http2 => &context.http2,
        Offer::Either => &context.auto,
    };
    // An address is never sent as a server name; here it stands for "none".
    let none = || ServerName::IpAddress(address.into());
    let name = match server_name {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| {
            Failed::Tls(Box::new(rustls::Error::General(format!(
                "'{name}' is not a server name"
            ))))
        })?,
        None => none(),
    };
    let connection = UnbufferedClientConnection::new(config.clone(), name)
        .map_err(|error| Failed::Tls(Box::new(error)))?;
    let mut stream = Box::new(TlsStream::client(connection));
    poll_fn(|cx| stream.poll_handshake(&mut tcp, cx))
        .await
        .map_err(|error| Failed::of(&error))?;
    let http2 = stream.state().alpn_protocol() == Some(b"h2");
    Ok((Io::with_tls(tcp, stream), http2))
}
