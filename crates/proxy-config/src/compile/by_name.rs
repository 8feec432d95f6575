//! Clusters whose endpoint is the host that a request names, and the filter that looks names up
//! (Envoy's dynamic forward proxy).

use super::dns::dns_family;
use super::scope::{At, reject, report};
use super::values::{any, decode, non_empty, port, positive, required};
use crate::{ClusterKind, ConfigError};
use envoy_types::pb::envoy::config::cluster::v3::cluster::CustomClusterType;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as cluster;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as filter;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as network;
use std::time::Duration;

const CLUSTER: &str = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";
/// dns_cache.proto: a name is looked up again after a minute.
const DEFAULT_REFRESH: Duration = Duration::from_secs(60);

pub(crate) fn cluster(message: CustomClusterType, at: At<'_>) -> Result<ClusterKind, ConfigError> {
    use cluster::cluster_config::ClusterImplementationSpecifier as Specifier;
    let CustomClusterType { name, typed_config } = message;
    let config = required(typed_config, at.field("typed_config"))?;
    let (kind, bytes) = any(&config);
    if kind != CLUSTER {
        return Err(at.error(format!(
            "the cluster type '{name}' ({kind}) is not supported yet"
        )));
    }
    let at = at.field("typed_config");
    let cluster::ClusterConfig {
        allow_insecure_cluster_options,
        allow_coalesced_connections,
        cluster_implementation_specifier,
    } = decode(bytes, at)?;
    report!(at, "connections are shared by address"; allow_coalesced_connections);
    // About combinations of other fields, which say themselves what is checked.
    let _ = allow_insecure_cluster_options;
    match cluster_implementation_specifier {
        Some(Specifier::DnsCacheConfig(config)) => cache(config, at.field("dns_cache_config")),
        Some(Specifier::SubClustersConfig(_)) => {
            Err(at.field("sub_clusters_config").not_supported())
        }
        None => Err(at.field("dns_cache_config").error("is required")),
    }
}

/// The filter does nothing of its own here: names are looked up where an endpoint is needed.
pub(crate) fn filter(message: filter::FilterConfig, at: At<'_>) -> Result<(), ConfigError> {
    use filter::filter_config::ImplementationSpecifier as Specifier;
    let filter::FilterConfig {
        save_upstream_address,
        allow_dynamic_host_from_filter_state,
        implementation_specifier,
    } = message;
    report!(at, "addresses are logged without it"; save_upstream_address);
    reject!(at; allow_dynamic_host_from_filter_state);
    match implementation_specifier {
        Some(Specifier::DnsCacheConfig(config)) => {
            cache(config, at.field("dns_cache_config")).map(drop)
        }
        Some(Specifier::SubClusterConfig(_)) => Err(at.field("sub_cluster_config").not_supported()),
        None => Err(at.field("dns_cache_config").error("is required")),
    }
}

/// The same for connections: the port at which their server names are gone to.
pub(crate) fn server_name_filter(
    message: network::FilterConfig,
    at: At<'_>,
) -> Result<u16, ConfigError> {
    use network::filter_config::PortSpecifier::PortValue;
    let network::FilterConfig {
        dns_cache_config,
        save_upstream_address,
        port_specifier,
    } = message;
    report!(at, "addresses are logged without it"; save_upstream_address);
    let cache_at = at.field("dns_cache_config");
    cache(required(dns_cache_config, cache_at)?, cache_at)?;
    // sni_dynamic_forward_proxy.proto: 443 unless it says another.
    let PortValue(number) = port_specifier.unwrap_or(PortValue(443));
    match port(number, at.field("port_value"))? {
        0 => Err(at.field("port_value").error("must be between 1 and 65535")),
        port => Ok(port),
    }
}

fn cache(message: common::DnsCacheConfig, at: At<'_>) -> Result<ClusterKind, ConfigError> {
    let common::DnsCacheConfig {
        name,
        dns_lookup_family,
        dns_refresh_rate,
        dns_min_refresh_rate,
        host_ttl,
        max_hosts,
        disable_dns_refresh_on_failure,
        dns_failure_refresh_rate,
        dns_cache_circuit_breaker,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        preresolve_hostnames,
        dns_query_timeout,
        key_value_config,
        resolved_address_filter,
    } = message;
    non_empty(name, at.field("name"))?;
    reject!(at; resolved_address_filter);
    report!(at, "names are looked up again when they are old and wanted"; dns_min_refresh_rate,
        host_ttl, disable_dns_refresh_on_failure, dns_failure_refresh_rate);
    report!(at, "the number of names is bounded by this proxy"; max_hosts,
        dns_cache_circuit_breaker);
    report!(at, "the system's resolver is used"; use_tcp_for_dns_lookups, dns_resolution_config,
        typed_dns_resolver_config, dns_query_timeout);
    report!(at, "nothing is looked up in advance or kept"; preresolve_hostnames, key_value_config);
    Ok(ClusterKind::ByRequest {
        family: dns_family(dns_lookup_family, at.field("dns_lookup_family"))?,
        refresh: positive(dns_refresh_rate, at.field("dns_refresh_rate"))?
            .unwrap_or(DEFAULT_REFRESH),
    })
}
