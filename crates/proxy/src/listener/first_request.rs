//! Whether the first bytes of a plain connection are an HTTP request.

/// What the first bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Could become a request.
    More,
    /// A request line without end.
    TooLarge,
    NotHttp,
    Http10,
    Http11,
    Http2,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at the bytes that have come so far, `limit` at most.
pub(super) fn look(bytes: &[u8], limit: usize) -> Look {
    if bytes.starts_with(PREFACE) {
        return Look::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Look::More;
    }
    let (line, whole) = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => (&bytes[..end], true),
        None => (bytes, false),
    };
    let method = line.iter().position(|b| *b == b' ');
    let token = &line[..method.unwrap_or(line.len())];
    if token.is_empty() || !token.iter().all(|b| is_token(*b)) {
        // A carriage return may stand at the end of what has come, and then the line has one word.
        return Look::NotHttp;
    }
    let rest = &line[token.len()..];
    if rest.iter().any(|b| b.is_ascii_control() && *b != b'\r') {
        return Look::NotHttp;
    }
    match (whole, bytes.len() >= limit) {
        (true, _) => version(rest),
        (false, true) => Look::TooLarge,
        (false, false) => Look::More,
    }
}

/// From the end of a request line.
fn version(line: &[u8]) -> Look {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(at) = line.iter().rposition(|b| *b == b' ') else {
        return Look::NotHttp;
    };
    // Between method and version stands a target.
    let target = line[..at].trim_ascii();
    match (&line[at + 1..], target.is_empty()) {
        (b"HTTP/1.1", false) => Look::Http11,
        ([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'], false) => Look::Http10,
        _ => Look::NotHttp,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_other_bytes() {
        let check = |bytes: &[u8], expect| {
            assert_eq!(look(bytes, 64), expect, "{}", bytes.escape_ascii());
        };
        check(b"GET / HTTP/1.1\r\n", Look::Http11);
        check(b"GET / HTTP/1.1\nhost: a\n", Look::Http11);
        check(b"POST http://a/b HTTP/1.0\r\n\r\n", Look::Http10);
        check(b"PROPFIND /x HTTP/1.1\r\n", Look::Http11);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Look::Http2);
        check(b"PRI * HTTP/2.0\r\n\r\n", Look::More);
        check(b"PRI /x HTTP/1.1\r\n", Look::Http11);
        check(b"", Look::More);
        check(b"G", Look::More);
        check(b"GET / HTT", Look::More);
        check(b"PING\r\n", Look::NotHttp);
        check(b"*1\r\n$4\r\nPING\r\n", Look::NotHttp);
        check(b"hello world\n", Look::NotHttp);
        check(b"GET  HTTP/1.1\n", Look::NotHttp);
        check(b"\r\nGET / HTTP/1.1\r\n", Look::NotHttp);
        check(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Look::NotHttp);
        check(b"GET /\x00", Look::NotHttp);
        check(&[b'a'; 64], Look::TooLarge);
    }
}
