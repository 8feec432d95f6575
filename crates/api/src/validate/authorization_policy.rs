//! Rules of `AuthorizationPolicy`: Istio's validation, and what a proxy would refuse a listener for.

use std::net::IpAddr;

use super::{Checker, Validate, names, target_reference};
use crate::authorization_policy::*;
use crate::object::Object;

const MOST_SERVICE_ACCOUNTS: usize = 16;
const LONGEST_SERVICE_ACCOUNT: usize = 320;

impl Validate for AuthorizationPolicy {
    fn validate(&self, check: &mut Checker) {
        check.some("selector", &self.selector, |check, selector| {
            names::selector(check, "matchLabels", &selector.match_labels);
        });
        target_reference::attachment(check, &self.selector, &self.target_ref, &self.target_refs);
        let action = self.action.unwrap_or_default();
        self.meaning(check, action);
        let rules = self.rules.as_deref().unwrap_or_default();
        check.list("rules", rules, |check, one| rule(check, one, action));
    }
}

impl AuthorizationPolicy {
    /// Whether the action has what it needs.
    fn meaning(&self, check: &mut Checker, action: Action) {
        let ruleless = self.rules.as_ref().is_none_or(Vec::is_empty);
        if ruleless && matches!(action, Action::Deny | Action::Custom) {
            let name = match action {
                Action::Deny => "DENY",
                _ => "CUSTOM",
            };
            check.field("rules", |check| {
                check.error_hint(
                    format!(
                        "{name} action without rules is meaningless, it will never be triggered"
                    ),
                    "add an empty rule, {}, for every request",
                );
            });
        }
        let named = self.provider.as_ref().map(|provider| &provider.name);
        match (action, named) {
            (Action::Custom, None) => {
                check.missing("provider", "CUSTOM action needs a provider");
            }
            (Action::Custom, Some(name)) if name.is_empty() => check.field("provider", |check| {
                check.missing("name", "provider.name must not be empty");
            }),
            (Action::Custom, _) | (_, None) => {}
            (_, Some(_)) => check.field("provider", |check| {
                check.error_hint(
                    "a provider is of action CUSTOM only",
                    "set action CUSTOM, or remove the provider",
                );
            }),
        }
    }
}

/// The annotation that makes a dry run of a policy.
pub fn annotations(object: &Object, check: &mut Checker) {
    let crate::object::Spec::AuthorizationPolicy(spec) = &object.spec else {
        return;
    };
    let Some(text) = object.meta.annotations.get(DRY_RUN) else {
        return;
    };
    check.field("annotations", |check| {
        check.field(DRY_RUN, |check| {
            match (parse_switch(text), spec.action.unwrap_or_default()) {
                (None, _) => check.error_hint(
                    format!("{text:?} is neither true nor false"),
                    "write \"true\" or \"false\"",
                ),
                (Some(true), Action::Custom) => check.error_hint(
                    "a dry run is of actions ALLOW and DENY only: the authorizer would be asked",
                    "remove the annotation",
                ),
                (Some(true), Action::Audit) => {
                    check.warning("a dry run of action AUDIT counts nothing")
                }
                _ => {}
            }
        });
    });
}

fn rule(check: &mut Checker, rule: &Rule, action: Action) {
    not_empty(check, "from", rule.from.as_ref().is_some_and(Vec::is_empty));
    not_empty(check, "to", rule.to.as_ref().is_some_and(Vec::is_empty));
    let from = rule.from.as_deref().unwrap_or_default();
    check.list("from", from, |check, from| match &from.source {
        None => check.missing("source", "from.source must not be empty"),
        Some(one) => check.field("source", |check| source(check, one, action)),
    });
    let to = rule.to.as_deref().unwrap_or_default();
    check.list("to", to, |check, to| match &to.operation {
        None => check.missing("operation", "to.operation must not be empty"),
        Some(one) => check.field("operation", |check| operation(check, one)),
    });
    check.list("when", &rule.when, |check, one| {
        condition(check, one, action)
    });
    if action == Action::Deny && denies_all_of_tcp(from, to) {
        check.warning(
            "this denies all traffic to TCP ports under its scope, since only HTTP attributes are \
             in a DENY rule; say the ports explicitly",
        );
    }
}

/// What a rule says about HTTP only is left out for TCP, where what remains matches everything.
fn denies_all_of_tcp(from: &[RuleFrom], to: &[RuleTo]) -> bool {
    let of_tcp = |from: &RuleFrom| {
        from.source.as_ref().is_some_and(|source| {
            lists(source)
                .iter()
                .any(|(name, list)| !list.is_empty() && !name.ends_with("equestPrincipals"))
        })
    };
    let has_port = |to: &RuleTo| {
        let operation = to.operation.as_ref();
        operation.is_some_and(|one| !one.ports.is_empty() || !one.not_ports.is_empty())
    };
    (!from.is_empty() && to.is_empty() && !from.iter().any(of_tcp))
        || (!to.is_empty() && !to.iter().any(has_port))
}

fn not_empty(check: &mut Checker, name: &str, empty: bool) {
    if empty {
        check.field(name, |check| {
            check.error_hint(
                format!("{name} must not be empty"),
                format!("leave {name} out for any"),
            );
        });
    }
}

/// The lists of a source, with their names.
fn lists(source: &Source) -> [(&'static str, &Vec<String>); 14] {
    [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ]
}

fn source(check: &mut Checker, source: &Source, action: Action) {
    let lists = lists(source);
    if lists.iter().all(|(_, list)| list.is_empty()) {
        check.error("from.source must not be empty");
    }
    let filled = |names: &[&str]| {
        lists
            .iter()
            .any(|(name, list)| names.contains(name) && !list.is_empty())
    };
    let accounts = filled(&["serviceAccounts", "notServiceAccounts"]);
    if accounts && filled(&["principals", "notPrincipals", "namespaces", "notNamespaces"]) {
        check.error("cannot set serviceAccounts with namespaces or principals");
    }
    for (name, list) in lists {
        let addresses = name.ends_with("pBlocks");
        if action == Action::Custom && !addresses && !list.is_empty() {
            check.field(name, |check| {
                check.error(format!("{name} is not supported with CUSTOM action"));
            });
        }
        if name.ends_with("erviceAccounts") && list.len() > MOST_SERVICE_ACCOUNTS {
            check.field(name, |check| {
                check.error(format!("at most {MOST_SERVICE_ACCOUNTS} are allowed"));
            });
        }
        check.list(name, list, |check, value| match name {
            "serviceAccounts" | "notServiceAccounts" => check.syntax(service_account(value)),
            _ if addresses => check.syntax(address(value)),
            _ => pattern(check, value, !name.ends_with("amespaces")),
        });
    }
}

fn operation(check: &mut Checker, operation: &Operation) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    if lists.iter().all(|(_, list)| list.is_empty()) {
        check.error("to.operation must not be empty");
    }
    for (name, list) in lists {
        check.list(name, list, |check, value| match name {
            "ports" | "notPorts" => check.syntax(port(value)),
            "paths" | "notPaths" if is_path_template(value) => check.syntax(template(value)),
            "paths" | "notPaths" => path(check, value),
            "methods" | "notMethods" => method(check, value),
            _ => pattern(check, value, true),
        });
    }
}

fn condition(check: &mut Checker, condition: &Condition, action: Action) {
    let attribute = Attribute::parse(&condition.key);
    check.field("key", |check| match &attribute {
        _ if condition.key.is_empty() => check.error("key must not be empty"),
        None => unknown_attribute(check, &condition.key),
        Some(_) if action == Action::Custom && is_identity(&condition.key) => {
            check.error(format!(
                "{} is not supported with CUSTOM action",
                condition.key
            ));
        }
        Some(Attribute::RequestHeader(name)) => match name.strip_prefix(':') {
            Some("authority" | "method" | "path" | "scheme") => {}
            _ => check.syntax(names::header_name(name)),
        },
        Some(_) => {}
    });
    if condition.values.is_empty() && condition.not_values.is_empty() {
        check.missing(
            "values",
            format!(
                "at least one of values or notValues must be set for key {}",
                condition.key
            ),
        );
    }
    for (name, list) in [
        ("values", &condition.values),
        ("notValues", &condition.not_values),
    ] {
        check.list(name, list, |check, value| match &attribute {
            Some(Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp) => {
                check.syntax(address(value));
            }
            Some(Attribute::DestinationPort) => check.syntax(port(value)),
            Some(Attribute::SourceServiceAccount) => check.syntax(service_account(value)),
            Some(Attribute::SourceNamespace) => pattern(check, value, false),
            _ => pattern(check, value, true),
        });
    }
}

fn is_identity(key: &str) -> bool {
    matches!(
        key,
        "source.namespace" | "source.serviceAccount" | "source.principal"
    ) || key.starts_with("request.auth.")
}

fn unknown_attribute(check: &mut Checker, key: &str) {
    const BRACKETS: [&str; 3] = [
        "request.headers",
        "request.auth.claims",
        "experimental.envoy.filters.",
    ];
    if BRACKETS.iter().any(|start| key.starts_with(start)) {
        return check.error(format!("bad key ({key}): should have format a[b]"));
    }
    let instead = match key {
        "destination.namespace" => "use metadata.namespace",
        "destination.name" | "destination.user" => "use selector",
        _ if key.starts_with("destination.labels") => "use selector",
        _ => {
            "known are request.headers[NAME], source.ip, remote.ip, source.namespace, \
             source.serviceAccount, source.principal, request.auth.principal, \
             request.auth.audiences, request.auth.presenter, request.auth.claims[NAME], \
             destination.ip, destination.port and connection.sni"
        }
    };
    check.error_hint(format!("unknown attribute {key:?}"), instead);
}

/// A text with at most one `*`, at one end; of namespaces anywhere.
fn pattern(check: &mut Checker, value: &str, at_one_end: bool) {
    if value.is_empty() {
        return check.error("empty value not allowed");
    }
    let inner = value.strip_prefix('*').unwrap_or(value);
    let inner = match inner.len() == value.len() {
        true => value.strip_suffix('*').unwrap_or(value),
        false => inner,
    };
    if at_one_end && inner.contains('*') {
        check.warning(format!(
            "only one * at the beginning or at the end of {value:?} is a wildcard, the rest stands \
             for itself"
        ));
    }
}

fn path(check: &mut Checker, value: &str) {
    pattern(check, value, true);
    if !value.is_empty() && !value.starts_with(['/', '*']) {
        check.warning(format!(
            "{value:?} matches no path: a path begins with \"/\""
        ));
    }
    if value.contains(['?', '#']) {
        check.warning(format!(
            "{value:?} matches no path: queries and fragments are left out before"
        ));
    }
}

fn method(check: &mut Checker, value: &str) {
    pattern(check, value, true);
    if value.contains(|c: char| c.is_ascii_lowercase()) {
        check.warning(format!(
            "{value:?} matches no usual method: they are in capitals, {:?}",
            value.to_ascii_uppercase()
        ));
    }
}

fn port(value: &str) -> names::Check {
    match value.parse::<u16>() {
        Ok(_) if value.bytes().all(|byte| byte.is_ascii_digit()) => Ok(()),
        _ => Err(format!("bad port ({value}): must be 0 to 65535")),
    }
}

fn address(value: &str) -> names::Check {
    if value.contains('/') {
        return names::ip_or_cidr(value).map_err(|_| format!("bad CIDR range ({value})"));
    }
    value
        .parse::<IpAddr>()
        .map(|_| ())
        .map_err(|_| format!("bad IP address ({value})"))
}

/// `ACCOUNT` or `NAMESPACE/ACCOUNT`.
fn service_account(value: &str) -> names::Check {
    if value.is_empty() {
        return Err("empty value not allowed".to_owned());
    }
    if value.len() > LONGEST_SERVICE_ACCOUNT {
        return Err(format!(
            "{} characters, at most {LONGEST_SERVICE_ACCOUNT} are allowed",
            value.len()
        ));
    }
    if value.contains('*') {
        return Err(format!("wildcards are not supported in {value:?}"));
    }
    match value.split('/').collect::<Vec<_>>()[..] {
        [name] => names::subdomain(name),
        [namespace, name] => names::label(namespace).and_then(|()| names::subdomain(name)),
        _ => Err(format!("{value:?} is not ACCOUNT or NAMESPACE/ACCOUNT")),
    }
}

/// Segments that are `{*}`, `{**}` or literal; nothing but literals after `{**}`. Envoy refuses a
/// listener with any other.
fn template(value: &str) -> names::Check {
    let wrong = |why: String| {
        Err(format!(
            "invalid or unsupported path template {value:?}: {why}"
        ))
    };
    let Some(segments) = value.strip_prefix('/') else {
        return wrong("it must begin with \"/\"".to_owned());
    };
    let mut any = false;
    for segment in segments.split('/') {
        let literal = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
        match segment {
            "{*}" | "{**}" if any => {
                return wrong("{**} must be the last operator".to_owned());
            }
            "{*}" => {}
            "{**}" => any = true,
            "" => return wrong("a segment is empty".to_owned()),
            _ if segment.chars().all(literal) => {}
            _ => {
                return wrong(format!(
                    "the segment {segment:?} is neither {{*}}, {{**}} nor literal"
                ));
            }
        }
    }
    Ok(())
}
