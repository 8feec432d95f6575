//! The one table of outcomes: every way a request can end, and what follows from it.
//!
//! Each [`Outcome`] has one row: the HTTP status of the local reply, its body, Envoy's response
//! flag (`%RESPONSE_FLAGS%`), Envoy's response-code detail (`%RESPONSE_CODE_DETAILS%`) and the
//! counter it moves. The gRPC status follows from the HTTP status ([`grpc_status`]).
//!
//! Invariant: nothing else in the proxy decides a status, a flag or a detail.

use crate::stats::{ClusterStat, HttpStat};
use lateen_proxy_config::jwt::JwtFailure;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The upstream answered and the answer was passed on.
    Answered,
    /// A `direct_response` of the route.
    DirectResponse,
    /// A `redirect` of the route.
    Redirected,
    /// A fault of the route ended it.
    FaultAbort,
    /// An authorization policy refused it. Details name the policy.
    RbacDenied,
    /// A token that is missing or not right.
    JwtRefused(JwtFailure),
    /// The server that is asked who may come in refused it.
    ExtAuthzDenied,
    /// That server did not say anything, and without its word nobody comes in.
    ExtAuthzError,
    /// Its answer asks for what no request can have.
    ExtAuthzInvalid,
    /// The body is longer than what is read ahead of it.
    BodyTooLarge,
    /// A CORS preflight, answered as the route's policy says.
    CorsPreflight,
    /// No virtual host, or no route in it, fits the request.
    NoRoute,
    /// The route table the listener names has not arrived.
    NoRouteTable,
    /// The route names a cluster that does not exist.
    NoCluster,
    /// The cluster has no endpoint that may be used.
    NoHealthyUpstream,
    /// The name that a request asks for leads nowhere.
    NameNotFound,
    /// A circuit breaker of the cluster is open.
    Overflow,
    /// The endpoint refused the connection.
    ConnectRefused,
    /// Connecting to the endpoint failed in another way.
    ConnectFailure,
    /// The TLS handshake with the endpoint failed. Details and body name the reason as well.
    TlsFailure,
    /// Connecting to the endpoint took longer than the cluster's connect timeout.
    ConnectTimeout,
    /// The upstream connection ended before the response began.
    UpstreamClosedBeforeResponse,
    /// The upstream reset the stream before the response began (HTTP/2 `RST_STREAM`).
    UpstreamReset,
    /// The upstream refused the stream without having looked at it (HTTP/2 `REFUSED_STREAM`).
    UpstreamRefusedStream,
    /// The upstream sent something that is not HTTP, or framed it wrongly.
    UpstreamProtocolError,
    /// The upstream connection ended in the middle of the response.
    UpstreamClosedMidResponse,
    /// An HTTP/1 upstream ended its connection before the end of the body it had announced.
    UpstreamBrokenMidResponse,
    /// The route's timeout passed before the response began.
    RouteTimeout,
    /// The last try's timeout passed before the response began.
    PerTryTimeout,
    /// The route's timeout passed while the response was on its way.
    TimeoutMidResponse,
    /// Nothing moved on the stream for the stream idle timeout.
    StreamIdle,
    /// The request head did not arrive within the request headers timeout.
    RequestHeadersTimeout,
    /// The whole request did not arrive within the request timeout.
    RequestTimeout,
    /// The request could not be parsed, or its framing is ambiguous.
    BadRequest,
    /// The request head is longer than the listener takes.
    HeadTooLarge,
    /// The request head has more headers than the listener takes.
    TooManyHeaders,
    /// A header's value has characters that no value may have.
    BadCharacters,
    /// The target is none that the method can have.
    BadUrl,
    /// The target's scheme is neither http nor https.
    SchemeUnknown,
    /// `host` is no authority.
    BadAuthority,
    /// Both `content-length` and `transfer-encoding`.
    LengthAndEncoding,
    /// HTTP/1.0 where the listener does not accept it.
    HttpVersionNotAccepted,
    /// A target `https://...` on a connection without TLS.
    SchemeNotAccepted,
    /// A transfer coding other than `chunked`.
    TransferEncodingUnknown,
    /// An `Upgrade` or `CONNECT` the listener does not allow.
    UpgradeNotAllowed,
    /// HTTP/1.0 without a host.
    NoHost,
    /// The path is refused by the listener's path normalisation.
    PathRefused,
    /// The whole stream took longer than the route or the listener allows.
    StreamTooLong,
    /// The client left before the response was complete.
    ClientGone,
    /// The proxy is going away and the drain limit has passed.
    Draining,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Status of the local reply; 0 where none is sent.
    pub status: u16,
    /// Body of the local reply, as Envoy words it, since people search for these texts.
    pub body: &'static str,
    /// Envoy's response flag; empty for none.
    pub flag: &'static str,
    /// Envoy's response-code detail.
    pub details: &'static str,
    /// Counter of the cluster that this outcome moves.
    pub cluster_stat: Option<ClusterStat>,
    /// Counter of the HTTP connection manager that this outcome moves.
    pub http_stat: Option<HttpStat>,
}

const fn row(status: u16, flag: &'static str, details: &'static str, body: &'static str) -> Row {
    Row {
        status,
        body,
        flag,
        details,
        cluster_stat: None,
        http_stat: None,
    }
}

/// A head that is refused.
const fn bad_request(details: &'static str) -> Row {
    row(400, "DPE", details, "Bad Request").http(HttpStat::DownstreamCxProtocolError)
}

impl Row {
    const fn cluster(mut self, stat: ClusterStat) -> Row {
        self.cluster_stat = Some(stat);
        self
    }
    const fn http(mut self, stat: HttpStat) -> Row {
        self.http_stat = Some(stat);
        self
    }
}

impl Outcome {
    /// Every outcome, for tests and documentation.
    pub const ALL: &'static [Outcome] = &[
        Outcome::Answered,
        Outcome::DirectResponse,
        Outcome::Redirected,
        Outcome::FaultAbort,
        Outcome::RbacDenied,
        Outcome::ExtAuthzDenied,
        Outcome::ExtAuthzError,
        Outcome::ExtAuthzInvalid,
        Outcome::BodyTooLarge,
        Outcome::CorsPreflight,
        Outcome::JwtRefused(JwtFailure::Missing),
        Outcome::NoRoute,
        Outcome::NoRouteTable,
        Outcome::NoCluster,
        Outcome::NoHealthyUpstream,
        Outcome::NameNotFound,
        Outcome::Overflow,
        Outcome::ConnectRefused,
        Outcome::ConnectFailure,
        Outcome::TlsFailure,
        Outcome::ConnectTimeout,
        Outcome::UpstreamClosedBeforeResponse,
        Outcome::UpstreamReset,
        Outcome::UpstreamRefusedStream,
        Outcome::UpstreamProtocolError,
        Outcome::UpstreamClosedMidResponse,
        Outcome::UpstreamBrokenMidResponse,
        Outcome::RouteTimeout,
        Outcome::PerTryTimeout,
        Outcome::TimeoutMidResponse,
        Outcome::StreamIdle,
        Outcome::RequestHeadersTimeout,
        Outcome::RequestTimeout,
        Outcome::BadRequest,
        Outcome::HeadTooLarge,
        Outcome::TooManyHeaders,
        Outcome::BadCharacters,
        Outcome::BadUrl,
        Outcome::SchemeUnknown,
        Outcome::BadAuthority,
        Outcome::LengthAndEncoding,
        Outcome::HttpVersionNotAccepted,
        Outcome::SchemeNotAccepted,
        Outcome::TransferEncodingUnknown,
        Outcome::UpgradeNotAllowed,
        Outcome::NoHost,
        Outcome::PathRefused,
        Outcome::StreamTooLong,
        Outcome::ClientGone,
        Outcome::Draining,
    ];

    /// The row of this outcome.
    pub const fn row(self) -> Row {
        use ClusterStat as C;
        use HttpStat as H;
        match self {
            Outcome::Answered => row(0, "", "via_upstream", ""),
            Outcome::DirectResponse => row(0, "", "direct_response", ""),
            Outcome::Redirected => row(0, "", "direct_response", ""),
            Outcome::FaultAbort => row(0, "FI", "fault_filter_abort", "fault filter abort"),
            Outcome::RbacDenied => row(
                403,
                "",
                "rbac_access_denied_matched_policy[none]",
                "RBAC: access denied",
            ),
            Outcome::JwtRefused(why) => row(why.status(), "", why.details(), why.text()),
            Outcome::ExtAuthzDenied => row(403, "UAEX", "ext_authz_denied", ""),
            Outcome::ExtAuthzError => row(403, "UAEX", "ext_authz_error", ""),
            Outcome::ExtAuthzInvalid => row(500, "UAEX", "ext_authz_invalid", ""),
            Outcome::BodyTooLarge => row(413, "", "request_payload_too_large", "Payload Too Large"),
            Outcome::CorsPreflight => row(0, "", "cors_response", ""),
            Outcome::NoRoute => row(404, "NR", "route_not_found", "").http(H::NoRoute),
            Outcome::NoRouteTable => row(404, "NR", "route_configuration_not_found", ""),
            Outcome::NoCluster => row(503, "NC", "cluster_not_found", "").http(H::NoCluster),
            Outcome::NoHealthyUpstream => {
                row(503, "UH", "no_healthy_upstream", "no healthy upstream")
                    .cluster(C::UpstreamCxNoneHealthy)
            }
            Outcome::NameNotFound => row(
                503,
                "DF",
                "dns_resolution_failure",
                "DNS resolution failure",
            ),
            Outcome::Overflow => row(
                503,
                "UO",
                "upstream_reset_before_response_started{overflow}",
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            )
            .cluster(C::UpstreamRqPendingOverflow),
            Outcome::ConnectRefused => row(
                503,
                "UF",
                "upstream_reset_before_response_started\
                 {remote_connection_failure|delayed_connect_error:_Connection_refused}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: remote connection failure",
            ),
            Outcome::ConnectFailure | Outcome::TlsFailure => row(
                503,
                "UF",
                "upstream_reset_before_response_started{remote_connection_failure}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: remote connection failure",
            ),
            Outcome::ConnectTimeout => row(
                503,
                "UF",
                "upstream_reset_before_response_started{connection_timeout}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: connection timeout",
            ),
            Outcome::UpstreamClosedBeforeResponse => row(
                503,
                "UC",
                "upstream_reset_before_response_started{connection_termination}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: connection termination",
            )
            .cluster(C::UpstreamRqRxReset),
            Outcome::UpstreamReset => row(
                503,
                "UR",
                "upstream_reset_before_response_started{remote_reset}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: remote reset",
            )
            .cluster(C::UpstreamRqRxReset),
            Outcome::UpstreamRefusedStream => row(
                503,
                "UR",
                "upstream_reset_before_response_started{remote_refused_stream_reset}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: remote refused stream reset",
            )
            .cluster(C::UpstreamRqRxReset),
            Outcome::UpstreamProtocolError => row(
                502,
                "UPE",
                "upstream_reset_before_response_started{protocol_error}",
                "upstream connect error or disconnect/reset before headers. \
                 reset reason: protocol error",
            )
            .cluster(C::UpstreamCxProtocolError),
            Outcome::UpstreamClosedMidResponse => row(
                0,
                "UC",
                "upstream_reset_after_response_started{connection_termination}",
                "",
            )
            .cluster(C::UpstreamRqRxReset),
            Outcome::UpstreamBrokenMidResponse => row(
                0,
                "UPE",
                "upstream_reset_after_response_started{protocol_error}",
                "",
            )
            .cluster(C::UpstreamCxProtocolError),
            Outcome::RouteTimeout => row(504, "UT", "response_timeout", "upstream request timeout")
                .cluster(C::UpstreamRqTimeout),
            Outcome::PerTryTimeout => row(
                504,
                "UT",
                "upstream_per_try_timeout",
                "upstream request timeout",
            )
            .cluster(C::UpstreamRqPerTryTimeout),
            Outcome::TimeoutMidResponse => {
                row(0, "UT", "response_timeout", "").cluster(C::UpstreamRqTimeout)
            }
            Outcome::StreamIdle => row(408, "SI", "stream_idle_timeout", "stream timeout")
                .http(H::DownstreamRqIdleTimeout),
            Outcome::RequestHeadersTimeout => row(
                408,
                "DPE",
                "request_header_timeout",
                "request header timeout",
            )
            .http(H::DownstreamRqHeaderTimeout),
            Outcome::RequestTimeout => row(408, "DT", "request_overall_timeout", "request timeout")
                .http(H::DownstreamRqTimeout),
            Outcome::BadRequest => bad_request("http1.codec_error"),
            Outcome::HeadTooLarge => row(
                431,
                "DPE",
                "http1.headers_too_large",
                "Request Header Fields Too Large",
            )
            .http(H::DownstreamCxProtocolError),
            Outcome::TooManyHeaders => row(
                431,
                "DPE",
                "http1.too_many_headers",
                "Request Header Fields Too Large",
            )
            .http(H::DownstreamCxProtocolError),
            Outcome::BadCharacters => bad_request("http1.invalid_characters"),
            Outcome::BadUrl => bad_request("http1.invalid_url"),
            Outcome::SchemeUnknown => bad_request("http1.invalid_scheme"),
            Outcome::BadAuthority => bad_request("http.invalid_authority"),
            Outcome::LengthAndEncoding => {
                bad_request("http1.content_length_and_chunked_not_allowed")
            }
            Outcome::HttpVersionNotAccepted => row(426, "DPE", "low_version", "Upgrade Required"),
            Outcome::SchemeNotAccepted => row(
                403,
                "DPE",
                "http1.https_url_on_plaintext_connection",
                "Forbidden",
            )
            .http(H::DownstreamCxProtocolError),
            Outcome::TransferEncodingUnknown => row(
                501,
                "DPE",
                "http1.invalid_transfer_encoding",
                "Not Implemented",
            )
            .http(H::DownstreamCxProtocolError),
            Outcome::UpgradeNotAllowed => row(403, "", "upgrade_failed", ""),
            Outcome::NoHost => row(400, "", "missing_host_header", ""),
            Outcome::PathRefused => row(400, "", "path_normalization_failed", ""),
            Outcome::StreamTooLong => row(
                504,
                "DT",
                "max_duration_timeout",
                "downstream duration timeout",
            )
            .http(H::DownstreamRqMaxDurationReached),
            Outcome::ClientGone => {
                row(0, "DC", "downstream_remote_disconnect", "").http(H::DownstreamRqRxReset)
            }
            Outcome::Draining => row(503, "DO", "drain_timeout", ""),
        }
    }

    /// What the transport said, for `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty for nothing.
    pub const fn transport_failure(self) -> &'static str {
        match self {
            Outcome::ConnectRefused => "delayed_connect_error:_Connection_refused",
            _ => "",
        }
    }

    /// Whether the failure lies between this proxy and the upstream, before a response began.
    pub const fn before_response(self) -> bool {
        matches!(
            self,
            Outcome::ConnectRefused
                | Outcome::ConnectFailure
                | Outcome::TlsFailure
                | Outcome::ConnectTimeout
                | Outcome::UpstreamClosedBeforeResponse
                | Outcome::UpstreamReset
                | Outcome::UpstreamRefusedStream
                | Outcome::UpstreamProtocolError
                | Outcome::PerTryTimeout
                | Outcome::Overflow
        )
    }
}

/// The gRPC status that stands for an HTTP status in a local reply to a gRPC request
/// (gRPC's "HTTP to gRPC status code mapping", which Envoy follows).
pub const fn grpc_status(http: u16) -> u16 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_detail_and_every_failure_before_the_response_a_status() {
        for outcome in Outcome::ALL {
            let row = outcome.row();
            assert!(!row.details.is_empty(), "{outcome:?}");
            if outcome.before_response() {
                assert!(row.status >= 500, "{outcome:?}");
                assert!(!row.flag.is_empty(), "{outcome:?}");
            }
        }
    }

    #[test]
    fn grpc_status_follows_the_http_status() {
        for (http, grpc) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (503, 14),
            (500, 2),
        ] {
            assert_eq!(grpc_status(http), grpc, "{http}");
        }
    }
}
