//! `Listener`: addresses, socket options, listener filters.

use super::access_log::access_logs;
use super::filter_chain::filter_chain;
use super::scope::{At, reject, report};
use super::values::{address, any, flag, known, metadata, non_empty};
use crate::{ConfigError, FilterChain, Listener, ListenerFilters, TcpKeepalive, TrafficDirection};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use std::sync::Arc;
use std::time::Duration;

const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";

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
        // No listener filter waits for bytes.
        listener_filters_timeout: _,
        continue_on_listener_filters_timeout: _,
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
    if flag(use_original_dst, false) {
        return Err(at.field("use_original_dst").not_supported());
    }
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
    let chains = filter_chains_of(filter_chains, default_filter_chain, at)?;
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
        default_filter_chain: chains.1,
        filters: listener_filter_flags(listener_filters, at)?,
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

fn filter_chains_of(
    messages: Vec<pb::FilterChain>,
    default: Option<pb::FilterChain>,
    at: At<'_>,
) -> Result<Chains, ConfigError> {
    let mut chains: Vec<Arc<FilterChain>> = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("filter_chains", i);
        let chain = filter_chain(message, at)?;
        if let Some(same) = chains.iter().position(|c| c.matches == chain.matches) {
            return Err(at.field("filter_chain_match").error(format!(
                "matches the same connections as filter_chains[{same}]"
            )));
        }
        chains.push(Arc::new(chain));
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

fn listener_filter_flags(
    messages: Vec<pb::ListenerFilter>,
    at: At<'_>,
) -> Result<ListenerFilters, ConfigError> {
    use pb::listener_filter::ConfigType;
    let mut filters = ListenerFilters::default();
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("listener_filters", i);
        let pb::ListenerFilter {
            name,
            filter_disabled,
            config_type,
        } = message;
        if filter_disabled.is_some() {
            // Running a filter for more connections than asked changes what they match.
            return Err(at.field("filter_disabled").not_supported());
        }
        let config = match config_type {
            Some(ConfigType::TypedConfig(config)) => config,
            Some(ConfigType::ConfigDiscovery(_)) => {
                return Err(at.field("config_discovery").not_supported());
            }
            None => return Err(at.field("typed_config").error("is required")),
        };
        match any(&config) {
            // Chains that match on what these find are rejected.
            (TLS_INSPECTOR | HTTP_INSPECTOR, _) => at.notice("the first bytes are not looked at"),
            ("envoy.extensions.filters.listener.original_dst.v3.OriginalDst", _) => {
                filters.original_dst = true;
            }
            (kind, _) => {
                return Err(at.error(format!(
                    "the listener filter '{name}' ({kind}) is not supported yet"
                )));
            }
        }
    }
    Ok(filters)
}
