//! What a TLS ClientHello says before any handshake: server name and ALPN (RFC 8446 section 4.1.2,
//! RFC 6066 section 3, RFC 7301).
//!
//! Only what chooses a filter chain is read, and nothing is decided about the handshake: what does
//! not read as a ClientHello is left to whoever serves the connection.

use super::sighting::Seen;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Could become a ClientHello.
    More,
    /// A ClientHello longer than the limit.
    TooLarge,
    /// Begins as TLS but is not a ClientHello.
    Broken,
    NotTls,
    Hello(Seen),
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// RFC 8446 section 5.1 allows 2^14; a little more is tolerated as others do.
const MAX_RECORD: usize = (1 << 14) + 256;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
const TLS_1_3: [u8; 2] = [3, 4];
/// A list of more is cut here; a client offers a handful.
const MAX_PROTOCOLS: usize = 64;

/// Looks at the bytes that have come so far.
pub(crate) fn look(bytes: &[u8], limit: usize) -> Look {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let record = match record(rest) {
            Ok(Some((record, after))) => {
                rest = after;
                record
            }
            Ok(None) if message.is_empty() => return more(bytes.len(), limit),
            Ok(None) => return whole(&message, limit).unwrap_or(more(bytes.len(), limit)),
            Err(look) if message.is_empty() => return look,
            Err(_) => return Look::Broken,
        };
        // One record holds a whole ClientHello nearly always; then nothing is copied.
        if message.is_empty() {
            if let Some(look) = whole(record, limit) {
                return look;
            }
        } else if let Some(look) = whole(&message, limit) {
            return look;
        }
        if message.len() + record.len() > limit + HANDSHAKE_HEADER {
            return Look::TooLarge;
        }
        message.extend_from_slice(record);
        if let Some(look) = whole(&message, limit) {
            return look;
        }
    }
}

fn more(have: usize, limit: usize) -> Look {
    if have >= limit + RECORD_HEADER + HANDSHAKE_HEADER {
        Look::TooLarge
    } else {
        Look::More
    }
}

/// A record's content, and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8]);

/// The first record; nothing while it is not all there.
fn record(bytes: &[u8]) -> Result<Option<Record<'_>>, Look> {
    match bytes.first() {
        Some(&HANDSHAKE) | None => {}
        Some(_) => return Err(Look::NotTls),
    }
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(Look::NotTls);
    }
    let Some(header) = bytes.first_chunk::<RECORD_HEADER>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_RECORD {
        return Err(Look::Broken);
    }
    Ok(bytes[RECORD_HEADER..].split_at_checked(length))
}

/// Reads a handshake message if it is complete.
fn whole(message: &[u8], limit: usize) -> Option<Look> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Some(Look::Broken);
    }
    let header = message.first_chunk::<HANDSHAKE_HEADER>()?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    if length > limit {
        return Some(Look::TooLarge);
    }
    let body = message[HANDSHAKE_HEADER..].get(..length)?;
    Some(client_hello(Reader(body)).map_or(Look::Broken, Look::Hello))
}

fn client_hello(mut hello: Reader<'_>) -> Option<Seen> {
    const VERSION_AND_RANDOM: usize = 2 + 32;
    hello.take(VERSION_AND_RANDOM)?;
    hello.short_vector()?;
    let suites = hello.vector()?;
    if suites.0.is_empty() || suites.0.len() % 2 != 0 {
        return None;
    }
    hello.short_vector()?;
    let mut seen = Seen {
        tls: true,
        chacha_first: prefers_chacha(suites.0),
        ..Seen::default()
    };
    if hello.0.is_empty() {
        return Some(seen);
    }
    let mut extensions = hello.vector()?;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector()?;
        match kind {
            SERVER_NAME => seen.server_name = server_name(content)?,
            ALPN => seen.protocols = protocols(content)?,
            SUPPORTED_VERSIONS => seen.tls_1_3 = offers_1_3(content),
            _ => {}
        }
    }
    Some(seen)
}

/// Whether a suite of TLS 1.2 with ChaCha20 stands before all those with AES-128-GCM.
fn prefers_chacha(suites: &[u8]) -> bool {
    // TLS_ECDHE_{RSA,ECDSA}_WITH_CHACHA20_POLY1305_SHA256 and _AES_128_GCM_SHA256.
    let mut suites = suites.chunks_exact(2).map(|suite| (suite[0], suite[1]));
    let first = suites.find(|suite| matches!(suite, (0xcc, 0xa8 | 0xa9) | (0xc0, 0x2b | 0x2f)));
    first.is_some_and(|(high, _)| high == 0xcc)
}

/// RFC 8446 section 4.2.1.
fn offers_1_3(mut content: Reader<'_>) -> bool {
    let versions = content.short_vector();
    versions.is_some_and(|versions| versions.0.chunks_exact(2).any(|one| one == TLS_1_3))
}

/// The host name of the list, in lower case. A name that is not printable ASCII is left out.
fn server_name(mut content: Reader<'_>) -> Option<Box<str>> {
    const HOST_NAME: u8 = 0;
    let mut names = content.vector()?;
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector()?.0;
        if kind == HOST_NAME && name.iter().all(u8::is_ascii_graphic) {
            let name = std::str::from_utf8(name).ok()?;
            return Some(name.to_ascii_lowercase().into());
        }
    }
    Some(Box::default())
}

fn protocols(mut content: Reader<'_>) -> Option<Vec<Box<str>>> {
    let mut list = content.vector()?;
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let name = list.short_vector()?.0;
        if protocols.len() < MAX_PROTOCOLS
            && let Ok(name) = std::str::from_utf8(name)
        {
            protocols.push(name.into());
        }
    }
    Some(protocols)
}

/// Reads numbers and vectors with their lengths from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// With a length of one byte.
    fn short_vector(&mut self) -> Option<Reader<'a>> {
        let length = self.take(1)?[0];
        self.take(usize::from(length)).map(Reader)
    }

    /// With a length of two bytes.
    fn vector(&mut self) -> Option<Reader<'a>> {
        let length = self.number()?;
        self.take(usize::from(length)).map(Reader)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 16 * 1024;

    fn vector(content: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(content);
        out
    }

    /// A ClientHello message in records of at most `record` bytes.
    pub fn hello(name: Option<&str>, alpn: &[&str], padding: usize, record: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut extension = |kind: u16, content: &[u8]| {
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend_from_slice(&vector(content));
        };
        extension(10, &[0, 2, 0, 29]);
        if let Some(name) = name {
            let mut entry = vec![0];
            entry.extend_from_slice(&vector(name.as_bytes()));
            extension(SERVER_NAME, &vector(&entry));
        }
        if !alpn.is_empty() {
            let mut list = Vec::new();
            for name in alpn {
                list.push(u8::try_from(name.len()).unwrap());
                list.extend_from_slice(name.as_bytes());
            }
            extension(ALPN, &vector(&list));
        }
        extension(21, &vec![0; padding]);
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.push(0);
        body.extend_from_slice(&vector(&[0x13, 0x01]));
        body.extend_from_slice(&[1, 0]);
        body.extend_from_slice(&vector(&extensions));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let mut message = vec![CLIENT_HELLO, length[1], length[2], length[3]];
        message.extend_from_slice(&body);
        let mut out = Vec::new();
        for piece in message.chunks(record) {
            out.extend_from_slice(&[HANDSHAKE, 3, 1]);
            out.extend_from_slice(&vector(piece));
        }
        out
    }

    fn seen(name: &str, alpn: &[&str]) -> Look {
        Look::Hello(Seen {
            tls: true,
            server_name: name.into(),
            protocols: alpn.iter().map(|p| Box::from(*p)).collect(),
            ..Seen::default()
        })
    }

    #[test]
    fn name_and_protocols_are_read() {
        let check = |bytes: &[u8], expect| assert_eq!(look(bytes, LIMIT), expect);
        let both = hello(Some("WWW.Example.com"), &["h2", "http/1.1"], 0, 9999);
        check(&both, seen("www.example.com", &["h2", "http/1.1"]));
        check(&hello(None, &["istio"], 0, 9999), seen("", &["istio"]));
        check(&hello(Some("a"), &[], 0, 9999), seen("a", &[]));
        check(b"GET / HTTP/1.1\r\n\r\n", Look::NotTls);
        check(b"\x16\x02", Look::NotTls);
        check(b"\x16\x03\x01\x00\x00", Look::Broken);
        check(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", Look::Broken);
        check(b"", Look::More);
        let mut alert = both.clone();
        alert[9 + 34] = 200;
        check(&alert, Look::Broken);
    }

    #[test]
    fn a_hello_above_the_limit_is_too_large() {
        let bytes = hello(Some("a"), &[], 3000, 500);
        assert_eq!(look(&bytes, 1000), Look::TooLarge);
        assert_eq!(look(&bytes[..1200], 1000), Look::TooLarge);
        assert_eq!(look(&bytes, LIMIT), seen("a", &[]));
    }

    proptest! {
        #[test]
        fn a_hello_in_any_pieces_is_read_once_it_is_whole(
            padding in 0usize..2000,
            record in 1usize..600,
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = hello(Some("db.example.com"), &["h2"], padding, record);
            prop_assert_eq!(look(&bytes, LIMIT), seen("db.example.com", &["h2"]));
            let cut = cut.index(bytes.len());
            prop_assert_eq!(look(&bytes[..cut], LIMIT), Look::More);
        }

        #[test]
        fn no_bytes_make_it_fail(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            real in any::<bool>(),
            at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            if real {
                bytes = hello(Some("db.example.com"), &["h2"], bytes.len(), 100);
            }
            for (at, value) in at {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
            }
            look(&bytes, LIMIT);
        }
    }
}
