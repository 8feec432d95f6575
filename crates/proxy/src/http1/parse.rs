//! Bytes to heads, strictly: what two parsers could read in two ways is refused.
//!
//! `httparse` finds the lines; the rules that keep request smuggling out are here (RFC 9112
//! sections 2.2, 3.2, 5.1, 6.1, 6.3, 11.2): no bare LF, no folded lines, no space before the
//! colon, one `content-length`, no `content-length` beside `transfer-encoding`, one `host`.
//!
//! Pure: bytes in, a head or an error out.

use crate::http::head::{BodyLength, Method, RequestHead, ResponseHead, Version};
use crate::http::headers::{HeaderBlock, Known, Span, has_token};
use lateen_proxy_config::Http1Options;
use std::mem::MaybeUninit;

/// Room for header lines on the stack; a listener may allow fewer.
const MAX_HEADERS: usize = 256;

/// What a connection takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub head_bytes: usize,
    pub headers: usize,
    /// The connection is encrypted.
    pub tls: bool,
}

/// Why bytes are not a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("not HTTP/1")]
    Syntax,
    #[error("a line ends with a bare LF")]
    BareLf,
    #[error("the head is too long")]
    TooLarge,
    #[error("there are too many headers")]
    TooMany,
    #[error("a header's value has characters that no value may have")]
    Characters,
    #[error("the target is none that this method can have")]
    Url,
    #[error("the target's scheme is not http")]
    UnknownScheme,
    #[error("host is no authority")]
    Authority,
    #[error("content-length is not one number")]
    ContentLength,
    #[error("content-length beside transfer-encoding")]
    LengthAndEncoding,
    #[error("a transfer-encoding other than chunked")]
    TransferEncoding,
    #[error("https asked for on a connection without TLS")]
    Scheme,
    #[error("no host, or more than one")]
    Host,
    #[error("HTTP/1.0 is not accepted here")]
    Http10,
    #[error("the request target is malformed")]
    Target,
}

/// A parsed head and how many bytes it took.
type Parsed<H> = Result<Option<(H, usize)>, HeadError>;

/// Parses a request head. `Ok(None)`: more bytes are needed.
pub(crate) fn request(
    bytes: &[u8],
    block: &mut HeaderBlock,
    limits: Limits,
    options: &Http1Options,
) -> Parsed<RequestParts> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let used = match parsed.parse_with_uninit_headers(bytes, &mut lines) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return partial(bytes, limits),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooMany),
        Err(httparse::Error::HeaderValue) => return Err(HeadError::Characters),
        Err(_) => return Err(HeadError::Syntax),
    };
    load(bytes, used, parsed.headers, block, limits)?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HeadError::Syntax);
    };
    let at = |text: &str| Span::new(offset(bytes, text.as_bytes()), text.len());
    if Method::is_disguised(method.as_bytes()) {
        return Err(HeadError::Syntax);
    }
    let method = Method::usual(method.as_bytes()).unwrap_or_else(|| Method::Other(at(method)));
    let version = if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    };
    if version == Version::Http10 && !options.accept_http_10 {
        return Err(HeadError::Http10);
    }
    let (path, https) = target_form(target, method, at(target), block, options, limits.tls)?;
    check_host(block, version, options)?;
    let body = request_framing(block, version, options)?;
    // What follows CONNECT is the tunnel's, so a body would be read in two ways.
    if method == Method::Connect && body != BodyLength::None {
        return Err(HeadError::Target);
    }
    Ok(Some((
        RequestParts {
            method,
            path,
            https,
            version,
            body,
        },
        used,
    )))
}

/// What [`request`] finds besides the headers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RequestParts {
    pub method: Method,
    pub path: Span,
    pub https: bool,
    pub version: Version,
    pub body: BodyLength,
}

impl RequestParts {
    pub(crate) fn with(self, headers: HeaderBlock) -> RequestHead {
        // An offer to change the protocol may be ignored (RFC 9110 section 7.8). It is when the
        // request has a body, which the new protocol could be mistaken for, and when HTTP/2 is
        // offered, as some client libraries do with every request.
        let upgrade = self.version == Version::Http11
            && self.body == BodyLength::None
            && headers
                .get(Known::Upgrade)
                .is_some_and(|offer| !offer.eq_ignore_ascii_case(b"h2c"))
            && has_token(&headers, Known::Connection, b"upgrade");
        RequestHead {
            method: self.method,
            path: self.path,
            https: self.https,
            version: self.version,
            body: self.body,
            upgrade,
            headers,
        }
    }
}

/// Parses a response head to a request with `method`.
pub(crate) fn response(
    bytes: &[u8],
    mut block: HeaderBlock,
    limits: Limits,
    method: Method,
) -> Result<Result<(ResponseHead, usize), HeaderBlock>, HeadError> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let used = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => {
            return partial::<()>(bytes, limits).map(|_| Err(block));
        }
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(_) => return Err(HeadError::Syntax),
    };
    load(bytes, used, parsed.headers, &mut block, limits)?;
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Syntax);
    };
    if status < 100 {
        return Err(HeadError::Syntax);
    }
    let reason = parsed.reason.map_or(Span::default(), |reason| {
        Span::new(offset(bytes, reason.as_bytes()), reason.len())
    });
    let body = response_framing(&block, status, method)?;
    let version = if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    };
    Ok(Ok((
        ResponseHead {
            status,
            reason,
            version,
            body,
            headers: block,
        },
        used,
    )))
}

fn partial<T>(bytes: &[u8], limits: Limits) -> Result<Option<T>, HeadError> {
    if bytes.len() >= limits.head_bytes {
        Err(HeadError::TooLarge)
    } else {
        Ok(None)
    }
}

fn offset(base: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(base.as_ptr() as usize)
}

/// Copies the head into the block and points the entries at it.
fn load(
    bytes: &[u8],
    used: usize,
    lines: &[httparse::Header<'_>],
    block: &mut HeaderBlock,
    limits: Limits,
) -> Result<(), HeadError> {
    if used > limits.head_bytes {
        return Err(HeadError::TooLarge);
    }
    if lines.len() > limits.headers {
        return Err(HeadError::TooMany);
    }
    let head = bytes.get(..used).ok_or(HeadError::Syntax)?;
    // `httparse` takes a bare LF as a line end. A line ends where the next begins, so it is enough
    // to look in front of each header and at the end.
    if !head.ends_with(b"\r\n\r\n") {
        return Err(HeadError::BareLf);
    }
    block.load(head);
    for line in lines {
        let name = offset(bytes, line.name.as_bytes());
        if head.get(name.wrapping_sub(2)..name) != Some(b"\r\n".as_slice()) {
            return Err(HeadError::BareLf);
        }
        let value = if line.value.is_empty() {
            name
        } else {
            offset(bytes, line.value)
        };
        block.push_span(
            Known::of(line.name.as_bytes()),
            Span::new(name, line.name.len()),
            Span::new(value, line.value.len()),
        );
    }
    Ok(())
}

/// Origin, absolute, authority or asterisk form (RFC 9112 section 3.2). In absolute form the
/// authority of the target replaces `host` (section 3.2.2).
fn target_form(
    target: &str,
    method: Method,
    span: Span,
    block: &mut HeaderBlock,
    options: &Http1Options,
    tls: bool,
) -> Result<(Span, bool), HeadError> {
    // Everything else is escaped in a target (RFC 3986 section 2).
    if !target.is_ascii() {
        return Err(HeadError::Target);
    }
    if method == Method::Connect {
        if target.contains('/') || !target.contains(':') {
            return Err(HeadError::Target);
        }
        block.set(Known::Host, target.as_bytes());
        return Ok((Span::default(), false));
    }
    if target.starts_with('/') || (target == "*" && method == Method::Options) {
        return Ok((span, false));
    }
    let (https, rest) = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => {
            if !tls {
                // The application would take it for a request that came over TLS.
                return Err(HeadError::Scheme);
            }
            (true, rest)
        }
        Some(_) => return Err(HeadError::UnknownScheme),
        None if target == "*" => return Err(HeadError::Url),
        None => return Err(HeadError::Target),
    };
    if !options.allow_absolute_url {
        return Err(HeadError::Target);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // User information in an authority only serves to deceive (RFC 9110 section 4.2.4).
    if authority.is_empty() || authority.contains('@') {
        return Err(HeadError::Target);
    }
    if block.all(Known::Host).nth(1).is_some() || !has_good_port(authority) {
        return Err(HeadError::Target);
    }
    block.set(Known::Host, authority.as_bytes());
    let path = if path.is_empty() {
        block.store(b"/")
    } else if path.starts_with('/') {
        Span::new(span.end() - path.len(), path.len())
    } else {
        block.store(format!("/{path}").as_bytes())
    };
    Ok((path, https))
}

/// Whether the port of an authority, if it has one, is a port.
fn has_good_port(authority: &str) -> bool {
    let port = match authority.strip_prefix('[') {
        Some(address) => match address.split_once(']') {
            Some((_, "")) => return true,
            Some((_, rest)) => rest.strip_prefix(':'),
            None => None,
        },
        None => match authority.split_once(':') {
            Some((_, port)) => Some(port),
            None => return true,
        },
    };
    port.is_some_and(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse().is_ok_and(|n: u16| n > 0)
    })
}

/// Whether the bytes can be host and port (RFC 3986 section 3.2), without user information and
/// without the comma that a list of hosts would have.
pub(crate) fn is_authority(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:%[]".contains(b))
}

fn check_host(
    block: &mut HeaderBlock,
    version: Version,
    options: &Http1Options,
) -> Result<(), HeadError> {
    match block.all(Known::Host).count() {
        1 => {}
        0 if version == Version::Http10 => {
            let default = options.default_host_for_http_10.as_bytes();
            block.push_front(Known::Host, default);
        }
        _ => return Err(HeadError::Host),
    }
    let host = block.get(Known::Host).unwrap_or_default();
    if is_authority(host) {
        Ok(())
    } else {
        Err(HeadError::Authority)
    }
}

fn request_framing(
    block: &mut HeaderBlock,
    version: Version,
    options: &Http1Options,
) -> Result<BodyLength, HeadError> {
    if block.has(Known::TransferEncoding) {
        // A 1.0 peer does not know chunked; one that sends it is broken or malicious
        // (RFC 9112 section 6.1).
        if version == Version::Http10 {
            return Err(HeadError::TransferEncoding);
        }
        only_chunked(block)?;
        if block.has(Known::ContentLength) {
            if !options.allow_chunked_length {
                return Err(HeadError::LengthAndEncoding);
            }
            block.remove(Known::ContentLength);
        }
        return Ok(BodyLength::Unknown);
    }
    Ok(match content_length(block)? {
        None | Some(0) => BodyLength::None,
        Some(length) => BodyLength::Exactly(length),
    })
}

fn response_framing(
    block: &HeaderBlock,
    status: u16,
    method: Method,
) -> Result<BodyLength, HeadError> {
    let bodiless = matches!(status, 100..=199 | 204 | 304) || method == Method::Head;
    let tunnel = method == Method::Connect && (200..300).contains(&status);
    let length = content_length(block)?;
    // These have no body, so one that announces it makes the connection ambiguous: what follows
    // could be taken for the answer to the next request (RFC 9110 section 8.6, RFC 9112 6.1).
    if matches!(status, 100..=199 | 204) {
        if block.has(Known::TransferEncoding) {
            return Err(HeadError::TransferEncoding);
        }
        if length.is_some_and(|length| length > 0) {
            return Err(HeadError::ContentLength);
        }
    }
    if block.has(Known::TransferEncoding) && !tunnel {
        only_chunked(block)?;
        if length.is_some() {
            return Err(HeadError::LengthAndEncoding);
        }
        return Ok(if bodiless {
            BodyLength::None
        } else {
            BodyLength::Unknown
        });
    }
    Ok(match length {
        _ if bodiless || tunnel => BodyLength::None,
        None => BodyLength::UntilClose,
        Some(0) => BodyLength::None,
        Some(length) => BodyLength::Exactly(length),
    })
}

fn only_chunked(block: &HeaderBlock) -> Result<(), HeadError> {
    let mut values = block.all(Known::TransferEncoding);
    let first = values.next().unwrap_or_default();
    if values.next().is_some() || !first.eq_ignore_ascii_case(b"chunked") {
        return Err(HeadError::TransferEncoding);
    }
    Ok(())
}

fn content_length(block: &HeaderBlock) -> Result<Option<u64>, HeadError> {
    let mut values = block.all(Known::ContentLength);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    // Even equal duplicates are refused: a peer behind us might read the other one.
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::ContentLength);
    }
    let text = std::str::from_utf8(value).map_err(|_| HeadError::ContentLength)?;
    text.parse().map(Some).map_err(|_| HeadError::ContentLength)
}

#[cfg(test)]
mod tests;
