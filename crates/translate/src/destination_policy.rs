//! What the policy of a destination means where requests and connections are sent to it: what of
//! them is hashed for clusters with consistent hashing, and how long TCP connections last. How
//! endpoints are placed by the hash is the cluster's part (`cluster_policy.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::destination_rule::{ConsistentHashLb, HttpCookie, TunnelSettings};
use lateen_api::virtual_service::Destination;
use lateen_model::{DestinationRule, MeshSnapshot, Proxy, hostname};

use crate::cache::ById;
use crate::envoy::{self, route, tcp};
use crate::names;
use crate::policy::Policy;

use envoy_types::pb::envoy::r#type::v3 as kind;
use route::route_action::{ClusterSpecifier, HashPolicy, hash_policy};

/// DestinationRules with consistent hashing, by the host they apply to for one client. Others are
/// left out: a route does not depend on them.
pub type Hashed = BTreeMap<String, ById<DestinationRule>>;

/// The rules for these hosts, as `proxy` sees them.
pub fn hashed<'a>(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    hosts: impl IntoIterator<Item = &'a str>,
) -> Hashed {
    let mut hashed = Hashed::new();
    if !snapshot.rules_hash() {
        return hashed;
    }
    for host in hosts {
        let rule = snapshot
            .service(host)
            .and_then(|service| snapshot.destination_rule_for(proxy, service));
        if let Some(rule) = rule.filter(|rule| rule.hashes()) {
            hashed.insert(host.to_string(), ById(Arc::clone(rule)));
        }
    }
    hashed
}

/// The rules for the destinations of a rule.
pub fn hashed_destinations<'a>(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    rule_namespace: &str,
    destinations: impl Iterator<Item = &'a Destination>,
) -> Hashed {
    if !snapshot.rules_hash() {
        return Hashed::new();
    }
    let domain = &snapshot.settings.domain_suffix;
    let hosts: Vec<String> = destinations
        .map(|to| hostname::resolve(&to.host, rule_namespace, domain))
        .map(|host| snapshot.alias_of(&host).map_or(host, |of| of.to_string()))
        .collect();
    hashed(snapshot, proxy, hosts.iter().map(String::as_str))
}

/// Adds hash policies to the routes whose clusters hash. Tries again at the same endpoint are what
/// hashing asks for: their endpoints are not avoided (fact 10).
pub fn hash_routes(routes: &mut [route::Route], hashed: &Hashed) {
    if hashed.is_empty() {
        return;
    }
    for made in routes {
        let Some(route::route::Action::Route(action)) = &mut made.action else {
            continue;
        };
        let clusters: Vec<&str> = match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => vec![name],
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                weighted.clusters.iter().map(|c| c.name.as_str()).collect()
            }
            _ => Vec::new(),
        };
        let mut policies: Vec<HashPolicy> = Vec::new();
        for policy in clusters.into_iter().filter_map(|name| of(hashed, name)) {
            if !policies.contains(&policy) {
                policies.push(policy);
            }
        }
        if policies.is_empty() {
            continue;
        }
        action.hash_policy = policies;
        if let Some(retries) = &mut action.retry_policy {
            retries.retry_host_predicate.clear();
            retries.host_selection_retry_max_attempts = 0;
        }
    }
}

/// What is hashed for requests to a cluster.
fn of(hashed: &Hashed, cluster: &str) -> Option<HashPolicy> {
    let (port, subset, host) = names::parse_outbound(cluster)?;
    let policy = Policy::of(Some(hashed.get(host)?), subset, port);
    let specifier = specifier(&policy.load_balancer?.consistent_hash?)?;
    Some(HashPolicy {
        terminal: false,
        policy_specifier: Some(specifier),
    })
}

fn specifier(hash: &ConsistentHashLb) -> Option<hash_policy::PolicySpecifier> {
    use hash_policy::{ConnectionProperties, Header, PolicySpecifier, QueryParameter};
    if !hash.http_header_name.is_empty() {
        return Some(PolicySpecifier::Header(Header {
            header_name: hash.http_header_name.clone(),
            regex_rewrite: None,
        }));
    }
    if let Some(cookie) = &hash.http_cookie {
        return Some(PolicySpecifier::Cookie(self::cookie(cookie)));
    }
    if hash.use_source_ip == Some(true) {
        return Some(PolicySpecifier::ConnectionProperties(
            ConnectionProperties { source_ip: true },
        ));
    }
    (!hash.http_query_parameter_name.is_empty()).then(|| {
        PolicySpecifier::QueryParameter(QueryParameter {
            name: hash.http_query_parameter_name.clone(),
        })
    })
}

fn cookie(cookie: &HttpCookie) -> hash_policy::Cookie {
    hash_policy::Cookie {
        name: cookie.name.clone(),
        ttl: cookie.ttl.map(envoy::duration),
        path: cookie.path.clone(),
        attributes: cookie
            .attributes
            .iter()
            .map(|attribute| hash_policy::CookieAttribute {
                name: attribute.name.clone(),
                value: attribute.value.clone(),
            })
            .collect(),
    }
}

/// Gives a TCP proxy what the policy of its destination (the first of several) says about
/// connections.
pub fn apply_to_connections(made: &mut tcp::TcpProxy, snapshot: &MeshSnapshot, proxy: &Proxy) {
    use tcp::tcp_proxy::ClusterSpecifier;
    let cluster = match &made.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Some(name),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted.clusters.first().map(|cluster| &cluster.name)
        }
        None => None,
    };
    let Some((port, subset, host)) = cluster.and_then(|name| names::parse_outbound(name)) else {
        return;
    };
    let Some(service) = snapshot.service(host) else {
        return;
    };
    let rule = snapshot.destination_rule_for(proxy, service);
    let policy = Policy::of(rule.map(Arc::as_ref), subset, port);
    let settings = policy.pool().and_then(|pool| pool.tcp.as_ref());
    made.idle_timeout = settings
        .and_then(|tcp| tcp.idle_timeout)
        .map(envoy::duration);
    made.max_downstream_connection_duration = settings
        .and_then(|tcp| tcp.max_connection_duration)
        .map(envoy::duration);
    // As in Istio, not where connections are divided among several destinations.
    if matches!(made.cluster_specifier, Some(ClusterSpecifier::Cluster(_))) {
        let settings = Policy::tunnel(rule.map(Arc::as_ref), subset);
        made.tunneling_config = settings.map(tunnel);
    }
    let balancer = policy.load_balancer.as_ref();
    let hash = balancer.and_then(|lb| lb.consistent_hash.as_ref());
    if hash.is_some_and(|hash| hash.use_source_ip == Some(true)) {
        made.hash_policy = vec![kind::HashPolicy {
            policy_specifier: Some(kind::hash_policy::PolicySpecifier::SourceIp(
                kind::hash_policy::SourceIp {},
            )),
        }];
    }
}

/// Bytes as what follows a request to an HTTP proxy.
fn tunnel(settings: &TunnelSettings) -> tcp::tcp_proxy::TunnelingConfig {
    let host = &settings.target_host;
    let hostname = match host.contains(':') {
        true => format!("[{host}]:{}", settings.target_port),
        false => format!("{host}:{}", settings.target_port),
    };
    tcp::tcp_proxy::TunnelingConfig {
        hostname,
        use_post: settings.protocol == "POST",
        ..Default::default()
    }
}
