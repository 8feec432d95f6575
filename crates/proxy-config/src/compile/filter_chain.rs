//! `FilterChain`: its match, its transport, its network filters.

use super::access_log::access_logs;
use super::ext_authz::network_ext_authz;
use super::hcm::http_connection_manager;
use super::rbac::network_rbac;
use super::scope::{At, reject, report};
use super::transport;
use super::values::{
    any, cidr, decode, duration, flag, known, limit, metadata, non_empty, port, required,
};
use crate::{
    CidrRange, ConfigError, FilterChain, FilterChainMatch, Guard, Network, SourceType, TcpCluster,
    TcpProxy, Tunnel,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// A client that has not finished its handshake by then is closed, if the configuration does not
/// say how long it may take. Envoy would wait for an hour (its idle timeout).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Network filters that only observe.
pub(crate) const OBSERVERS: &[(&str, &str)] = &[
    (
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        "peer metadata is not exchanged",
    ),
    (
        "stats.PluginConfig",
        "Istio's standard metrics are not made",
    ),
];

pub(crate) fn filter_chain(
    message: pb::FilterChain,
    at: At<'_>,
) -> Result<FilterChain, ConfigError> {
    let content = content(&message);
    let pb::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: chain_metadata,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = message;
    if flag(use_proxy_proto, false) {
        return Err(at
            .field("use_proxy_proto")
            .error("use the proxy_protocol listener filter"));
    }
    let match_at = at.field("filter_chain_match");
    let (guards, network) = network(filters, at)?;
    Ok(FilterChain {
        name: name.into(),
        matches: filter_chain_match
            .map(|m| chain_match(m, match_at))
            .transpose()?
            .unwrap_or_default(),
        transport: transport::downstream(transport_socket, at.field("transport_socket"))?,
        handshake_timeout: limit(
            transport_socket_connect_timeout,
            Some(HANDSHAKE_TIMEOUT),
            at.field("transport_socket_connect_timeout"),
        )?,
        guards,
        network,
        metadata: metadata(chain_metadata, at.field("metadata"))?,
        content,
    })
}

/// A hash of what a chain says. Its metadata, which nothing that is served depends on, is left out: a
/// map encodes in another order each time.
fn content(message: &pb::FilterChain) -> u64 {
    let mut hasher = DefaultHasher::new();
    let without_map = pb::FilterChain {
        metadata: None,
        ..message.clone()
    };
    hasher.write(&without_map.encode_to_vec());
    hasher.finish()
}

fn chain_match(message: pb::FilterChainMatch, at: At<'_>) -> Result<FilterChainMatch, ConfigError> {
    use pb::filter_chain_match::ConnectionSourceType;
    let pb::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = message;
    // Envoy has never implemented these two (listener_components.proto).
    reject!(at; address_suffix, suffix_len);
    let port_of = |value, field: &str| match port(value, at.field(field)) {
        Ok(0) => Err(at.field(field).error("must be between 1 and 65535")),
        other => other,
    };
    Ok(FilterChainMatch {
        destination_port: destination_port
            .map(|v| port_of(v.value, "destination_port"))
            .transpose()?,
        destination_ranges: ranges(prefix_ranges, "prefix_ranges", at)?,
        source_type: match known(source_type, at.field("source_type"))? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        direct_source_ranges: ranges(
            direct_source_prefix_ranges,
            "direct_source_prefix_ranges",
            at,
        )?,
        source_ranges: ranges(source_prefix_ranges, "source_prefix_ranges", at)?,
        source_ports: source_ports
            .into_iter()
            .map(|p| port_of(p, "source_ports"))
            .collect::<Result<_, _>>()?,
        server_names: server_names
            .iter()
            .enumerate()
            .map(|(i, name)| server_name(name, at.item("server_names", i)))
            .collect::<Result<_, _>>()?,
        transport_protocol: transport_protocol.into(),
        application_protocols: application_protocols.into_iter().map(Into::into).collect(),
    })
}

/// A name, or a wildcard for whole labels.
fn server_name(name: &str, at: At<'_>) -> Result<Box<str>, ConfigError> {
    let name = name.to_ascii_lowercase();
    let key = match name.strip_prefix('*') {
        Some(rest) if rest.starts_with('.') => rest,
        _ => &name,
    };
    if key.contains('*') {
        return Err(at.error(format!(
            "'{name}' is not supported: a star stands for whole labels, as in *.example.com; \
             leave server_names out to take every name"
        )));
    }
    Ok(key.into())
}

fn ranges(
    messages: Vec<core::CidrRange>,
    field: &str,
    at: At<'_>,
) -> Result<Vec<CidrRange>, ConfigError> {
    messages
        .into_iter()
        .enumerate()
        .map(|(i, r)| cidr(r, at.item(field, i)))
        .collect()
}

/// The guards of a chain, and what serves behind them.
fn network(
    filters: Vec<pb::Filter>,
    at: At<'_>,
) -> Result<(Vec<Arc<Guard>>, Network), ConfigError> {
    use pb::filter::ConfigType;
    let (mut guards, mut terminal) = (Vec::new(), Network::Close);
    let mut by_server_name = None;
    let last = filters.len();
    for (i, filter) in filters.into_iter().enumerate() {
        let at = at.item("filters", i);
        let pb::Filter { name, config_type } = filter;
        let config = match config_type {
            Some(ConfigType::TypedConfig(config)) => config,
            Some(ConfigType::ConfigDiscovery(_)) => {
                return Err(at.field("config_discovery").not_supported());
            }
            None => return Err(at.field("typed_config").error("is required")),
        };
        match network_filter(&name, &config, at.field("typed_config"))? {
            Found::Terminal(Network::Tcp(tcp)) if i + 1 == last => {
                terminal = Network::Tcp(Arc::new(TcpProxy {
                    server_name_port: by_server_name,
                    ..tcp.as_ref().clone()
                }));
            }
            Found::Terminal(_) if by_server_name.is_some() => {
                return Err(at.error("a server name leads only a tcp_proxy anywhere"));
            }
            Found::Terminal(network) if i + 1 == last => terminal = network,
            Found::Terminal(_) => return Err(at.error("a terminal filter must be the last one")),
            _ if i + 1 == last => {
                return Err(at.error(
                    "the last filter must be envoy.filters.network.http_connection_manager or \
                     envoy.filters.network.tcp_proxy",
                ));
            }
            Found::Guard(guard) => guards.push(Arc::new(guard)),
            Found::ByServerName(port) => by_server_name = Some(port),
            Found::Observer => {}
        }
    }
    Ok((guards, terminal))
}

const BY_SERVER_NAME: &str =
    "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig";
const NETWORK_EXT_AUTHZ: &str = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";

/// What a network filter is.
enum Found {
    Terminal(Network),
    Guard(Guard),
    ByServerName(u16),
    Observer,
}

fn network_filter(name: &str, config: &Any, at: At<'_>) -> Result<Found, ConfigError> {
    match any(config) {
        (
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            bytes,
        ) => {
            let manager = http_connection_manager(decode(bytes, at)?, at)?;
            Ok(Found::Terminal(Network::Http(Arc::new(manager))))
        }
        ("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", bytes) => Ok(Found::Terminal(
            Network::Tcp(Arc::new(tcp_proxy(decode(bytes, at)?, at)?)),
        )),
        ("envoy.extensions.filters.network.rbac.v3.RBAC", bytes) => {
            let guard = network_rbac(decode(bytes, at)?, at)?;
            Ok(Found::Guard(Guard::Rbac(guard)))
        }
        (BY_SERVER_NAME, bytes) => {
            let port = super::by_name::server_name_filter(decode(bytes, at)?, at)?;
            Ok(Found::ByServerName(port))
        }
        (NETWORK_EXT_AUTHZ, bytes) => {
            let guard = network_ext_authz(decode(bytes, at)?, at)?;
            Ok(Found::Guard(Guard::ExtAuthz(guard)))
        }
        (kind, _) => match OBSERVERS.iter().find(|(observer, _)| *observer == kind) {
            Some((_, what)) => {
                at.notice(what);
                Ok(Found::Observer)
            }
            None => Err(at.error(format!(
                "the network filter '{name}' ({kind}) is not supported yet"
            ))),
        },
    }
}

fn tcp_proxy(message: tcp::TcpProxy, at: At<'_>) -> Result<TcpProxy, ConfigError> {
    let tcp::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = message;
    reject!(at; on_demand, metadata_match, proxy_protocol_tlvs, upstream_connect_mode);
    report!(at, "idle_timeout holds for both sides"; downstream_idle_timeout, upstream_idle_timeout);
    report!(at, "a failed connect is tried again at once"; backoff_options);
    report!(at, "connections end at the limit exactly"; max_downstream_connection_duration_jitter_percentage);
    report!(at, "a connection is logged when it ends"; access_log_flush_interval);
    report!(at, "a connection is logged when it ends"; flush_access_log_on_connected, access_log_options);
    report!(at, "no PROXY header is sent"; proxy_protocol_tlv_merge_policy);
    report!(at, "connecting does not wait for data"; max_early_data_bytes);
    report!(at, "connections close when the drain ends"; check_drain_close);
    Ok(TcpProxy {
        stat_prefix: non_empty(stat_prefix, at.field("stat_prefix"))?.into(),
        cluster: tcp_cluster(cluster_specifier, at)?,
        idle_timeout: limit(
            idle_timeout,
            Some(Duration::from_secs(3600)),
            at.field("idle_timeout"),
        )?,
        max_connect_attempts: max_connect_attempts.map_or(1, |v| v.value).max(1),
        max_connection_duration: duration(
            max_downstream_connection_duration,
            at.field("max_downstream_connection_duration"),
        )?,
        hash_source_ip: hashes_source_ip(hash_policy, at)?,
        server_name_port: None,
        tunnel: tunneling_config
            .map(|message| tunnel(message, at.field("tunneling_config")))
            .transpose()?,
        access_log: access_logs(access_log, at)?,
    })
}

fn tunnel(message: tcp::tcp_proxy::TunnelingConfig, at: At<'_>) -> Result<Tunnel, ConfigError> {
    let tcp::tcp_proxy::TunnelingConfig {
        hostname,
        use_post,
        headers_to_add,
        propagate_response_headers,
        post_path,
        propagate_response_trailers,
        request_id_extension,
        request_id_header,
        request_id_metadata_key,
        formatters,
    } = message;
    reject!(at; headers_to_add, formatters);
    report!(at, "what the proxy answers is not kept"; propagate_response_headers, propagate_response_trailers);
    report!(at, "the request has no id"; request_id_extension, request_id_header, request_id_metadata_key);
    let host = non_empty(hostname, at.field("hostname"))?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~[]:".contains(&b);
    if !host.bytes().all(fits) {
        return Err(at
            .field("hostname")
            .error("must be a host and a port; formats (%...%) are not supported"));
    }
    let post_path = match (use_post, post_path.as_str()) {
        (false, "") => None,
        (false, _) => {
            return Err(at.field("post_path").error("is for use_post only"));
        }
        (true, "") => Some("/".into()),
        (true, path) if path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()) => {
            Some(path.into())
        }
        (true, _) => return Err(at.field("post_path").error("must be a path")),
    };
    Ok(Tunnel {
        host: host.into(),
        post_path,
    })
}

fn hashes_source_ip(
    messages: Vec<envoy_types::pb::envoy::r#type::v3::HashPolicy>,
    at: At<'_>,
) -> Result<bool, ConfigError> {
    use envoy_types::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};
    let mut source_ip = false;
    for (i, message) in messages.into_iter().enumerate() {
        match message.policy_specifier {
            Some(PolicySpecifier::SourceIp(SourceIp {})) => source_ip = true,
            _ => return Err(at.item("hash_policy", i).not_supported()),
        }
    }
    Ok(source_ip)
}

fn tcp_cluster(
    specifier: Option<tcp::tcp_proxy::ClusterSpecifier>,
    at: At<'_>,
) -> Result<TcpCluster, ConfigError> {
    use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    match required(specifier, at.field("cluster"))? {
        ClusterSpecifier::Cluster(name) => Ok(TcpCluster::One(
            non_empty(name, at.field("cluster"))?.into(),
        )),
        ClusterSpecifier::WeightedClusters(WeightedCluster { clusters }) => {
            let at = at.field("weighted_clusters");
            let mut weighted = Vec::with_capacity(clusters.len());
            for (i, cluster) in clusters.into_iter().enumerate() {
                let at = at.item("clusters", i);
                let ClusterWeight {
                    name,
                    weight,
                    metadata_match,
                } = cluster;
                reject!(at; metadata_match);
                if weight == 0 {
                    return Err(at.field("weight").error("must be above zero"));
                }
                weighted.push((Arc::from(non_empty(name, at.field("name"))?), weight));
            }
            if weighted.is_empty() {
                return Err(at.field("clusters").error("needs at least one cluster"));
            }
            let total = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
            Ok(TcpCluster::Weighted {
                clusters: weighted,
                total,
            })
        }
    }
}
