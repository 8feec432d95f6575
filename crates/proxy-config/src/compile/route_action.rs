//! `RouteAction`: forwarding to clusters.

use super::filters;
use super::headers::{HeaderFields, header_ops};
use super::mirror::mirrors;
use super::retry::retry_policy;
use super::scope::{At, reject, report};
use super::strings::substitution;
use super::values::{duration, flag, header_name, header_value, known, limit, non_empty, required};
use crate::route::{
    ClusterName, ClusterTarget, Forward, GrpcTimeout, HostRewrite, MaxStreamDuration, Mirror,
    PathRewrite, RetryPolicy, WeightedCluster, WeightedClusters,
};
use crate::{ConfigError, Priority, Upgrades};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::pb::google::protobuf::Duration as PbDuration;
use std::sync::Arc;
use std::time::Duration;

/// The time limit of a response when the route says nothing (route_components.proto).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) fn forward(
    message: pb::RouteAction,
    wider: &Arc<[Mirror]>,
    at: At<'_>,
) -> Result<(Forward, Option<Arc<RetryPolicy>>), ConfigError> {
    let pb::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy: retries,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = message;
    reject!(at; metadata_match, path_rewrite_policy, path_rewrite, retry_policy_typed_config);
    reject!(at; rate_limits, cors, internal_redirect_policy, internal_redirect_action);
    report!(at, "there are no rate limits"; include_vh_rate_limits);
    report!(at, "redirects are passed on"; max_internal_redirects);
    report!(at, "requests are not hedged"; hedge_policy);
    report!(at, "early data is not accepted"; early_data_policy);
    report!(at, "the idle timeout also holds while flushing"; flush_timeout);
    let retry = retries
        .map(|r| retry_policy(r, at.field("retry_policy")))
        .transpose()?;
    let (upgrades, terminates_connect) = upgrades(upgrade_configs, at)?;
    let forward = Forward {
        cluster: cluster_target(cluster_specifier, at)?,
        cluster_not_found_status: not_found_status(cluster_not_found_response_code, at)?,
        timeout: limit(timeout, Some(DEFAULT_TIMEOUT), at.field("timeout"))?,
        idle_timeout: optional_limit(idle_timeout, at.field("idle_timeout"))?,
        // The deprecated pair.
        grpc_timeout: grpc_timeout(
            (max_grpc_timeout, at.field("max_grpc_timeout")),
            (grpc_timeout_offset, at.field("grpc_timeout_offset")),
        )?,
        max_stream_duration: max_stream_duration
            .map(|d| stream_duration(d, at.field("max_stream_duration")))
            .transpose()?,
        path_rewrite: path_rewrites(prefix_rewrite, regex_rewrite, at)?,
        host_rewrite: host_rewrite(host_rewrite_specifier, at)?,
        append_x_forwarded_host,
        priority: match known(priority, at.field("priority"))? {
            RoutingPriority::Default => Priority::Default,
            RoutingPriority::High => Priority::High,
        },
        upgrades,
        terminates_connect,
        hash: super::hash_policy::hash_policies(hash_policy, at)?,
        mirrors: mirrors(request_mirror_policies, wider, at)?,
    };
    Ok((forward, retry.map(Arc::new)))
}

fn not_found_status(code: i32, at: At<'_>) -> Result<u16, ConfigError> {
    use pb::route_action::ClusterNotFoundResponseCode as Code;
    Ok(
        match known(code, at.field("cluster_not_found_response_code"))? {
            Code::ServiceUnavailable => 503,
            Code::NotFound => 404,
            Code::InternalServerError => 500,
        },
    )
}

/// Outer [`None`]: not given; inner [`None`]: zero, no limit.
fn optional_limit(
    value: Option<PbDuration>,
    at: At<'_>,
) -> Result<Option<Option<Duration>>, ConfigError> {
    Ok(duration(value, at)?.map(|d| (!d.is_zero()).then_some(d)))
}

/// A limit for gRPC requests counts when it is given, be it as zero (no limit).
fn grpc_timeout(
    (max, max_at): (Option<PbDuration>, At<'_>),
    (offset, offset_at): (Option<PbDuration>, At<'_>),
) -> Result<Option<GrpcTimeout>, ConfigError> {
    let offset = duration(offset, offset_at)?.unwrap_or_default();
    let max = optional_limit(max, max_at)?;
    Ok(max.map(|max| GrpcTimeout { max, offset }))
}

fn stream_duration(
    message: pb::route_action::MaxStreamDuration,
    at: At<'_>,
) -> Result<MaxStreamDuration, ConfigError> {
    let pb::route_action::MaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset,
    } = message;
    Ok(MaxStreamDuration {
        max: optional_limit(max_stream_duration, at.field("max_stream_duration"))?,
        grpc: grpc_timeout(
            (grpc_timeout_header_max, at.field("grpc_timeout_header_max")),
            (
                grpc_timeout_header_offset,
                at.field("grpc_timeout_header_offset"),
            ),
        )?,
    })
}

fn path_rewrites(
    prefix_rewrite: String,
    regex_rewrite: Option<RegexMatchAndSubstitute>,
    at: At<'_>,
) -> Result<PathRewrite, ConfigError> {
    match (prefix_rewrite.is_empty(), regex_rewrite) {
        (true, None) => Ok(PathRewrite::None),
        (true, Some(rewrite)) => Ok(PathRewrite::Regex(substitution(
            rewrite,
            at.field("regex_rewrite"),
        )?)),
        (false, None) => {
            header_value(&prefix_rewrite, at.field("prefix_rewrite"))?;
            Ok(PathRewrite::Prefix(prefix_rewrite.into()))
        }
        (false, Some(_)) => Err(at.error("specify only one of prefix_rewrite and regex_rewrite")),
    }
}

fn host_rewrite(
    specifier: Option<pb::route_action::HostRewriteSpecifier>,
    at: At<'_>,
) -> Result<HostRewrite, ConfigError> {
    use pb::route_action::HostRewriteSpecifier as Specifier;
    Ok(match specifier {
        None => HostRewrite::None,
        Some(Specifier::HostRewriteLiteral(host) | Specifier::HostRewrite(host)) => {
            header_value(&host, at.field("host_rewrite_literal"))?;
            HostRewrite::Literal(Bytes::from(host))
        }
        Some(Specifier::AutoHostRewrite(on)) if on.value => HostRewrite::Auto,
        Some(Specifier::AutoHostRewrite(_)) => HostRewrite::None,
        Some(Specifier::HostRewriteHeader(name)) => {
            HostRewrite::Header(header_name(&name, at.field("host_rewrite_header"))?)
        }
        Some(Specifier::HostRewritePathRegex(rewrite)) => {
            HostRewrite::PathRegex(substitution(rewrite, at.field("host_rewrite_path_regex"))?)
        }
    })
}

/// The upgrades of a route, and whether CONNECT ends here.
fn upgrades(
    messages: Vec<pb::route_action::UpgradeConfig>,
    at: At<'_>,
) -> Result<(Upgrades, bool), ConfigError> {
    let mut upgrades = Upgrades::default();
    let mut terminates = false;
    for (i, message) in messages.into_iter().enumerate() {
        let at = at.item("upgrade_configs", i);
        let pb::route_action::UpgradeConfig {
            upgrade_type,
            enabled,
            connect_config,
        } = message;
        let kind = non_empty(upgrade_type, at.field("upgrade_type"))?.to_ascii_lowercase();
        if upgrades.get(&kind).is_some() {
            return Err(at
                .field("upgrade_type")
                .error(format!("'{kind}' is given twice")));
        }
        if let Some(config) = connect_config {
            let at = at.field("connect_config");
            let pb::route_action::upgrade_config::ConnectConfig {
                proxy_protocol_config,
                allow_post,
            } = config;
            reject!(at; proxy_protocol_config, allow_post);
            if kind != "connect" {
                return Err(at.error("is for upgrade_type CONNECT"));
            }
            terminates = true;
        }
        upgrades.types.push((kind.into(), flag(enabled, true)));
    }
    Ok((upgrades, terminates))
}

fn cluster_target(
    specifier: Option<pb::route_action::ClusterSpecifier>,
    at: At<'_>,
) -> Result<ClusterTarget, ConfigError> {
    use pb::route_action::ClusterSpecifier as Specifier;
    match specifier {
        None => Err(at.error("needs a cluster, cluster_header or weighted_clusters")),
        Some(Specifier::Cluster(name)) => Ok(ClusterTarget::One(
            non_empty(name, at.field("cluster"))?.into(),
        )),
        Some(Specifier::ClusterHeader(name)) => Ok(ClusterTarget::Header(header_name(
            &name,
            at.field("cluster_header"),
        )?)),
        Some(Specifier::WeightedClusters(weighted)) => Ok(ClusterTarget::Weighted(Box::new(
            weighted_clusters(weighted, at.field("weighted_clusters"))?,
        ))),
        Some(Specifier::ClusterSpecifierPlugin(_)) => {
            Err(at.field("cluster_specifier_plugin").not_supported())
        }
        Some(Specifier::InlineClusterSpecifierPlugin(_)) => {
            Err(at.field("inline_cluster_specifier_plugin").not_supported())
        }
    }
}

fn weighted_clusters(
    message: pb::WeightedCluster,
    at: At<'_>,
) -> Result<WeightedClusters, ConfigError> {
    use pb::weighted_cluster::RandomValueSpecifier;
    let pb::WeightedCluster {
        clusters,
        total_weight,
        runtime_key_prefix,
        random_value_specifier,
    } = message;
    report!(at, "the total is the sum of the weights"; total_weight);
    report!(at, "there is no runtime; the weights hold"; runtime_key_prefix);
    let random_header = match random_value_specifier {
        None => None,
        Some(RandomValueSpecifier::HeaderName(name)) => {
            Some(header_name(&name, at.field("header_name"))?)
        }
        Some(RandomValueSpecifier::UseHashPolicy(on)) if on.value => {
            return Err(at.field("use_hash_policy").not_supported());
        }
        Some(RandomValueSpecifier::UseHashPolicy(_)) => None,
    };
    let clusters = clusters
        .into_iter()
        .enumerate()
        .map(|(i, c)| weighted_cluster(c, at.item("clusters", i)))
        .collect::<Result<Vec<_>, _>>()?;
    let total = clusters.iter().map(|c| u64::from(c.weight)).sum();
    if total == 0 {
        return Err(at
            .field("clusters")
            .error("needs a cluster with a weight above zero"));
    }
    if total > u64::from(u32::MAX) {
        return Err(at.field("clusters").error(format!(
            "the sum of the weights ({total}) is above 4294967295"
        )));
    }
    Ok(WeightedClusters {
        clusters,
        total,
        random_header,
    })
}

fn weighted_cluster(
    message: pb::weighted_cluster::ClusterWeight,
    at: At<'_>,
) -> Result<WeightedCluster, ConfigError> {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let pb::weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = message;
    reject!(at; metadata_match);
    filters::per_cluster_config(typed_per_filter_config, at)?;
    let target = match (name.is_empty(), cluster_header.is_empty()) {
        (false, true) => ClusterName::Name(name.into()),
        (true, false) => {
            ClusterName::Header(header_name(&cluster_header, at.field("cluster_header"))?)
        }
        _ => return Err(at.error("needs exactly one of name and cluster_header")),
    };
    let host_rewrite = match host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            header_value(&host, at.field("host_rewrite_literal"))?;
            Some(Bytes::from(host))
        }
    };
    Ok(WeightedCluster {
        target,
        weight: required(weight, at.field("weight"))?.value,
        headers: header_ops(
            HeaderFields {
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            },
            at,
        )?,
        host_rewrite,
    })
}
