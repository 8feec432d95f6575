//! A listener: where connections come in, and which filter chain takes each.

use crate::{AccessLog, Address, CidrRange, HttpConnectionManager, Metadata, TcpKeepalive};
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
    /// Takes connections that no other chain matches; without one they are closed.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    pub filters: ListenerFilters,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerFilters {
    /// Ask the kernel where the connection was going before it was redirected.
    pub original_dst: bool,
}

/// One filter chain: for which connections, and what serves them.
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// May be empty.
    pub name: Arc<str>,
    pub matches: FilterChainMatch,
    pub network: Network,
    pub metadata: Option<Arc<Metadata>>,
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
    /// Empty so far, as the next two: what needs the first bytes of a connection is rejected.
    pub server_names: Vec<Box<str>>,
    /// `raw_buffer` or empty.
    pub transport_protocol: Box<str>,
    pub application_protocols: Vec<Box<str>>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    pub access_log: Vec<AccessLog>,
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
