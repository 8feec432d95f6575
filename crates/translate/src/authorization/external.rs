//! Action CUSTOM: an authorizer outside is asked about what the rules match
//! (`pilot/pkg/security/authz/builder/extauthz.go`).
//!
//! A pair of filters does it. The first only looks whether a rule matches and leaves the name of the
//! policy in the request's dynamic metadata; the second asks if it finds such a name there. A policy
//! whose provider is not there, or is not the only one of its workload, denies what it matches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lateen_api::mesh_config::{
    ExtAuthzGrpcProvider, ExtAuthzHttpProvider, ExtAuthzRequestBody, ext_authz_status,
};
use lateen_model::AuthorizationPolicy;

use super::encode::{EXTERNAL, HTTP_FILTER, NETWORK_FILTER, RuleSet, TCP_STATS};
use super::rule::Layer;
use super::{Authorization, Filters, encode, matchers};
use crate::envoy::{self, core, ext_authz, matcher, network_ext_authz, percent, rbac};
use crate::names;

use rbac::rbac::Action as Decision;

/// What the names of such policies begin with.
const NAME: &str = "istio-ext-authz";
const BAD_PROVIDER: &str = "-deny-due-to-bad-CUSTOM-action";
/// The key that the first filter writes.
const MATCHED: &str = "shadow_effective_policy_id";
const TIMEOUT: Duration = Duration::from_secs(600);

/// The filters for the CUSTOM policies of a workload.
pub fn filters(
    of: &Authorization<'_>,
    policies: &[&Arc<AuthorizationPolicy>],
    numbers: &[u16],
) -> Filters {
    let providers: BTreeSet<&str> = policies.iter().map(|one| provider_of(one)).collect();
    let mut filters = Filters::default();
    for name in &providers {
        let own = || policies.iter().filter(|one| provider_of(one) == *name);
        let rules = |layer| {
            let mut all = BTreeMap::new();
            for policy in own() {
                let compiled = of.compiled(policy, Decision::Deny, layer, numbers);
                all.extend(
                    compiled
                        .into_iter()
                        .map(|(rule, policy)| (format!("{NAME}-{name}-{rule}"), policy)),
                );
            }
            all
        };
        let found = (providers.len() == 1)
            .then(|| Authorizer::find(of, name))
            .flatten();
        let Some(authorizer) = found else {
            let sets = |layer| deny(rules(layer));
            let denied = encode::http(Some(&sets(Layer::Http)), None, "");
            filters
                .http
                .push(envoy::http_filter_of(HTTP_FILTER, denied));
            let denied = encode::network(Some(&sets(Layer::Tcp)), None, "");
            let denied = envoy::network_filter_of(NETWORK_FILTER, denied);
            filters.network.push(denied);
            continue;
        };
        let looked_for = |layer| RuleSet {
            policies: rules(layer),
            ..RuleSet::new(Decision::Deny)
        };
        let marks = encode::http(None, Some(&looked_for(Layer::Http)), EXTERNAL);
        filters.http.push(envoy::http_filter_of(HTTP_FILTER, marks));
        filters.http.push(envoy::http_filter(
            "envoy.filters.http.ext_authz",
            &authorizer.http(name),
        ));
        // One that speaks HTTP cannot be asked about a connection.
        if let Some(asks) = authorizer.network(name) {
            let marks = encode::network(None, Some(&looked_for(Layer::Tcp)), EXTERNAL);
            let marks = envoy::network_filter_of(NETWORK_FILTER, marks);
            filters.network.push(marks);
            let name = "envoy.filters.network.ext_authz";
            filters.network.push(envoy::network_filter(name, &asks));
        }
    }
    filters
}

/// The rules under names that say why they deny.
fn deny(rules: BTreeMap<String, rbac::Policy>) -> RuleSet {
    let rules = rules.into_iter();
    RuleSet {
        policies: rules
            .map(|(name, policy)| (name + BAD_PROVIDER, policy))
            .collect(),
        ..RuleSet::new(Decision::Deny)
    }
}

fn provider_of(policy: &AuthorizationPolicy) -> &str {
    let provider = policy.spec.provider.as_ref();
    provider.map_or("", |provider| provider.name.as_str())
}

/// An authorizer, and the cluster that leads to it.
struct Authorizer<'a> {
    asked: Asked<'a>,
    host: String,
    cluster: String,
}

enum Asked<'a> {
    Http(&'a ExtAuthzHttpProvider),
    Grpc(&'a ExtAuthzGrpcProvider),
}

impl<'a> Authorizer<'a> {
    fn find(of: &Authorization<'a>, name: &str) -> Option<Authorizer<'a>> {
        let mut providers = of.snapshot.settings.extension_providers.iter();
        let provider = providers.find(|provider| provider.name == name)?;
        let http = provider.envoy_ext_authz_http.as_ref().map(Asked::Http);
        let grpc = provider.envoy_ext_authz_grpc.as_ref().map(Asked::Grpc);
        let asked = http.or(grpc)?;
        let (service, port) = match &asked {
            Asked::Http(one) => (&one.service, &one.port),
            Asked::Grpc(one) => (&one.service, &one.port),
        };
        let seen_from = &of.proxy.namespace;
        let (service, port) = of.snapshot.authorizer(service, port, seen_from)?;
        Some(Authorizer {
            // As in Istio the cluster is there only if the Sidecar of the workload imports the
            // service. Without it nobody answers, which denies.
            cluster: names::outbound_cluster(port, "", &service.hostname),
            asked,
            host: service.hostname.to_string(),
        })
    }

    fn http(&self, provider: &str) -> ext_authz::ExtAuthz {
        let common = ext_authz::ExtAuthz {
            transport_api_version: core::ApiVersion::V3 as i32,
            filter_enabled_metadata: Some(marked(HTTP_FILTER, provider)),
            ..Default::default()
        };
        match &self.asked {
            Asked::Http(one) => ext_authz::ExtAuthz {
                failure_mode_allow: one.fail_open,
                clear_route_cache: one.clear_route_cache,
                status_on_error: status(&one.status_on_error),
                with_request_body: body(one.include_request_body_in_check.as_ref()),
                allowed_headers: headers(match one.include_request_headers_in_check.as_slice() {
                    [] => &one.include_headers_in_check,
                    own => own,
                }),
                services: Some(ext_authz::ext_authz::Services::HttpService(
                    self.http_service(one),
                )),
                ..common
            },
            Asked::Grpc(one) => ext_authz::ExtAuthz {
                failure_mode_allow: one.fail_open,
                clear_route_cache: one.clear_route_cache,
                status_on_error: status(&one.status_on_error),
                with_request_body: body(one.include_request_body_in_check.as_ref()),
                services: Some(ext_authz::ext_authz::Services::GrpcService(
                    self.grpc_service(one),
                )),
                ..common
            },
        }
    }

    fn network(&self, provider: &str) -> Option<network_ext_authz::ExtAuthz> {
        let Asked::Grpc(one) = &self.asked else {
            return None;
        };
        Some(network_ext_authz::ExtAuthz {
            stat_prefix: TCP_STATS.to_string(),
            failure_mode_allow: one.fail_open,
            transport_api_version: core::ApiVersion::V3 as i32,
            grpc_service: Some(self.grpc_service(one)),
            filter_enabled_metadata: Some(marked(NETWORK_FILTER, provider)),
            ..Default::default()
        })
    }

    fn http_service(&self, one: &ExtAuthzHttpProvider) -> ext_authz::HttpService {
        let added = one.include_additional_headers_in_check.iter();
        let added: Vec<_> = added
            .map(|(key, value)| core::HeaderValue {
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            })
            .collect();
        let answer = ext_authz::AuthorizationResponse {
            allowed_upstream_headers: headers(&one.headers_to_upstream_on_allow),
            allowed_client_headers: headers(&one.headers_to_downstream_on_deny),
            allowed_client_headers_on_success: headers(&one.headers_to_downstream_on_allow),
            ..Default::default()
        };
        ext_authz::HttpService {
            path_prefix: one.path_prefix.clone(),
            server_uri: Some(core::HttpUri {
                // Required, and only its host is ever seen.
                uri: format!("http://{}", self.host),
                timeout: Some(envoy::duration(one.timeout.unwrap_or(TIMEOUT))),
                http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(
                    self.cluster.clone(),
                )),
            }),
            authorization_request: (!added.is_empty()).then(|| ext_authz::AuthorizationRequest {
                headers_to_add: added,
                ..Default::default()
            }),
            authorization_response: (answer != ext_authz::AuthorizationResponse::default())
                .then_some(answer),
            ..Default::default()
        }
    }

    fn grpc_service(&self, one: &ExtAuthzGrpcProvider) -> core::GrpcService {
        core::GrpcService {
            timeout: Some(envoy::duration(one.timeout.unwrap_or(TIMEOUT))),
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc {
                    cluster_name: self.cluster.clone(),
                    // No server takes the name of a cluster as an authority.
                    authority: self.cluster.replace('|', "_."),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }
    }
}

/// What the first filter leaves for the second.
fn marked(filter: &str, provider: &str) -> matcher::MetadataMatcher {
    let key = format!("{EXTERNAL}{MATCHED}");
    matchers::metadata_prefix(filter, &key, &format!("{NAME}-{provider}-"))
}

fn status(text: &str) -> Option<percent::HttpStatus> {
    let code = i32::from(ext_authz_status(text)?);
    Some(percent::HttpStatus { code })
}

fn body(settings: Option<&ExtAuthzRequestBody>) -> Option<ext_authz::BufferSettings> {
    settings.map(|one| ext_authz::BufferSettings {
        max_request_bytes: one.max_request_bytes,
        allow_partial_message: one.allow_partial_message,
        pack_as_bytes: one.pack_as_bytes,
    })
}

/// Names of headers, with `*` at one end; case does not matter.
fn headers(names: &[String]) -> Option<matcher::ListStringMatcher> {
    let patterns = names.iter().map(|name| matcher::StringMatcher {
        ignore_case: true,
        ..matchers::text(name)
    });
    (!names.is_empty()).then(|| matcher::ListStringMatcher {
        patterns: patterns.collect(),
    })
}
