//! Zone-aware balancing: of a cluster itself, and of a balancing policy's own message.

use super::scope::At;
use super::values::known;
use crate::{ConfigError, LocalityLb, ZoneAware};
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config as cluster;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3 as policy;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt64Value;

pub(crate) fn of_cluster(message: cluster::ZoneAwareLbConfig) -> ZoneAware {
    let cluster::ZoneAwareLbConfig {
        routing_enabled,
        min_cluster_size,
        fail_traffic_on_panic,
    } = message;
    common(routing_enabled, min_cluster_size, fail_traffic_on_panic)
}

/// [`None`]: it says nothing about localities.
pub(crate) fn of_extension(
    message: Option<policy::LocalityLbConfig>,
    at: At<'_>,
) -> Result<Option<LocalityLb>, ConfigError> {
    use policy::locality_lb_config::LocalityConfigSpecifier;
    let at = at.field("locality_lb_config");
    Ok(match message.and_then(|m| m.locality_config_specifier) {
        None => None,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Some(LocalityLb::Weighted),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) => {
            let zones = zone_aware(zones, at.field("zone_aware_lb_config"))?;
            Some(LocalityLb::Zones(zones))
        }
    })
}

#[expect(
    deprecated,
    reason = "what it was replaced by stands beside it, and Envoy takes both"
)]
fn zone_aware(
    message: policy::locality_lb_config::ZoneAwareLbConfig,
    at: At<'_>,
) -> Result<ZoneAware, ConfigError> {
    use policy::locality_lb_config::zone_aware_lb_config::{ForceLocalZone, LocalityBasis};
    let policy::locality_lb_config::ZoneAwareLbConfig {
        routing_enabled,
        min_cluster_size,
        fail_traffic_on_panic,
        force_locality_direct_routing,
        force_local_zone,
        locality_basis,
    } = message;
    let force_local = match force_local_zone {
        Some(ForceLocalZone { min_size }) => Some(min_size.map_or(1, |v| v.value)),
        None => force_locality_direct_routing.then_some(1),
    };
    let by_weight = match known(locality_basis, at.field("locality_basis"))? {
        LocalityBasis::HealthyHostsNum => false,
        LocalityBasis::HealthyHostsWeight => true,
    };
    Ok(ZoneAware {
        by_weight,
        force_local,
        ..common(routing_enabled, min_cluster_size, fail_traffic_on_panic)
    })
}

fn common(
    routing_enabled: Option<Percent>,
    min_cluster_size: Option<UInt64Value>,
    fail_on_panic: bool,
) -> ZoneAware {
    let default = ZoneAware::default();
    ZoneAware {
        // As in Envoy, whole percents.
        routed: routing_enabled.map_or(default.routed, |percent| {
            percent.value.clamp(0.0, 100.0).round() as u32
        }),
        min_cluster_size: min_cluster_size.map_or(default.min_cluster_size, |v| v.value),
        fail_on_panic,
        ..default
    }
}
