//! `AuthorizationPolicy`: who may do what to a workload.
//!
//! Field meaning: Istio's reference, security/authorization-policy. An absent list and an empty one
//! are told apart where an empty one would match more than was meant.

use crate::destination_rule::WorkloadSelector;
use crate::schema::{choice, message};
use crate::target_reference::PolicyTargetReference;

/// Whether a policy only counts what it would have done.
pub const DRY_RUN: &str = "istio.io/dry-run";

message! {
    pub struct AuthorizationPolicy {
        /// Without it the policy is for its whole namespace, in the root namespace for the mesh.
        effective selector: Option<WorkloadSelector>,
        /// Older form of `targetRefs`, of one.
        effective target_ref "targetRef": Option<PolicyTargetReference>,
        /// In place of a selector: the policy is for these only.
        effective target_refs "targetRefs": Vec<PolicyTargetReference>,
        /// Any of them; without one nothing matches.
        effective rules: Option<Vec<Rule>>,
        effective action: Option<Action>,
        /// Of action CUSTOM.
        effective provider: Option<ExtensionProviderName>,
    }
}

choice! {
    pub enum Action {
        #[default]
        effective Allow = "ALLOW",
        effective Deny = "DENY",
        /// Only counts.
        effective Audit = "AUDIT",
        /// An external authorizer decides.
        effective Custom = "CUSTOM",
    }
}

message! {
    /// Name in `meshConfig.extensionProviders`.
    pub struct ExtensionProviderName {
        effective name: String,
    }
}

message! {
    /// One of the sources, one of the operations and all of the conditions; what is absent is any.
    pub struct Rule {
        effective from: Option<Vec<RuleFrom>>,
        effective to: Option<Vec<RuleTo>>,
        effective when: Vec<Condition>,
    }
}

message! {
    pub struct RuleFrom {
        effective source: Option<Source>,
    }
}

message! {
    /// All of the fields; of each one of its values.
    pub struct Source {
        /// `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`: the SPIFFE id without `spiffe://`.
        effective principals: Vec<String>,
        effective not_principals "notPrincipals": Vec<String>,
        /// `ISSUER/SUBJECT` of a token.
        effective request_principals "requestPrincipals": Vec<String>,
        effective not_request_principals "notRequestPrincipals": Vec<String>,
        effective namespaces: Vec<String>,
        effective not_namespaces "notNamespaces": Vec<String>,
        /// `ACCOUNT` of the policy's namespace, or `NAMESPACE/ACCOUNT`.
        effective service_accounts "serviceAccounts": Vec<String>,
        effective not_service_accounts "notServiceAccounts": Vec<String>,
        effective trust_domains "trustDomains": Vec<String>,
        effective not_trust_domains "notTrustDomains": Vec<String>,
        /// Of the connection.
        effective ip_blocks "ipBlocks": Vec<String>,
        effective not_ip_blocks "notIpBlocks": Vec<String>,
        /// Of the client behind trusted proxies.
        effective remote_ip_blocks "remoteIpBlocks": Vec<String>,
        effective not_remote_ip_blocks "notRemoteIpBlocks": Vec<String>,
    }
}

message! {
    pub struct RuleTo {
        effective operation: Option<Operation>,
    }
}

message! {
    /// All of the fields; of each one of its values.
    pub struct Operation {
        effective hosts: Vec<String>,
        effective not_hosts "notHosts": Vec<String>,
        effective ports: Vec<String>,
        effective not_ports "notPorts": Vec<String>,
        effective methods: Vec<String>,
        effective not_methods "notMethods": Vec<String>,
        /// `{*}` is one segment, `{**}` any number of them.
        effective paths: Vec<String>,
        effective not_paths "notPaths": Vec<String>,
    }
}

message! {
    pub struct Condition {
        effective key: String,
        effective values: Vec<String>,
        effective not_values "notValues": Vec<String>,
    }
}

/// What a condition's key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    RequestHeader(String),
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourceServiceAccount,
    SourcePrincipal,
    RequestPrincipal,
    RequestAudiences,
    RequestPresenter,
    /// A claim of the token; of a claim inside of another the path there.
    RequestClaim(Vec<String>),
    DestinationIp,
    DestinationPort,
    ConnectionSni,
    /// Name of an Envoy filter, and a key in its dynamic metadata.
    Metadata(String, String),
}

impl Attribute {
    /// `None` for a key that does not exist.
    pub fn parse(key: &str) -> Option<Attribute> {
        if let Some(name) = key.strip_prefix("request.headers") {
            return bracketed(name).map(|name| Attribute::RequestHeader(name.to_owned()));
        }
        if let Some(path) = key.strip_prefix("request.auth.claims") {
            return claims(path).map(Attribute::RequestClaim);
        }
        if let Some(rest) = key.strip_prefix("experimental.") {
            let open = rest.find('[')?;
            let (filter, name) = rest.split_at(open);
            let name = bracketed(name)?;
            return filter
                .strip_prefix("envoy.filters.")
                .filter(|rest| !rest.is_empty())
                .map(|_| Attribute::Metadata(filter.to_owned(), name.to_owned()));
        }
        Some(match key {
            "source.ip" => Attribute::SourceIp,
            "remote.ip" => Attribute::RemoteIp,
            "source.namespace" => Attribute::SourceNamespace,
            "source.serviceAccount" => Attribute::SourceServiceAccount,
            "source.principal" => Attribute::SourcePrincipal,
            "request.auth.principal" => Attribute::RequestPrincipal,
            "request.auth.audiences" => Attribute::RequestAudiences,
            "request.auth.presenter" => Attribute::RequestPresenter,
            "destination.ip" => Attribute::DestinationIp,
            "destination.port" => Attribute::DestinationPort,
            "connection.sni" => Attribute::ConnectionSni,
            _ => return None,
        })
    }

    /// Whether only an HTTP request has it.
    pub fn is_of_http(&self) -> bool {
        matches!(
            self,
            Attribute::RequestHeader(_)
                | Attribute::RequestPrincipal
                | Attribute::RequestAudiences
                | Attribute::RequestPresenter
                | Attribute::RequestClaim(_)
        )
    }
}

/// The name in `[NAME]`.
fn bracketed(text: &str) -> Option<&str> {
    let name = text.strip_prefix('[')?.strip_suffix(']')?;
    (!name.is_empty()).then_some(name)
}

/// `[a][b]` is a claim in a claim; `[https://example.com/roles[0]]` is one name.
fn claims(text: &str) -> Option<Vec<String>> {
    let whole = bracketed(text)?;
    let parts: Vec<&str> = whole.split("][").collect();
    let nested = parts
        .iter()
        .all(|part| !part.is_empty() && !part.contains(['[', ']']));
    Some(match nested {
        true => parts.into_iter().map(str::to_owned).collect(),
        false => vec![whole.to_owned()],
    })
}

/// `true` and `false` in the spellings that Istio reads (Go's `strconv.ParseBool`).
pub fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether a path is a template.
pub fn is_path_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}
