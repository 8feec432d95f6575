//! `VirtualService`: how requests to a host are routed.
//!
//! Field meaning: Istio's reference, networking/virtual-service.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value as Json;

use crate::decode::Decoder;
use crate::field::Field;
use crate::node::Node;
use crate::schema::{FieldInfo, MessageInfo, Schema, Support, choice, message};

message! {
    pub struct VirtualService {
        /// Host header values or service names; a name without a dot is meant in the object's namespace.
        effective hosts: Vec<String>,
        /// `mesh`, `name` or `namespace/name`; empty means `mesh`.
        effective gateways: Vec<String>,
        /// In order, first match wins.
        effective http: Vec<HttpRoute>,
        effective tls: Vec<TlsRoute>,
        effective tcp: Vec<TcpRoute>,
        /// `.`, `*` or namespaces; empty means the mesh's default.
        effective export_to "exportTo": Vec<String>,
    }
}

message! {
    pub struct HttpRoute {
        effective name: String,
        /// Alternatives; none means every request.
        effective matches "match": Vec<HttpMatchRequest>,
        effective route: Vec<HttpRouteDestination>,
        effective redirect: Option<HttpRedirect>,
        effective direct_response "directResponse": Option<HttpDirectResponse>,
        effective delegate: Option<Delegate>,
        effective rewrite: Option<HttpRewrite>,
        /// Of the whole request with all tries; none means no limit.
        effective timeout: Option<Duration>,
        effective retries: Option<HttpRetry>,
        effective fault: Option<HttpFaultInjection>,
        effective mirror: Option<Destination>,
        effective mirrors: Vec<HttpMirrorPolicy>,
        effective mirror_percent "mirrorPercent": Option<u32> => "use mirrorPercentage",
        effective mirror_percentage "mirrorPercentage": Option<Percent>,
        effective cors_policy "corsPolicy": Option<CorsPolicy>,
        effective headers: Option<Headers>,
    }
}

message! {
    /// All conditions that are set must hold.
    pub struct HttpMatchRequest {
        effective name: String,
        effective uri: Option<StringMatch>,
        effective scheme: Option<StringMatch>,
        effective method: Option<StringMatch>,
        effective authority: Option<StringMatch>,
        /// Header names compare without case, values with.
        effective headers: BTreeMap<String, StringMatch>,
        /// Of the listener the request came in on.
        effective port: Option<u32>,
        effective source_labels "sourceLabels": BTreeMap<String, String>,
        /// Overrides the gateways of the VirtualService.
        effective gateways: Vec<String>,
        effective query_params "queryParams": BTreeMap<String, StringMatch>,
        effective ignore_uri_case "ignoreUriCase": Option<bool>,
        /// A missing header counts as empty and so satisfies the condition.
        effective without_headers "withoutHeaders": BTreeMap<String, StringMatch>,
        effective source_namespace "sourceNamespace": String,
        effective stat_prefix "statPrefix": String,
    }
}

/// A condition on a string. Written `{exact: v}`, `{prefix: v}`, `{regex: v}`, or `{}` for "present".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StringMatch {
    #[default]
    Present,
    Exact(String),
    Prefix(String),
    /// RE2; the whole value must match.
    Regex(String),
}

message! {
    pub struct HttpRouteDestination {
        effective destination: Option<Destination>,
        /// Share of the sum of all weights; of no meaning on an only destination.
        effective weight: Option<i32>,
        effective headers: Option<Headers>,
    }
}

message! {
    /// A destination of TCP or TLS traffic.
    pub struct RouteDestination {
        effective destination: Option<Destination>,
        effective weight: Option<i32>,
    }
}

message! {
    pub struct Destination {
        effective host: String,
        /// A subset that a DestinationRule of the host defines.
        effective subset: String,
        /// Of the service; may be left out when it has only one.
        effective port: Option<PortSelector>,
    }
}

message! {
    pub struct PortSelector {
        effective number: u32,
    }
}

message! {
    pub struct Headers {
        effective request: Option<HeaderOperations>,
        effective response: Option<HeaderOperations>,
    }
}

message! {
    pub struct HeaderOperations {
        effective set: BTreeMap<String, String>,
        effective add: BTreeMap<String, String>,
        effective remove: Vec<String>,
    }
}

message! {
    pub struct TlsRoute {
        effective matches "match": Vec<TlsMatchAttributes>,
        effective route: Vec<RouteDestination>,
    }
}

message! {
    pub struct TlsMatchAttributes {
        effective sni_hosts "sniHosts": Vec<String>,
        effective destination_subnets "destinationSubnets": Vec<String>,
        effective port: Option<u32>,
        effective source_labels "sourceLabels": BTreeMap<String, String>,
        effective gateways: Vec<String>,
        effective source_namespace "sourceNamespace": String,
    }
}

message! {
    pub struct TcpRoute {
        effective matches "match": Vec<L4MatchAttributes>,
        effective route: Vec<RouteDestination>,
    }
}

message! {
    pub struct L4MatchAttributes {
        effective destination_subnets "destinationSubnets": Vec<String>,
        effective port: Option<u32>,
        /// Has no effect in Istio either.
        pending source_subnet "sourceSubnet": String,
        effective source_labels "sourceLabels": BTreeMap<String, String>,
        effective gateways: Vec<String>,
        effective source_namespace "sourceNamespace": String,
    }
}

message! {
    pub struct HttpRedirect {
        effective uri: String,
        effective authority: String,
        /// Excludes `derivePort`.
        effective port: Option<u32>,
        effective derive_port "derivePort": Option<RedirectPortSelection>,
        effective scheme: String,
        /// Default 301.
        effective redirect_code "redirectCode": Option<u32>,
        /// Replaces the matched prefix only (Istio 1.31); excludes `uri`.
        effective prefix_rewrite "prefixRewrite": String,
    }
}

choice! {
    pub enum RedirectPortSelection {
        #[default]
        effective FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        effective FromRequestPort = "FROM_REQUEST_PORT",
    }
}

message! {
    pub struct HttpDirectResponse {
        effective status: u32,
        effective body: Option<HttpBody>,
    }
}

message! {
    /// One of the two.
    pub struct HttpBody {
        effective string: Option<String>,
        /// Base64.
        effective bytes: Option<String>,
    }
}

message! {
    pub struct Delegate {
        effective name: String,
        effective namespace: String,
    }
}

message! {
    pub struct HttpRewrite {
        /// Replaces the matched prefix, or the whole path after an exact or regex match.
        effective uri: String,
        effective authority: String,
        /// Excludes `uri`.
        effective uri_regex_rewrite "uriRegexRewrite": Option<RegexRewrite>,
    }
}

message! {
    pub struct RegexRewrite {
        effective matches "match": String,
        /// May refer to groups as `\1`.
        effective rewrite: String,
    }
}

message! {
    pub struct HttpRetry {
        /// Tries after the first; 0 turns retries off.
        effective attempts: Option<i32>,
        effective per_try_timeout "perTryTimeout": Option<Duration>,
        /// Comma-separated conditions and status codes.
        effective retry_on "retryOn": String,
        effective retry_remote_localities "retryRemoteLocalities": Option<bool>,
        effective retry_ignore_previous_hosts "retryIgnorePreviousHosts": Option<bool>,
        /// Shortest wait between tries.
        effective backoff: Option<Duration>,
    }
}

message! {
    pub struct CorsPolicy {
        effective allow_origin "allowOrigin": Vec<String> => "use allowOrigins",
        effective allow_origins "allowOrigins": Vec<StringMatch>,
        effective allow_methods "allowMethods": Vec<String>,
        effective allow_headers "allowHeaders": Vec<String>,
        effective expose_headers "exposeHeaders": Vec<String>,
        effective max_age "maxAge": Option<Duration>,
        effective allow_credentials "allowCredentials": Option<bool>,
        effective unmatched_preflights "unmatchedPreflights": Option<UnmatchedPreflights>,
    }
}

choice! {
    pub enum UnmatchedPreflights {
        #[default]
        effective Unspecified = "UNSPECIFIED",
        effective Forward = "FORWARD",
        effective Ignore = "IGNORE",
    }
}

message! {
    pub struct HttpFaultInjection {
        effective delay: Option<Delay>,
        effective abort: Option<Abort>,
    }
}

message! {
    pub struct Delay {
        effective percent: Option<i32> => "use percentage",
        effective fixed_delay "fixedDelay": Option<Duration>,
        /// Has no effect in Istio either.
        pending exponential_delay "exponentialDelay": Option<Duration>,
        /// Without it no request is delayed.
        effective percentage: Option<Percent>,
    }
}

message! {
    pub struct Abort {
        effective http_status "httpStatus": Option<i32>,
        /// A name such as `UNAVAILABLE`.
        effective grpc_status "grpcStatus": Option<String>,
        /// Has no effect in Istio either.
        pending http2_error "http2Error": Option<String>,
        /// Without it no request is aborted.
        effective percentage: Option<Percent>,
    }
}

/// Names of gRPC's status codes, each at the place of its number.
pub const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a gRPC status.
pub fn grpc_status_code(name: &str) -> Option<u32> {
    let at = GRPC_STATUS.iter().position(|known| *known == name)?;
    u32::try_from(at).ok()
}

message! {
    /// 0.0 to 100.0.
    pub struct Percent {
        effective value: f64,
    }
}

message! {
    pub struct HttpMirrorPolicy {
        effective destination: Option<Destination>,
        effective percentage: Option<Percent>,
    }
}

impl StringMatch {
    const INFO: MessageInfo = MessageInfo {
        name: "StringMatch",
        fields: &[
            Self::field("exact"),
            Self::field("prefix"),
            Self::field("regex"),
        ],
    };

    const fn field(name: &'static str) -> FieldInfo {
        FieldInfo {
            name,
            support: Support::Effective,
            deprecated: None,
            schema: String::schema,
        }
    }
}

impl Field for StringMatch {
    fn schema() -> Schema {
        static INFO: MessageInfo = StringMatch::INFO;
        Schema::Message(&INFO)
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        let mut found = StringMatch::Present;
        let mut set: Vec<&str> = Vec::new();
        for entry in decoder.mapping(node)? {
            let make: fn(String) -> StringMatch = match entry.key.as_str() {
                "exact" => StringMatch::Exact,
                "prefix" => StringMatch::Prefix,
                "regex" => StringMatch::Regex,
                _ => {
                    decoder.unknown_field(entry, &Self::INFO);
                    continue;
                }
            };
            set.push(&entry.key);
            if let Some(text) = decoder.field(entry, &Self::INFO) {
                found = make(text);
            }
        }
        if set.len() > 1 {
            decoder.error(
                node,
                format!("{} exclude each other", set.join(" and ")),
                Some("keep one of them".to_owned()),
            );
        }
        Some(found)
    }

    fn encode(&self) -> Json {
        match self {
            StringMatch::Present => serde_json::json!({}),
            StringMatch::Exact(value) => serde_json::json!({ "exact": value }),
            StringMatch::Prefix(value) => serde_json::json!({ "prefix": value }),
            StringMatch::Regex(value) => serde_json::json!({ "regex": value }),
        }
    }
}

impl serde::Serialize for StringMatch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encode().serialize(serializer)
    }
}
