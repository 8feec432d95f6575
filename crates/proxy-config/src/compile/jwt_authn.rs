//! `JwtAuthentication`: providers with their keys, and what is required of which requests.

use super::route_match::route_matcher;
use super::scope::{At, reject, report};
use super::values::{duration, header_name, header_value, non_empty, required};
use crate::ConfigError;
use crate::jwt::{
    AnyOf, Audiences, ClaimHeader, Issuers, JwtAuthn, JwtLocation, JwtProvider, JwtRequirement,
    JwtRule, KeySet, Keys, PayloadHeader, RemoteKeys,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Requirements within requirements; Istio's are three deep.
const MAX_DEPTH: usize = 16;

pub(crate) fn jwt_authn(
    message: pb::JwtAuthentication,
    at: At<'_>,
) -> Result<JwtAuthn, ConfigError> {
    let pb::JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix,
    } = message;
    reject!(at; filter_state_rules, strip_failure_response);
    report!(at, "the counters have no further prefix"; stat_prefix);
    let mut names: Vec<(String, pb::JwtProvider)> = providers.into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let mut compiled = Vec::new();
    let mut indexes = HashMap::new();
    for (name, message) in names {
        let provider = provider(message, at.key("providers", &name))?;
        indexes.insert(name, compiled.len());
        compiled.push(provider);
    }
    let scope = Scope {
        providers: &indexes,
        named: &requirement_map,
    };
    let rules = rules
        .into_iter()
        .enumerate()
        .map(|(i, message)| scope.rule(message, at.item("rules", i)))
        .collect::<Result<_, _>>()?;
    Ok(JwtAuthn {
        anywhere: anywhere(&compiled),
        own_headers: own_headers(&compiled),
        providers: compiled,
        rules,
        bypass_cors_preflight,
    })
}

/// Where tokens of any provider may stand.
fn anywhere(providers: &[JwtProvider]) -> Vec<(JwtLocation, Issuers)> {
    let mut all: Vec<(JwtLocation, Issuers)> = Vec::new();
    for provider in providers {
        for location in &provider.locations {
            let index = match all.iter().position(|(known, _)| known == location) {
                Some(index) => index,
                None => {
                    all.push((location.clone(), Issuers::Only(Vec::new())));
                    all.len() - 1
                }
            };
            let issuers = &mut all[index].1;
            if provider.issuer.is_empty() {
                *issuers = Issuers::Any;
            } else if let Issuers::Only(names) = issuers {
                names.push(provider.issuer.clone());
            }
        }
    }
    all.sort_by_cached_key(|(location, _)| order(location));
    all
}

fn own_headers(providers: &[JwtProvider]) -> Vec<Box<str>> {
    let mut names = Vec::new();
    for provider in providers {
        names.extend(
            provider
                .payload_header
                .iter()
                .map(|header| header.name.clone()),
        );
        names.extend(
            provider
                .claim_headers
                .iter()
                .map(|header| header.name.clone()),
        );
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// Envoy looks at headers by name and prefix, then at parameters, then at cookies.
fn order(location: &JwtLocation) -> (u8, String) {
    match location {
        JwtLocation::Header { name, prefix } => (0, format!("{name}{prefix}")),
        JwtLocation::Param(name) => (1, name.to_string()),
        JwtLocation::Cookie(name) => (2, name.to_string()),
    }
}

fn provider(message: pb::JwtProvider, at: At<'_>) -> Result<JwtProvider, ConfigError> {
    let pb::JwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        forward,
        from_headers,
        from_params,
        from_cookies,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        jwt_cache_config,
        claim_to_headers,
        clear_route_cache,
        jwks_source_specifier,
    } = message;
    reject!(at; subjects, require_expiration, max_lifetime, failed_status_in_metadata);
    report!(at, "every token is verified anew"; jwt_cache_config);
    let payload_header = match forward_payload_header.is_empty() {
        true => None,
        false => Some(PayloadHeader {
            name: header_name(&forward_payload_header, at.field("forward_payload_header"))?,
            padded: pad_forward_payload_header,
        }),
    };
    let lists = normalize_payload_in_metadata
        .map(
            |pb::jwt_provider::NormalizePayload {
                 space_delimited_claims,
             }| space_delimited_claims,
        )
        .unwrap_or_default();
    let claim_headers = claim_to_headers.into_iter().enumerate();
    let claim_headers = claim_headers.map(|(i, c)| claim_header(c, at.item("claim_to_headers", i)));
    Ok(JwtProvider {
        audiences: Audiences::new(audiences.iter().map(String::as_str)),
        issuer: issuer.into(),
        keys: keys(jwks_source_specifier, at)?,
        locations: locations(from_headers, from_params, from_cookies, at)?,
        forward,
        payload_header,
        claim_headers: claim_headers.collect::<Result<_, _>>()?,
        payload_in_metadata: key(payload_in_metadata),
        header_in_metadata: key(header_in_metadata),
        lists: lists.into_iter().map(String::into_boxed_str).collect(),
        clock_skew: Duration::from_secs(match clock_skew_seconds {
            0 => DEFAULT_CLOCK_SKEW,
            seconds => u64::from(seconds),
        }),
        clear_route_cache,
    })
}

/// Seconds that the clocks of issuer and proxy may differ (Envoy, `kClockSkewInSecond`).
const DEFAULT_CLOCK_SKEW: u64 = 60;

fn key(name: String) -> Option<Box<str>> {
    (!name.is_empty()).then(|| name.into_boxed_str())
}

fn keys(
    source: Option<pb::jwt_provider::JwksSourceSpecifier>,
    at: At<'_>,
) -> Result<Keys, ConfigError> {
    use pb::jwt_provider::JwksSourceSpecifier as Source;
    match required(source, at.field("local_jwks"))? {
        Source::LocalJwks(source) => Ok(Keys::Given(key_set(source, at.field("local_jwks"))?)),
        Source::RemoteJwks(source) => {
            let fetched = remote(source, at.field("remote_jwks"))?;
            Ok(Keys::Fetched(Arc::new(fetched)))
        }
    }
}

/// How long fetched keys count where nothing is said (Envoy, `RemoteJwks`).
const DEFAULT_CACHE: Duration = Duration::from_secs(10 * 60);

/// Keys are fetched when a token first needs them, as Envoy does without `async_fetch`.
fn remote(message: pb::RemoteJwks, at: At<'_>) -> Result<RemoteKeys, ConfigError> {
    let pb::RemoteJwks {
        http_uri,
        cache_duration,
        async_fetch,
        retry_policy,
    } = message;
    report!(at, "keys are fetched when a token needs them"; async_fetch);
    report!(at, "a fetch that fails is tried again for the next token"; retry_policy);
    let uri_at = at.field("http_uri");
    let core::HttpUri {
        uri,
        timeout,
        http_upstream_type,
    } = required(http_uri, uri_at)?;
    let core::http_uri::HttpUpstreamType::Cluster(cluster) =
        required(http_upstream_type, uri_at.field("cluster"))?;
    let timeout_at = uri_at.field("timeout");
    let timeout = required(duration(timeout, timeout_at)?, timeout_at)?;
    let text_at = uri_at.field("uri");
    header_value(&uri, text_at)?;
    let (authority, path) = authority_and_path(&uri);
    if authority.is_empty() || authority.contains([' ', '@']) || path.contains(' ') {
        return Err(text_at.error("must be http:// or https://, a host, and perhaps a path"));
    }
    let cache = duration(cache_duration, at.field("cache_duration"))?;
    Ok(RemoteKeys {
        cluster: non_empty(cluster, uri_at.field("cluster"))?.into(),
        authority: authority.into(),
        path: path.into(),
        timeout,
        cache: cache.unwrap_or(DEFAULT_CACHE),
    })
}

/// Both may be empty. What stands before the host does not count: the cluster knows about TLS.
fn authority_and_path(uri: &str) -> (&str, String) {
    let rest = uri.split_once("://").map_or("", |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    match path.starts_with('/') {
        true => (authority, path.to_owned()),
        false => (authority, format!("/{path}")),
    }
}

fn key_set(source: core::DataSource, at: At<'_>) -> Result<KeySet, ConfigError> {
    use core::data_source::Specifier;
    let core::DataSource {
        watched_directory,
        specifier,
    } = source;
    reject!(at; watched_directory);
    let text = match required(specifier, at)? {
        Specifier::InlineString(text) => text,
        // What is no UTF-8 is no JSON.
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        Specifier::Filename(_) | Specifier::EnvironmentVariable(_) => {
            return Err(at.not_supported());
        }
    };
    let unusable = |index: usize, reason: &str| {
        at.item("keys", index)
            .notice(format!("the key is left out: {reason}"));
    };
    // The issuer decides what is in it: refusing the listener would let an issuer keep every later
    // policy out. As in Envoy no token of it is accepted, and all else is in force.
    Ok(KeySet::parse(&text, unusable).unwrap_or_else(|reason| {
        at.notice(format!(
            "no token of this provider is accepted until its key set is replaced: {reason}"
        ));
        KeySet::default()
    }))
}

fn locations(
    headers: Vec<pb::JwtHeader>,
    params: Vec<String>,
    cookies: Vec<String>,
    at: At<'_>,
) -> Result<Vec<JwtLocation>, ConfigError> {
    let mut all = Vec::new();
    for (i, message) in headers.into_iter().enumerate() {
        let at = at.item("from_headers", i);
        let pb::JwtHeader { name, value_prefix } = message;
        all.push(JwtLocation::Header {
            name: header_name(&name, at.field("name"))?,
            prefix: value_prefix.into(),
        });
    }
    for (i, name) in params.into_iter().enumerate() {
        let name = non_empty(name, at.item("from_params", i))?;
        all.push(JwtLocation::Param(name.into()));
    }
    for (i, name) in cookies.into_iter().enumerate() {
        let name = non_empty(name, at.item("from_cookies", i))?;
        all.push(JwtLocation::Cookie(name.into()));
    }
    if all.is_empty() {
        all.push(JwtLocation::Header {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        });
        all.push(JwtLocation::Param("access_token".into()));
    }
    all.sort_by_cached_key(order);
    all.dedup();
    Ok(all)
}

fn claim_header(message: pb::JwtClaimToHeader, at: At<'_>) -> Result<ClaimHeader, ConfigError> {
    let pb::JwtClaimToHeader {
        header_name: name,
        claim_name,
        claim_path,
    } = message;
    let path: Vec<Box<str>> = match (claim_name.is_empty(), claim_path.is_empty()) {
        (false, true) => claim_name.split('.').map(Box::from).collect(),
        (true, false) => claim_path
            .into_iter()
            .map(|pb::jwt_claim_to_header::PathSegment { key }| key.into_boxed_str())
            .collect(),
        _ => return Err(at.error("needs either claim_name or claim_path")),
    };
    Ok(ClaimHeader {
        name: header_name(&name, at.field("header_name"))?,
        path,
    })
}

/// What requirements may name.
struct Scope<'a> {
    providers: &'a HashMap<String, usize>,
    named: &'a HashMap<String, pb::JwtRequirement>,
}

impl Scope<'_> {
    fn rule(&self, message: pb::RequirementRule, at: At<'_>) -> Result<JwtRule, ConfigError> {
        use pb::requirement_rule::RequirementType;
        let pb::RequirementRule {
            r#match,
            requirement_type,
        } = message;
        let at_match = at.field("match");
        let requirement = match requirement_type {
            None => None,
            Some(RequirementType::Requires(message)) => {
                Some(self.requirement(message, at.field("requires"), 0)?)
            }
            Some(RequirementType::RequirementName(name)) => {
                let at = at.field("requirement_name");
                let message = self.named.get(&name).cloned();
                let message = message
                    .ok_or_else(|| at.error(format!("there is no '{name}' in requirement_map")))?;
                Some(self.requirement(message, at, 0)?)
            }
        };
        Ok(JwtRule {
            matcher: route_matcher(required(r#match, at_match)?, at_match)?,
            requirement,
        })
    }

    fn requirement(
        &self,
        message: pb::JwtRequirement,
        at: At<'_>,
        depth: usize,
    ) -> Result<JwtRequirement, ConfigError> {
        use pb::jwt_requirement::RequiresType as Type;
        if depth == MAX_DEPTH {
            return Err(at.error("requirements are nested too deep"));
        }
        let pb::JwtRequirement { requires_type } = message;
        Ok(match requires_type {
            None => JwtRequirement::Nothing,
            Some(Type::ProviderName(name)) => {
                JwtRequirement::Provider(self.provider(&name, at.field("provider_name"))?, None)
            }
            Some(Type::ProviderAndAudiences(message)) => {
                let at = at.field("provider_and_audiences");
                let pb::ProviderWithAudiences {
                    provider_name,
                    audiences,
                } = message;
                let provider = self.provider(&provider_name, at.field("provider_name"))?;
                let own = (!audiences.is_empty())
                    .then(|| Audiences::new(audiences.iter().map(String::as_str)));
                JwtRequirement::Provider(provider, own)
            }
            Some(Type::RequiresAny(pb::JwtRequirementOrList { requirements })) => {
                let at = at.field("requires_any");
                let mut any = AnyOf::default();
                for (i, message) in requirements.into_iter().enumerate() {
                    match message.requires_type {
                        Some(Type::AllowMissing(_)) => any.allow_missing = true,
                        Some(Type::AllowMissingOrFailed(_)) => any.allow_failed = true,
                        _ => {
                            let at = at.item("requirements", i);
                            any.requirements
                                .push(self.requirement(message, at, depth + 1)?);
                        }
                    }
                }
                match any.requirements.is_empty() {
                    true => JwtRequirement::Optional {
                        or_failed: any.allow_failed,
                    },
                    false => JwtRequirement::Any(any),
                }
            }
            Some(Type::RequiresAll(pb::JwtRequirementAndList { requirements })) => {
                let at = at.field("requires_all");
                let all = requirements.into_iter().enumerate();
                let all =
                    all.map(|(i, m)| self.requirement(m, at.item("requirements", i), depth + 1));
                JwtRequirement::All(all.collect::<Result<_, _>>()?)
            }
            Some(Type::AllowMissing(_)) => JwtRequirement::Optional { or_failed: false },
            Some(Type::AllowMissingOrFailed(_)) => JwtRequirement::Optional { or_failed: true },
            Some(Type::ExtractOnlyWithoutValidation(_)) => {
                return Err(at.field("extract_only_without_validation").not_supported());
            }
        })
    }

    fn provider(&self, name: &str, at: At<'_>) -> Result<usize, ConfigError> {
        let found = self.providers.get(name).copied();
        found.ok_or_else(|| at.error(format!("the provider '{name}' is not configured")))
    }
}
