//! Listener filters: what finds out about a connection before its filter chain is chosen.

use super::scope::{At, report};
use super::values::{any, decode, required};
use crate::{
    ConfigError, ListenerFilter, ListenerFilterKind, PortPredicate, ProxyProtocol, TlsInspector,
};
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3 as tls;
use envoy_types::pb::google::protobuf::Any;

/// A ClientHello is at most this long when nothing is said (Envoy's `TLS_MAX_CLIENT_HELLO`).
const MAX_CLIENT_HELLO: u32 = 16 * 1024;

pub(crate) fn listener_filters(
    messages: Vec<pb::ListenerFilter>,
    use_original_dst: bool,
    at: At<'_>,
) -> Result<Vec<ListenerFilter>, ConfigError> {
    use pb::listener_filter::ConfigType;
    let mut filters = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("listener_filters", i);
        let pb::ListenerFilter {
            name,
            filter_disabled,
            config_type,
        } = message;
        let config = match config_type {
            Some(ConfigType::TypedConfig(config)) => config,
            Some(ConfigType::ConfigDiscovery(_)) => {
                return Err(at.field("config_discovery").not_supported());
            }
            None => return Err(at.field("typed_config").error("is required")),
        };
        filters.push(ListenerFilter {
            kind: kind(&name, &config, at)?,
            disabled: filter_disabled
                .map(|p| predicate(p, at.field("filter_disabled")))
                .transpose()?,
        });
    }
    let original_dst = ListenerFilter {
        kind: ListenerFilterKind::OriginalDst,
        disabled: None,
    };
    if use_original_dst && !filters.contains(&original_dst) {
        filters.push(original_dst);
    }
    Ok(filters)
}

fn kind(name: &str, config: &Any, at: At<'_>) -> Result<ListenerFilterKind, ConfigError> {
    let config_at = at.field("typed_config");
    Ok(match any(config) {
        ("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", bytes) => {
            ListenerFilterKind::TlsInspector(tls_inspector(decode(bytes, config_at)?, config_at))
        }
        ("envoy.extensions.filters.listener.http_inspector.v3.HttpInspector", _) => {
            ListenerFilterKind::HttpInspector
        }
        ("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", bytes) => {
            ListenerFilterKind::ProxyProtocol(proxy_protocol(decode(bytes, config_at)?, config_at)?)
        }
        ("envoy.extensions.filters.listener.original_dst.v3.OriginalDst", _) => {
            ListenerFilterKind::OriginalDst
        }
        (kind, _) => {
            return Err(at.error(format!(
                "the listener filter '{name}' ({kind}) is not supported yet"
            )));
        }
    })
}

fn tls_inspector(message: tls::TlsInspector, at: At<'_>) -> TlsInspector {
    let tls::TlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        // How much is read at first changes nothing that can be seen.
        initial_read_buffer_size: _,
        close_connection_on_client_hello_parsing_errors: close_on_error,
        max_client_hello_size,
    } = message;
    report!(at, "no fingerprints are made"; enable_ja3_fingerprinting, enable_ja4_fingerprinting);
    let max = max_client_hello_size.map_or(MAX_CLIENT_HELLO, |v| v.value);
    TlsInspector {
        max_client_hello: max.min(MAX_CLIENT_HELLO) as usize,
        close_on_error,
    }
}

fn proxy_protocol(message: proxy::ProxyProtocol, at: At<'_>) -> Result<ProxyProtocol, ConfigError> {
    use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version;
    let proxy::ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol: optional,
        pass_through_tlvs,
        disallowed_versions,
        stat_prefix,
        tlv_location,
    } = message;
    report!(at, "extensions of the PROXY header are not kept"; rules, pass_through_tlvs, tlv_location);
    report!(at, "no statistics are kept"; stat_prefix);
    let allowed = |version: Version| !disallowed_versions.contains(&(version as i32));
    let (v1, v2) = (allowed(Version::V1), allowed(Version::V2));
    if !v1 && !v2 {
        return Err(at
            .field("disallowed_versions")
            .error("leaves no version of the PROXY protocol"));
    }
    Ok(ProxyProtocol { optional, v1, v2 })
}

fn predicate(
    message: pb::ListenerFilterChainMatchPredicate,
    at: At<'_>,
) -> Result<PortPredicate, ConfigError> {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let pb::ListenerFilterChainMatchPredicate { rule } = message;
    let set = |MatchSet { rules }: MatchSet, field: &str| {
        let at = at.field(field);
        let rules = rules.into_iter().enumerate();
        rules
            .map(|(i, rule)| predicate(rule, at.item("rules", i)))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(match required(rule, at)? {
        Rule::OrMatch(rules) => PortPredicate::Or(set(rules, "or_match")?),
        Rule::AndMatch(rules) => PortPredicate::And(set(rules, "and_match")?),
        Rule::NotMatch(rule) => {
            PortPredicate::Not(Box::new(predicate(*rule, at.field("not_match"))?))
        }
        Rule::AnyMatch(any) => PortPredicate::Any(any),
        Rule::DestinationPortRange(range) => PortPredicate::Range(range.start, range.end),
    })
}
