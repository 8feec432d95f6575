//! Load-balancing policy of a cluster, in its three generations of fields.

use super::filters::extension_type;
use super::scope::{At, report};
use super::values::{any, decode, known};
use crate::{ClusterKind, ConfigError, LbPolicy, LocalityLb};
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::google::protobuf::{Any, UInt32Value};

/// A share of healthy endpoints below which all are used (cluster.proto: 50 %).
const DEFAULT_PANIC_THRESHOLD: f64 = 50.0;

pub(crate) struct LbFields {
    pub policy: i32,
    pub lb_config: Option<pb::cluster::LbConfig>,
    pub load_balancing_policy: Option<pb::LoadBalancingPolicy>,
    pub common_lb_config: Option<pb::cluster::CommonLbConfig>,
}

pub(crate) struct Lb {
    pub policy: LbPolicy,
    pub locality: LocalityLb,
    pub panic_threshold: f64,
}

/// `original_dst_lb_config`, which says where an original-destination cluster finds its address.
pub(crate) fn original_dst(
    config: &Option<pb::cluster::LbConfig>,
) -> Option<pb::cluster::OriginalDstLbConfig> {
    match config {
        Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)) => Some(config.clone()),
        _ => None,
    }
}

pub(crate) fn lb_policy(
    fields: LbFields,
    kind: &ClusterKind,
    at: At<'_>,
) -> Result<Lb, ConfigError> {
    let LbFields {
        policy,
        lb_config,
        load_balancing_policy,
        common_lb_config,
    } = fields;
    let mut lb = common(common_lb_config, at);
    if let Some(policy) = load_balancing_policy {
        let (policy, weighted) = extension_policies(policy, at.field("load_balancing_policy"))?;
        lb.policy = policy;
        if weighted {
            lb.locality = LocalityLb::Weighted;
        }
        return Ok(lb);
    }
    lb.policy = enum_policy(policy, lb_config, at)?;
    let original_dst = matches!(kind, ClusterKind::OriginalDst { .. });
    if original_dst != (lb.policy == LbPolicy::ClusterProvided) {
        return Err(at
            .field("lb_policy")
            .error("CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST, and they need it"));
    }
    Ok(lb)
}

fn common(message: Option<pb::cluster::CommonLbConfig>, at: At<'_>) -> Lb {
    use pb::cluster::common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig};
    let at = at.field("common_lb_config");
    let pb::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = message.unwrap_or_default();
    report!(at, "updates are applied as they come"; update_merge_window);
    report!(at, "endpoints are not probed"; ignore_new_hosts_until_first_hc);
    report!(at, "connections to kept endpoints stay"; close_connections_on_host_set_change);
    report!(at, "no cluster hashes requests"; consistent_hashing_lb_config);
    report!(at, "no host is overridden"; override_host_status);
    let locality = match locality_config_specifier {
        None => LocalityLb::None,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})) => {
            LocalityLb::Weighted
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            at.field("zone_aware_lb_config")
                .notice("zones are not preferred");
            LocalityLb::None
        }
    };
    let panic_threshold =
        healthy_panic_threshold.map_or(DEFAULT_PANIC_THRESHOLD, |p| p.value.clamp(0.0, 100.0));
    Lb {
        policy: LbPolicy::RoundRobin,
        locality,
        panic_threshold,
    }
}

fn enum_policy(
    policy: i32,
    config: Option<pb::cluster::LbConfig>,
    at: At<'_>,
) -> Result<LbPolicy, ConfigError> {
    use pb::cluster::{LbConfig, LbPolicy as Policy};
    let policy_at = at.field("lb_policy");
    match known(policy, policy_at)? {
        Policy::RoundRobin => {
            if let Some(LbConfig::RoundRobinLbConfig(config)) = config {
                let pb::cluster::RoundRobinLbConfig { slow_start_config } = config;
                let at = at.field("round_robin_lb_config");
                report!(at, "new endpoints get their full share"; slow_start_config);
            }
            Ok(LbPolicy::RoundRobin)
        }
        Policy::LeastRequest => match config {
            Some(LbConfig::LeastRequestLbConfig(config)) => {
                let pb::cluster::LeastRequestLbConfig {
                    choice_count,
                    active_request_bias,
                    slow_start_config,
                } = config;
                let at = at.field("least_request_lb_config");
                report!(at, "the bias is 1"; active_request_bias);
                report!(at, "new endpoints get their full share"; slow_start_config);
                least_request(choice_count, at)
            }
            _ => least_request(None, at),
        },
        Policy::Random => Ok(LbPolicy::Random),
        Policy::ClusterProvided => Ok(LbPolicy::ClusterProvided),
        // Affinity is what these are chosen for; spreading requests otherwise would break it.
        Policy::RingHash => Err(policy_at.error("RING_HASH is not supported yet")),
        Policy::Maglev => Err(policy_at.error("MAGLEV is not supported yet")),
        Policy::LoadBalancingPolicyConfig => Err(at
            .field("load_balancing_policy")
            .error("is required by lb_policy")),
    }
}

fn least_request(choices: Option<UInt32Value>, at: At<'_>) -> Result<LbPolicy, ConfigError> {
    match choices.map_or(2, |v| v.value) {
        0 | 1 => Err(at.field("choice_count").error("must be at least 2")),
        choices => Ok(LbPolicy::LeastRequest { choices }),
    }
}

/// The first policy of the list that we know (cluster.proto); whether localities are weighted.
fn extension_policies(
    message: pb::LoadBalancingPolicy,
    at: At<'_>,
) -> Result<(LbPolicy, bool), ConfigError> {
    let pb::LoadBalancingPolicy { policies } = message;
    let mut unknown = Vec::new();
    for (i, policy) in policies.into_iter().enumerate() {
        let at = at.item("policies", i);
        let pb::load_balancing_policy::Policy {
            typed_extension_config,
        } = policy;
        let config = extension_type(typed_extension_config, at.field("typed_extension_config"))?;
        match extension_policy(&config, at)? {
            Some(found) => return Ok(found),
            None => unknown.push(any(&config).0.to_owned()),
        }
    }
    Err(at
        .field("policies")
        .error(format!("none is supported yet: {}", unknown.join(", "))))
}

fn extension_policy(config: &Any, at: At<'_>) -> Result<Option<(LbPolicy, bool)>, ConfigError> {
    const PREFIX: &str = "envoy.extensions.load_balancing_policies.";
    let (kind, bytes) = any(config);
    Ok(match kind.strip_prefix(PREFIX).unwrap_or_default() {
        "round_robin.v3.RoundRobin" => {
            let policies::round_robin::v3::RoundRobin {
                slow_start_config,
                locality_lb_config,
            } = decode(bytes, at)?;
            report!(at, "new endpoints get their full share"; slow_start_config);
            Some((
                LbPolicy::RoundRobin,
                weighted_localities(locality_lb_config, at),
            ))
        }
        "least_request.v3.LeastRequest" => {
            let policies::least_request::v3::LeastRequest {
                choice_count,
                active_request_bias,
                slow_start_config,
                locality_lb_config,
                enable_full_scan,
                selection_method,
            } = decode(bytes, at)?;
            report!(at, "the bias is 1"; active_request_bias);
            report!(at, "new endpoints get their full share"; slow_start_config);
            report!(at, "some endpoints are compared, not all"; enable_full_scan, selection_method);
            let policy = least_request(choice_count, at)?;
            Some((policy, weighted_localities(locality_lb_config, at)))
        }
        "random.v3.Random" => Some((LbPolicy::Random, false)),
        "cluster_provided.v3.ClusterProvided" => Some((LbPolicy::ClusterProvided, false)),
        "wrr_locality.v3.WrrLocality" => {
            let policies::wrr_locality::v3::WrrLocality {
                endpoint_picking_policy,
            } = decode(bytes, at)?;
            let inner = extension_policies(
                endpoint_picking_policy.unwrap_or_default(),
                at.field("endpoint_picking_policy"),
            )?;
            Some((inner.0, true))
        }
        _ => None,
    })
}

fn weighted_localities(
    message: Option<policies::common::v3::LocalityLbConfig>,
    at: At<'_>,
) -> bool {
    use policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
    let at = at.field("locality_lb_config");
    match message.and_then(|m| m.locality_config_specifier) {
        None => false,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            at.field("zone_aware_lb_config")
                .notice("zones are not preferred");
            false
        }
    }
}
