//! Who may do what (`envoy.config.rbac.v3.RBAC`): policies as a decision on one request or
//! connection.
//!
//! | file | holds |
//! |---|---|
//! | `rule.rs` | one condition, and what it looks at |
//! | `index.rs` | which policies can match at all |
//! | `ip_set.rs` | many IP prefixes as one look-up |
//!
//! Envoy tries its policies in the order of their names until one matches. Here a request is only
//! shown to policies that its path, its identity or its headers do not rule out, in the same order.
//!
//! Invariants: deciding allocates nothing; the index never decides, it only leaves out policies that
//! could not match.

mod index;
mod ip_set;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod reference;
mod rule;
#[cfg(test)]
mod tests;

pub use ip_set::IpSet;
pub use rule::{Identity, MetadataMatcher, MetadataSource, Rule, Subject, ValueMatcher};

use crate::RequestView;
use index::Index;
use std::sync::Arc;

/// What follows when a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    /// Only what matches is allowed.
    Allow,
    /// What matches is denied.
    Deny,
    /// Everything is allowed; what matches is marked for logging.
    Log,
}

/// Compiled policies.
#[derive(Clone, Debug)]
pub struct RbacRules {
    pub action: RbacAction,
    policies: Vec<RbacPolicy>,
    index: Index,
}

/// One policy: one of its permissions and one of its principals must match.
#[derive(Clone, Debug)]
pub struct RbacPolicy {
    pub name: Arc<str>,
    /// What a refusal by this policy is called in logs.
    pub details: Arc<str>,
    pub permissions: Rule,
    pub principals: Rule,
}

/// The `envoy.filters.http.rbac` filter, or what a route has in its place.
#[derive(Clone, Debug, Default)]
pub struct RbacFilter {
    /// [`None`]: everything is allowed.
    pub rules: Option<Arc<RbacRules>>,
    /// Decided, counted and noted, without effect.
    pub shadow: Option<Arc<RbacRules>>,
    pub rules_prefix: Arc<str>,
    pub shadow_prefix: Arc<str>,
    /// Whether any rule asks where a request comes from behind proxies.
    pub reads_remote: bool,
}

/// The `envoy.filters.network.rbac` filter. Its rules only know the connection, so it decides when
/// that begins.
#[derive(Clone, Debug)]
pub struct NetworkRbac {
    pub stat_prefix: Arc<str>,
    pub filter: RbacFilter,
}

/// What the policies say.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    pub allowed: bool,
    /// The first policy that matches.
    pub policy: Option<&'a RbacPolicy>,
}

impl RbacPolicy {
    pub fn new(name: &str, permissions: Vec<Rule>, principals: Vec<Rule>) -> RbacPolicy {
        let plain = name.replace(|c: char| c.is_ascii_whitespace(), "_");
        RbacPolicy {
            name: name.into(),
            details: format!("rbac_access_denied_matched_policy[{plain}]").into(),
            permissions: Rule::any(permissions),
            principals: Rule::any(principals),
        }
    }

    fn matches<R: RequestView>(&self, subject: &Subject<'_, R>) -> bool {
        self.permissions.matches(subject) && self.principals.matches(subject)
    }
}

impl RbacRules {
    pub fn new(action: RbacAction, mut policies: Vec<RbacPolicy>) -> RbacRules {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        RbacRules {
            action,
            index: Index::new(&policies),
            policies,
        }
    }

    /// In the order in which they are tried.
    pub fn policies(&self) -> &[RbacPolicy] {
        &self.policies
    }

    /// Decides on a request or connection.
    pub fn decide<R: RequestView>(&self, subject: &Subject<'_, R>) -> Verdict<'_> {
        let policy = self.first_match(subject);
        let allowed = match self.action {
            RbacAction::Allow => policy.is_some(),
            RbacAction::Deny => policy.is_none(),
            RbacAction::Log => true,
        };
        Verdict { allowed, policy }
    }

    fn first_match<R: RequestView>(&self, subject: &Subject<'_, R>) -> Option<&RbacPolicy> {
        let mut best = self.policies.len();
        self.index.candidates(subject, &mut |list: &[u32]| {
            for &index in list {
                let index = index as usize;
                if index >= best {
                    return;
                }
                let policy = self.policies.get(index);
                if policy.is_some_and(|policy| policy.matches(subject)) {
                    best = index;
                    return;
                }
            }
        });
        self.policies.get(best)
    }

    /// Whether any rule asks where a request comes from behind proxies.
    pub fn reads_remote(&self) -> bool {
        let asks = |rule: &Rule| matches!(rule, Rule::RemoteIp(_));
        self.policies
            .iter()
            .any(|p| p.permissions.any_part(&asks) || p.principals.any_part(&asks))
    }
}
