//! Load-balancing policy of a cluster, in its three generations of fields.

use super::filters::extension_type;
use super::scope::{At, reject, report};
use super::values::{any, decode, known, limit};
use super::zones;
use crate::{ClusterKind, ConfigError, HashKey, LbPolicy, LocalityLb, SlowStart, ZoneAware};
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Any, UInt32Value, UInt64Value};

/// A share of healthy endpoints below which all are used (cluster.proto: 50 %).
const DEFAULT_PANIC_THRESHOLD: f64 = 50.0;

/// ring_hash.proto and maglev.proto.
const DEFAULT_RING_SIZE: u64 = 1024;
const MAX_RING_SIZE: u64 = 8 * 1024 * 1024;
const DEFAULT_TABLE_SIZE: u64 = 65_537;
const MAX_TABLE_SIZE: u64 = 5_000_011;

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
    let hashing = common_lb_config
        .as_ref()
        .and_then(|common| common.consistent_hashing_lb_config);
    let key = hash_key(hashing.is_some_and(|hashing| hashing.use_hostname_for_hashing));
    let mut lb = common(common_lb_config, at);
    if let Some(policy) = load_balancing_policy {
        let (policy, locality) = extension_policies(policy, at.field("load_balancing_policy"))?;
        lb.policy = policy;
        if let Some(locality) = locality {
            lb.locality = locality;
        }
        return Ok(lb);
    }
    lb.policy = enum_policy(policy, lb_config, key, at)?;
    let provided = matches!(
        kind,
        ClusterKind::OriginalDst { .. } | ClusterKind::ByRequest { .. }
    );
    if provided != (lb.policy == LbPolicy::ClusterProvided) {
        return Err(at.field("lb_policy").error(
            "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST and dynamic forward proxies, \
                 and they need it",
        ));
    }
    Ok(lb)
}

type Hashing = pb::cluster::common_lb_config::ConsistentHashingLbConfig;

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
    if let Some(Hashing {
        use_hostname_for_hashing: _,
        hash_balance_factor,
    }) = consistent_hashing_lb_config
    {
        let at = at.field("consistent_hashing_lb_config");
        report!(at, "loads are not bounded"; hash_balance_factor);
    }
    report!(at, "no host is overridden"; override_host_status);
    let locality = match locality_config_specifier {
        None => LocalityLb::Zones(ZoneAware::default()),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})) => {
            LocalityLb::Weighted
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) => {
            LocalityLb::Zones(zones::of_cluster(zones))
        }
    };
    let panic_threshold =
        healthy_panic_threshold.map_or(DEFAULT_PANIC_THRESHOLD, |p| p.value.clamp(0.0, 100.0));
    Lb {
        policy: LbPolicy::RoundRobin { slow_start: None },
        locality,
        panic_threshold,
    }
}

fn enum_policy(
    policy: i32,
    config: Option<pb::cluster::LbConfig>,
    key: HashKey,
    at: At<'_>,
) -> Result<LbPolicy, ConfigError> {
    use pb::cluster::{LbConfig, LbPolicy as Policy};
    let policy_at = at.field("lb_policy");
    match known(policy, policy_at)? {
        Policy::RoundRobin => {
            let slow_start = match config {
                Some(LbConfig::RoundRobinLbConfig(pb::cluster::RoundRobinLbConfig {
                    slow_start_config,
                })) => cluster_slow_start(slow_start_config, at.field("round_robin_lb_config"))?,
                _ => None,
            };
            Ok(LbPolicy::RoundRobin { slow_start })
        }
        Policy::LeastRequest => match config {
            Some(LbConfig::LeastRequestLbConfig(config)) => {
                let pb::cluster::LeastRequestLbConfig {
                    choice_count,
                    active_request_bias,
                    slow_start_config,
                } = config;
                let at = at.field("least_request_lb_config");
                let slow_start = cluster_slow_start(slow_start_config, at)?;
                least_request(choice_count, active_request_bias, slow_start, at)
            }
            _ => least_request(None, None, None, at),
        },
        Policy::Random => Ok(LbPolicy::Random),
        Policy::ClusterProvided => Ok(LbPolicy::ClusterProvided),
        Policy::RingHash => match config {
            Some(LbConfig::RingHashLbConfig(config)) => {
                let pb::cluster::RingHashLbConfig {
                    minimum_ring_size,
                    hash_function,
                    maximum_ring_size,
                } = config;
                let at = at.field("ring_hash_lb_config");
                ring_hash(
                    (minimum_ring_size, maximum_ring_size),
                    hash_function != 0,
                    key,
                    at,
                )
            }
            _ => ring_hash((None, None), false, key, at),
        },
        Policy::Maglev => match config {
            Some(LbConfig::MaglevLbConfig(pb::cluster::MaglevLbConfig { table_size })) => {
                maglev(table_size, key, at.field("maglev_lb_config"))
            }
            _ => maglev(None, key, at),
        },
        Policy::LoadBalancingPolicyConfig => Err(at
            .field("load_balancing_policy")
            .error("is required by lb_policy")),
    }
}

fn hash_key(hostname: bool) -> HashKey {
    match hostname {
        true => HashKey::Hostname,
        false => HashKey::Address,
    }
}

fn least_request(
    choices: Option<UInt32Value>,
    bias: Option<core::RuntimeDouble>,
    slow_start: Option<SlowStart>,
    at: At<'_>,
) -> Result<LbPolicy, ConfigError> {
    let bias = bias.map_or(1.0, |bias| bias.default_value);
    if bias.is_nan() || bias < 0.0 {
        return Err(at
            .field("active_request_bias")
            .error("must not be below zero"));
    }
    match choices.map_or(2, |v| v.value) {
        0 | 1 => Err(at.field("choice_count").error("must be at least 2")),
        choices => Ok(LbPolicy::LeastRequest {
            choices,
            bias,
            slow_start,
        }),
    }
}

fn ring_hash(
    (minimum, maximum): (Option<UInt64Value>, Option<UInt64Value>),
    murmur: bool,
    key: HashKey,
    at: At<'_>,
) -> Result<LbPolicy, ConfigError> {
    if murmur {
        return Err(at.field("hash_function").error("only XX_HASH is supported"));
    }
    let minimum_size = minimum.map_or(DEFAULT_RING_SIZE, |v| v.value);
    let maximum_size = maximum.map_or(MAX_RING_SIZE, |v| v.value);
    if maximum_size > MAX_RING_SIZE {
        return Err(at
            .field("maximum_ring_size")
            .error(format!("must not be above {MAX_RING_SIZE}")));
    }
    if minimum_size > maximum_size {
        return Err(at
            .field("minimum_ring_size")
            .error(format!("must not be above {maximum_size}, the maximum")));
    }
    Ok(LbPolicy::RingHash {
        minimum_size,
        maximum_size,
        key,
    })
}

fn maglev(
    table_size: Option<UInt64Value>,
    key: HashKey,
    at: At<'_>,
) -> Result<LbPolicy, ConfigError> {
    let at = at.field("table_size");
    let size = table_size.map_or(DEFAULT_TABLE_SIZE, |v| v.value);
    let prime = (2..=MAX_TABLE_SIZE).contains(&size)
        && (2..)
            .take_while(|divisor| divisor * divisor <= size)
            .all(|divisor| !size.is_multiple_of(divisor));
    match u32::try_from(size) {
        Ok(table_size) if prime => Ok(LbPolicy::Maglev { table_size, key }),
        _ => Err(at.error(format!("must be a prime number up to {MAX_TABLE_SIZE}"))),
    }
}

fn cluster_slow_start(
    message: Option<pb::cluster::SlowStartConfig>,
    at: At<'_>,
) -> Result<Option<SlowStart>, ConfigError> {
    let Some(pb::cluster::SlowStartConfig {
        slow_start_window,
        aggression,
        min_weight_percent,
    }) = message
    else {
        return Ok(None);
    };
    slow_start(
        (slow_start_window, aggression, min_weight_percent),
        at.field("slow_start_config"),
    )
}

type SlowStartFields = (
    Option<envoy_types::pb::google::protobuf::Duration>,
    Option<core::RuntimeDouble>,
    Option<Percent>,
);

fn slow_start(
    (window, aggression, minimum): SlowStartFields,
    at: At<'_>,
) -> Result<Option<SlowStart>, ConfigError> {
    let Some(window) = limit(window, None, at.field("slow_start_window"))? else {
        return Ok(None);
    };
    let aggression = aggression.map_or(1.0, |aggression| aggression.default_value);
    if aggression.is_nan() || aggression <= 0.0 {
        return Err(at.field("aggression").error("must be above zero"));
    }
    // cluster.proto: at least a tenth of the weight.
    let minimum = minimum.map_or(10.0, |percent| percent.value.clamp(0.0, 100.0)) / 100.0;
    Ok(Some(SlowStart {
        window,
        aggression,
        minimum,
    }))
}

/// A policy, and what it says about localities.
type Extension = (LbPolicy, Option<LocalityLb>);

/// The first policy of the list that we know (cluster.proto).
fn extension_policies(
    message: pb::LoadBalancingPolicy,
    at: At<'_>,
) -> Result<Extension, ConfigError> {
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

fn extension_policy(config: &Any, at: At<'_>) -> Result<Option<Extension>, ConfigError> {
    const PREFIX: &str = "envoy.extensions.load_balancing_policies.";
    let (kind, bytes) = any(config);
    Ok(match kind.strip_prefix(PREFIX).unwrap_or_default() {
        "round_robin.v3.RoundRobin" => {
            let policies::round_robin::v3::RoundRobin {
                slow_start_config,
                locality_lb_config,
            } = decode(bytes, at)?;
            let slow_start = extension_slow_start(slow_start_config, at)?;
            Some((
                LbPolicy::RoundRobin { slow_start },
                zones::of_extension(locality_lb_config, at)?,
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
            let slow_start = extension_slow_start(slow_start_config, at)?;
            report!(at, "some endpoints are compared, not all"; enable_full_scan, selection_method);
            let policy = least_request(choice_count, active_request_bias, slow_start, at)?;
            Some((policy, zones::of_extension(locality_lb_config, at)?))
        }
        "random.v3.Random" => {
            let policies::random::v3::Random { locality_lb_config } = decode(bytes, at)?;
            Some((
                LbPolicy::Random,
                zones::of_extension(locality_lb_config, at)?,
            ))
        }
        "ring_hash.v3.RingHash" => Some(extension_ring_hash(decode(bytes, at)?, at)?),
        "maglev.v3.Maglev" => {
            let policies::maglev::v3::Maglev {
                table_size,
                consistent_hashing_lb_config,
                locality_weighted_lb_config,
            } = decode(bytes, at)?;
            let key = extension_hash_key(consistent_hashing_lb_config, at)?;
            let policy = maglev(table_size, key, at)?;
            Some((policy, weighted(locality_weighted_lb_config.is_some())))
        }
        "cluster_provided.v3.ClusterProvided" => Some((LbPolicy::ClusterProvided, None)),
        "wrr_locality.v3.WrrLocality" => {
            let policies::wrr_locality::v3::WrrLocality {
                endpoint_picking_policy,
            } = decode(bytes, at)?;
            let inner = extension_policies(
                endpoint_picking_policy.unwrap_or_default(),
                at.field("endpoint_picking_policy"),
            )?;
            Some((inner.0, weighted(true)))
        }
        _ => None,
    })
}

fn weighted(weighted: bool) -> Option<LocalityLb> {
    weighted.then_some(LocalityLb::Weighted)
}

fn extension_ring_hash(
    message: policies::ring_hash::v3::RingHash,
    at: At<'_>,
) -> Result<Extension, ConfigError> {
    let policies::ring_hash::v3::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = message;
    report!(at, "loads are not bounded"; hash_balance_factor);
    let mut key = extension_hash_key(consistent_hashing_lb_config, at)?;
    if use_hostname_for_hashing {
        key = HashKey::Hostname;
    }
    let sizes = (minimum_ring_size, maximum_ring_size);
    let policy = ring_hash(sizes, hash_function > 1, key, at)?;
    Ok((policy, weighted(locality_weighted_lb_config.is_some())))
}

fn extension_hash_key(
    message: Option<policies::common::v3::ConsistentHashingLbConfig>,
    at: At<'_>,
) -> Result<HashKey, ConfigError> {
    let at = at.field("consistent_hashing_lb_config");
    let policies::common::v3::ConsistentHashingLbConfig {
        use_hostname_for_hashing,
        hash_balance_factor,
        hash_policy,
    } = message.unwrap_or_default();
    report!(at, "loads are not bounded"; hash_balance_factor);
    reject!(at; hash_policy);
    Ok(hash_key(use_hostname_for_hashing))
}

fn extension_slow_start(
    message: Option<policies::common::v3::SlowStartConfig>,
    at: At<'_>,
) -> Result<Option<SlowStart>, ConfigError> {
    let Some(policies::common::v3::SlowStartConfig {
        slow_start_window,
        aggression,
        min_weight_percent,
    }) = message
    else {
        return Ok(None);
    };
    slow_start(
        (slow_start_window, aggression, min_weight_percent),
        at.field("slow_start_config"),
    )
}
