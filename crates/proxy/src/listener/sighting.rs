//! What becomes known of a connection before its filter chain is chosen.

use lateen_proxy_config::ConnectionFacts;
use lateen_telemetry::format::{Field, Headers, Source, Value};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::SystemTime;
use tokio::net::TcpStream;

/// A connection as its listener sees it.
#[derive(Debug)]
pub(crate) struct Sighting {
    /// The other end of the socket.
    pub direct_peer: SocketAddr,
    /// Where the connection comes from: what a PROXY header says, else the other end.
    pub peer: SocketAddr,
    /// This end of the socket.
    pub direct_local: SocketAddr,
    /// Where the client was going, if that is not this end.
    pub original_destination: Option<SocketAddr>,
    pub seen: Seen,
}

/// What the first bytes of a connection show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub tls: bool,
    /// SNI in lower case.
    pub server_name: Box<str>,
    /// ALPN, or the version of a plain HTTP request.
    pub protocols: Vec<Box<str>>,
    /// TLS 1.3 is offered.
    pub tls_1_3: bool,
    /// Of the ciphers of TLS 1.2, ChaCha20 is offered before AES-128-GCM.
    pub chacha_first: bool,
}

/// A connection that no filter chain takes, as its access log shows it.
pub(super) struct Refused<'a>(pub &'a Sighting);

impl Source for Refused<'_> {
    fn header(&self, _of: Headers, _name: &str) -> Option<&[u8]> {
        None
    }

    fn value(&self, field: Field) -> Value<'_> {
        let Refused(sighting) = self;
        match field {
            Field::UpstreamRequestAttemptCount => Value::Number(0),
            Field::StartTime => Value::Time(SystemTime::now()),
            Field::ResponseCode | Field::BytesReceived | Field::BytesSent | Field::Duration => {
                Value::Number(0)
            }
            Field::ResponseFlags => Value::List(&["NR"]),
            Field::ResponseCodeDetails => Value::Text(b"filter_chain_not_found"),
            Field::DownstreamRemoteAddress => Value::Address(sighting.peer),
            Field::DownstreamDirectRemoteAddress => Value::Address(sighting.direct_peer),
            Field::DownstreamLocalAddress => Value::Address(sighting.destination()),
            Field::RequestedServerName => {
                let name = &*sighting.seen.server_name;
                Value::text(Some(name).filter(|name| !name.is_empty()))
            }
            _ => Value::Absent,
        }
    }
}

impl Sighting {
    /// A client without an address came over a Unix domain socket: it is on this machine.
    pub(super) fn new(tcp: &TcpStream, peer: Option<SocketAddr>) -> std::io::Result<Sighting> {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let direct_local = match peer {
            Some(_) => tcp.local_addr()?,
            None => here,
        };
        let peer = peer.unwrap_or(here);
        Ok(Sighting {
            direct_peer: peer,
            peer,
            direct_local,
            original_destination: None,
            seen: Seen::default(),
        })
    }

    /// Where the client was going.
    pub(crate) fn destination(&self) -> SocketAddr {
        self.original_destination.unwrap_or(self.direct_local)
    }

    /// Asks the kernel where the connection was going before it was redirected.
    pub(super) fn ask_kernel(&mut self, tcp: &TcpStream) {
        if let Some(address) = original_destination(tcp, self.direct_local) {
            self.original_destination = Some(address);
        }
    }

    /// Takes over what the header of the PROXY protocol says.
    pub(super) fn believe(&mut self, source: SocketAddr, destination: SocketAddr) {
        self.peer = source;
        self.original_destination =
            Some(destination).filter(|address| *address != self.direct_local);
    }

    pub(super) fn facts(&self) -> ConnectionFacts<'_> {
        ConnectionFacts {
            destination: self.destination(),
            direct_source: self.direct_peer.ip(),
            source: self.peer,
            server_name: &self.seen.server_name,
            transport_protocol: if self.seen.tls { "tls" } else { "raw_buffer" },
            application_protocols: &self.seen.protocols,
        }
    }
}

#[cfg(target_os = "linux")]
fn original_destination(tcp: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(tcp);
    let address = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    // Without redirection the kernel has nothing to tell, or tells the address of the socket
    // itself; to go there would be to call oneself.
    address
        .ok()?
        .as_socket()
        .filter(|address| *address != local)
}

#[cfg(not(target_os = "linux"))]
fn original_destination(_tcp: &TcpStream, _local: SocketAddr) -> Option<SocketAddr> {
    None
}
