//! The header of the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).

use lateen_proxy_config::ProxyProtocol;
use std::net::{IpAddr, SocketAddr};

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Could become a header.
    More,
    /// Malformed, or not of a version that is allowed.
    Bad,
    /// No header, where it may be missing.
    Absent,
    Header {
        /// How many bytes it takes.
        length: usize,
        /// Source and destination; nothing for a connection the proxy before us made itself.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
}

const V1: &[u8] = b"PROXY ";
/// With the closing CR LF.
const V1_LONGEST: usize = 107;
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

/// Looks at the bytes that have come so far.
pub(super) fn look(bytes: &[u8], config: &ProxyProtocol) -> Look {
    let could_be = |start: &[u8]| bytes.starts_with(start) || start.starts_with(bytes);
    let (v1, v2) = (could_be(V1), could_be(V2));
    if bytes.is_empty() {
        return Look::More;
    }
    match (v1 && config.v1, v2 && config.v2) {
        (true, _) if bytes.len() >= V1.len() => version1(bytes),
        (_, true) if bytes.len() >= V2_FIXED => version2(bytes),
        (false, false) if config.optional => Look::Absent,
        (false, false) => Look::Bad,
        _ => Look::More,
    }
}

fn version1(bytes: &[u8]) -> Look {
    let longest = &bytes[..bytes.len().min(V1_LONGEST)];
    let Some(end) = longest.windows(2).position(|two| two == b"\r\n") else {
        return if longest.len() == V1_LONGEST {
            Look::Bad
        } else {
            Look::More
        };
    };
    let Ok(line) = std::str::from_utf8(&bytes[V1.len()..end]) else {
        return Look::Bad;
    };
    let length = end + 2;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Look::Header {
            length,
            addresses: None,
        };
    }
    match text_addresses(line) {
        Some(addresses) => Look::Header {
            length,
            addresses: Some(addresses),
        },
        None => Look::Bad,
    }
}

fn text_addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = line.split(' ');
    let family = words.next()?;
    let mut ip = || -> Option<IpAddr> {
        let ip: IpAddr = words.next()?.parse().ok()?;
        (ip.is_ipv4() == (family == "TCP4")).then_some(ip)
    };
    let (source, destination) = (ip()?, ip()?);
    let mut port = || words.next()?.parse::<u16>().ok();
    let (source_port, destination_port) = (port()?, port()?);
    let known = matches!(family, "TCP4" | "TCP6") && words.next().is_none();
    known.then_some((
        SocketAddr::new(source, source_port),
        SocketAddr::new(destination, destination_port),
    ))
}

fn version2(bytes: &[u8]) -> Look {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let length = V2_FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    match bytes[12] {
        LOCAL | PROXY => {}
        _ => return Look::Bad,
    }
    let Some(body) = bytes.get(V2_FIXED..length) else {
        return Look::More;
    };
    if bytes[12] == LOCAL {
        return Look::Header {
            length,
            addresses: None,
        };
    }
    let addresses = match bytes[13] {
        0x11 => binary_addresses::<4>(body),
        0x21 => binary_addresses::<16>(body),
        // Datagrams, Unix sockets, and what is not specified.
        _ => None,
    };
    match addresses {
        Some(addresses) => Look::Header {
            length,
            addresses: Some(addresses),
        },
        None => Look::Bad,
    }
}

fn binary_addresses<const N: usize>(body: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let ports = rest.first_chunk::<4>()?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((
        SocketAddr::new(IpAddr::from(*source), port(0)),
        SocketAddr::new(IpAddr::from(*destination), port(2)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STRICT: ProxyProtocol = ProxyProtocol {
        optional: false,
        v1: true,
        v2: true,
    };

    fn header(length: usize, addresses: Option<(&str, &str)>) -> Look {
        Look::Header {
            length,
            addresses: addresses.map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap())),
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut out = V2.to_vec();
        out.extend_from_slice(&[command, family, 0, u8::try_from(body.len()).unwrap()]);
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn headers_of_both_versions_are_read() {
        let check = |bytes: &[u8], expect| {
            assert_eq!(look(bytes, &STRICT), expect, "{}", bytes.escape_ascii());
        };
        let tcp4 = b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\nGET /";
        check(tcp4, header(38, Some(("10.0.0.1:1234", "10.0.0.2:80"))));
        check(&tcp4[..37], Look::More);
        check(
            b"PROXY TCP6 ::1 ::2 1 2\r\n",
            header(24, Some(("[::1]:1", "[::2]:2"))),
        );
        check(b"PROXY UNKNOWN\r\n", header(15, None));
        check(b"PROXY UNKNOWN a b c\r\n", header(21, None));
        check(b"PROXY TCP4 ::1 ::2 1 2\r\n", Look::Bad);
        check(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 99999\r\n", Look::Bad);
        check(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n", Look::Bad);
        check(b"PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n", Look::Bad);
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 120]].concat();
        check(&long, Look::Bad);
        check(b"GET / HTTP/1.1\r\n", Look::Bad);
        let body = [10, 0, 0, 1, 10, 0, 0, 2, 4, 210, 0, 80, 4, 0, 1, 0];
        let whole = v2(0x21, 0x11, &body);
        check(&whole, header(32, Some(("10.0.0.1:1234", "10.0.0.2:80"))));
        check(&whole[..20], Look::More);
        check(&v2(0x20, 0, &[]), header(16, None));
        check(&v2(0x31, 0x11, &body), Look::Bad);
        check(&v2(0x21, 0x12, &body), Look::Bad);
        check(&v2(0x21, 0x21, &body), Look::Bad);
    }

    #[test]
    fn a_header_may_be_missing_or_of_the_wrong_version() {
        let lenient = ProxyProtocol {
            optional: true,
            ..STRICT
        };
        assert_eq!(look(b"GET / HTTP/1.1\r\n", &lenient), Look::Absent);
        assert_eq!(look(b"PRO", &lenient), Look::More);
        let only2 = ProxyProtocol {
            v1: false,
            ..STRICT
        };
        assert_eq!(look(b"PROXY UNKNOWN\r\n", &only2), Look::Bad);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(start in 0usize..3, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let start: &[u8] = [b"".as_slice(), V1, V2][start];
            look(&[start, &bytes].concat(), &STRICT);
        }
    }
}
