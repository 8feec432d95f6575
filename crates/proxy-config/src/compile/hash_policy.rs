//! `RouteAction.HashPolicy`.

use super::scope::At;
use super::strings::substitution;
use super::values::{duration, header_name, header_value, non_empty, required};
use crate::ConfigError;
use crate::route::{HashCookie, HashMethod, HashPolicy};
use envoy_types::pb::envoy::config::route::v3::route_action as pb;
use std::fmt::Write;

pub(crate) fn hash_policies(
    messages: Vec<pb::HashPolicy>,
    at: At<'_>,
) -> Result<Box<[HashPolicy]>, ConfigError> {
    let policies = messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| hash_policy(message, at.item("hash_policy", i)));
    let policies: Vec<Option<HashPolicy>> = policies.collect::<Result<_, _>>()?;
    Ok(policies.into_iter().flatten().collect())
}

fn hash_policy(message: pb::HashPolicy, at: At<'_>) -> Result<Option<HashPolicy>, ConfigError> {
    use pb::hash_policy::{ConnectionProperties, Header, PolicySpecifier, QueryParameter};
    let pb::HashPolicy {
        terminal,
        policy_specifier,
    } = message;
    let method = match required(policy_specifier, at.field("policy_specifier"))? {
        PolicySpecifier::Header(Header {
            header_name: name,
            regex_rewrite,
        }) => {
            let at = at.field("header");
            HashMethod::Header {
                name: header_name(&name, at.field("header_name"))?,
                rewrite: regex_rewrite
                    .map(|rewrite| substitution(rewrite, at.field("regex_rewrite")))
                    .transpose()?,
            }
        }
        PolicySpecifier::Cookie(message) => {
            HashMethod::Cookie(cookie(message, at.field("cookie"))?)
        }
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }) => {
            HashMethod::SourceIp
        }
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: false }) => {
            return Ok(None);
        }
        PolicySpecifier::QueryParameter(QueryParameter { name }) => {
            let at = at.field("query_parameter");
            HashMethod::QueryParameter(non_empty(name, at.field("name"))?.into())
        }
        PolicySpecifier::FilterState(_) => return Err(at.field("filter_state").not_supported()),
    };
    Ok(Some(HashPolicy { method, terminal }))
}

fn cookie(message: pb::hash_policy::Cookie, at: At<'_>) -> Result<HashCookie, ConfigError> {
    let pb::hash_policy::Cookie {
        name,
        ttl,
        path,
        attributes,
    } = message;
    let ttl = duration(ttl, at.field("ttl"))?;
    let mut suffix = String::new();
    if let Some(seconds) = ttl.map(|ttl| ttl.as_secs()).filter(|seconds| *seconds > 0) {
        let _ = write!(suffix, "; Max-Age={seconds}");
    }
    if !path.is_empty() {
        let _ = write!(suffix, "; Path={path}");
    }
    for attribute in attributes {
        let pb::hash_policy::CookieAttribute { name, value } = attribute;
        let _ = match value.as_str() {
            "" => write!(suffix, "; {name}"),
            value => write!(suffix, "; {name}={value}"),
        };
    }
    suffix.push_str("; HttpOnly");
    header_value(&suffix, at.field("path"))?;
    Ok(HashCookie {
        name: non_empty(name, at.field("name"))?.into(),
        ttl,
        suffix: suffix.into(),
    })
}
