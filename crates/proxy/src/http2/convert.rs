//! Header blocks to the `http` crate's maps and back.

use crate::http::head::{BodyLength, Method, RequestHead, ResponseHead, Version};
use crate::http::headers::{HeaderBlock, Known, Span};
use crate::http::stream::StreamError;
use crate::http1::body::forbidden_in_trailers;
use crate::http1::parse::is_authority;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::sync::LazyLock;

/// Headers that have no meaning in HTTP/2 (RFC 9113 section 8.2.2), and `host`, which travels as
/// `:authority`.
fn is_http1_only(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade
            | Known::Host
            | Known::Http2Settings
    )
}

/// The names that have an id, by id: to look one up is cheaper than to read it.
static NAMES: LazyLock<Box<[HeaderName]>> = LazyLock::new(|| {
    let other = HeaderName::from_static("x-other");
    let named = Known::all().map(|known| HeaderName::from_static(known.name()));
    std::iter::once(other).chain(named).collect()
});

/// A block as a map. What cannot be a header is left out; the codecs refuse it before.
pub(super) fn to_map(block: &HeaderBlock) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(block.len());
    for (known, name, value) in block.iter() {
        if is_http1_only(known) {
            continue;
        }
        let name = match known {
            Known::Other => HeaderName::from_bytes(name).ok(),
            known => NAMES.get(known as usize).cloned(),
        };
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

fn push_map(block: &mut HeaderBlock, map: &HeaderMap) {
    for (name, value) in map {
        let bytes = name.as_str().as_bytes();
        match Known::of(bytes) {
            Known::Host => {}
            Known::Other => block.push_name(bytes, value.as_bytes()),
            known => block.push(known, value.as_bytes()),
        }
    }
}

/// Trailers as a block, without those that have no place there.
pub(super) fn trailers(map: &HeaderMap) -> HeaderBlock {
    let mut block = HeaderBlock::default();
    push_map(&mut block, map);
    block.remove_if(|known, name, _| forbidden_in_trailers(known, name));
    block
}

/// Whether a request can be passed on: one good authority, no more headers than are allowed, and a
/// method that is what it looks like.
pub(super) fn is_acceptable(parts: &http::request::Parts, max_headers: usize) -> bool {
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    let authority = parts.uri.authority().map(|a| a.as_str().as_bytes());
    hosts.next().is_none()
        && parts.headers.len() <= max_headers
        && !Method::is_disguised(parts.method.as_str().as_bytes())
        && authority
            .or(host)
            .is_some_and(|value| !value.is_empty() && is_authority(value))
}

/// A received request head.
pub(super) fn request(
    parts: &http::request::Parts,
    mut block: HeaderBlock,
    has_body: bool,
) -> RequestHead {
    let host = parts
        .headers
        .get(http::header::HOST)
        .map(HeaderValue::as_bytes);
    let authority = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes())
        .or(host);
    block.push_front(Known::Host, authority.unwrap_or_default());
    let name = parts.method.as_str().as_bytes();
    // What HTTP/1 calls an upgrade (RFC 8441 section 4); from here on it is one.
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    let method = match protocol {
        Some(_) => Method::Get,
        None => Method::usual(name).unwrap_or_else(|| Method::Other(block.store(name))),
    };
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let path = if method == Method::Connect {
        Span::default()
    } else {
        block.store(path.as_bytes())
    };
    push_map(&mut block, &parts.headers);
    join_cookies(&mut block);
    one_length(&mut block);
    if let Some(protocol) = protocol {
        // A tunnel has no length, and an upgrade that was asked for in another way is none.
        block.remove(Known::ContentLength);
        block.set(Known::Upgrade, protocol.as_ref());
    }
    let tunnel = protocol.is_some() || method == Method::Connect;
    let length = block
        .get(Known::ContentLength)
        .and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
    let body = match (has_body && !tunnel, length) {
        (false, _) => BodyLength::None,
        (true, Some(length)) => BodyLength::Exactly(length),
        (true, None) => BodyLength::Unknown,
    };
    RequestHead {
        method,
        path,
        https: parts.uri.scheme_str() == Some("https"),
        version: Version::Http2,
        body,
        upgrade: protocol.is_some(),
        headers: block,
    }
}

/// An HTTP/1 peer must never see two lengths.
fn one_length(block: &mut HeaderBlock) {
    if block.all(Known::ContentLength).nth(1).is_some() {
        let first = block.get(Known::ContentLength).unwrap_or_default().to_vec();
        block.set(Known::ContentLength, &first);
    }
}

/// HTTP/2 may split a cookie into several fields; HTTP/1 wants one (RFC 9113 section 8.2.3).
fn join_cookies(block: &mut HeaderBlock) {
    if block.all(Known::Cookie).nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = block.all(Known::Cookie).collect();
    let joined = parts.join(b"; ".as_slice());
    block.set(Known::Cookie, &joined);
}

/// A request head to send.
pub(super) fn to_request(head: &RequestHead) -> Result<http::Request<()>, StreamError> {
    let method = match head.upgrade {
        true => http::Method::CONNECT,
        false => {
            http::Method::from_bytes(head.method_bytes()).map_err(|_| StreamError::Protocol)?
        }
    };
    let mut uri = http::Uri::builder().authority(head.authority_bytes());
    if head.method != Method::Connect {
        let path = head.path_bytes();
        uri = uri
            .scheme(if head.https { "https" } else { "http" })
            .path_and_query(path);
    }
    let mut request = http::Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.build().map_err(|_| StreamError::Protocol)?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = to_map(&head.headers);
    if head.upgrade {
        let protocol = head.headers.get(Known::Upgrade).unwrap_or_default();
        let protocol = std::str::from_utf8(protocol).map_err(|_| StreamError::Protocol)?;
        let protocol = h2::ext::Protocol::from(protocol);
        request.extensions_mut().insert(protocol);
    }
    Ok(request)
}

/// A received response head.
pub(super) fn response(
    status: http::StatusCode,
    map: &HeaderMap,
    mut block: HeaderBlock,
    has_body: bool,
) -> ResponseHead {
    push_map(&mut block, map);
    one_length(&mut block);
    let length = block
        .get(Known::ContentLength)
        .and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
    let body = match (has_body, length) {
        (false, _) => BodyLength::None,
        (true, Some(length)) => BodyLength::Exactly(length),
        (true, None) => BodyLength::Unknown,
    };
    ResponseHead {
        body,
        version: Version::Http2,
        ..ResponseHead::new(status.as_u16(), block)
    }
}

/// A response head to send.
pub(super) fn to_response(head: &ResponseHead) -> Result<http::Response<()>, StreamError> {
    let mut response = http::Response::new(());
    // A tunnel that an HTTP/1 upstream opened (RFC 8441 section 5).
    let status = if head.status == 101 { 200 } else { head.status };
    *response.status_mut() =
        http::StatusCode::from_u16(status).map_err(|_| StreamError::Protocol)?;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = to_map(&head.headers);
    Ok(response)
}

/// What a failure of the `h2` crate means.
pub(super) fn error(error: &h2::Error) -> StreamError {
    if error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        // Streams above the last one a GOAWAY names were not looked at.
        return StreamError::Refused;
    }
    if error.is_io() {
        return StreamError::Closed;
    }
    if error.is_reset() && error.is_remote() {
        match error.reason() {
            Some(h2::Reason::PROTOCOL_ERROR) => StreamError::Protocol,
            _ => StreamError::Reset,
        }
    } else {
        StreamError::Protocol
    }
}
