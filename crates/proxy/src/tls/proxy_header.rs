//! The header of the PROXY protocol, as it is sent to endpoints
//! (<https://www.haproxy.org/download/2.1/doc/proxy-protocol.txt>).

use lateen_proxy_config::ProxyVersion;
use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header for a client: where it comes from and where it was going; without one the
/// connection is the proxy's own.
pub(crate) fn write(version: ProxyVersion, client: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let client = client.map(|(from, to)| (canonical(from), canonical(to)));
    match version {
        ProxyVersion::V1 => v1(client),
        ProxyVersion::V2 => v2(client),
    }
}

type Ends = ((IpAddr, u16), (IpAddr, u16));

fn v1(client: Option<Ends>) -> Vec<u8> {
    match client {
        Some(((from, from_port), (to, to_port))) if from.is_ipv4() == to.is_ipv4() => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
        }
        _ => b"PROXY UNKNOWN\r\n".to_vec(),
    }
}

fn v2(client: Option<Ends>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    match client {
        Some(((IpAddr::V4(from), from_port), (IpAddr::V4(to), to_port))) => {
            header.extend_from_slice(&[0x21, 0x11, 0, 12]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header.extend_from_slice(&from_port.to_be_bytes());
            header.extend_from_slice(&to_port.to_be_bytes());
        }
        Some(((IpAddr::V6(from), from_port), (IpAddr::V6(to), to_port))) => {
            header.extend_from_slice(&[0x21, 0x21, 0, 36]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header.extend_from_slice(&from_port.to_be_bytes());
            header.extend_from_slice(&to_port.to_be_bytes());
        }
        // LOCAL, family unspecified.
        _ => header.extend_from_slice(&[0x20, 0, 0, 0]),
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_where_the_client_is() {
        let client = |from: &str, to: &str| Some((from.parse().unwrap(), to.parse().unwrap()));
        let text = |client| String::from_utf8(write(ProxyVersion::V1, client)).unwrap();
        assert_eq!(
            text(client("10.0.0.1:5", "10.0.0.2:80")),
            "PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n"
        );
        assert_eq!(
            text(client("[::1]:5", "[::2]:80")),
            "PROXY TCP6 ::1 ::2 5 80\r\n"
        );
        assert_eq!(text(client("10.0.0.1:5", "[::2]:80")), "PROXY UNKNOWN\r\n");
        assert_eq!(text(None), "PROXY UNKNOWN\r\n");
        let header = write(ProxyVersion::V2, client("10.0.0.1:5", "10.0.0.2:80"));
        assert_eq!(
            &header[12..],
            [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0, 5, 0, 80]
        );
        assert_eq!(write(ProxyVersion::V2, None).len(), 16);
    }
}
