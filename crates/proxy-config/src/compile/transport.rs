//! `TransportSocket`: what carries the bytes. TLS is never left out silently.

use super::scope::{At, reject, report};
use super::tls::{downstream_tls, upstream_tls};
use super::values::{any, decode, known, required, structure};
use crate::{ConfigError, Metadata, ProxyVersion, Transport, UpstreamTransport};
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets as sockets;
use envoy_types::pb::google::protobuf::Any;
use std::sync::Arc;

const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const PROXY: &str =
    "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";

/// The name and configuration of a socket; nothing for a plain one.
fn unpack(
    socket: Option<core::TransportSocket>,
    at: At<'_>,
) -> Result<Option<(String, Any)>, ConfigError> {
    use core::transport_socket::ConfigType;
    let Some(core::TransportSocket { name, config_type }) = socket else {
        return Ok(None);
    };
    match config_type {
        Some(ConfigType::TypedConfig(config)) if any(&config).0 == RAW => Ok(None),
        Some(ConfigType::TypedConfig(config)) => Ok(Some((name, config))),
        None if name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(at.field("typed_config").error("is required")),
    }
}

/// The transport of a filter chain.
pub(crate) fn downstream(
    socket: Option<core::TransportSocket>,
    at: At<'_>,
) -> Result<Transport, ConfigError> {
    let Some((name, config)) = unpack(socket, at)? else {
        return Ok(Transport::Plain);
    };
    let config_at = at.field("typed_config");
    match any(&config) {
        (DOWNSTREAM, bytes) => {
            let tls = downstream_tls(decode(bytes, config_at)?, bytes, config_at)?;
            Ok(Transport::Tls(Arc::new(tls)))
        }
        (kind, _) => Err(unknown(&name, kind, at)),
    }
}

/// The transport of a cluster.
pub(crate) fn upstream(
    socket: Option<core::TransportSocket>,
    at: At<'_>,
) -> Result<UpstreamTransport, ConfigError> {
    let Some((name, config)) = unpack(socket, at)? else {
        return Ok(UpstreamTransport::default());
    };
    let config_at = at.field("typed_config");
    match any(&config) {
        (UPSTREAM, bytes) => {
            let tls = upstream_tls(decode(bytes, config_at)?, bytes, config_at)?;
            Ok(UpstreamTransport {
                proxy_header: None,
                tls: Some(Arc::new(tls)),
            })
        }
        (PROXY, bytes) => proxy_protocol(decode(bytes, config_at)?, config_at),
        (kind, _) => Err(unknown(&name, kind, at)),
    }
}

fn unknown(name: &str, kind: &str, at: At<'_>) -> ConfigError {
    at.error(format!(
        "the transport socket '{name}' ({kind}) is not supported yet"
    ))
}

fn proxy_protocol(
    message: sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport,
    at: At<'_>,
) -> Result<UpstreamTransport, ConfigError> {
    use core::proxy_protocol_config::Version;
    let sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport {
        config,
        transport_socket,
        allow_unspecified_address,
        tlv_as_pool_key,
    } = message;
    report!(at, "connections without addresses say so"; allow_unspecified_address);
    report!(at, "no TLVs are sent"; tlv_as_pool_key);
    let config_at = at.field("config");
    let core::ProxyProtocolConfig {
        version,
        pass_through_tlvs,
        added_tlvs,
    } = config.unwrap_or_default();
    reject!(config_at; pass_through_tlvs, added_tlvs);
    let inner_at = at.field("transport_socket");
    let inner = upstream(Some(required(transport_socket, inner_at)?), inner_at)?;
    if inner.proxy_header.is_some() {
        return Err(inner_at.error("a PROXY header is sent once"));
    }
    Ok(UpstreamTransport {
        proxy_header: Some(match known(version, config_at.field("version"))? {
            Version::V1 => ProxyVersion::V1,
            Version::V2 => ProxyVersion::V2,
        }),
        ..inner
    })
}

/// What an endpoint's `envoy.transport_socket_match` metadata must contain, and the transport then.
pub(crate) type Match = (Metadata, UpstreamTransport);

pub(crate) fn matches(
    messages: Vec<cluster::cluster::TransportSocketMatch>,
    at: At<'_>,
) -> Result<Vec<Match>, ConfigError> {
    let mut matches = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("transport_socket_matches", i);
        let cluster::cluster::TransportSocketMatch {
            // Of statistics.
            name: _,
            r#match,
            transport_socket,
        } = message;
        let transport = upstream(transport_socket, at.field("transport_socket"))?;
        matches.push((r#match.map(structure).unwrap_or_default(), transport));
    }
    Ok(matches)
}
