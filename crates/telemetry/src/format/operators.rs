//! The names of operators, and what each reads.

use super::Field;
use super::parse::Part;

/// An operator without arguments.
pub(super) struct Plain {
    pub name: &'static str,
    pub field: Field,
    pub part: Part,
}

macro_rules! plain {
    ($($name:literal => $field:ident $(.$part:ident)?;)*) => {
        /// Operators without arguments.
        pub(super) const PLAIN: &[Plain] = &[$(
            Plain { name: $name, field: Field::$field, part: plain!(@part $($part)?) },
        )*];
    };
    (@part) => { Part::Whole };
    (@part $part:ident) => { Part::$part };
}

plain! {
    "PROTOCOL" => Protocol;
    "RESPONSE_CODE" => ResponseCode;
    "RESPONSE_CODE_DETAILS" => ResponseCodeDetails;
    "CONNECTION_TERMINATION_DETAILS" => ConnectionTerminationDetails;
    "RESPONSE_FLAGS" => ResponseFlags;
    "RESPONSE_FLAGS_LONG" => ResponseFlagsLong;
    "BYTES_RECEIVED" => BytesReceived;
    "BYTES_SENT" => BytesSent;
    "REQUEST_HEADERS_BYTES" => RequestHeadersBytes;
    "RESPONSE_HEADERS_BYTES" => ResponseHeadersBytes;
    "RESPONSE_TRAILERS_BYTES" => ResponseTrailersBytes;
    "UPSTREAM_WIRE_BYTES_SENT" => UpstreamWireBytesSent;
    "UPSTREAM_WIRE_BYTES_RECEIVED" => UpstreamWireBytesReceived;
    "UPSTREAM_HEADER_BYTES_SENT" => UpstreamHeaderBytesSent;
    "UPSTREAM_HEADER_BYTES_RECEIVED" => UpstreamHeaderBytesReceived;
    "DOWNSTREAM_WIRE_BYTES_SENT" => DownstreamWireBytesSent;
    "DOWNSTREAM_WIRE_BYTES_RECEIVED" => DownstreamWireBytesReceived;
    "DOWNSTREAM_HEADER_BYTES_SENT" => DownstreamHeaderBytesSent;
    "DOWNSTREAM_HEADER_BYTES_RECEIVED" => DownstreamHeaderBytesReceived;
    "DURATION" => Duration;
    "REQUEST_DURATION" => RequestDuration;
    "REQUEST_TX_DURATION" => RequestTxDuration;
    "RESPONSE_DURATION" => ResponseDuration;
    "RESPONSE_TX_DURATION" => ResponseTxDuration;
    "DOWNSTREAM_HANDSHAKE_DURATION" => DownstreamHandshakeDuration;
    "UPSTREAM_HOST" => UpstreamHost;
    "UPSTREAM_HOST_NAME" => UpstreamHostName;
    "UPSTREAM_CLUSTER" => UpstreamCluster;
    "UPSTREAM_CLUSTER_RAW" => UpstreamClusterRaw;
    "UPSTREAM_LOCAL_ADDRESS" => UpstreamLocalAddress;
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => UpstreamLocalAddress.Ip;
    "UPSTREAM_LOCAL_PORT" => UpstreamLocalAddress.Port;
    "UPSTREAM_REMOTE_ADDRESS" => UpstreamRemoteAddress;
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => UpstreamRemoteAddress.Ip;
    "UPSTREAM_REMOTE_PORT" => UpstreamRemoteAddress.Port;
    "UPSTREAM_PROTOCOL" => UpstreamProtocol;
    "UPSTREAM_TRANSPORT_FAILURE_REASON" => UpstreamTransportFailureReason;
    "UPSTREAM_CONNECTION_ID" => UpstreamConnectionId;
    "UPSTREAM_REQUEST_ATTEMPT_COUNT" => UpstreamRequestAttemptCount;
    "UPSTREAM_TLS_VERSION" => UpstreamTlsVersion;
    "UPSTREAM_TLS_CIPHER" => UpstreamTlsCipher;
    "UPSTREAM_TLS_SESSION_ID" => UpstreamTlsSessionId;
    "UPSTREAM_PEER_SUBJECT" => UpstreamPeerSubject;
    "UPSTREAM_PEER_ISSUER" => UpstreamPeerIssuer;
    "UPSTREAM_PEER_URI_SAN" => UpstreamPeerUriSan;
    "UPSTREAM_PEER_DNS_SAN" => UpstreamPeerDnsSan;
    "UPSTREAM_PEER_CERT" => UpstreamPeerCert;
    "UPSTREAM_LOCAL_SUBJECT" => UpstreamLocalSubject;
    "UPSTREAM_LOCAL_URI_SAN" => UpstreamLocalUriSan;
    "UPSTREAM_LOCAL_DNS_SAN" => UpstreamLocalDnsSan;
    "DOWNSTREAM_REMOTE_ADDRESS" => DownstreamRemoteAddress;
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => DownstreamRemoteAddress.Ip;
    "DOWNSTREAM_REMOTE_PORT" => DownstreamRemoteAddress.Port;
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => DownstreamDirectRemoteAddress;
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => DownstreamDirectRemoteAddress.Ip;
    "DOWNSTREAM_DIRECT_REMOTE_PORT" => DownstreamDirectRemoteAddress.Port;
    "DOWNSTREAM_LOCAL_ADDRESS" => DownstreamLocalAddress;
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => DownstreamLocalAddress.Ip;
    "DOWNSTREAM_LOCAL_PORT" => DownstreamLocalAddress.Port;
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => DownstreamTransportFailureReason;
    "DOWNSTREAM_LOCAL_CLOSE_REASON" => DownstreamLocalCloseReason;
    "DOWNSTREAM_DETECTED_CLOSE_TYPE" => DownstreamDetectedCloseType;
    "DOWNSTREAM_TLS_VERSION" => DownstreamTlsVersion;
    "DOWNSTREAM_TLS_CIPHER" => DownstreamTlsCipher;
    "DOWNSTREAM_TLS_SESSION_ID" => DownstreamTlsSessionId;
    "DOWNSTREAM_PEER_SUBJECT" => DownstreamPeerSubject;
    "DOWNSTREAM_PEER_ISSUER" => DownstreamPeerIssuer;
    "DOWNSTREAM_PEER_URI_SAN" => DownstreamPeerUriSan;
    "DOWNSTREAM_PEER_DNS_SAN" => DownstreamPeerDnsSan;
    "DOWNSTREAM_PEER_IP_SAN" => DownstreamPeerIpSan;
    "DOWNSTREAM_PEER_SERIAL" => DownstreamPeerSerial;
    "DOWNSTREAM_PEER_CERT" => DownstreamPeerCert;
    "DOWNSTREAM_PEER_FINGERPRINT_256" => DownstreamPeerFingerprint256;
    "DOWNSTREAM_PEER_FINGERPRINT_1" => DownstreamPeerFingerprint1;
    "DOWNSTREAM_PEER_CERT_V_START" => DownstreamPeerCertVStart;
    "DOWNSTREAM_PEER_CERT_V_END" => DownstreamPeerCertVEnd;
    "DOWNSTREAM_LOCAL_SUBJECT" => DownstreamLocalSubject;
    "DOWNSTREAM_LOCAL_URI_SAN" => DownstreamLocalUriSan;
    "DOWNSTREAM_LOCAL_DNS_SAN" => DownstreamLocalDnsSan;
    "CONNECTION_ID" => ConnectionId;
    "STREAM_ID" => StreamId;
    "REQUESTED_SERVER_NAME" => RequestedServerName;
    "ROUTE_NAME" => RouteName;
    "VIRTUAL_CLUSTER_NAME" => VirtualClusterName;
    "FILTER_CHAIN_NAME" => FilterChainName;
    "HOSTNAME" => Hostname;
    "ACCESS_LOG_TYPE" => AccessLogType;
    "GRPC_STATUS_NUMBER" => GrpcStatus;
    "LOCAL_REPLY_BODY" => LocalReplyBody;
    "TRACE_ID" => TraceId;
    "SPAN_ID" => SpanId;
    "CUSTOM_FLAGS" => CustomFlags;
    "TLS_JA3_FINGERPRINT" => TlsJa3Fingerprint;
    "TLS_JA4_FINGERPRINT" => TlsJa4Fingerprint;
}

/// Operators with arguments, and those without a value in this proxy; [`super::parse`] treats each.
pub(super) const SPECIAL: &[&str] = &[
    "REQ",
    "RESP",
    "TRAILER",
    "REQUEST_HEADER",
    "RESPONSE_HEADER",
    "RESPONSE_TRAILER",
    "REQ_WITHOUT_QUERY",
    "QUERY_PARAM",
    "PATH",
    "START_TIME",
    "START_TIME_LOCAL",
    "EMIT_TIME",
    "EMIT_TIME_LOCAL",
    "GRPC_STATUS",
    "DYNAMIC_METADATA",
    "METADATA",
    "ENVIRONMENT",
];

/// Operators that are understood and have no value here.
pub(super) const WITHOUT_VALUE: &[&str] = &[
    "CLUSTER_METADATA",
    "UPSTREAM_METADATA",
    "ROUTE_METADATA",
    "FILTER_STATE",
    "UPSTREAM_FILTER_STATE",
    "COMMON_DURATION",
    "ROUNDTRIP_DURATION",
    "UNIQUE_ID",
    "BYTES_RETRANSMITTED",
    "PACKETS_RETRANSMITTED",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_CERT_V_END",
    "CEL",
    "TLS_PROPERTY",
];

/// Words that people shorten, and operators of other proxies' formats.
const WORDS: &[(&str, &str)] = &[
    ("RESP", "RESPONSE"),
    ("RECV", "RECEIVED"),
    ("RCVD", "RECEIVED"),
    ("RX", "RECEIVED"),
    ("TX", "SENT"),
    ("ADDR", "ADDRESS"),
    ("ERR", "ERROR"),
];
const ELSEWHERE: &[(&str, &str)] = &[
    ("RBAC_IDENTITY", "DOWNSTREAM_PEER_URI_SAN"),
    ("STATUS", "RESPONSE_CODE"),
    ("METHOD", "REQ(:METHOD)"),
    ("AUTHORITY", "REQ(:AUTHORITY)"),
    ("REQUEST_ID", "REQ(X-REQUEST-ID)"),
    ("TIMESTAMP", "START_TIME"),
];

/// The known operator that a wrong name means, when one is near.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    if let Some((_, meant)) = ELSEWHERE.iter().find(|(other, _)| *other == upper) {
        return Some(meant);
    }
    let words = upper.split('_').map(|word| {
        let known = WORDS.iter().find(|(short, _)| *short == word);
        known.map_or(word, |(_, full)| full)
    });
    let upper = words.collect::<Vec<_>>().join("_");
    PLAIN
        .iter()
        .map(|p| p.name)
        .chain(SPECIAL.iter().copied())
        .chain(WITHOUT_VALUE.iter().copied())
        .map(|known| (strsim::damerau_levenshtein(&upper, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}
