//! Endpoints that are names, of DNS clusters.

use super::endpoint::assignment;
use super::scope::At;
use super::values::{host_port, known};
use crate::{ConfigError, DnsFamily, DnsHosts, Endpoint, HostPort};
use envoy_types::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

pub(crate) fn dns_hosts(
    message: ClusterLoadAssignment,
    at: At<'_>,
) -> Result<DnsHosts, ConfigError> {
    let mut assignment = assignment(message, at, &mut |value, at| host_port(value, at))?;
    let endpoints = assignment
        .localities
        .iter_mut()
        .flat_map(|l| &mut l.endpoints);
    for (HostPort { host, .. }, Endpoint { hostname, .. }) in endpoints {
        // The name is what `auto_host_rewrite` sends, unless the endpoint says otherwise.
        if hostname.is_empty() {
            *hostname = (&**host).into();
        }
    }
    Ok(DnsHosts {
        cluster: assignment.cluster.into(),
        localities: assignment.localities,
        overprovisioning: assignment.overprovisioning,
    })
}

pub(crate) fn dns_family(value: i32, at: At<'_>) -> Result<DnsFamily, ConfigError> {
    Ok(match known(value, at)? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    })
}
