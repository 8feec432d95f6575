//! Which VirtualService decides for a host.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hostname;
use crate::rules::VirtualService;

/// The first VirtualService, oldest first, that decides for each host of `rules`: exact hosts beat
/// wildcards, longer wildcards beat shorter ones, and of two for one host the older wins
/// (facts 15 and 16).
pub struct HostIndex<'a> {
    exact: HashMap<&'a str, &'a Arc<VirtualService>>,
    /// Most specific first.
    wildcards: Vec<(&'a str, &'a Arc<VirtualService>)>,
}

impl<'a> HostIndex<'a> {
    /// Indexes rules given oldest first.
    pub fn new(rules: impl Iterator<Item = &'a Arc<VirtualService>>) -> HostIndex<'a> {
        let mut exact = HashMap::new();
        let mut wildcards: Vec<(&str, &Arc<VirtualService>)> = Vec::new();
        for rule in rules {
            for host in &rule.hosts {
                if !host.starts_with('*') {
                    exact.entry(host.as_str()).or_insert(rule);
                } else if !wildcards.iter().any(|(taken, _)| taken == host) {
                    wildcards.push((host, rule));
                }
            }
        }
        wildcards.sort_by_key(|(host, _)| hostname::specificity(host));
        HostIndex { exact, wildcards }
    }

    /// The rule for a service host.
    pub fn rule_for(&self, host: &str) -> Option<&'a Arc<VirtualService>> {
        self.exact.get(host).copied().or_else(|| {
            self.wildcards
                .iter()
                .find(|(pattern, _)| hostname::matches(pattern, host))
                .map(|(_, rule)| *rule)
        })
    }
}
