//! AuthorizationPolicies to Envoy's RBAC and external authorization filters
//! (`pilot/pkg/security/authz`).
//!
//! | file | holds |
//! |---|---|
//! | `rule.rs` | one rule of a policy: who, what, when |
//! | `matchers.rs` | values with `*` to Envoy's matchers |
//! | `trust_domains.rs` | principals of the mesh's trust domain and its aliases |
//! | `external.rs` | authorizers outside (action CUSTOM) |
//! | `encode.rs` | the filters as bytes, in the order of the policies' names |
//!
//! Each action has a filter of its own: what it denies never reaches the next. A filter without a
//! policy is not there, and an ALLOW filter without a rule that can be matched denies everything.

mod encode;
mod external;
mod matchers;
mod rule;
mod trust_domains;

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::authorization_policy::Action;
use lateen_model::{AuthorizationPolicy, MeshSnapshot, Proxy};

use crate::envoy::{self, hcm, listener, rbac};
use encode::{DRY_RUN_ALLOW, DRY_RUN_DENY, HTTP_FILTER, NETWORK_FILTER, RuleSet};
use rule::Layer;

use rbac::rbac::Action as Decision;

/// The policies of one workload.
pub struct Authorization<'a> {
    snapshot: &'a MeshSnapshot,
    proxy: &'a Proxy,
    policies: Vec<&'a Arc<AuthorizationPolicy>>,
}

/// The filters of one port, for each protocol.
#[derive(Default)]
pub struct Filters {
    pub http: Vec<hcm::HttpFilter>,
    pub network: Vec<listener::Filter>,
}

impl<'a> Authorization<'a> {
    pub fn of(snapshot: &'a MeshSnapshot, proxy: &'a Proxy) -> Self {
        let policies = snapshot.authorization_policies(&proxy.namespace, &proxy.labels);
        Authorization {
            snapshot,
            proxy,
            policies: policies.collect(),
        }
    }

    /// Who asks an authorizer outside; before tokens are looked at.
    pub fn custom(&self, numbers: &[u16]) -> Filters {
        let policies: Vec<_> = self.with(Action::Custom).collect();
        if policies.is_empty() {
            return Filters::default();
        }
        external::filters(self, &policies, numbers)
    }

    /// What is counted, denied and allowed; after tokens were looked at.
    pub fn local(&self, numbers: &[u16]) -> Filters {
        let mut filters = Filters::default();
        for (action, decision) in [
            (Action::Audit, Decision::Log),
            (Action::Deny, Decision::Deny),
            (Action::Allow, Decision::Allow),
        ] {
            let http = self.rule_sets(action, decision, Layer::Http, numbers);
            filters.http.extend(http.map(|sets| sets.http()));
            let network = self.rule_sets(action, decision, Layer::Tcp, numbers);
            filters.network.extend(network.map(|sets| sets.network()));
        }
        filters
    }

    fn with(&self, action: Action) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let all = self.policies.iter().copied();
        all.filter(move |policy| policy.action() == action)
    }

    /// The rules of all policies of an action; `None` without such a policy.
    fn rule_sets(
        &self,
        action: Action,
        decision: Decision,
        layer: Layer,
        numbers: &[u16],
    ) -> Option<RuleSets> {
        let mut sets = RuleSets::new(decision);
        if decision == Decision::Deny && layer == Layer::Http {
            sets.refuse(self.unreadable());
        }
        for policy in self.with(action) {
            sets.add(self.compiled(policy, decision, layer, numbers), policy);
        }
        (sets.enforced.is_some() || sets.shadow.is_some()).then_some(sets)
    }

    /// What refuses every request where a RequestAuthentication cannot be read: nobody knows which
    /// tokens it lets pass, and which headers are made of them.
    fn unreadable(&self) -> BTreeMap<String, rbac::Policy> {
        let (namespace, labels) = (&self.proxy.namespace, &self.proxy.labels);
        let all = self.snapshot.request_authentications(namespace, labels);
        let closed = all.into_iter().filter(|one| one.closed);
        closed
            .map(|one| {
                let (namespace, name) = (&one.origin.namespace, &one.origin.name);
                let name = format!("ns[{namespace}]-request-authentication[{name}]-unreadable");
                (name, everything())
            })
            .collect()
    }

    /// The rules of a policy by name, without those that cannot be matched here.
    fn compiled(
        &self,
        policy: &AuthorizationPolicy,
        decision: Decision,
        layer: Layer,
        numbers: &[u16],
    ) -> BTreeMap<String, rbac::Policy> {
        let domains: Vec<&str> = trust_domains::of(&self.snapshot.settings).collect();
        let place = rule::Place {
            layer,
            decision,
            namespace: &policy.origin.namespace,
            trust_domains: &domains,
            numbers,
        };
        let rules = policy.rules();
        if rules.is_empty() {
            return BTreeMap::from([(rule_name(policy, 0), never())]);
        }
        let rules = rules.iter().enumerate();
        rules
            .filter_map(|(index, rule)| Some((rule_name(policy, index), place.policy(rule)?)))
            .collect()
    }
}

/// As Istio names them; they stand in logs and in answers' details.
fn rule_name(policy: &AuthorizationPolicy, index: usize) -> String {
    let origin = &policy.origin;
    format!(
        "ns[{}]-policy[{}]-rule[{index}]",
        origin.namespace, origin.name
    )
}

/// What a policy without rules is: nothing.
fn never() -> rbac::Policy {
    let permission = rule::not_permission(rule::any_permission());
    let principal = rule::not_principal(rule::any_principal());
    rbac::Policy {
        permissions: vec![permission],
        principals: vec![principal],
        ..Default::default()
    }
}

fn everything() -> rbac::Policy {
    rbac::Policy {
        permissions: vec![rule::any_permission()],
        principals: vec![rule::any_principal()],
        ..Default::default()
    }
}

/// What an action's policies enforce, and what those in a dry run only count.
struct RuleSets {
    decision: Decision,
    enforced: Option<RuleSet>,
    shadow: Option<RuleSet>,
}

impl RuleSets {
    fn new(decision: Decision) -> Self {
        RuleSets {
            decision,
            enforced: None,
            shadow: None,
        }
    }

    fn refuse(&mut self, rules: BTreeMap<String, rbac::Policy>) {
        if !rules.is_empty() {
            let set = self
                .enforced
                .get_or_insert_with(|| RuleSet::new(self.decision));
            set.policies.extend(rules);
        }
    }

    fn add(&mut self, rules: BTreeMap<String, rbac::Policy>, policy: &AuthorizationPolicy) {
        let set = match policy.dry_run {
            true => &mut self.shadow,
            false => &mut self.enforced,
        };
        let set = set.get_or_insert_with(|| RuleSet::new(self.decision));
        set.policies.extend(rules);
    }

    /// Prefix of the statistics of a dry run.
    fn prefix(&self) -> &'static str {
        match (&self.shadow, self.decision) {
            (Some(_), Decision::Allow) => DRY_RUN_ALLOW,
            (Some(_), Decision::Deny) => DRY_RUN_DENY,
            _ => "",
        }
    }

    fn http(&self) -> hcm::HttpFilter {
        let config = encode::http(self.enforced.as_ref(), self.shadow.as_ref(), self.prefix());
        envoy::http_filter_of(HTTP_FILTER, config)
    }

    fn network(&self) -> listener::Filter {
        let config = encode::network(self.enforced.as_ref(), self.shadow.as_ref(), self.prefix());
        envoy::network_filter_of(NETWORK_FILTER, config)
    }
}
