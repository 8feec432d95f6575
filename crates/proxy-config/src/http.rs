//! The HTTP connection manager: how a chain speaks HTTP, and where requests get their route.

use crate::AccessLog;
use crate::http_filter::HttpFilter;
use crate::route::RouteTable;
use std::sync::Arc;
use std::time::Duration;

/// `envoy.filters.network.http_connection_manager`.
#[derive(Clone, Debug)]
pub struct HttpConnectionManager {
    pub stat_prefix: Arc<str>,
    pub codec: Codec,
    pub routes: RouteSource,
    /// In order; the last is always [`HttpFilter::Router`].
    pub filters: Vec<HttpFilter>,
    /// The `server` header of responses: `envoy` unless set.
    pub server_name: Arc<str>,
    pub server_header: ServerHeader,
    /// Sets `:scheme` of every request to this.
    pub scheme_override: Option<Box<str>>,
    pub timeouts: Timeouts,
    /// Requests on one connection before it is closed; [`None`]: unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// The peer's own address is the client's; `x-forwarded-for` is appended to, not believed.
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    pub append_x_forwarded_port: bool,
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,
    /// Names as in `Upgrade:`, lower case; `connect` stands for the method.
    pub upgrades: Upgrades,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// Request heads above this many bytes are answered 431.
    pub max_request_headers_bytes: u32,
    pub max_headers_count: u32,
    pub underscores: Underscores,
    /// Pass `100 Continue` of the upstream on instead of answering it here.
    pub proxy_100_continue: bool,
    pub forward_client_cert: ForwardClientCert,
    pub client_cert_details: ClientCertDetails,
    /// Appended to `via` in both directions when not empty.
    pub via: Box<str>,
    pub access_log: Vec<AccessLog>,
}

/// Which HTTP version connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// HTTP/2 when the connection begins with its preface (or ALPN says so).
    Auto,
    Http1,
    Http2,
}

/// Where the route table comes from.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// Discovered under this name.
    Rds(Arc<str>),
    Inline(Arc<RouteTable>),
}

/// What happens to the `server` header of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// Time limits of downstream connections and streams; [`None`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A connection without active streams (default 1 h).
    pub idle: Option<Duration>,
    /// A stream without activity (default 5 min).
    pub stream_idle: Option<Duration>,
    /// The whole request, from its first to its last byte.
    pub request: Option<Duration>,
    /// The head of the request.
    pub request_headers: Option<Duration>,
    /// Between the first and the final GOAWAY of a draining connection (default 5 s).
    pub drain: Duration,
    /// Between half-close and close after an early answer (default 1 s; zero closes at once).
    pub delayed_close: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// The whole stream, request and response.
    pub max_stream_duration: Option<Duration>,
}

/// What to do with `%2F`, `%5C` in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    KeepUnchanged,
    /// Answer 400.
    Reject,
    /// Answer 307 to the unescaped path.
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// Whether the port is cut off `:authority` before routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    Keep,
    /// When it is the port of the listener.
    Matching,
    Any,
}

/// Protocol upgrades the connection manager lets pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrades {
    /// Lower-case upgrade types with their default; a route may override.
    pub types: Vec<(Box<str>, bool)>,
}

impl Upgrades {
    /// Whether `kind` (lower case) is on; [`None`] when it is not mentioned.
    pub fn get(&self, kind: &str) -> Option<bool> {
        self.types
            .iter()
            .find(|(k, _)| **k == *kind)
            .map(|(_, on)| *on)
    }
}

/// HTTP/1 towards clients or upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http1Options {
    /// Take `GET http://host/path` (default true).
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    /// `host` for HTTP/1.0 requests without one.
    pub default_host_for_http_10: Box<str>,
    /// Take a request with both `transfer-encoding: chunked` and `content-length`, dropping the latter.
    pub allow_chunked_length: bool,
    /// Upstream only: send the absolute form.
    pub send_fully_qualified_url: bool,
    /// Towards clients: pass on the trailers of requests (default false).
    pub enable_trailers: bool,
}

impl Default for Http1Options {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: Box::default(),
            allow_chunked_length: false,
            send_fully_qualified_url: false,
            enable_trailers: false,
        }
    }
}

/// HTTP/2 settings; the defaults are Envoy's where the protocol leaves a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    /// PING after this long, and give up after `keepalive_timeout`.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Option<Duration>,
    /// Towards clients: take CONNECT with `:protocol` (RFC 8441).
    pub extended_connect: bool,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            // Envoy 1.3x: 1024 streams, 16 MiB per stream, 24 MiB per connection
            // (http2_protocol_options in protocol.proto).
            max_concurrent_streams: 1024,
            initial_stream_window: 16 * 1024 * 1024,
            initial_connection_window: 24 * 1024 * 1024,
            keepalive_interval: None,
            keepalive_timeout: None,
            extended_connect: false,
        }
    }
}

/// Headers whose names contain `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    Allow,
    /// Answer 400 (HTTP/1) or reset the stream (HTTP/2).
    Reject,
    Drop,
}

/// `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// Remove it from the request.
    #[default]
    Sanitize,
    /// Remove it unless the connection is mutual TLS.
    ForwardOnly,
    /// Append this connection's certificate, on mutual TLS; otherwise remove.
    AppendForward,
    /// Set it to this connection's certificate, on mutual TLS; otherwise remove.
    SanitizeSet,
    AlwaysForwardOnly,
}

/// What `x-forwarded-client-cert` tells of a client certificate besides its hash
/// (`set_current_client_cert_details`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}
