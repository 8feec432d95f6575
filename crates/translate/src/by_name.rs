//! Requests that go to whatever the name of their host leads to, and TLS by its server name: clusters
//! without endpoints, and the filters that look names up (Envoy's dynamic forward proxy). Of wildcard
//! hosts with resolution DYNAMIC_DNS, and of hosts nobody registered under ALLOW_ANY_DYNAMIC_DNS.

use lateen_model::{MeshSettings, OutboundPolicy, Resolution, Scope};

use crate::envoy::{
    self, by_name_cluster, by_name_filter, by_server_name_filter, cluster, hcm, listener,
    name_cache,
};

use cluster::cluster::{ClusterDiscoveryType, CustomClusterType, DnsLookupFamily, LbPolicy};

/// Names are kept in one cache for all clusters of a proxy; Envoy wants its configuration to be the
/// same wherever it is named.
const CACHE: &str = "dynamic_forward_proxy_cache";

/// Whether any request of a proxy may be meant for a name.
pub fn is_used(scope: &Scope<'_>) -> bool {
    let seen = || {
        let mut services = scope.services();
        services.any(|service| service.resolution == Resolution::ByRequest)
    };
    scope.outbound_policy() == OutboundPolicy::AllowAnyDynamicDns
        || (scope.snapshot().has_services_by_request() && seen())
}

/// Makes a cluster, complete but for its endpoints, one whose endpoint is the host of the request.
///
/// Envoy refuses such a cluster unless certificates are checked against that host, or somebody says
/// that this is not wanted: it is not where there is no TLS.
pub fn discover(made: &mut cluster::Cluster, mesh: &MeshSettings) {
    use by_name_cluster::cluster_config::ClusterImplementationSpecifier::DnsCacheConfig;
    let config = by_name_cluster::ClusterConfig {
        cluster_implementation_specifier: Some(DnsCacheConfig(cache(mesh))),
        allow_insecure_cluster_options: made.transport_socket.is_none(),
        ..Default::default()
    };
    made.lb_policy = LbPolicy::ClusterProvided as i32;
    made.lb_config = None;
    made.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_string(),
        typed_config: Some(envoy::any(&config)),
    }));
}

/// Adds the filter that looks the hosts of requests up.
pub fn add_filter(manager: &mut hcm::HttpConnectionManager, mesh: &MeshSettings) {
    use by_name_filter::filter_config::ImplementationSpecifier::DnsCacheConfig;
    let config = by_name_filter::FilterConfig {
        implementation_specifier: Some(DnsCacheConfig(cache(mesh))),
        ..Default::default()
    };
    let filter = envoy::http_filter("envoy.filters.http.dynamic_forward_proxy", &config);
    // The router is the last.
    let at = manager.http_filters.len().saturating_sub(1);
    manager.http_filters.insert(at, filter);
}

/// The filter of connections that go to whatever their server name leads to, at this port.
pub fn server_name_filter(port: u32, mesh: &MeshSettings) -> listener::Filter {
    use by_server_name_filter::filter_config::PortSpecifier::PortValue;
    let config = by_server_name_filter::FilterConfig {
        dns_cache_config: Some(cache(mesh)),
        port_specifier: Some(PortValue(port)),
        ..Default::default()
    };
    envoy::network_filter("envoy.filters.network.sni_dynamic_forward_proxy", &config)
}

fn cache(mesh: &MeshSettings) -> name_cache::DnsCacheConfig {
    name_cache::DnsCacheConfig {
        name: CACHE.to_string(),
        dns_lookup_family: DnsLookupFamily::V4Only as i32,
        dns_refresh_rate: Some(envoy::duration(mesh.dns_refresh_rate)),
        ..Default::default()
    }
}
