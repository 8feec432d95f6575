//! The facts an operator can ask a source for, except headers.

/// One fact about a request or a connection. Durations are numbers of milliseconds.
///
/// The names are Envoy's operators in camel case; an operator that asks for one part of an address
/// (`_WITHOUT_PORT`, `_PORT`) reads the same field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// When the request's first byte (or the connection) arrived.
    StartTime,
    /// `HTTP/1.1`, `HTTP/2`.
    Protocol,
    /// 0 when the client left before an answer.
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    /// [`super::Value::List`] of the short names (`UH`, `NR`).
    ResponseFlags,
    /// [`super::Value::List`] of the long names (`NoHealthyUpstream`).
    ResponseFlagsLong,
    /// Bytes of the request body (of the connection, for TCP).
    BytesReceived,
    BytesSent,
    RequestHeadersBytes,
    ResponseHeadersBytes,
    ResponseTrailersBytes,
    UpstreamWireBytesSent,
    UpstreamWireBytesReceived,
    UpstreamHeaderBytesSent,
    UpstreamHeaderBytesReceived,
    DownstreamWireBytesSent,
    DownstreamWireBytesReceived,
    DownstreamHeaderBytesSent,
    DownstreamHeaderBytesReceived,
    /// Start of the request to its last byte sent to the client.
    Duration,
    /// Start of the request to its last byte received.
    RequestDuration,
    /// Start of the request to its last byte sent upstream.
    RequestTxDuration,
    /// Start of the request to the first byte of the response from upstream.
    ResponseDuration,
    /// First byte of the response from upstream to the last byte sent to the client.
    ResponseTxDuration,
    DownstreamHandshakeDuration,
    UpstreamHost,
    UpstreamHostName,
    /// The cluster's name, or its `alt_stat_name` when it has one.
    UpstreamCluster,
    /// The cluster's name.
    UpstreamClusterRaw,
    UpstreamLocalAddress,
    UpstreamRemoteAddress,
    UpstreamProtocol,
    UpstreamTransportFailureReason,
    UpstreamConnectionId,
    UpstreamRequestAttemptCount,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    UpstreamTlsSessionId,
    UpstreamPeerSubject,
    UpstreamPeerIssuer,
    UpstreamPeerUriSan,
    UpstreamPeerDnsSan,
    UpstreamPeerCert,
    UpstreamLocalSubject,
    UpstreamLocalUriSan,
    UpstreamLocalDnsSan,
    /// The client's address after `x-forwarded-for` and PROXY protocol were applied.
    DownstreamRemoteAddress,
    /// The address of the peer of the socket.
    DownstreamDirectRemoteAddress,
    DownstreamLocalAddress,
    DownstreamTransportFailureReason,
    DownstreamLocalCloseReason,
    DownstreamDetectedCloseType,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    DownstreamTlsSessionId,
    DownstreamPeerSubject,
    DownstreamPeerIssuer,
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerIpSan,
    DownstreamPeerSerial,
    DownstreamPeerCert,
    DownstreamPeerFingerprint256,
    DownstreamPeerFingerprint1,
    DownstreamPeerCertVStart,
    DownstreamPeerCertVEnd,
    DownstreamLocalSubject,
    DownstreamLocalUriSan,
    DownstreamLocalDnsSan,
    ConnectionId,
    StreamId,
    /// The SNI of the connection.
    RequestedServerName,
    RouteName,
    VirtualClusterName,
    FilterChainName,
    ListenerMetadata,
    /// The name of this machine.
    Hostname,
    /// `DownstreamEnd`, `TcpConnectionEnd`, ...
    AccessLogType,
    /// The number of the gRPC status; the operator may ask for its name.
    GrpcStatus,
    LocalReplyBody,
    TraceId,
    SpanId,
    CustomFlags,
    TlsJa3Fingerprint,
    TlsJa4Fingerprint,
}
