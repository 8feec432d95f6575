//! Rules of `DestinationRule` outside of its traffic policies (`traffic_policy`).

use super::{Checker, Validate, names, traffic_policy};
use crate::destination_rule::*;

impl Validate for DestinationRule {
    fn validate(&self, check: &mut Checker) {
        match self.host.as_str() {
            "" => check.missing("host", "host is required"),
            host => check.field("host", |check| check.syntax(names::host(host))),
        }
        check.some(
            "trafficPolicy",
            &self.traffic_policy,
            traffic_policy::validate,
        );
        check.list("subsets", &self.subsets, subset);
        check.unique(
            "subsets",
            "name",
            self.subsets.iter().map(|subset| subset.name.as_str()),
            "subset",
        );
        names::export_to(check, &self.export_to, false);
        check.some(
            "workloadSelector",
            &self.workload_selector,
            |check, selector| {
                names::selector(check, "matchLabels", &selector.match_labels);
            },
        );
        self.passthrough_subsets(check);
    }
}

impl DestinationRule {
    /// The address that the caller asked for decides, so no subset can choose.
    fn passthrough_subsets(&self, check: &mut Checker) {
        let policy = self
            .traffic_policy
            .as_ref()
            .and_then(|policy| policy.load_balancer.as_ref());
        let passthrough = policy.is_some_and(|lb| lb.simple == Some(SimpleLb::Passthrough));
        if passthrough && !self.subsets.is_empty() {
            check.field("subsets", |check| {
                check.warning("with loadBalancer.simple PASSTHROUGH a request goes to the address its caller asked for: subsets choose nothing");
            });
        }
    }
}

fn subset(check: &mut Checker, subset: &Subset) {
    match subset.name.as_str() {
        "" => check.missing("name", "subset name is required"),
        name => check.field("name", |check| check.syntax(names::label(name))),
    }
    names::selector(check, "labels", &subset.labels);
    if subset.labels.is_empty() {
        check.warning("a subset without labels stands for all workloads of the host");
    }
    check.some(
        "trafficPolicy",
        &subset.traffic_policy,
        traffic_policy::validate,
    );
}
