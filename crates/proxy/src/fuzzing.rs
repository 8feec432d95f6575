//! What holds for any bytes that a client sends as HTTP/1 or shows as its certificate. Fuzzing looks
//! for bytes for which it does not.

use crate::http::head::{Method, RequestHead, ResponseHead, Version};
use crate::http::headers::{HeaderBlock, Known};
use crate::http1::body::{BodyError, BodyReader};
use crate::http1::encode::{Encoding, Persistence, request_head, response_head};
use crate::http1::parse::{HeadError, Limits, request, response};
use crate::tls::Description;
use lateen_proxy_config::Http1Options;

const LIMITS: Limits = Limits {
    head_bytes: 60 * 1024,
    headers: 100,
    tls: false,
};

/// Of who reads what we sent on: a header that we add is not one too many.
const ROOM: Limits = Limits {
    head_bytes: 64 * 1024,
    headers: 110,
    tls: false,
};

/// Reads bytes as a request with what follows it, and as a response.
pub fn http1(bytes: &[u8]) {
    if let Ok(Some((head, used))) = read_request(bytes, LIMITS) {
        for shorter in [used - 1, used / 2, used / 3] {
            let part = read_request(&bytes[..shorter], LIMITS);
            assert!(matches!(part, Ok(None)), "complete before its end");
        }
        sent_on_is_the_same(&head);
        body(head.body, &bytes[used..]);
    }
    for method in [Method::Get, Method::Head, Method::Connect] {
        if let Ok(Ok((head, used))) = response(bytes, HeaderBlock::default(), LIMITS, method) {
            answered_is_the_same(&head, method);
            body(head.body, &bytes[used..]);
        }
    }
}

fn read_request(bytes: &[u8], limits: Limits) -> Result<Option<(RequestHead, usize)>, HeadError> {
    let options = Http1Options {
        accept_http_10: true,
        ..Http1Options::default()
    };
    let mut block = HeaderBlock::default();
    let parsed = request(bytes, &mut block, limits, &options)?;
    Ok(parsed.map(|(parts, used)| (parts.with(block), used)))
}

/// A head that was taken is read as the same request, with the same body, by whom it is sent to.
fn sent_on_is_the_same(head: &RequestHead) {
    if head.version == Version::Http10 {
        return;
    }
    let mut sent = Vec::new();
    request_head(&mut sent, head, Encoding::Plain, false);
    let Ok(Some((again, used))) = read_request(&sent, ROOM) else {
        panic!("not read again: {:?}", String::from_utf8_lossy(&sent));
    };
    assert_eq!(used, sent.len());
    assert_eq!(again.method_bytes(), head.method_bytes());
    assert_eq!(again.path_bytes(), head.path_bytes());
    assert_eq!(again.authority_bytes(), head.authority_bytes());
    assert_eq!(again.body, head.body);
    let (ours, theirs) = (fields(&head.headers), fields(&again.headers));
    assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(&sent));
}

fn answered_is_the_same(head: &ResponseHead, method: Method) {
    let mut sent = Vec::new();
    response_head(
        &mut sent,
        head,
        Version::Http11,
        Encoding::Plain,
        Persistence::Default,
    );
    let Ok(Ok((again, used))) = response(&sent, HeaderBlock::default(), ROOM, method) else {
        panic!("not read again: {:?}", String::from_utf8_lossy(&sent));
    };
    assert_eq!(used, sent.len());
    assert_eq!(again.status, head.status);
    assert_eq!(again.body, head.body);
    assert_eq!(fields(&head.headers), fields(&again.headers));
}

/// What the other side is told, without what concerns one connection only or is added on the way.
fn fields(headers: &HeaderBlock) -> Vec<(Vec<u8>, Vec<u8>)> {
    let said = headers.iter().filter(|(known, _, value)| {
        !(*known == Known::Connection || (*known == Known::ContentLength && *value == b"0"))
    });
    said.map(|(_, name, value)| (name.to_ascii_lowercase(), value.to_vec()))
        .collect()
}

/// A body is the same whether it arrives at once or a byte at a time.
fn body(length: crate::http::head::BodyLength, bytes: &[u8]) {
    let whole = read_body(BodyReader::new(length), [bytes]);
    let single = read_body(BodyReader::new(length), bytes.chunks(1));
    assert_eq!(whole, single);
}

type Body = Result<(Vec<u8>, usize, bool), BodyError>;

fn read_body<'b>(mut reader: BodyReader, pieces: impl IntoIterator<Item = &'b [u8]>) -> Body {
    let (mut payload, mut used) = (Vec::new(), 0);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let decoded = reader.decode(&mut piece)?;
        payload.extend_from_slice(&piece[..decoded.payload]);
        used += decoded.consumed;
    }
    let done = reader.is_done();
    if done {
        reader.take_trailers()?;
    }
    Ok((payload, used, done))
}

/// Reads bytes as a client's certificate: what is told of it to others stays on one line.
pub fn certificate(der: &[u8]) {
    let Some(about) = Description::of(der) else {
        return;
    };
    for name in [&about.subject, &about.issuer] {
        assert!(
            !name.chars().any(|c| c.is_ascii_control()),
            "a name breaks the line: {name:?}"
        );
    }
    assert!(about.serial.bytes().all(|b| b.is_ascii_hexdigit()));
    about.is_for("a.example");
}

#[cfg(test)]
mod tests {
    fn replay(name: &str, survive: fn(&[u8])) {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/");
        for entry in std::fs::read_dir(format!("{corpus}{name}")).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            survive(&std::fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_corpora_of_requests_and_certificates_are_survived() {
        replay("http1", super::http1);
        replay("x509", super::certificate);
    }
}
