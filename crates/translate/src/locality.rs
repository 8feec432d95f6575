//! Where a client is, and what that means for the endpoints it gets: weights by locality,
//! priorities by distance or by labels (facts 36 to 38).

use std::borrow::Cow;
use std::collections::BTreeMap;

use lateen_api::destination_rule::LocalityLoadBalancerSetting;
use lateen_model::{Locality, MeshSettings, Proxy};

use crate::policy::Policy;

/// What a client's place does to the endpoints of a cluster. Part of their key, so it holds no more
/// than what makes a difference: clients of one place share the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Nothing: all endpoints are alike.
    #[default]
    Anywhere,
    /// Patterns of localities with their shares; localities that match none get nothing.
    Distribute(Vec<(String, u32)>),
    Failover(Failover),
}

/// Endpoints further away are used when those nearby fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Failover {
    /// Labels, each with the client's value: the more of them match in order, the nearer.
    labels: Vec<(String, String)>,
    /// By distance; [`None`]: only the labels count.
    distance: Option<Distance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Distance {
    /// Of the client.
    from: Locality,
    /// The region that is to take over from the client's.
    next_region: Option<String>,
}

/// The setting that applies: the rule's own, else the mesh's; [`None`] when it is switched off.
fn setting<'a>(
    policy: &'a Policy,
    mesh: &'a MeshSettings,
) -> Option<Cow<'a, LocalityLoadBalancerSetting>> {
    let own = policy
        .load_balancer
        .as_ref()
        .and_then(|lb| lb.locality_lb_setting.as_ref());
    let setting = match own.or(mesh.locality_balancing.as_deref()) {
        Some(setting) => Cow::Borrowed(setting),
        // A mesh that says nothing has it on (fact 36).
        None => Cow::Owned(LocalityLoadBalancerSetting::default()),
    };
    (setting.enabled != Some(false)).then_some(setting)
}

/// Whether localities are chosen by their weights first. It would change what the balancers do, so
/// it is left out where nobody asked for anything about localities (as in Istio).
pub fn is_weighted(policy: &Policy, mesh: &MeshSettings) -> bool {
    setting(policy, mesh).is_some_and(|setting| {
        let failover = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
        !setting.distribute.is_empty() || (failover && policy.outlier_detection.is_some())
    })
}

/// What `proxy` at `from` means for a cluster with this policy. Failover needs outlier detection:
/// without it nobody would notice that the endpoints nearby fail.
pub fn placement(
    policy: &Policy,
    mesh: &MeshSettings,
    proxy: &Proxy,
    from: &Locality,
) -> Placement {
    let Some(setting) = setting(policy, mesh) else {
        return Placement::Anywhere;
    };
    if !setting.distribute.is_empty() {
        let rule = setting.distribute.iter().find(|d| matches(from, &d.from));
        return rule.map_or(Placement::Anywhere, |rule| {
            let to = rule.to.iter().map(|(to, share)| (to.clone(), *share));
            Placement::Distribute(to.collect())
        });
    }
    if policy.outlier_detection.is_none() {
        return Placement::Anywhere;
    }
    let own = with_topology(&proxy.labels, from);
    let labels = setting.failover_priority.iter().map(|entry| {
        let (label, value) = match entry.split_once('=') {
            Some((label, value)) => (label, value.to_string()),
            None => (entry.as_str(), own.get(entry).cloned().unwrap_or_default()),
        };
        (label.to_string(), value)
    });
    let by_distance = setting.failover_priority.is_empty() || !setting.failover.is_empty();
    Placement::Failover(Failover {
        labels: labels.collect(),
        distance: by_distance.then(|| Distance {
            from: from.clone(),
            next_region: setting
                .failover
                .iter()
                .find(|failover| failover.from == from.region)
                .map(|failover| failover.to.clone()),
        }),
    })
}

impl Failover {
    /// How far an endpoint is: 0 is nearest. Numbers have gaps.
    pub fn distance_of(&self, locality: &Locality, labels: &BTreeMap<String, String>) -> u32 {
        let by_labels = match self.labels.is_empty() {
            true => 0,
            false => self.labels_missed(locality, labels),
        };
        // At most five distances, so that labels count first.
        by_labels * 5 + self.distance.as_ref().map_or(0, |d| d.to(locality))
    }

    fn labels_missed(&self, locality: &Locality, labels: &BTreeMap<String, String>) -> u32 {
        let theirs = with_topology(labels, locality);
        let differs = |(label, value): &(String, String)| {
            theirs.get(label).map(String::as_str).unwrap_or_default() != value
        };
        let matched = self.labels.iter().position(differs);
        matched.map_or(0, |matched| (self.labels.len() - matched) as u32)
    }
}

impl Distance {
    fn to(&self, locality: &Locality) -> u32 {
        let from = &self.from;
        if locality.region != from.region {
            match &self.next_region {
                Some(next) if *next != locality.region => 4,
                _ => 3,
            }
        } else if locality.zone != from.zone {
            2
        } else if locality.subzone != from.subzone {
            1
        } else {
            0
        }
    }
}

/// Whether a locality is meant by `region/zone/subzone`; `*` and what is left out match anything.
pub fn matches(locality: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.splitn(3, '/');
    let mut part = |value: &str| {
        let part = parts.next().unwrap_or_default();
        (part, part == "*" || part == value)
    };
    let (_, region) = part(&locality.region);
    let (zone_part, zone) = part(&locality.zone);
    let (subzone_part, subzone) = part(&locality.subzone);
    region && (zone || zone_part.is_empty()) && (subzone || subzone_part.is_empty())
}

/// Labels with those that stand for the place.
fn with_topology(
    labels: &BTreeMap<String, String>,
    locality: &Locality,
) -> BTreeMap<String, String> {
    let mut all = labels.clone();
    for (label, value) in [
        ("topology.kubernetes.io/region", &locality.region),
        ("topology.kubernetes.io/zone", &locality.zone),
        ("topology.istio.io/subzone", &locality.subzone),
    ] {
        if !value.is_empty() {
            all.insert(label.to_string(), value.clone());
        }
    }
    all
}
