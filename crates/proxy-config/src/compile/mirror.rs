//! `RequestMirrorPolicy` of routes, virtual hosts and tables.

use super::route_match::runtime_fractional_percent;
use super::scope::{At, reject, report};
use super::values::{header_name, header_value};
use crate::ConfigError;
use crate::route::{ClusterName, Mirror};
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use std::sync::Arc;

/// The mirrors of one level; those of the wider level where it has none of its own.
pub(crate) fn mirrors(
    messages: Vec<RequestMirrorPolicy>,
    wider: &Arc<[Mirror]>,
    at: At<'_>,
) -> Result<Arc<[Mirror]>, ConfigError> {
    if messages.is_empty() {
        return Ok(wider.clone());
    }
    let one = |(i, message)| mirror(message, at.item("request_mirror_policies", i));
    messages.into_iter().enumerate().map(one).collect()
}

fn mirror(message: RequestMirrorPolicy, at: At<'_>) -> Result<Mirror, ConfigError> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = message;
    reject!(at; request_headers_mutations);
    report!(at, "spans are not made"; trace_sampled);
    let target = match (cluster.is_empty(), cluster_header.is_empty()) {
        (false, true) => ClusterName::Name(cluster.into()),
        (true, false) => {
            ClusterName::Header(header_name(&cluster_header, at.field("cluster_header"))?)
        }
        _ => return Err(at.error("needs exactly one of cluster and cluster_header")),
    };
    header_value(&host_rewrite_literal, at.field("host_rewrite_literal"))?;
    Ok(Mirror {
        target,
        share: runtime_fraction
            .map(|share| runtime_fractional_percent(share, at.field("runtime_fraction")))
            .transpose()?,
        shadow_host: !disable_shadow_host_suffix_append,
        host_rewrite: (!host_rewrite_literal.is_empty()).then(|| Bytes::from(host_rewrite_literal)),
    })
}
