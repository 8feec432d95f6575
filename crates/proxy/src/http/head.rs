//! Request and response heads, the same for all protocols.
//!
//! Invariant: a request's authority is the value of its one `host` entry, whatever protocol it
//! came in with; changing one changes the other.

use super::headers::{HeaderBlock, Known, Span};
use lateen_proxy_config::RequestView;
use std::borrow::Cow;

/// A request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    Connect,
    /// Any other token; the bytes are in the block.
    Other(Span),
}

impl Method {
    /// The method if it is a usual one.
    pub(crate) fn usual(name: &[u8]) -> Option<Method> {
        Some(match name {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"TRACE" => Method::Trace,
            b"CONNECT" => Method::Connect,
            _ => return None,
        })
    }

    /// Whether a name is a usual one but for its case. To rules it is another one, while there are
    /// applications that take it for the same.
    pub(crate) fn is_disguised(name: &[u8]) -> bool {
        Method::usual(name).is_none() && Method::usual(&name.to_ascii_uppercase()).is_some()
    }

    /// Whether sending it twice does no more than once (RFC 9110 section 9.2.2).
    pub(crate) fn is_idempotent(self) -> bool {
        matches!(
            self,
            Method::Get
                | Method::Head
                | Method::Put
                | Method::Delete
                | Method::Options
                | Method::Trace
        )
    }
}

/// The protocol a message came in with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl Version {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        }
    }
}

/// How a body is delimited, as its head says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BodyLength {
    #[default]
    None,
    Exactly(u64),
    /// Chunked, HTTP/2 DATA frames.
    Unknown,
    /// HTTP/1 responses only: the rest of the connection.
    UntilClose,
}

/// A request head.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub method: Method,
    /// Path and query.
    pub path: Span,
    pub https: bool,
    pub version: Version,
    pub body: BodyLength,
    /// HTTP/1 `Upgrade`, or HTTP/2 extended CONNECT: the connection becomes a tunnel on success.
    pub upgrade: bool,
    pub headers: HeaderBlock,
}

impl RequestHead {
    pub(crate) fn new(headers: HeaderBlock) -> RequestHead {
        RequestHead {
            method: Method::Get,
            path: Span::default(),
            https: false,
            version: Version::Http11,
            body: BodyLength::None,
            upgrade: false,
            headers,
        }
    }

    pub(crate) fn method_bytes(&self) -> &[u8] {
        match self.method {
            Method::Get => b"GET",
            Method::Head => b"HEAD",
            Method::Post => b"POST",
            Method::Put => b"PUT",
            Method::Delete => b"DELETE",
            Method::Options => b"OPTIONS",
            Method::Patch => b"PATCH",
            Method::Trace => b"TRACE",
            Method::Connect => b"CONNECT",
            Method::Other(span) => self.headers.bytes(span),
        }
    }

    pub(crate) fn path_bytes(&self) -> &[u8] {
        self.headers.bytes(self.path)
    }

    pub(crate) fn authority_bytes(&self) -> &[u8] {
        self.headers.get(Known::Host).unwrap_or_default()
    }

    pub(crate) fn set_path(&mut self, path: &[u8]) {
        self.path = self.headers.store(path);
    }

    /// A tunnel carries bytes in both directions instead of bodies.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.upgrade || self.method == Method::Connect
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.headers.get(Known::ContentType).is_some_and(|value| {
            value
                .strip_prefix(b"application/grpc".as_slice())
                .is_some_and(|rest| {
                    rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";")
                })
        })
    }
}

impl RequestView for RequestHead {
    fn method(&self) -> &[u8] {
        self.method_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path_bytes()
    }
    fn authority(&self) -> &[u8] {
        self.authority_bytes()
    }
    fn scheme(&self) -> &[u8] {
        if self.https { b"https" } else { b"http" }
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.headers.joined(name.as_bytes())
    }
    fn any_value(&self, name: &str, test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        self.headers.any_value(name.as_bytes(), test)
    }
}

/// A response head.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub status: u16,
    /// HTTP/1 reason phrase as the upstream wrote it; empty: the usual one.
    pub reason: Span,
    pub version: Version,
    pub body: BodyLength,
    pub headers: HeaderBlock,
}

impl ResponseHead {
    pub(crate) fn new(status: u16, headers: HeaderBlock) -> ResponseHead {
        ResponseHead {
            status,
            reason: Span::default(),
            version: Version::Http11,
            body: BodyLength::None,
            headers,
        }
    }

    /// Whether more heads follow for the same request.
    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// The usual reason phrase (RFC 9110 section 15).
pub(crate) fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Unknown")
}
