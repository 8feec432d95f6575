//! Heads and chunks as bytes.

use crate::http::head::{BodyLength, Method, RequestHead, ResponseHead, Version, reason};
use crate::http::headers::{HeaderBlock, Known};
use crate::http::stream::{End, StreamError};
use crate::io::{Backlog, Io};
use std::task::Context;

/// How the body that follows a head is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As it is: by length, by the end of the connection, or no body at all.
    #[default]
    Plain,
    Chunked,
    /// A body of no bytes: HTTP/1 has to say so, or the client waits for the connection to end.
    Empty,
    /// There is no body by the rules of HTTP, so nothing is written, whatever the other side sent.
    Nothing,
}

/// What the `connection` header of a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// The protocol's default; no header.
    Default,
    Close,
    KeepAlive,
    Upgrade,
}

pub(crate) fn request_head(
    out: &mut Vec<u8>,
    head: &RequestHead,
    encoding: Encoding,
    absolute: bool,
) {
    out.extend_from_slice(head.method_bytes());
    out.push(b' ');
    if head.method == Method::Connect {
        out.extend_from_slice(head.authority_bytes());
    } else {
        if absolute {
            out.extend_from_slice(if head.https { b"https://" } else { b"http://" });
            out.extend_from_slice(head.authority_bytes());
        }
        out.extend_from_slice(head.path_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    head.headers.write_http1(out);
    if encoding == Encoding::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    // RFC 9110 section 8.6: some servers answer 411 without it. Envoy's list of methods.
    let expects_body = !matches!(
        head.method,
        Method::Get | Method::Head | Method::Delete | Method::Trace | Method::Connect
    ) && !head.upgrade;
    if expects_body && head.body == BodyLength::None && !head.headers.has(Known::ContentLength) {
        out.extend_from_slice(b"content-length: 0\r\n");
    }
    if head.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn response_head(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    to: Version,
    encoding: Encoding,
    persistence: Persistence,
) {
    // As Envoy, in the client's own version.
    out.extend_from_slice(match to {
        Version::Http10 => b"HTTP/1.0 ",
        _ => b"HTTP/1.1 ",
    });
    decimal(out, u64::from(head.status));
    out.push(b' ');
    let phrase = head.headers.bytes(head.reason);
    if phrase.is_empty() || head.version == Version::Http2 {
        out.extend_from_slice(reason(head.status).as_bytes());
    } else {
        out.extend_from_slice(phrase);
    }
    out.extend_from_slice(b"\r\n");
    head.headers.write_http1(out);
    match encoding {
        Encoding::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Encoding::Empty if !head.headers.has(Known::ContentLength) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Encoding::Plain | Encoding::Empty | Encoding::Nothing => {}
    }
    out.extend_from_slice(match persistence {
        Persistence::Default => b"".as_slice(),
        Persistence::Close => b"connection: close\r\n",
        Persistence::KeepAlive => b"connection: keep-alive\r\n",
        Persistence::Upgrade => b"connection: upgrade\r\n",
    });
    out.extend_from_slice(b"\r\n");
}

/// A number in decimal.
pub(crate) struct Decimal {
    digits: [u8; 20],
    at: usize,
}

impl Decimal {
    pub(crate) fn new(mut n: u64) -> Decimal {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 || at == 0 {
                break;
            }
        }
        Decimal { digits, at }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.at..]
    }
}

/// Appends a number in decimal.
fn decimal(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(Decimal::new(n).as_bytes());
}

/// Appends a chunk's size line.
fn chunk_size(out: &mut Vec<u8>, len: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut shift = (usize::BITS - 4) - (len | 1).leading_zeros() / 4 * 4;
    loop {
        out.push(HEX[len >> shift & 15]);
        if shift == 0 {
            break;
        }
        shift -= 4;
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a head (or nothing, if empty) and a piece of a body in one call.
pub(crate) fn write_piece(
    io: &mut Io,
    backlog: &mut Backlog,
    cx: &mut Context<'_>,
    head: &mut Vec<u8>,
    encoding: Encoding,
    data: &[u8],
    end: &End,
) -> Result<(), StreamError> {
    let trailers: Vec<u8>;
    let mut tail = b"".as_slice();
    let data = if encoding == Encoding::Nothing {
        b""
    } else {
        data
    };
    if encoding == Encoding::Chunked {
        if !data.is_empty() {
            chunk_size(head, data.len());
        }
        tail = match (end, data.is_empty()) {
            (End::More, true) => b"",
            (End::More, false) => b"\r\n",
            (End::Done, true) => b"0\r\n\r\n",
            (End::Done, false) => b"\r\n0\r\n\r\n",
            (End::Trailers(block), empty) => {
                trailers = last_chunk(block, empty);
                &trailers
            }
        };
    }
    backlog
        .write(io, cx, &[head, data, tail])
        .map_err(|_| StreamError::Closed)
}

fn last_chunk(trailers: &HeaderBlock, first: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(if first { b"0\r\n" } else { b"\r\n0\r\n" });
    trailers.write_http1(&mut out);
    out.extend_from_slice(b"\r\n");
    out
}

/// Sets `content-length`.
pub(crate) fn set_length(headers: &mut HeaderBlock, length: u64) {
    headers.set(Known::ContentLength, Decimal::new(length).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_leading_zeros() {
        for n in [0u64, 7, 10, 99, 1234, u64::MAX] {
            let mut out = Vec::new();
            decimal(&mut out, n);
            assert_eq!(out, n.to_string().as_bytes());
        }
        for n in [1usize, 15, 16, 255, 256, 65_536, 0xabcdef, usize::MAX] {
            let mut out = Vec::new();
            chunk_size(&mut out, n);
            assert_eq!(out, format!("{n:x}\r\n").as_bytes());
        }
    }
}
