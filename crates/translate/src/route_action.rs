//! What happens to a request that matched: forward, redirect, answer. With retries, timeouts,
//! rewrites and header operations.

#![allow(
    deprecated,
    reason = "`max_grpc_timeout` is what Istio sends, see `setTimeout` in its route.go"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use lateen_api::virtual_service::{
    Destination, HeaderOperations, Headers, HttpDirectResponse, HttpRedirect, HttpRetry,
    HttpRewrite, HttpRoute, Percent, RedirectPortSelection, StringMatch,
};
use lateen_model::hostname;

use crate::envoy::{self, core, matcher, route};
use crate::filters;
use crate::names;

use route::route::Action;
use route::route_action::{ClusterSpecifier, HostRewriteSpecifier};

/// What the destinations of a rule are resolved with.
pub struct Destinations<'a> {
    /// Namespace of the rule: short names resolve there (fact 56).
    pub rule_namespace: &'a str,
    pub domain_suffix: &'a str,
    /// The port taken when neither the rule nor the service says one.
    pub listen_port: u32,
    pub known: &'a KnownHosts,
}

/// What has to be known of hosts that rules send to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KnownHosts {
    /// Of services with exactly one port.
    pub single_ports: BTreeMap<String, u32>,
    /// Other names of services, with the host that each means.
    pub aliases: BTreeMap<String, Arc<str>>,
}

impl Destinations<'_> {
    /// The cluster of a destination.
    pub fn cluster(&self, destination: &Destination) -> String {
        let host = self.host(destination);
        let port = match &destination.port {
            Some(port) if port.number != 0 => port.number,
            _ => self
                .known
                .single_ports
                .get(&host)
                .copied()
                .unwrap_or(self.listen_port),
        };
        names::outbound_cluster(port, &destination.subset, &host)
    }

    fn host(&self, destination: &Destination) -> String {
        let host = hostname::resolve(&destination.host, self.rule_namespace, self.domain_suffix);
        match self.known.aliases.get(&host) {
            Some(of) => of.to_string(),
            None => host,
        }
    }
}

/// Istio's retries for a route that says nothing: only where the request was not processed
/// (fact 10).
pub fn default_retry_policy() -> route::RetryPolicy {
    retry_policy(
        2,
        "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        None,
    )
}

fn retry_policy(
    attempts: u32,
    retry_on: &str,
    per_try_timeout: Option<Duration>,
) -> route::RetryPolicy {
    let codes: Vec<u32> = retry_on
        .split(',')
        .filter_map(|token| token.trim().parse().ok())
        .collect();
    let mut tokens: Vec<&str> = retry_on
        .split(',')
        .map(str::trim)
        .filter(|t| !t.is_empty() && t.parse::<u32>().is_err())
        .collect();
    if !codes.is_empty() && !tokens.contains(&"retriable-status-codes") {
        tokens.push("retriable-status-codes");
    }
    route::RetryPolicy {
        retry_on: tokens.join(","),
        num_retries: envoy::u32_value(attempts),
        per_try_timeout: per_try_timeout.map(envoy::duration),
        retriable_status_codes: codes,
        retry_host_predicate: vec![previous_hosts()],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    }
}

/// Not to an endpoint that was tried.
fn previous_hosts() -> route::retry_policy::RetryHostPredicate {
    use route::retry_policy::retry_host_predicate::ConfigType;
    let predicate = envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate {};
    route::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_string(),
        config_type: Some(ConfigType::TypedConfig(envoy::any(&predicate))),
    }
}

/// After two tries to another priority, which is another locality (Istio's frequency).
fn previous_priorities() -> route::retry_policy::RetryPriority {
    use route::retry_policy::retry_priority::ConfigType;
    let config = envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig {
        update_frequency: 2,
    };
    route::retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_string(),
        config_type: Some(ConfigType::TypedConfig(envoy::any(&config))),
    }
}

pub fn retries(retries: Option<&HttpRetry>) -> Option<route::RetryPolicy> {
    let Some(retries) = retries else {
        return Some(default_retry_policy());
    };
    // Left out is 0 in Istio: only a route without retries gets the default.
    let attempts = u32::try_from(retries.attempts.unwrap_or(0)).unwrap_or(0);
    if attempts == 0 {
        return None;
    }
    let default = default_retry_policy();
    let mut policy = match retries.retry_on.as_str() {
        "" => route::RetryPolicy {
            num_retries: envoy::u32_value(attempts),
            per_try_timeout: retries.per_try_timeout.map(envoy::duration),
            ..default
        },
        on => retry_policy(attempts, on, retries.per_try_timeout),
    };
    match retries.retry_ignore_previous_hosts {
        Some(true) => policy.retry_host_predicate = vec![previous_hosts()],
        Some(false) => policy.retry_host_predicate = Vec::new(),
        None => {}
    }
    if retries.retry_remote_localities == Some(true) {
        policy.retry_priority = Some(previous_priorities());
    }
    if let Some(base) = retries.backoff {
        policy.retry_back_off = Some(route::retry_policy::RetryBackOff {
            base_interval: Some(envoy::duration(base)),
            max_interval: None,
        });
    }
    Some(policy)
}

/// The plain way to one cluster: no timeout (fact 9), default retries.
pub fn forward_to(cluster: String) -> Action {
    Action::Route(route::RouteAction {
        timeout: Some(envoy::duration(Duration::ZERO)),
        max_grpc_timeout: Some(envoy::duration(Duration::ZERO)),
        retry_policy: Some(default_retry_policy()),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..Default::default()
    })
}

/// The way to where a client was going: no timeout, and nobody knows what may be tried again.
pub fn pass_to(cluster: String) -> Action {
    Action::Route(route::RouteAction {
        timeout: Some(envoy::duration(Duration::ZERO)),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..Default::default()
    })
}

/// Fills action and header operations of a route from a rule.
pub fn apply(
    made: &mut route::Route,
    rule: &HttpRoute,
    uri: Option<&StringMatch>,
    to: &Destinations<'_>,
) {
    add_headers(rule.headers.as_ref(), made);
    let configs = filters::per_route(rule).into_iter();
    made.typed_per_filter_config = configs.map(|(name, any)| (name.to_owned(), any)).collect();
    made.action = Some(if let Some(redirect) = &rule.redirect {
        Action::Redirect(redirect_action(redirect, to.listen_port))
    } else if let Some(answer) = &rule.direct_response {
        Action::DirectResponse(direct_response(answer))
    } else {
        Action::Route(forward(made, rule, uri, to))
    });
}

fn forward(
    made: &mut route::Route,
    rule: &HttpRoute,
    uri: Option<&StringMatch>,
    to: &Destinations<'_>,
) -> route::RouteAction {
    let timeout = Some(envoy::duration(rule.timeout.unwrap_or(Duration::ZERO)));
    let mut action = route::RouteAction {
        timeout,
        // What a gRPC client allows itself counts up to the rule's timeout.
        max_grpc_timeout: timeout,
        retry_policy: retries(rule.retries.as_ref()),
        ..Default::default()
    };
    if let Some(host) = requested_host(rule.headers.as_ref()) {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
    }
    if let Some(rewrite) = &rule.rewrite {
        apply_rewrite(&mut action, rewrite, uri);
    }
    action.request_mirror_policies = mirrors(rule, to);
    // Weights are relative; the only destination takes all, a member of weight 0 takes nothing
    // (fact 8).
    let weight = |one: &lateen_api::virtual_service::HttpRouteDestination| {
        u32::try_from(one.weight.unwrap_or(0)).unwrap_or(0)
    };
    let targets: Vec<_> = match rule.route.as_slice() {
        [only] => vec![(only, 100)],
        many => many
            .iter()
            .map(|one| (one, weight(one)))
            .filter(|(_, w)| *w > 0)
            .collect(),
    };
    match targets.as_slice() {
        [(only, _)] => {
            add_headers(only.headers.as_ref(), made);
            if let Some(host) = requested_host(only.headers.as_ref()) {
                action.host_rewrite_specifier =
                    Some(HostRewriteSpecifier::HostRewriteLiteral(host));
            }
            let destination = only.destination.clone().unwrap_or_default();
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(to.cluster(&destination)));
        }
        many => {
            let clusters = many
                .iter()
                .map(|(one, weight)| cluster_weight(one, *weight, to))
                .collect();
            action.cluster_specifier =
                Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
                    clusters,
                    ..Default::default()
                }));
        }
    }
    action
}

/// Mirrors with their share: all unless said, none when 0 is said; the exact percentage goes before
/// the deprecated whole one (fact 14).
fn mirrors(
    rule: &HttpRoute,
    to: &Destinations<'_>,
) -> Vec<route::route_action::RequestMirrorPolicy> {
    let share = |percentage: &Option<Percent>, whole: Option<u32>| {
        let share = match (percentage, whole) {
            (Some(percentage), _) => filters::fraction(percentage),
            (None, Some(whole)) => filters::hundredths(whole),
            (None, None) => filters::hundredths(100),
        };
        (share.numerator > 0).then_some(share)
    };
    let single = rule.mirror.as_ref().and_then(|destination| {
        let share = share(&rule.mirror_percentage, rule.mirror_percent)?;
        Some((destination, share))
    });
    let several = rule.mirrors.iter().filter_map(|mirror| {
        let share = share(&mirror.percentage, None)?;
        Some((mirror.destination.as_ref()?, share))
    });
    let policy = |(destination, share)| route::route_action::RequestMirrorPolicy {
        cluster: to.cluster(destination),
        runtime_fraction: Some(core::RuntimeFractionalPercent {
            default_value: Some(share),
            ..Default::default()
        }),
        trace_sampled: envoy::bool_value(false),
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    };
    single.into_iter().chain(several).map(policy).collect()
}

fn cluster_weight(
    one: &lateen_api::virtual_service::HttpRouteDestination,
    weight: u32,
    to: &Destinations<'_>,
) -> route::weighted_cluster::ClusterWeight {
    let mut carrier = route::Route::default();
    add_headers(one.headers.as_ref(), &mut carrier);
    let destination = one.destination.clone().unwrap_or_default();
    route::weighted_cluster::ClusterWeight {
        name: to.cluster(&destination),
        weight: envoy::u32_value(weight),
        request_headers_to_add: carrier.request_headers_to_add,
        request_headers_to_remove: carrier.request_headers_to_remove,
        response_headers_to_add: carrier.response_headers_to_add,
        response_headers_to_remove: carrier.response_headers_to_remove,
        host_rewrite_specifier: requested_host(one.headers.as_ref())
            .map(route::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    }
}

/// On a prefix match only the prefix is replaced, otherwise the whole path (fact 7).
fn apply_rewrite(
    action: &mut route::RouteAction,
    rewrite: &HttpRewrite,
    uri: Option<&StringMatch>,
) {
    if !rewrite.authority.is_empty() {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(
            rewrite.authority.clone(),
        ));
    }
    if let Some(regex) = &rewrite.uri_regex_rewrite {
        action.regex_rewrite = Some(regex_rewrite(&regex.matches, &regex.rewrite));
    } else if !rewrite.uri.is_empty() {
        match uri {
            Some(StringMatch::Regex(pattern)) if pattern != "*" => {
                // A regex match has no prefix to replace: the whole path goes.
                action.regex_rewrite =
                    Some(regex_rewrite("^/[^?]*", &escape_substitution(&rewrite.uri)));
            }
            _ => action.prefix_rewrite = rewrite.uri.clone(),
        }
    }
}

fn regex_rewrite(pattern: &str, substitution: &str) -> matcher::RegexMatchAndSubstitute {
    matcher::RegexMatchAndSubstitute {
        pattern: Some(envoy::regex(pattern)),
        substitution: substitution.to_string(),
    }
}

/// Backslashes have a meaning in substitutions.
fn escape_substitution(text: &str) -> String {
    text.replace('\\', "\\\\")
}

fn redirect_action(redirect: &HttpRedirect, listen_port: u32) -> route::RedirectAction {
    use route::redirect_action::{
        PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
    };
    let default_port = if redirect.scheme.eq_ignore_ascii_case("https") {
        443
    } else {
        80
    };
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port,
        (None, Some(RedirectPortSelection::FromRequestPort)) => listen_port,
        (None, _) => 0,
    };
    route::RedirectAction {
        host_redirect: redirect.authority.clone(),
        // A port that the scheme stands for is left out (fact 24).
        port_redirect: if port == default_port { 0 } else { port },
        response_code: match redirect.redirect_code.unwrap_or(301) {
            302 => RedirectResponseCode::Found,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::MovedPermanently,
        } as i32,
        scheme_rewrite_specifier: Some(redirect.scheme.clone())
            .filter(|scheme| !scheme.is_empty())
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: if !redirect.uri.is_empty() {
            Some(PathRewriteSpecifier::PathRedirect(redirect.uri.clone()))
        } else if !redirect.prefix_rewrite.is_empty() {
            Some(PathRewriteSpecifier::PrefixRewrite(
                redirect.prefix_rewrite.clone(),
            ))
        } else {
            None
        },
        ..Default::default()
    }
}

fn direct_response(answer: &HttpDirectResponse) -> route::DirectResponseAction {
    let body = answer
        .body
        .as_ref()
        .and_then(|body| match (&body.string, &body.bytes) {
            (Some(text), _) => Some(core::data_source::Specifier::InlineString(text.clone())),
            // Bytes are base64 in JSON; what cannot be decoded was refused by validation.
            (None, Some(bytes)) => base64::engine::general_purpose::STANDARD
                .decode(bytes)
                .ok()
                .map(core::data_source::Specifier::InlineBytes),
            (None, None) => None,
        });
    route::DirectResponseAction {
        status: answer.status,
        body: body.map(|specifier| core::DataSource {
            specifier: Some(specifier),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// `headers.request.set` of the authority means a host rewrite (fact 22).
fn requested_host(headers: Option<&Headers>) -> Option<String> {
    let set = &headers?.request.as_ref()?.set;
    set.iter()
        .find(|(name, _)| is_authority(name))
        .map(|(_, value)| value.clone())
}

fn is_authority(name: &str) -> bool {
    ["host", ":authority", "authority"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

fn add_headers(headers: Option<&Headers>, made: &mut route::Route) {
    let Some(headers) = headers else { return };
    if let Some(request) = &headers.request {
        made.request_headers_to_add.extend(header_values(request));
        made.request_headers_to_remove.extend(removals(request));
    }
    if let Some(response) = &headers.response {
        made.response_headers_to_add.extend(header_values(response));
        made.response_headers_to_remove.extend(removals(response));
    }
}

fn removals(operations: &HeaderOperations) -> impl Iterator<Item = String> {
    operations
        .remove
        .iter()
        .filter(|name| !is_authority(name))
        .cloned()
}

/// `set` overwrites every copy, `add` appends one (fact 22).
fn header_values(operations: &HeaderOperations) -> impl Iterator<Item = core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction;
    let option =
        |(name, value): (&String, &String), action: HeaderAppendAction| core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.clone(),
                value: value.clone(),
                ..Default::default()
            }),
            append_action: action as i32,
            ..Default::default()
        };
    let sets = operations
        .set
        .iter()
        .filter(|(name, _)| !is_authority(name));
    let sets = sets.map(move |pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let adds = operations
        .add
        .iter()
        .filter(|(name, _)| !is_authority(name));
    let adds = adds.map(move |pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd));
    sets.chain(adds)
}
