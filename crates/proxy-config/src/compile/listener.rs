//! `Listener`: addresses, socket options, listener filters.

use super::access_log::access_logs;
use super::filter_chain::filter_chain;
use super::listener_filters::listener_filters as compile_filters;
use super::scope::{At, reject, report};
use super::values::{address, flag, known, limit, metadata, non_empty};
use crate::{
    ChainIndex, ConfigError, FilterChain, Listener, ListenerFilters, TcpKeepalive,
    TrafficDirection, Transport,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use std::sync::Arc;
use std::time::Duration;

/// How long listener filters may wait for the client when nothing is said (`listener.proto`).
const FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) fn listener(message: pb::Listener, at: At<'_>) -> Result<Listener, ConfigError> {
    let pb::Listener {
        name,
        address: main_address,
        additional_addresses,
        stat_prefix,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata: listener_metadata,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout: continue_on_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive: keepalive,
        listener_specifier,
    } = message;
    reject!(at; fcds_config, filter_chain_matcher, udp_listener_config, api_listener, listener_specifier);
    report!(at, "all statistics are kept"; stats_matcher);
    report!(at, "the kernel spreads connections over the workers"; connection_balance_config);
    report!(at, "data comes after the handshake"; tcp_fast_open_queue_length);
    report!(at, "buffers have a fixed size"; per_connection_buffer_limit_bytes);
    report!(at, "full buffers only pause reading"; per_connection_buffer_high_watermark_timeout);
    report!(at, "the socket keeps the system's options"; socket_options);
    report!(at, "connections are accepted as they come"; max_connections_to_accept_per_socket_event);
    report!(at, "plain TCP is used"; enable_mptcp);
    report!(at, "there is no global connection limit"; ignore_global_conn_limit);
    report!(at, "there is no overload manager"; bypass_overload_manager);
    report!(at, "SO_REUSEPORT follows enable_reuse_port"; reuse_port);
    report!(at, "the listener also drains on /healthcheck/fail"; drain_type);
    let bind_to_port = flag(
        bind_to_port.or(deprecated_v1.and_then(|v| v.bind_to_port)),
        true,
    );
    let use_original_dst = flag(use_original_dst, false);
    let chains = filter_chains_of(filter_chains, default_filter_chain, at)?;
    let chain_index = ChainIndex::new(&chains.0).map_err(|same| {
        let at = at.item("filter_chains", same.second);
        at.field("filter_chain_match").error(format!(
            "matches the same connections as filter_chains[{}]",
            same.first
        ))
    })?;
    let begun_timeout = begun_timeout(chains.0.iter().chain(&chains.1));
    Ok(Listener {
        addresses: addresses(main_address, additional_addresses, at)?,
        name: non_empty(name, at.field("name"))?.into(),
        stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
        direction: match known(traffic_direction, at.field("traffic_direction"))? {
            core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
            core::TrafficDirection::Inbound => TrafficDirection::Inbound,
            core::TrafficDirection::Outbound => TrafficDirection::Outbound,
        },
        filter_chains: chains.0,
        chain_index: Arc::new(chain_index),
        default_filter_chain: chains.1,
        filters: ListenerFilters {
            filters: compile_filters(listener_filters, use_original_dst, at)?,
            timeout: limit(
                listener_filters_timeout,
                Some(FILTERS_TIMEOUT),
                at.field("listener_filters_timeout"),
            )?,
            begun_timeout,
            continue_on_timeout,
        },
        use_original_dst,
        bind_to_port,
        backlog: tcp_backlog_size.map(|v| v.value),
        reuse_port: flag(enable_reuse_port, true),
        transparent: flag(transparent, false),
        freebind: flag(freebind, false),
        tcp_keepalive: keepalive.map(tcp_keepalive),
        access_log: access_logs(access_log, at)?,
        metadata: metadata(listener_metadata, at.field("metadata"))?,
    })
}

type Chains = (Vec<Arc<FilterChain>>, Option<Arc<FilterChain>>);

/// A hello that has begun is part of a handshake, and may take as long as the most patient of the
/// chains that shake hands lets it; other first bytes where no chain does the same.
fn begun_timeout<'c>(chains: impl Iterator<Item = &'c Arc<FilterChain>>) -> Option<Duration> {
    let limit = |chain: &Arc<FilterChain>| chain.handshake_timeout.unwrap_or(Duration::MAX);
    let by_tls = |chain: &Arc<FilterChain>| matches!(chain.transport, Transport::Tls(_));
    let longest = chains.map(|chain| (by_tls(chain), limit(chain))).max();
    longest
        .map(|(_, limit)| limit)
        .filter(|limit| *limit < Duration::MAX)
}

fn filter_chains_of(
    messages: Vec<pb::FilterChain>,
    default: Option<pb::FilterChain>,
    at: At<'_>,
) -> Result<Chains, ConfigError> {
    let mut chains: Vec<Arc<FilterChain>> = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("filter_chains", i);
        chains.push(Arc::new(filter_chain(message, at)?));
    }
    let default = default
        .map(|c| filter_chain(c, at.field("default_filter_chain")))
        .transpose()?
        .map(Arc::new);
    if chains.is_empty() && default.is_none() {
        return Err(at
            .field("filter_chains")
            .error("needs at least one filter chain"));
    }
    Ok((chains, default))
}

fn addresses(
    main: Option<core::Address>,
    additional: Vec<pb::AdditionalAddress>,
    at: At<'_>,
) -> Result<Vec<crate::Address>, ConfigError> {
    let mut addresses = vec![address(main, at.field("address"))?];
    for (i, message) in additional.into_iter().enumerate() {
        let at = at.item("additional_addresses", i);
        let pb::AdditionalAddress {
            address: value,
            socket_options,
            tcp_keepalive,
        } = message;
        report!(at, "the socket keeps the system's options"; socket_options);
        report!(at, "keepalive follows the listener's"; tcp_keepalive);
        addresses.push(address(value, at.field("address"))?);
    }
    Ok(addresses)
}

pub(crate) fn tcp_keepalive(message: core::TcpKeepalive) -> TcpKeepalive {
    let core::TcpKeepalive {
        keepalive_probes,
        keepalive_time,
        keepalive_interval,
    } = message;
    let seconds =
        |v: envoy_types::pb::google::protobuf::UInt32Value| Duration::from_secs(u64::from(v.value));
    TcpKeepalive {
        probes: keepalive_probes.map(|v| v.value),
        time: keepalive_time.map(seconds),
        interval: keepalive_interval.map(seconds),
    }
}
