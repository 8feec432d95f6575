//! The Envoy resources of the run: one HTTP and one TCP listener in front of one backend.
//!
//! Two chains: [`Chain::Minimal`] is a router and nothing else; [`Chain::Istio`] has what a
//! sidecar of Istio has in plain Envoy filters: authorization, CORS, fault injection, Istio's
//! default retries and its 24-field JSON access log. Istio's own filters (metadata exchange,
//! statistics) are not in a stock Envoy and left out, which is to Envoy's favour.

mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, circuit_breakers::Thresholds, cluster,
};
use envoy_types::pb::envoy::config::core::v3::{
    Address, SocketAddress, SubstitutionFormatString, TransportSocket, address, socket_address,
    substitution_format_string,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac,
};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    header_matcher, retry_policy, route, route_action, route_match,
};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log,
};
use envoy_types::pb::envoy::extensions::filters::http::{
    cors::v3::Cors, fault::v3::HttpFault, rbac::v3::Rbac, router::v3::Router,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Duration, Struct, UInt32Value, Value};
use lateen_xds::{Resource, type_url};
use prost::{Message, Name};

use crate::credentials::Credentials;

const HTTP_CLUSTER: &str = "outbound|80||backend.bench.svc.cluster.local";
const PAIR_CLUSTER: &str = "outbound|443||backend.bench.svc.cluster.local";
const TCP_CLUSTER: &str = "outbound|9000||backend.bench.svc.cluster.local";

/// What stands between connection and router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    Minimal,
    Istio,
}

impl Chain {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Istio => "istio",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Minimal, Self::Istio]
            .into_iter()
            .find(|chain| chain.as_str() == name)
    }
}

/// The inputs of one proxy's resources.
pub struct Wanted<'a> {
    pub chain: Chain,
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    /// Plaintext, and on to `mtls`: one process is both ends of mutual TLS.
    pub pair: SocketAddr,
    /// Mutual TLS, and on to the backend.
    pub mtls: SocketAddr,
    pub credentials: &'a Credentials,
    pub backend_http: SocketAddr,
    pub backend_tcp: SocketAddr,
}

/// The resources of one type.
pub fn of_type(wanted: &Wanted<'_>, url: &str) -> Vec<Resource> {
    match url {
        type_url::CLUSTER => [
            cluster(HTTP_CLUSTER, wanted.backend_http),
            cluster(TCP_CLUSTER, wanted.backend_tcp),
            Cluster {
                transport_socket: Some(tls::upstream(wanted.credentials)),
                ..cluster(PAIR_CLUSTER, wanted.mtls)
            },
        ]
        .map(|cluster| Resource::encode(cluster.name.clone(), url, &cluster))
        .into(),
        // The version is given: access logs and policies are protobuf maps, which encode in any
        // order, and an equal listener must not look changed.
        type_url::LISTENER => [
            listener(wanted.http, http_filter(wanted.chain, HTTP_CLUSTER), None),
            listener(wanted.tcp, tcp_filter(), None),
            listener(wanted.pair, http_filter(wanted.chain, PAIR_CLUSTER), None),
            listener(
                wanted.mtls,
                http_filter(wanted.chain, HTTP_CLUSTER),
                Some(tls::downstream(wanted.credentials)),
            ),
        ]
        .map(|made| Resource::with_version(made.name.clone(), wanted.chain.as_str(), url, &made))
        .into(),
        _ => Vec::new(),
    }
}

/// A listener with these rules in front of the router.
pub fn authorized(rules: &Rbac) -> Listener {
    let filters = vec![named("envoy.filters.http.rbac", rules), router()];
    let manager = manager(Chain::Minimal, HTTP_CLUSTER, filters, Vec::new());
    listener(SocketAddr::from(([127, 0, 0, 1], 80)), manager, None)
}

fn cluster(name: &str, backend: SocketAddr) -> Cluster {
    let endpoint = LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: Some(address(backend)),
            ..Default::default()
        })),
        ..Default::default()
    };
    // Istio's defaults: no bound that 1,000 connections could meet.
    let most = Some(UInt32Value { value: u32::MAX });
    let thresholds = Thresholds {
        max_connections: most,
        max_pending_requests: most,
        max_requests: most,
        max_retries: most,
        ..Default::default()
    };
    Cluster {
        name: name.into(),
        connect_timeout: Some(seconds(10)),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static.into(),
        )),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![thresholds],
            ..Default::default()
        }),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn listener(at: SocketAddr, filter: Filter, transport_socket: Option<TransportSocket>) -> Listener {
    Listener {
        name: format!("{}_{}", at.ip(), at.port()),
        address: Some(address(at)),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            transport_socket,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn tcp_filter() -> Filter {
    let proxy = TcpProxy {
        stat_prefix: TCP_CLUSTER.into(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(TCP_CLUSTER.into())),
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

fn http_filter(chain: Chain, cluster: &str) -> Filter {
    let (http_filters, access_log) = match chain {
        Chain::Minimal => (vec![router()], Vec::new()),
        Chain::Istio => (
            vec![
                named("envoy.filters.http.rbac", &authorization()),
                named("envoy.filters.http.cors", &Cors::default()),
                named("envoy.filters.http.fault", &HttpFault::default()),
                router(),
            ],
            vec![json_access_log()],
        ),
    };
    manager(chain, cluster, http_filters, access_log)
}

fn manager(
    chain: Chain,
    cluster: &str,
    http_filters: Vec<HttpFilter>,
    access_log: Vec<AccessLog>,
) -> Filter {
    let manager = HttpConnectionManager {
        stat_prefix: "bench".into(),
        http_filters,
        access_log,
        route_specifier: Some(RouteSpecifier::RouteConfig(route_table(chain, cluster))),
        ..Default::default()
    };
    network_filter("envoy.filters.network.http_connection_manager", &manager)
}

fn route_table(chain: Chain, cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.into())),
        timeout: Some(seconds(0)),
        retry_policy: (chain == Chain::Istio).then(default_retries),
        ..Default::default()
    };
    let route = Route {
        name: "default".into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    RouteConfiguration {
        name: "bench".into(),
        virtual_hosts: vec![VirtualHost {
            name: "backend.bench.svc.cluster.local:80".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// What Istio gives a route without `retries`.
fn default_retries() -> RetryPolicy {
    RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
            .into(),
        num_retries: Some(UInt32Value { value: 2 }),
        retry_host_predicate: vec![retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            config_type: Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(
                any(&PreviousHostsPredicate::default()),
            )),
        }],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    }
}

/// Three ALLOW policies, of which the last in Envoy's order (by name) lets the requests in.
fn authorization() -> Rbac {
    let text = |pattern| StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    };
    let path = |pattern| Permission {
        rule: Some(permission::Rule::UrlPath(PathMatcher {
            rule: Some(path_matcher::Rule::Path(text(pattern))),
        })),
    };
    let method = |name: &str| Permission {
        rule: Some(permission::Rule::Header(HeaderMatcher {
            name: ":method".into(),
            header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(text(
                MatchPattern::Exact(name.into()),
            ))),
            ..Default::default()
        })),
    };
    let policy = |rules| Policy {
        permissions: vec![Permission {
            rule: Some(permission::Rule::AndRules(permission::Set { rules })),
        }],
        principals: vec![Principal {
            identifier: Some(principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };
    let policies = HashMap::from([
        (
            "ns[bench]-policy[a-admin]-rule[0]".to_owned(),
            policy(vec![
                path(MatchPattern::Prefix("/admin/".into())),
                method("POST"),
            ]),
        ),
        (
            "ns[bench]-policy[b-health]-rule[0]".to_owned(),
            policy(vec![path(MatchPattern::Exact("/health".into()))]),
        ),
        (
            "ns[bench]-policy[c-read]-rule[0]".to_owned(),
            policy(vec![path(MatchPattern::Prefix("/".into())), method("GET")]),
        ),
    ]);
    Rbac {
        rules: Some(Rules {
            action: rbac::Action::Allow.into(),
            policies,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Istio's default fields (`meshConfig.accessLogEncoding: JSON`).
const ACCESS_LOG_FIELDS: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
];

fn json_access_log() -> AccessLog {
    let fields = ACCESS_LOG_FIELDS
        .into_iter()
        .map(|(key, format)| {
            let kind = Some(Kind::StringValue(format.into()));
            (key.to_owned(), Value { kind })
        })
        .collect();
    let file = FileAccessLog {
        path: "/dev/stdout".into(),
        access_log_format: Some(file_access_log::AccessLogFormat::LogFormat(
            SubstitutionFormatString {
                format: Some(substitution_format_string::Format::JsonFormat(Struct {
                    fields,
                })),
                ..Default::default()
            },
        )),
    };
    AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(access_log::ConfigType::TypedConfig(any(&file))),
        ..Default::default()
    }
}

fn router() -> HttpFilter {
    named("envoy.filters.http.router", &Router::default())
}

fn named<M: Message + Name>(name: &str, message: &M) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(message))),
        ..Default::default()
    }
}

fn network_filter<M: Message + Name>(name: &str, message: &M) -> Filter {
    Filter {
        name: name.into(),
        config_type: Some(filter::ConfigType::TypedConfig(any(message))),
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn address(of: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: of.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(of.port().into())),
            ..Default::default()
        })),
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}
