//! One rule of a policy to Envoy's permissions (what is done) and principals (by whom)
//! (`pilot/pkg/security/authz/model`).
//!
//! TCP has no requests. There a rule of an ALLOW policy that speaks of them is left out, which
//! allows less; of any other policy only that part of the rule is left out, which denies more
//! (fact 51).

#![allow(
    deprecated,
    reason = "`metadata` is what Istio sends; `sourced_metadata` is not in every Envoy it supports"
)]

use lateen_api::authorization_policy::is_path_template;
use lateen_api::authorization_policy::{Attribute, Condition, Operation, Rule, Source};

use super::{matchers, trust_domains};
use crate::envoy::{self, core, rbac};

use rbac::permission::{Rule as Permitted, Set as Permissions};
use rbac::principal::{Authenticated, Identifier, Set as Principals};
use rbac::rbac::Action as Decision;
use rbac::{Permission, Principal};

/// What is guarded: requests, or connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Http,
    Tcp,
}

/// Where a rule stands, and what of the mesh it depends on.
pub struct Place<'a> {
    pub layer: Layer,
    pub decision: Decision,
    /// Of the policy.
    pub namespace: &'a str,
    pub trust_domains: &'a [&'a str],
    /// The port's number, then others that policies may know it by.
    pub numbers: &'a [u16],
}

/// A value that cannot be matched here.
struct Unusable;

/// Values that must match and values that must not.
struct Values<'r> {
    wanted: &'r [String],
    unwanted: &'r [String],
    of_http: bool,
}

impl<'r> Values<'r> {
    fn new(wanted: &'r [String], unwanted: &'r [String]) -> Self {
        Values {
            wanted,
            unwanted,
            of_http: false,
        }
    }

    fn http(wanted: &'r [String], unwanted: &'r [String]) -> Self {
        Values {
            of_http: true,
            ..Values::new(wanted, unwanted)
        }
    }

    fn of(condition: &'r Condition, attribute: &Attribute) -> Self {
        Values {
            of_http: attribute.is_of_http(),
            ..Values::new(&condition.values, &condition.not_values)
        }
    }
}

impl Place<'_> {
    /// `None` for a rule that cannot be matched here.
    pub fn policy(&self, rule: &Rule) -> Option<rbac::Policy> {
        let when = self.conditions(rule).ok()?;
        let to = rule.to.as_deref().unwrap_or_default();
        let operations = to.iter().filter_map(|to| to.operation.as_ref());
        let mut permissions = Vec::new();
        for operation in operations {
            let mut all = self.operation(operation).ok()?;
            all.extend(when.0.iter().cloned());
            permissions.push(all_permissions(all));
        }
        if permissions.is_empty() {
            permissions.push(all_permissions(when.0));
        }
        let from = rule.from.as_deref().unwrap_or_default();
        let sources = from.iter().filter_map(|from| from.source.as_ref());
        let mut principals = Vec::new();
        for source in sources {
            let mut all = self.source(source).ok()?;
            all.extend(when.1.iter().cloned());
            principals.push(all_principals(all));
        }
        if principals.is_empty() {
            principals.push(all_principals(when.1));
        }
        Some(rbac::Policy {
            permissions,
            principals,
            ..Default::default()
        })
    }

    fn operation(&self, operation: &Operation) -> Result<Vec<Permission>, Unusable> {
        let mut all = Vec::new();
        let one = operation;
        let header = |matched| permission(Permitted::Header(matched));
        self.permit(
            &mut all,
            Values::http(&one.hosts, &one.not_hosts),
            each_permission(|value| Ok(header(matchers::host(value)))),
        )?;
        self.permit(
            &mut all,
            Values::http(&one.methods, &one.not_methods),
            each_permission(|value| Ok(header(matchers::header(":method", value)))),
        )?;
        self.permit(
            &mut all,
            Values::http(&one.paths, &one.not_paths),
            each_permission(|value| Ok(path(value))),
        )?;
        self.permit(
            &mut all,
            Values::new(&one.ports, &one.not_ports),
            each_permission(|value| self.port(value)),
        )?;
        Ok(all)
    }

    fn source(&self, source: &Source) -> Result<Vec<Principal>, Unusable> {
        let mut all = Vec::new();
        let one = source;
        self.identify(
            &mut all,
            Values::new(&one.principals, &one.not_principals),
            |values| self.principals(values),
        )?;
        self.identify(
            &mut all,
            Values::http(&one.request_principals, &one.not_request_principals),
            request_principals,
        )?;
        self.identify(
            &mut all,
            Values::new(&one.service_accounts, &one.not_service_accounts),
            |values| self.service_accounts(values),
        )?;
        self.identify(
            &mut all,
            Values::new(&one.trust_domains, &one.not_trust_domains),
            |values| {
                let values = trust_domains::expanded(values, self.trust_domains);
                each_principal(|value| Ok(peer(matchers::trust_domain(value))))(&values)
            },
        )?;
        self.identify(
            &mut all,
            Values::new(&one.namespaces, &one.not_namespaces),
            each_principal(|value| Ok(peer(matchers::namespace(value)))),
        )?;
        self.identify(
            &mut all,
            Values::new(&one.remote_ip_blocks, &one.not_remote_ip_blocks),
            each_principal(|value| Ok(principal(Identifier::RemoteIp(range(value)?)))),
        )?;
        self.identify(
            &mut all,
            Values::new(&one.ip_blocks, &one.not_ip_blocks),
            each_principal(|value| Ok(principal(Identifier::DirectRemoteIp(range(value)?)))),
        )?;
        Ok(all)
    }

    /// The conditions, of what is done and of by whom.
    fn conditions(&self, rule: &Rule) -> Result<(Vec<Permission>, Vec<Principal>), Unusable> {
        let (mut permissions, mut principals) = (Vec::new(), Vec::new());
        for condition in &rule.when {
            let attribute = match Attribute::parse(&condition.key) {
                Some(attribute) => attribute,
                None if self.decision == Decision::Allow => return Err(Unusable),
                None => continue,
            };
            let values = Values::of(condition, &attribute);
            match &attribute {
                Attribute::DestinationIp
                | Attribute::DestinationPort
                | Attribute::ConnectionSni
                | Attribute::Metadata(..) => {
                    self.permit(&mut permissions, values, |values| {
                        self.done(&attribute, values)
                    })?;
                }
                _ => self.identify(&mut principals, values, |values| {
                    self.by_whom(&attribute, values)
                })?,
            }
        }
        Ok((permissions, principals))
    }

    fn done(&self, attribute: &Attribute, values: &[String]) -> Result<Permission, Unusable> {
        match attribute {
            Attribute::DestinationIp => {
                each_permission(|value| Ok(permission(Permitted::DestinationIp(range(value)?))))(
                    values,
                )
            }
            Attribute::DestinationPort => each_permission(|value| self.port(value))(values),
            Attribute::ConnectionSni => each_permission(|value| {
                let name = matchers::text(value);
                Ok(permission(Permitted::RequestedServerName(name)))
            })(values),
            Attribute::Metadata(filter, key) => {
                let matched = matchers::filter_metadata(filter, key, values);
                Ok(permission(Permitted::Metadata(matched)))
            }
            _ => Err(Unusable),
        }
    }

    fn by_whom(&self, attribute: &Attribute, values: &[String]) -> Result<Principal, Unusable> {
        let claim = |path: &[&str]| {
            let matched = matchers::claim(path, values);
            Ok(principal(Identifier::Metadata(matched)))
        };
        match attribute {
            Attribute::SourceIp => {
                each_principal(|value| Ok(principal(Identifier::DirectRemoteIp(range(value)?))))(
                    values,
                )
            }
            Attribute::RemoteIp => {
                each_principal(|value| Ok(principal(Identifier::RemoteIp(range(value)?))))(values)
            }
            Attribute::SourceNamespace => {
                each_principal(|value| Ok(peer(matchers::namespace(value))))(values)
            }
            Attribute::SourceServiceAccount => self.service_accounts(values),
            Attribute::SourcePrincipal => self.principals(values),
            Attribute::RequestPrincipal => request_principals(values),
            Attribute::RequestAudiences => claim(&["aud"]),
            Attribute::RequestPresenter => claim(&["azp"]),
            Attribute::RequestClaim(path) => {
                claim(&path.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Attribute::RequestHeader(name) => each_principal(|value| {
                let matched = matchers::header(name, value);
                Ok(principal(Identifier::Header(matched)))
            })(values),
            _ => Err(Unusable),
        }
    }

    fn principals(&self, values: &[String]) -> Result<Principal, Unusable> {
        let all: Vec<String> = values
            .iter()
            .flat_map(|value| trust_domains::principals(value, self.trust_domains))
            .collect();
        each_principal(|value| Ok(peer(matchers::principal(value))))(&all)
    }

    fn service_accounts(&self, values: &[String]) -> Result<Principal, Unusable> {
        each_principal(|value| Ok(peer(matchers::service_account(value, self.namespace))))(values)
    }

    /// A port by its number, or by another that it is known by.
    fn port(&self, value: &str) -> Result<Permission, Unusable> {
        let number: u16 = value.parse().map_err(|_| Unusable)?;
        let alias = self.numbers.iter().skip(1).any(|other| *other == number);
        Ok(match alias {
            true => any_permission(),
            false => permission(Permitted::DestinationPort(u32::from(number))),
        })
    }

    fn permit(
        &self,
        all: &mut Vec<Permission>,
        values: Values<'_>,
        one_of: impl Fn(&[String]) -> Result<Permission, Unusable>,
    ) -> Result<(), Unusable> {
        let found = self.both(&values, one_of)?;
        all.extend(found.0);
        all.extend(found.1.map(not_permission));
        Ok(())
    }

    fn identify(
        &self,
        all: &mut Vec<Principal>,
        values: Values<'_>,
        one_of: impl Fn(&[String]) -> Result<Principal, Unusable>,
    ) -> Result<(), Unusable> {
        let found = self.both(&values, one_of)?;
        all.extend(found.0);
        all.extend(found.1.map(not_principal));
        Ok(())
    }

    /// What must and what must not match, where there are values.
    fn both<T>(
        &self,
        values: &Values<'_>,
        one_of: impl Fn(&[String]) -> Result<T, Unusable>,
    ) -> Result<(Option<T>, Option<T>), Unusable> {
        let made = |values: &Values<'_>, list: &[String]| match list {
            [] => Ok(None),
            _ if values.of_http && self.layer == Layer::Tcp => Err(Unusable),
            list => one_of(list).map(Some),
        };
        let lenient = |found: Result<Option<T>, Unusable>| match found {
            // Allows less.
            Err(Unusable) if self.decision == Decision::Allow => Err(Unusable),
            // Denies more.
            Err(Unusable) => Ok(None),
            found => found,
        };
        Ok((
            lenient(made(values, values.wanted))?,
            lenient(made(values, values.unwanted))?,
        ))
    }
}

fn each_permission(
    one: impl Fn(&str) -> Result<Permission, Unusable>,
) -> impl Fn(&[String]) -> Result<Permission, Unusable> {
    move |values| {
        let rules: Result<_, _> = values.iter().map(|value| one(value)).collect();
        Ok(permission(Permitted::OrRules(Permissions {
            rules: rules?,
        })))
    }
}

fn each_principal(
    one: impl Fn(&str) -> Result<Principal, Unusable>,
) -> impl Fn(&[String]) -> Result<Principal, Unusable> {
    move |values| {
        let ids: Result<_, _> = values.iter().map(|value| one(value)).collect();
        Ok(principal(Identifier::OrIds(Principals { ids: ids? })))
    }
}

/// Issuer and subject of a token.
fn request_principals(values: &[String]) -> Result<Principal, Unusable> {
    let both = |value: &String| {
        let ids =
            matchers::request_principal(value).map(|one| principal(Identifier::Metadata(one)));
        principal(Identifier::AndIds(Principals { ids: ids.to_vec() }))
    };
    let ids = values.iter().map(both).collect();
    Ok(principal(Identifier::OrIds(Principals { ids })))
}

fn path(value: &str) -> Permission {
    if is_path_template(value) {
        return permission(Permitted::UriTemplate(core::TypedExtensionConfig {
            name: "uri-template".to_string(),
            typed_config: Some(envoy::any(&matchers::path_template(value))),
        }));
    }
    permission(Permitted::UrlPath(matchers::path(value)))
}

/// `10.0.0.0/8` or one address.
fn range(text: &str) -> Result<core::CidrRange, Unusable> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, length.parse().map_err(|_| Unusable)?),
        None if text.contains(':') => (text, 128),
        None => (text, 32),
    };
    address.parse::<std::net::IpAddr>().map_err(|_| Unusable)?;
    Ok(core::CidrRange {
        address_prefix: address.to_string(),
        prefix_len: envoy::u32_value(length),
    })
}

fn all_permissions(mut rules: Vec<Permission>) -> Permission {
    if rules.is_empty() {
        rules.push(any_permission());
    }
    permission(Permitted::AndRules(Permissions { rules }))
}

fn all_principals(mut ids: Vec<Principal>) -> Principal {
    if ids.is_empty() {
        ids.push(any_principal());
    }
    principal(Identifier::AndIds(Principals { ids }))
}

pub fn any_permission() -> Permission {
    permission(Permitted::Any(true))
}

pub fn any_principal() -> Principal {
    principal(Identifier::Any(true))
}

pub fn not_permission(one: Permission) -> Permission {
    permission(Permitted::NotRule(Box::new(one)))
}

pub fn not_principal(one: Principal) -> Principal {
    principal(Identifier::NotId(Box::new(one)))
}

fn permission(rule: Permitted) -> Permission {
    Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

/// A peer by the name in its certificate.
fn peer(name: crate::envoy::matcher::StringMatcher) -> Principal {
    principal(Identifier::Authenticated(Authenticated {
        principal_name: Some(name),
    }))
}
