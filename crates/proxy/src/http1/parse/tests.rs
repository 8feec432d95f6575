//! What is a head, what is not, and that it does not matter how the bytes arrive.

use super::*;
use crate::http::headers::Known;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    head_bytes: 60 * 1024,
    headers: 100,
    tls: false,
};

fn options() -> Http1Options {
    Http1Options {
        accept_http_10: true,
        ..Http1Options::default()
    }
}

fn parse(text: &[u8]) -> Result<Option<(RequestHead, usize)>, HeadError> {
    let mut block = HeaderBlock::default();
    let parsed = request(text, &mut block, LIMITS, &options())?;
    Ok(parsed.map(|(parts, used)| (parts.with(block), used)))
}

fn head(text: &str) -> RequestHead {
    parse(text.as_bytes()).unwrap().unwrap().0
}

fn error(text: &str) -> HeadError {
    parse(text.as_bytes()).expect_err(&text[..text.len().min(60)])
}

#[test]
fn forms_of_the_request_target() {
    for (line, path, host) in [
        ("GET /a?b HTTP/1.1\r\nhost: h", "/a?b", "h"),
        ("GET http://x:80/a HTTP/1.1\r\nhost: h", "/a", "x:80"),
        ("GET HTTP://x HTTP/1.1\r\nhost: h", "/", "x"),
        ("GET http://x?q HTTP/1.1\r\nhost: h", "/?q", "x"),
        ("OPTIONS * HTTP/1.1\r\nhost: h", "*", "h"),
        ("CONNECT x:1 HTTP/1.1\r\nhost: h", "", "x:1"),
    ] {
        let head = head(&format!("{line}\r\n\r\n"));
        assert_eq!(head.path_bytes(), path.as_bytes(), "{line}");
        assert_eq!(head.authority_bytes(), host.as_bytes(), "{line}");
        assert_eq!(head.headers.all(Known::Host).count(), 1, "{line}");
    }
}

#[test]
fn a_target_is_ascii_and_does_not_claim_tls() {
    let get = |target: &str| error(&format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n"));
    assert_eq!(get("/\u{e9}"), HeadError::Target);
    assert_eq!(get("https://h/"), HeadError::Scheme);
}

#[test]
fn bodies_of_requests() {
    for (headers, body) in [
        ("", BodyLength::None),
        ("content-length: 0\r\n", BodyLength::None),
        ("content-length: 12\r\n", BodyLength::Exactly(12)),
        ("transfer-encoding: Chunked\r\n", BodyLength::Unknown),
    ] {
        assert_eq!(
            head(&format!("POST / HTTP/1.1\r\nhost: h\r\n{headers}\r\n")).body,
            body
        );
    }
}

#[test]
fn what_smuggling_needs_is_refused() {
    use HeadError::*;
    for (headers, expect) in [
        (
            "content-length: 5\r\ntransfer-encoding: chunked",
            LengthAndEncoding,
        ),
        (
            "transfer-encoding: chunked\r\ncontent-length: 5",
            LengthAndEncoding,
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: identity",
            TransferEncoding,
        ),
        ("transfer-encoding: gzip, chunked", TransferEncoding),
        ("transfer-encoding: xchunked", TransferEncoding),
        ("transfer-encoding: chunked, chunked", TransferEncoding),
        ("transfer-encoding:\x0bchunked", Characters),
        ("transfer-encoding : chunked", Syntax),
        ("transfer-encoding\t: chunked", Syntax),
        (" transfer-encoding: chunked", Syntax),
        ("x: y\r\n transfer-encoding: chunked", Syntax),
        ("x: y\r\n\tfolded", Syntax),
        ("x: y\ntransfer-encoding: chunked", BareLf),
        ("x: y\rtransfer-encoding: chunked", Characters),
        ("x: a\0b", Characters),
        ("content-length: 5\r\ncontent-length: 5", ContentLength),
        ("content-length: 5\r\ncontent-length: 6", ContentLength),
        ("content-length: 5, 5", ContentLength),
        ("content-length: +5", ContentLength),
        ("content-length: -5", ContentLength),
        ("content-length: 0x5", ContentLength),
        ("content-length: 5 5", ContentLength),
        ("content-length:", ContentLength),
        ("content-length: 99999999999999999999", ContentLength),
        ("host: other", Host),
        ("no-colon", Syntax),
        (": empty name", Syntax),
    ] {
        let text = format!("POST / HTTP/1.1\r\nhost: h\r\n{headers}\r\n\r\n");
        assert_eq!(error(&text), expect, "{headers:?}");
    }
}

#[test]
fn broken_request_lines_are_refused() {
    use HeadError::*;
    for (text, expect) in [
        ("GET / HTTP/1.1\nhost: h\r\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\nhost: h\n\n", BareLf),
        ("GET / HTTP/1.1\r\nhost: h\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", Authority),
        ("GET / HTTP/1.1\r\nhost: a,b\r\n\r\n", Authority),
        ("GET / HTTP/1.1\r\nhost: u@h\r\n\r\n", Authority),
        ("GET  / HTTP/1.1\r\nhost: h\r\n\r\n", Syntax),
        ("GET / HTTP/2.0\r\nhost: h\r\n\r\n", Syntax),
        ("GET / HTTP/1.1 x\r\nhost: h\r\n\r\n", Syntax),
        ("GET a HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("GET ftp://a/ HTTP/1.1\r\nhost: h\r\n\r\n", UnknownScheme),
        ("GET * HTTP/1.1\r\nhost: h\r\n\r\n", Url),
        ("GET http://u@a/ HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("GET http:/// HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("CONNECT /x HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        (
            "CONNECT h:1 HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\n",
            Target,
        ),
        ("GET http://a:/ HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("GET http://a:0/ HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("GET http://a:99999/ HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("GET http://a:b/ HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        ("GET http://[::1/ HTTP/1.1\r\nhost: h\r\n\r\n", Target),
        (
            "GET http://a/ HTTP/1.1\r\nhost: h\r\nhost: i\r\n\r\n",
            Target,
        ),
        ("GET http://a\\b/ HTTP/1.1\r\nhost: h\r\n\r\n", Authority),
        ("GET / HTTP/1.1\r\nhost: a\"b\r\n\r\n", Authority),
        ("GET / HTTP/1.1\r\nhost: \u{e9}\r\n\r\n", Authority),
        (
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            TransferEncoding,
        ),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03", Syntax),
    ] {
        assert_eq!(error(text), expect, "{text:?}");
    }
}

/// Rules on GET are not got around by an application that reads `get` as GET.
#[test]
fn methods_in_another_case_are_refused_and_other_names_are_not() {
    for method in ["get", "Get", "pOST", "connect"] {
        let text = format!("{method} / HTTP/1.1\r\nhost: h\r\n\r\n");
        assert!(matches!(error(&text), HeadError::Syntax), "{method}");
    }
    for method in ["GET", "gets", "PURGE", "purge"] {
        let text = format!("{method} / HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(head(&text).method_bytes(), method.as_bytes());
    }
}

#[test]
fn http_1_0_needs_no_host_and_is_only_taken_where_allowed() {
    let text = b"GET / HTTP/1.0\r\n\r\n";
    let (head, _) = parse(text).unwrap().unwrap();
    assert_eq!(
        (head.version, head.authority_bytes()),
        (Version::Http10, b"".as_slice())
    );
    let strict = Http1Options::default();
    let refused = request(text, &mut HeaderBlock::default(), LIMITS, &strict);
    assert_eq!(refused, Err(HeadError::Http10));
}

#[test]
fn too_many_bytes_or_headers_are_refused_even_before_the_head_is_complete() {
    let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {}", "a".repeat(62_000));
    assert_eq!(error(&long), HeadError::TooLarge);
    let many = format!(
        "GET / HTTP/1.1\r\nhost: h\r\n{}\r\n",
        "a: b\r\n".repeat(100)
    );
    assert_eq!(error(&many), HeadError::TooMany);
    let very_many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert_eq!(error(&very_many), HeadError::TooMany);
}

#[test]
fn bodies_of_responses() {
    let check = |text: &str, method, body: Result<BodyLength, HeadError>| {
        let parsed = response(text.as_bytes(), HeaderBlock::default(), LIMITS, method);
        assert_eq!(parsed.map(|r| r.unwrap().0.body), body, "{text:?}");
    };
    let get = Method::Get;
    check("HTTP/1.1 200 OK\r\n\r\n", get, Ok(BodyLength::UntilClose));
    check(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        get,
        Ok(BodyLength::Exactly(3)),
    );
    check(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        Method::Head,
        Ok(BodyLength::None),
    );
    check(
        "HTTP/1.1 204 No\r\ncontent-length: 3\r\n\r\n",
        get,
        Err(HeadError::ContentLength),
    );
    check(
        "HTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n",
        get,
        Ok(BodyLength::None),
    );
    check(
        "HTTP/1.1 304 \r\ntransfer-encoding: chunked\r\n\r\n",
        get,
        Ok(BodyLength::None),
    );
    check(
        "HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n",
        get,
        Ok(BodyLength::Unknown),
    );
    check(
        "HTTP/1.1 200 OK\r\n\r\n",
        Method::Connect,
        Ok(BodyLength::None),
    );
    check(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
        get,
        Err(HeadError::LengthAndEncoding),
    );
    check(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: x\r\n\r\n",
        get,
        Err(HeadError::TransferEncoding),
    );
    check("HTTP/1.1 099 OK\r\n\r\n", get, Err(HeadError::Syntax));
    check("HTTP/1.1 200 OK\nx: y\n\n", get, Err(HeadError::BareLf));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes);
        let _ = response(&bytes, HeaderBlock::default(), LIMITS, Method::Get);
    }

    #[test]
    fn a_head_that_is_cut_anywhere_is_incomplete_and_then_the_same(
        names in proptest::collection::vec("[a-zA-Z-]{1,12}", 0..8),
        values in proptest::collection::vec("[ -~]{0,30}", 8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text = String::from("GET /x HTTP/1.1\r\nhost: h\r\n");
        for (name, value) in names.iter().zip(&values) {
            if Known::of(name.as_bytes()) == Known::Other {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text.push_str("\r\nrest");
        let whole = parse(text.as_bytes());
        let complete = text.len() - 4;
        let at = cut.index(complete);
        prop_assert!(matches!(parse(&text.as_bytes()[..at]), Ok(None)));
        let (head, used) = whole.unwrap().unwrap();
        prop_assert_eq!(used, complete);
        let written = { let mut out = Vec::new(); head.headers.write_http1(&mut out); out };
        let again = format!("GET /x HTTP/1.1\r\n{}\r\n", String::from_utf8_lossy(&written));
        let twice = parse(again.as_bytes()).unwrap().unwrap().0;
        let mut rewritten = Vec::new();
        twice.headers.write_http1(&mut rewritten);
        prop_assert_eq!(written, rewritten);
    }
}
