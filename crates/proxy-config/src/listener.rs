//! A listener: where connections come in, and which filter chain takes each.

use crate::NetworkAuthz;
use crate::chain_match::ChainIndex;
use crate::rbac::NetworkRbac;
use crate::{
    AccessLog, Address, CidrRange, HttpConnectionManager, Metadata, TcpKeepalive, Transport,
};
use std::sync::Arc;
use std::time::Duration;

/// One listener (`envoy.config.listener.v3.Listener`).
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: Arc<str>,
    /// At least one; the first is the main address.
    pub addresses: Vec<Address>,
    /// Name in statistics; [`None`]: the main address.
    pub stat_prefix: Option<Arc<str>>,
    pub direction: TrafficDirection,
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// Which of `filter_chains` takes a connection.
    pub chain_index: Arc<ChainIndex>,
    /// Takes connections that no other chain matches; without one they are closed.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    pub filters: ListenerFilters,
    /// Connections are handed over to the listener of the address the client was going to, if there
    /// is one.
    pub use_original_dst: bool,
    /// False: the listener only gets connections handed over by another.
    pub bind_to_port: bool,
    /// `listen(2)` backlog; [`None`]: the system's maximum.
    pub backlog: Option<u32>,
    /// One socket per worker (`SO_REUSEPORT`).
    pub reuse_port: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// For connections that no filter chain took.
    pub access_log: Vec<AccessLog>,
    pub metadata: Option<Arc<Metadata>>,
}

/// Which way traffic goes, seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDirection {
    Unspecified,
    Inbound,
    Outbound,
}

/// What happens to a connection before a filter chain is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFilters {
    /// In this order.
    pub filters: Vec<ListenerFilter>,
    /// How long all of them together may wait for the client; [`None`]: without limit.
    pub timeout: Option<Duration>,
    /// How long they may wait for a client that has begun to say something, where `timeout` says
    /// nothing; [`None`]: without limit.
    pub begun_timeout: Option<Duration>,
    /// After a timeout go on with what is known, rather than close the connection.
    pub continue_on_timeout: bool,
}

/// One listener filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFilter {
    pub kind: ListenerFilterKind,
    /// Connections that pass it by.
    pub disabled: Option<PortPredicate>,
}

/// What a listener filter finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerFilterKind {
    /// Ask the kernel where the connection was going before it was redirected.
    OriginalDst,
    /// Read and take away the PROXY header.
    ProxyProtocol(ProxyProtocol),
    /// Look for a TLS ClientHello: transport protocol, server name, ALPN.
    TlsInspector(TlsInspector),
    /// Look for an HTTP request: application protocol.
    HttpInspector,
}

/// `envoy.filters.listener.tls_inspector`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsInspector {
    /// A longer ClientHello closes the connection.
    pub max_client_hello: usize,
    /// Close what begins as TLS but cannot be read, rather than take it for something else.
    pub close_on_error: bool,
}

/// `envoy.filters.listener.proxy_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Connections without a header pass as they are.
    pub optional: bool,
    pub v1: bool,
    pub v2: bool,
}

/// A condition on the port a connection was going to (`ListenerFilterChainMatchPredicate`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortPredicate {
    /// From, and up to but without.
    Range(i32, i32),
    Any(bool),
    Or(Vec<PortPredicate>),
    And(Vec<PortPredicate>),
    Not(Box<PortPredicate>),
}

impl PortPredicate {
    /// Whether it holds for a port.
    pub fn matches(&self, port: u16) -> bool {
        match self {
            PortPredicate::Range(start, end) => (*start..*end).contains(&i32::from(port)),
            PortPredicate::Any(any) => *any,
            PortPredicate::Or(rules) => rules.iter().any(|rule| rule.matches(port)),
            PortPredicate::And(rules) => rules.iter().all(|rule| rule.matches(port)),
            PortPredicate::Not(rule) => !rule.matches(port),
        }
    }
}

/// One filter chain: for which connections, and what serves them.
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// May be empty.
    pub name: Arc<str>,
    pub matches: FilterChainMatch,
    pub transport: Transport,
    /// For the TLS handshake; [`None`]: without limit.
    pub handshake_timeout: Option<Duration>,
    /// In order, in front of `network`.
    pub guards: Vec<Arc<Guard>>,
    pub network: Network,
    pub metadata: Option<Arc<Metadata>>,
    /// The same for chains that say the same.
    pub content: u64,
}

/// A network filter that may refuse a connection.
#[derive(Clone, Debug)]
pub enum Guard {
    Rbac(NetworkRbac),
    ExtAuthz(NetworkAuthz),
}

/// The terminal network filter of a chain.
#[derive(Clone, Debug)]
pub enum Network {
    Http(Arc<HttpConnectionManager>),
    Tcp(Arc<TcpProxy>),
    /// No filters: Envoy closes the connection.
    Close,
}

/// What a connection must be for its chain. An empty list or [`None`] matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    pub destination_ranges: Vec<CidrRange>,
    pub source_type: SourceType,
    pub direct_source_ranges: Vec<CidrRange>,
    pub source_ranges: Vec<CidrRange>,
    pub source_ports: Vec<u16>,
    /// In lower case; a wildcard without its star (`.example.com`).
    pub server_names: Vec<Box<str>>,
    /// `raw_buffer`, `tls` or empty.
    pub transport_protocol: Box<str>,
    pub application_protocols: Vec<Box<str>>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    #[default]
    Any,
    /// From the same address or from loopback.
    SameIpOrLoopback,
    External,
}

/// `envoy.filters.network.tcp_proxy`.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    pub stat_prefix: Arc<str>,
    pub cluster: TcpCluster,
    /// Close after this time without bytes in either direction; [`None`]: never.
    pub idle_timeout: Option<Duration>,
    /// At least 1.
    pub max_connect_attempts: u32,
    pub max_connection_duration: Option<Duration>,
    /// Connections of one client go to one endpoint, where the cluster hashes.
    pub hash_source_ip: bool,
    /// A cluster by name goes to the server name that the client asked for, at this port.
    pub server_name_port: Option<u16>,
    /// Through an HTTP proxy rather than directly.
    pub tunnel: Option<Tunnel>,
    pub access_log: Vec<AccessLog>,
}

/// The request that makes a proxy pass bytes on.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Host and port that the proxy is asked for.
    pub host: Box<str>,
    /// POST to this path instead of CONNECT.
    pub post_path: Option<Box<str>>,
}

/// Where TCP bytes go.
#[derive(Clone, Debug)]
pub enum TcpCluster {
    One(Arc<str>),
    /// Cluster and weight; the sum of weights is above zero.
    Weighted {
        clusters: Vec<(Arc<str>, u32)>,
        total: u64,
    },
}

impl TcpCluster {
    /// The cluster for a random number.
    pub fn pick(&self, random: u64) -> &Arc<str> {
        match self {
            TcpCluster::One(name) => name,
            TcpCluster::Weighted { clusters, total } => {
                let mut left = random % (*total).max(1);
                for (name, weight) in clusters {
                    match left.checked_sub(u64::from(*weight)) {
                        Some(rest) => left = rest,
                        None => return name,
                    }
                }
                &clusters[0].0
            }
        }
    }
}
