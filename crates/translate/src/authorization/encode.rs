//! RBAC filters as bytes. Policies are a protobuf map, which would encode in another order each
//! time; here they stand in the order of their names, as Envoy looks at them.

use std::collections::BTreeMap;

use prost::Message;

use crate::envoy::{self, http_rbac, network_rbac, rbac};
use crate::virtual_hosts::append;

pub const HTTP_FILTER: &str = "envoy.filters.http.rbac";
pub const NETWORK_FILTER: &str = "envoy.filters.network.rbac";
/// Prefixes of what rules that are not enforced count and write.
pub const DRY_RUN_ALLOW: &str = "istio_dry_run_allow_";
pub const DRY_RUN_DENY: &str = "istio_dry_run_deny_";
pub const EXTERNAL: &str = "istio_ext_authz_";
/// Prefix of the network filter's statistics.
pub const TCP_STATS: &str = "tcp.";

/// `envoy.config.rbac.v3.RBAC`.
pub struct RuleSet {
    pub decision: rbac::rbac::Action,
    pub policies: BTreeMap<String, rbac::Policy>,
}

impl RuleSet {
    pub fn new(decision: rbac::rbac::Action) -> Self {
        RuleSet {
            decision,
            policies: BTreeMap::new(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        const POLICIES: u32 = 2;
        let mut bytes = rbac::Rbac {
            action: self.decision as i32,
            ..Default::default()
        }
        .encode_to_vec();
        for (name, policy) in &self.policies {
            let mut entry = Vec::new();
            append(1, name.as_bytes(), &mut entry);
            append(2, &policy.encode_to_vec(), &mut entry);
            append(POLICIES, &entry, &mut bytes);
        }
        bytes
    }
}

/// `envoy.extensions.filters.http.rbac.v3.RBAC`.
pub fn http(enforced: Option<&RuleSet>, shadow: Option<&RuleSet>, prefix: &str) -> envoy::Any {
    let rest = http_rbac::Rbac {
        shadow_rules_stat_prefix: prefix.to_string(),
        ..Default::default()
    };
    with_rules(envoy::any(&rest), enforced, shadow)
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`.
pub fn network(enforced: Option<&RuleSet>, shadow: Option<&RuleSet>, prefix: &str) -> envoy::Any {
    let rest = network_rbac::Rbac {
        stat_prefix: TCP_STATS.to_string(),
        shadow_rules_stat_prefix: prefix.to_string(),
        ..Default::default()
    };
    with_rules(envoy::any(&rest), enforced, shadow)
}

/// Both filters have their rules in the same fields.
fn with_rules(
    mut filter: envoy::Any,
    enforced: Option<&RuleSet>,
    shadow: Option<&RuleSet>,
) -> envoy::Any {
    const RULES: u32 = 1;
    const SHADOW_RULES: u32 = 2;
    for (field, rules) in [(RULES, enforced), (SHADOW_RULES, shadow)] {
        if let Some(rules) = rules {
            append(field, &rules.encode(), &mut filter.value);
        }
    }
    filter
}
