//! What a route does with a request.

use super::Fraction;
use super::HashPolicy;
use crate::{HeaderOps, Priority, Upgrades};
use bytes::Bytes;
use lateen_telemetry::format::Format;
use regex::bytes::Regex;
use std::sync::Arc;
use std::time::Duration;

/// The action of a route.
#[derive(Clone, Debug)]
pub enum RouteAction {
    Forward(Box<Forward>),
    Redirect(Box<Redirect>),
    DirectResponse(DirectResponse),
}

/// Send the request to a cluster.
#[derive(Clone, Debug)]
pub struct Forward {
    pub cluster: ClusterTarget,
    /// The answer when the cluster does not exist: 503 unless set.
    pub cluster_not_found_status: u16,
    /// The whole response, retries included (default 15 s); [`None`]: no limit.
    pub timeout: Option<Duration>,
    /// Outer [`None`]: the connection manager's stream idle timeout; inner [`None`]: no limit.
    pub idle_timeout: Option<Option<Duration>>,
    /// What gRPC requests may say about their time, instead of [`Self::timeout`].
    pub grpc_timeout: Option<GrpcTimeout>,
    /// When given, `timeout` does not hold.
    pub max_stream_duration: Option<MaxStreamDuration>,
    pub path_rewrite: PathRewrite,
    pub host_rewrite: HostRewrite,
    /// Keep the client's authority in `x-forwarded-host` when it is rewritten.
    pub append_x_forwarded_host: bool,
    pub priority: Priority,
    /// Overrides the connection manager's, by type.
    pub upgrades: Upgrades,
    /// CONNECT ends here: its bytes go to the endpoint, instead of the request.
    pub terminates_connect: bool,
    /// For clusters that hash.
    pub hash: Box<[HashPolicy]>,
    /// Of this route, or of its virtual host, or of its table.
    pub mirrors: Arc<[Mirror]>,
}

/// Copies of requests go to another cluster too; its answers are not waited for.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub target: ClusterName,
    /// [`None`]: of all requests.
    pub share: Option<Fraction>,
    /// Append `-shadow` to the host.
    pub shadow_host: bool,
    pub host_rewrite: Option<Bytes>,
}

/// A limit on a whole stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Outer [`None`]: the connection manager's; inner [`None`]: no limit.
    pub max: Option<Option<Duration>>,
    /// What gRPC requests may say about their time, instead.
    pub grpc: Option<GrpcTimeout>,
}

/// How far `grpc-timeout` is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// [`None`]: whatever it says.
    pub max: Option<Duration>,
    /// Taken off it.
    pub offset: Duration,
}

/// Which cluster.
#[derive(Clone, Debug)]
pub enum ClusterTarget {
    One(Arc<str>),
    Weighted(Box<WeightedClusters>),
    /// The value of this (lower-case) request header.
    Header(Box<str>),
}

/// Clusters that share the requests of a route.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    /// Never empty.
    pub clusters: Vec<WeightedCluster>,
    /// Above zero.
    pub total: u64,
    /// Take the random number from this request header when it holds one.
    pub random_header: Option<Box<str>>,
}

impl WeightedClusters {
    /// The cluster for a random number.
    pub fn pick(&self, random: u64) -> &WeightedCluster {
        let mut left = random % self.total.max(1);
        for cluster in &self.clusters {
            match left.checked_sub(u64::from(cluster.weight)) {
                Some(rest) => left = rest,
                None => return cluster,
            }
        }
        &self.clusters[0]
    }
}

/// One of the clusters that share a route.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    pub target: ClusterName,
    pub weight: u32,
    pub headers: HeaderOps,
    pub host_rewrite: Option<Bytes>,
}

/// A cluster by name, or by the value of a request header.
#[derive(Clone, Debug)]
pub enum ClusterName {
    Name(Arc<str>),
    Header(Box<str>),
}

/// How the path changes on the way to the upstream.
#[derive(Clone, Debug, Default)]
pub enum PathRewrite {
    #[default]
    None,
    /// Replaces the part that matched; the whole path for exact and regex routes.
    Prefix(Box<str>),
    /// Replaces what the regex finds in the path.
    Regex(RegexSubstitution),
}

/// A regex and what to put in place of its matches.
#[derive(Clone, Debug)]
pub struct RegexSubstitution {
    pub regex: Regex,
    /// In the `regex` crate's syntax (`${1}`), translated from RE2's (`\1`).
    pub replacement: Bytes,
}

/// How `:authority` changes on the way to the upstream.
#[derive(Clone, Debug, Default)]
pub enum HostRewrite {
    #[default]
    None,
    Literal(Bytes),
    /// The host name of the endpoint (`strict_dns`, `logical_dns`, or EDS with host names).
    Auto,
    /// The value of this (lower-case) request header.
    Header(Box<str>),
    /// What the substitution makes of the path.
    PathRegex(RegexSubstitution),
}

/// Answer with a redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub status: u16,
    pub scheme: SchemeRedirect,
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub strip_query: bool,
}

/// How the scheme of a redirect is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SchemeRedirect {
    #[default]
    Keep,
    Https,
    To(Box<str>),
}

/// How the path of a redirect is made.
#[derive(Clone, Debug, Default)]
pub enum RedirectPath {
    #[default]
    Keep,
    /// The path; with a `?` in it, it brings its own query.
    Full(Box<str>),
    Prefix(Box<str>),
    Regex(RegexSubstitution),
}

/// Answer without an upstream.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Bytes,
    /// Renders the body instead, with `%LOCAL_REPLY_BODY%` as `body`.
    pub format: Option<Arc<Format>>,
    /// Of the formatted body.
    pub content_type: Option<Box<str>>,
}

/// The operation name of spans. `x-envoy-decorator-operation` is sent only where requests are
/// traced, as Envoy does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decorator {
    pub operation: Box<str>,
    /// Send the header on.
    pub propagate: bool,
}
