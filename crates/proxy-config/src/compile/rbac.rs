//! `envoy.config.rbac.v3.RBAC`, and the HTTP and network filters that carry it.
//!
//! Whatever is not understood here rejects the resource: a policy that is read in part refuses too
//! little or too much.

use super::route_match::header_matcher;
use super::scope::{At, reject, report};
use super::strings::string_matcher;
use super::values::{any, cidr, decode, known, required};
use crate::rbac::{
    IpSet, MetadataMatcher, MetadataSource, NetworkRbac, RbacAction, RbacFilter, RbacPolicy,
    RbacRules, Rule, ValueMatcher,
};
use crate::{ConfigError, re2};
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::{DoubleRange, Int32Range};
use std::sync::Arc;

const URI_TEMPLATE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
/// Rules inside rules; more is no policy but an attack on the stack.
const MAX_DEPTH: u32 = 32;

/// `envoy.filters.http.rbac`.
pub(crate) fn http_rbac(message: http::Rbac, at: At<'_>) -> Result<RbacFilter, ConfigError> {
    let http::Rbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats,
    } = message;
    reject!(at; matcher, shadow_matcher);
    report!(at, "decisions are not counted by policy"; track_per_rule_stats);
    filter(
        [rules, shadow_rules],
        [rules_stat_prefix, shadow_rules_stat_prefix],
        Over::Requests,
        at,
    )
}

/// What a route says in place of the filter; [`None`]: the filter does nothing there.
pub(crate) fn rbac_per_route(
    message: http::RbacPerRoute,
    at: At<'_>,
) -> Result<Option<RbacFilter>, ConfigError> {
    let http::RbacPerRoute { rbac } = message;
    rbac.map(|rbac| http_rbac(rbac, at.field("rbac")))
        .transpose()
}

/// `envoy.filters.network.rbac`.
pub(crate) fn network_rbac(message: network::Rbac, at: At<'_>) -> Result<NetworkRbac, ConfigError> {
    let network::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = message;
    reject!(at; matcher, shadow_matcher);
    report!(at, "a connection that is denied is closed at once"; delay_deny);
    // What the rules see of a connection never changes, so both kinds come to the same.
    let _either: network::rbac::EnforcementType =
        known(enforcement_type, at.field("enforcement_type"))?;
    Ok(NetworkRbac {
        stat_prefix: stat_prefix.trim_end_matches('.').into(),
        filter: filter(
            [rules, shadow_rules],
            [String::new(), shadow_rules_stat_prefix],
            Over::Connections,
            at,
        )?,
    })
}

/// What is decided on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Requests,
    Connections,
}

fn filter(
    [rules, shadow]: [Option<pb::Rbac>; 2],
    [rules_prefix, shadow_prefix]: [String; 2],
    over: Over,
    at: At<'_>,
) -> Result<RbacFilter, ConfigError> {
    let compiled = |rules: Option<pb::Rbac>, field: &str| {
        let at = at.field(field);
        let rules = rules.map(|rules| compile_rules(rules, over, at));
        rules.transpose().map(|rules| rules.map(Arc::new))
    };
    let rules = compiled(rules, "rules")?;
    let shadow = compiled(shadow, "shadow_rules")?;
    let asks = |rules: &Option<Arc<RbacRules>>| rules.as_ref().is_some_and(|r| r.reads_remote());
    Ok(RbacFilter {
        reads_remote: asks(&rules) || asks(&shadow),
        rules,
        shadow,
        rules_prefix: rules_prefix.into(),
        shadow_prefix: shadow_prefix.into(),
    })
}

fn compile_rules(message: pb::Rbac, over: Over, at: At<'_>) -> Result<RbacRules, ConfigError> {
    let pb::Rbac {
        action,
        policies,
        audit_logging_options,
    } = message;
    reject!(at; audit_logging_options);
    let action = match known(action, at.field("action"))? {
        pb::rbac::Action::Allow => RbacAction::Allow,
        pb::rbac::Action::Deny => RbacAction::Deny,
        pb::rbac::Action::Log => RbacAction::Log,
    };
    let policies = policies
        .into_iter()
        .map(|(name, message)| policy(&name, message, over, at.key("policies", &name)))
        .collect::<Result<_, _>>()?;
    Ok(RbacRules::new(action, policies))
}

fn policy(
    name: &str,
    message: pb::Policy,
    over: Over,
    at: At<'_>,
) -> Result<RbacPolicy, ConfigError> {
    let pb::Policy {
        permissions,
        principals,
        condition,
        checked_condition,
        cel_config,
    } = message;
    reject!(at; condition, checked_condition, cel_config);
    let place = Place { over, depth: 0 };
    Ok(RbacPolicy::new(
        name,
        rules(permissions, "permissions", at, |p, at| {
            permission(p, place, at)
        })?,
        rules(principals, "principals", at, |p, at| {
            principal(p, place, at)
        })?,
    ))
}

/// Where a rule stands.
#[derive(Clone, Copy)]
struct Place {
    over: Over,
    depth: u32,
}

impl Place {
    fn inside(self, at: At<'_>) -> Result<Place, ConfigError> {
        if self.depth >= MAX_DEPTH {
            return Err(at.error(format!("rules are nested more than {MAX_DEPTH} deep")));
        }
        Ok(Place {
            depth: self.depth + 1,
            ..self
        })
    }
}

/// At least one rule.
fn rules<M>(
    messages: Vec<M>,
    field: &str,
    at: At<'_>,
    compile: impl Fn(M, At<'_>) -> Result<Rule, ConfigError>,
) -> Result<Vec<Rule>, ConfigError> {
    if messages.is_empty() {
        return Err(at.field(field).error("must not be empty"));
    }
    let items = messages.into_iter().enumerate();
    items
        .map(|(i, message)| compile(message, at.item(field, i)))
        .collect()
}

fn permission(message: pb::Permission, place: Place, at: At<'_>) -> Result<Rule, ConfigError> {
    use pb::permission::{Rule as Kind, Set};
    let pb::Permission { rule } = message;
    let inner = |message, at: At<'_>| permission(message, place.inside(at)?, at);
    Ok(match required(rule, at)? {
        Kind::AndRules(Set { rules: set }) => {
            Rule::all(rules(set, "rules", at.field("and_rules"), inner)?)
        }
        Kind::OrRules(Set { rules: set }) => {
            Rule::any(rules(set, "rules", at.field("or_rules"), inner)?)
        }
        Kind::NotRule(rule) => Rule::Not(Box::new(inner(*rule, at.field("not_rule"))?)),
        Kind::Any(any) => always(any, at)?,
        Kind::Header(matcher) => header(matcher, place, at.field("header"))?,
        Kind::UrlPath(matcher) => path(matcher, at.field("url_path"))?,
        Kind::UriTemplate(extension) => uri_template(extension, at.field("uri_template"))?,
        Kind::DestinationIp(range) => {
            Rule::DestinationIp(IpSet::new(&[cidr(range, at.field("destination_ip"))?]))
        }
        Kind::DestinationPort(port) => {
            let at = at.field("destination_port");
            if port > 65535 {
                return Err(at.error(format!("{port} is not a port")));
            }
            Rule::DestinationPort(port..port + 1)
        }
        Kind::DestinationPortRange(range) => port_range(range, at.field("destination_port_range"))?,
        Kind::RequestedServerName(matcher) => {
            Rule::ServerName(string_matcher(matcher, at.field("requested_server_name"))?)
        }
        Kind::Metadata(matcher) => Rule::Metadata(
            MetadataSource::Dynamic,
            metadata_matcher(matcher, at.field("metadata"))?,
        ),
        Kind::SourcedMetadata(sourced) => sourced_metadata(sourced, at.field("sourced_metadata"))?,
        Kind::Matcher(_) => return Err(at.field("matcher").not_supported()),
    })
}

fn principal(message: pb::Principal, place: Place, at: At<'_>) -> Result<Rule, ConfigError> {
    use pb::principal::{Authenticated, Identifier as Kind, Set};
    let pb::Principal { identifier } = message;
    let inner = |message, at: At<'_>| principal(message, place.inside(at)?, at);
    let ips = |range, field: &str| Ok(IpSet::new(&[cidr(range, at.field(field))?]));
    Ok(match required(identifier, at)? {
        Kind::AndIds(Set { ids }) => Rule::all(rules(ids, "ids", at.field("and_ids"), inner)?),
        Kind::OrIds(Set { ids }) => Rule::any(rules(ids, "ids", at.field("or_ids"), inner)?),
        Kind::NotId(id) => Rule::Not(Box::new(inner(*id, at.field("not_id"))?)),
        Kind::Any(any) => always(any, at)?,
        Kind::Authenticated(Authenticated { principal_name }) => {
            let at = at.field("authenticated");
            let name = principal_name.map(|m| string_matcher(m, at.field("principal_name")));
            Rule::Authenticated(name.transpose()?)
        }
        Kind::SourceIp(range) => Rule::SourceIp(ips(range, "source_ip")?),
        Kind::DirectRemoteIp(range) => Rule::DirectRemoteIp(ips(range, "direct_remote_ip")?),
        Kind::RemoteIp(range) => Rule::RemoteIp(ips(range, "remote_ip")?),
        Kind::Header(matcher) => header(matcher, place, at.field("header"))?,
        Kind::UrlPath(matcher) => path(matcher, at.field("url_path"))?,
        Kind::Metadata(matcher) => Rule::Metadata(
            MetadataSource::Dynamic,
            metadata_matcher(matcher, at.field("metadata"))?,
        ),
        Kind::SourcedMetadata(sourced) => sourced_metadata(sourced, at.field("sourced_metadata"))?,
        // Nothing in this proxy sets filter state, and `not` would make a rule of its absence.
        Kind::FilterState(_) => return Err(at.field("filter_state").not_supported()),
        Kind::Custom(_) => return Err(at.field("custom").not_supported()),
    })
}

fn always(any: bool, at: At<'_>) -> Result<Rule, ConfigError> {
    match any {
        true => Ok(Rule::Always),
        false => Err(at.field("any").error("must be true")),
    }
}

fn header(
    message: envoy_types::pb::envoy::config::route::v3::HeaderMatcher,
    place: Place,
    at: At<'_>,
) -> Result<Rule, ConfigError> {
    if place.over == Over::Connections {
        return Err(at.error("a connection has no headers"));
    }
    Ok(Rule::Header(header_matcher(message, at)?))
}

fn path(message: matcher::PathMatcher, at: At<'_>) -> Result<Rule, ConfigError> {
    let matcher::PathMatcher { rule } = message;
    let matcher::path_matcher::Rule::Path(path) = required(rule, at)?;
    Ok(Rule::Path(string_matcher(path, at.field("path"))?))
}

fn port_range(message: Int32Range, at: At<'_>) -> Result<Rule, ConfigError> {
    let Int32Range { start, end } = message;
    match (u32::try_from(start), u32::try_from(end)) {
        (Ok(start), Ok(end)) if start < end && end <= 65536 => {
            Ok(Rule::DestinationPort(start..end))
        }
        _ => Err(at.error(format!("{start} to {end} is not a range of ports"))),
    }
}

fn uri_template(message: TypedExtensionConfig, at: At<'_>) -> Result<Rule, ConfigError> {
    let TypedExtensionConfig {
        name: _for_people,
        typed_config,
    } = message;
    let at = at.field("typed_config");
    let config = required(typed_config, at)?;
    let (URI_TEMPLATE, bytes) = any(&config) else {
        return Err(at.error(format!("'{}' is not supported", any(&config).0)));
    };
    let UriTemplateMatchConfig { path_template } = decode(bytes, at)?;
    let at = at.field("path_template");
    let regex = super::uri_template::regex(&path_template).map_err(|e| at.error(e))?;
    let regex = re2::full_match(&regex).map_err(|e| at.error(e))?;
    Ok(Rule::Template(regex))
}

fn sourced_metadata(message: pb::SourcedMetadata, at: At<'_>) -> Result<Rule, ConfigError> {
    let pb::SourcedMetadata {
        metadata_matcher: of,
        metadata_source,
    } = message;
    let source = match known(metadata_source, at.field("metadata_source"))? {
        pb::MetadataSource::Dynamic => MetadataSource::Dynamic,
        pb::MetadataSource::Route => MetadataSource::Route,
    };
    let at = at.field("metadata_matcher");
    Ok(Rule::Metadata(
        source,
        metadata_matcher(required(of, at)?, at)?,
    ))
}

/// A condition on a value in metadata.
pub(crate) fn metadata_matcher(
    message: matcher::MetadataMatcher,
    at: At<'_>,
) -> Result<MetadataMatcher, ConfigError> {
    use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    let matcher::MetadataMatcher {
        filter,
        path,
        value,
        invert,
    } = message;
    if filter.is_empty() {
        return Err(at.field("filter").error("must not be empty"));
    }
    if path.is_empty() {
        return Err(at.field("path").error("must not be empty"));
    }
    let key = |(i, PathSegment { segment }): (usize, PathSegment)| {
        let at = at.item("path", i);
        match required(segment, at)? {
            Segment::Key(key) if key.is_empty() => Err(at.field("key").error("must not be empty")),
            Segment::Key(key) => Ok(key.into_boxed_str()),
        }
    };
    let at_value = at.field("value");
    Ok(MetadataMatcher {
        namespace: filter.into(),
        path: path
            .into_iter()
            .enumerate()
            .map(key)
            .collect::<Result<_, _>>()?,
        value: value_matcher(required(value, at_value)?, 0, at_value)?,
        invert,
    })
}

fn value_matcher(
    message: matcher::ValueMatcher,
    depth: u32,
    at: At<'_>,
) -> Result<ValueMatcher, ConfigError> {
    use matcher::value_matcher::{MatchPattern, NullMatch};
    if depth > MAX_DEPTH {
        return Err(at.error(format!("matchers are nested more than {MAX_DEPTH} deep")));
    }
    let matcher::ValueMatcher { match_pattern } = message;
    Ok(match required(match_pattern, at)? {
        MatchPattern::NullMatch(NullMatch {}) => ValueMatcher::Null,
        MatchPattern::DoubleMatch(number) => double_matcher(number, at.field("double_match"))?,
        MatchPattern::StringMatch(text) => {
            ValueMatcher::Text(string_matcher(text, at.field("string_match"))?)
        }
        MatchPattern::BoolMatch(wanted) => ValueMatcher::Bool(wanted),
        MatchPattern::PresentMatch(wanted) => ValueMatcher::Present(wanted),
        MatchPattern::ListMatch(list) => {
            use matcher::list_matcher::MatchPattern::OneOf;
            let at = at.field("list_match");
            let matcher::ListMatcher { match_pattern } = *list;
            let OneOf(one) = required(match_pattern, at)?;
            let one = value_matcher(*one, depth + 1, at.field("one_of"))?;
            ValueMatcher::OneOf(Box::new(one))
        }
        MatchPattern::OrMatch(matcher::OrMatcher { value_matchers }) => {
            let at = at.field("or_match");
            if value_matchers.len() < 2 {
                return Err(at.field("value_matchers").error("needs at least two"));
            }
            let items = value_matchers.into_iter().enumerate();
            let each = |(i, m)| value_matcher(m, depth + 1, at.item("value_matchers", i));
            ValueMatcher::Any(items.map(each).collect::<Result<_, _>>()?)
        }
    })
}

fn double_matcher(
    message: matcher::DoubleMatcher,
    at: At<'_>,
) -> Result<ValueMatcher, ConfigError> {
    use matcher::double_matcher::MatchPattern;
    let matcher::DoubleMatcher { match_pattern } = message;
    Ok(match required(match_pattern, at)? {
        MatchPattern::Range(DoubleRange { start, end }) => ValueMatcher::Range(start..end),
        MatchPattern::Exact(number) => ValueMatcher::Number(number),
    })
}
