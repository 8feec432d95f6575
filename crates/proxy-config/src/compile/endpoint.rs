//! `ClusterLoadAssignment`.

use super::scope::{At, reject, report};
use super::values::{address, known, metadata, required};
use crate::{ConfigError, Endpoint, EndpointSet, HealthStatus, Locality, LocalityEndpoints};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use std::sync::Arc;

/// Percent of healthy endpoints a priority may lose before the next one helps (endpoint.proto).
const DEFAULT_OVERPROVISIONING: u32 = 140;

pub(crate) fn endpoint_set(
    message: pb::ClusterLoadAssignment,
    at: At<'_>,
) -> Result<EndpointSet, ConfigError> {
    let assignment = assignment(message, at, &mut |value, at| address(value, at))?;
    let localities = assignment
        .localities
        .into_iter()
        .map(|l| LocalityEndpoints {
            locality: l.locality,
            priority: l.priority,
            weight: l.weight,
            endpoints: l
                .endpoints
                .into_iter()
                .map(|(address, endpoint)| Endpoint {
                    address,
                    ..endpoint
                })
                .collect(),
        })
        .collect();
    Ok(EndpointSet {
        cluster: assignment.cluster.into(),
        localities,
        overprovisioning: assignment.overprovisioning,
    })
}

/// A load assignment whose endpoints have addresses of kind `A`.
pub(crate) struct Assignment<A> {
    pub cluster: String,
    pub localities: Vec<LocalityEndpoints<(A, Endpoint)>>,
    pub overprovisioning: u32,
}

/// Reads an endpoint's address: an IP address, or a name for DNS clusters.
pub(crate) type ReadAddress<'f, A> =
    &'f mut dyn FnMut(Option<core::Address>, At<'_>) -> Result<A, ConfigError>;

pub(crate) fn assignment<A>(
    message: pb::ClusterLoadAssignment,
    at: At<'_>,
    read_address: ReadAddress<'_, A>,
) -> Result<Assignment<A>, ConfigError> {
    let pb::ClusterLoadAssignment {
        cluster_name,
        endpoints,
        named_endpoints,
        policy,
    } = message;
    report!(at, "only endpoints in place are used"; named_endpoints);
    let localities = endpoints
        .into_iter()
        .enumerate()
        .map(|(i, l)| locality(l, at.item("endpoints", i), read_address))
        .collect::<Result<_, _>>()?;
    let at = at.field("policy");
    let pb::cluster_load_assignment::Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = policy.unwrap_or_default();
    reject!(at; drop_overloads);
    report!(at, "endpoints do not go stale"; endpoint_stale_after);
    report!(at, "priorities go by the number of healthy endpoints"; weighted_priority_health);
    let overprovisioning = match overprovisioning_factor.map(|v| v.value) {
        Some(0) => {
            return Err(at
                .field("overprovisioning_factor")
                .error("must be above zero"));
        }
        other => other.unwrap_or(DEFAULT_OVERPROVISIONING),
    };
    Ok(Assignment {
        cluster: cluster_name,
        localities,
        overprovisioning,
    })
}

fn locality<A>(
    message: pb::LocalityLbEndpoints,
    at: At<'_>,
    read_address: ReadAddress<'_, A>,
) -> Result<LocalityEndpoints<(A, Endpoint)>, ConfigError> {
    use pb::locality_lb_endpoints::{LbConfig, LbEndpointList};
    let pb::LocalityLbEndpoints {
        locality,
        metadata,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = message;
    report!(at, "metadata of localities is not read"; metadata);
    report!(at, "proximity is not used"; proximity);
    let lb_endpoints = match lb_config {
        None => lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(LbEndpointList { lb_endpoints })) => lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err(at.field("leds_cluster_locality_config").not_supported());
        }
    };
    if priority > 128 {
        return Err(at.field("priority").error("must be between 0 and 128"));
    }
    if load_balancing_weight.is_some_and(|w| w.value == 0) {
        return Err(at
            .field("load_balancing_weight")
            .error("must be above zero"));
    }
    let core::Locality {
        region,
        zone,
        sub_zone,
    } = locality.unwrap_or_default();
    Ok(LocalityEndpoints {
        locality: Arc::new(Locality {
            region: region.into(),
            zone: zone.into(),
            sub_zone: sub_zone.into(),
        }),
        priority,
        weight: load_balancing_weight.map(|w| w.value),
        endpoints: lb_endpoints
            .into_iter()
            .enumerate()
            .map(|(i, e)| lb_endpoint(e, at.item("lb_endpoints", i), read_address))
            .collect::<Result<_, _>>()?,
    })
}

fn lb_endpoint<A>(
    message: pb::LbEndpoint,
    at: At<'_>,
    read_address: ReadAddress<'_, A>,
) -> Result<(A, Endpoint), ConfigError> {
    use pb::lb_endpoint::HostIdentifier;
    let pb::LbEndpoint {
        health_status,
        metadata: endpoint_metadata,
        load_balancing_weight,
        host_identifier,
    } = message;
    let weight = load_balancing_weight.map_or(1, |w| w.value);
    if weight == 0 {
        return Err(at
            .field("load_balancing_weight")
            .error("must be above zero"));
    }
    let health = match known(health_status, at.field("health_status"))? {
        core::HealthStatus::Unknown => HealthStatus::Unknown,
        core::HealthStatus::Healthy => HealthStatus::Healthy,
        core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
        core::HealthStatus::Draining => HealthStatus::Draining,
        core::HealthStatus::Timeout => HealthStatus::Timeout,
        core::HealthStatus::Degraded => HealthStatus::Degraded,
    };
    let metadata = metadata(endpoint_metadata, at.field("metadata"))?;
    let endpoint = match required(host_identifier, at.field("endpoint"))? {
        HostIdentifier::Endpoint(endpoint) => endpoint,
        HostIdentifier::EndpointName(_) => return Err(at.field("endpoint_name").not_supported()),
    };
    let at = at.field("endpoint");
    let pb::Endpoint {
        address,
        health_check_config,
        hostname,
        additional_addresses,
        observability_name,
    } = endpoint;
    report!(at, "endpoints are not probed"; health_check_config);
    report!(at, "only the first address is used"; additional_addresses);
    report!(at, "statistics show the address"; observability_name);
    let address = read_address(address, at.field("address"))?;
    let placeholder = crate::Address::Socket(([0, 0, 0, 0], 0).into());
    let endpoint = Endpoint {
        address: placeholder,
        health,
        weight,
        hostname: hostname.into(),
        metadata,
    };
    Ok((address, endpoint))
}
