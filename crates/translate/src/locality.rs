//! Where a client is, and what that means for the endpoints it gets: weights by locality,
//! priorities by distance or by labels (facts 36 to 38).

use std::borrow::Cow;
use std::collections::BTreeMap;

use lateen_api::destination_rule::{
    self as api, LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting,
};
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
    /// Zones of a region are all as near.
    regions_only: bool,
}

/// What is wanted of the places of endpoints.
enum Wish<'a> {
    Nothing,
    Localities(Cow<'a, LocalityLoadBalancerSetting>),
    Zones(&'a ZoneAwareLoadBalancerSetting),
}

impl<'a> Wish<'a> {
    /// What the rule says itself, else what the mesh says. `zoneAwareLbSetting` comes before
    /// `localityLbSetting`, which every mesh has.
    fn of(policy: &'a Policy, mesh: &'a MeshSettings) -> Wish<'a> {
        let own = policy.load_balancer.as_ref();
        let own_zones = own.and_then(|lb| lb.zone_aware_lb_setting.as_ref());
        let own_localities = own.and_then(|lb| lb.locality_lb_setting.as_ref());
        let of_mesh = || mesh.zone_balancing.as_deref();
        let zones = match own_localities {
            Some(_) => own_zones,
            None => own_zones.or_else(of_mesh),
        };
        if let Some(zones) = zones.filter(|zones| zones.enabled != Some(false)) {
            return Wish::Zones(zones);
        }
        let setting = match own_localities.or(mesh.locality_balancing.as_deref()) {
            Some(setting) => Cow::Borrowed(setting),
            // A mesh that says nothing has it on (fact 36).
            None => Cow::Owned(LocalityLoadBalancerSetting::default()),
        };
        match setting.enabled {
            Some(false) => Wish::Nothing,
            _ => Wish::Localities(setting),
        }
    }
}

/// How a balancer takes localities into account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancing {
    /// Not at all.
    Together,
    /// They are chosen by their weights first.
    Weighted,
    /// The client's own zone first, in clusters of at least so many endpoints.
    Zones { min_cluster_size: Option<u64> },
}

/// How the balancer of a cluster with this policy is to take localities into account. Weights would
/// change what the balancers do, so they are left out where nobody asked for anything about
/// localities (as in Istio).
pub fn balancing(policy: &Policy, mesh: &MeshSettings) -> Balancing {
    match Wish::of(policy, mesh) {
        Wish::Nothing => Balancing::Together,
        Wish::Zones(setting) => Balancing::Zones {
            min_cluster_size: setting.min_cluster_size,
        },
        Wish::Localities(setting) => {
            let failover = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
            let fails_over = failover && policy.outlier_detection.is_some();
            match !setting.distribute.is_empty() || fails_over {
                true => Balancing::Weighted,
                false => Balancing::Together,
            }
        }
    }
}

/// What `proxy` at `from` means for a cluster with this policy. Failover needs outlier detection:
/// without it nobody would notice that the endpoints nearby fail.
pub fn placement(
    policy: &Policy,
    mesh: &MeshSettings,
    proxy: &Proxy,
    from: &Locality,
) -> Placement {
    let setting = match Wish::of(policy, mesh) {
        Wish::Nothing => return Placement::Anywhere,
        Wish::Zones(setting) => return regions(setting, proxy, from),
        Wish::Localities(setting) => setting,
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
    let by_distance = setting.failover_priority.is_empty() || !setting.failover.is_empty();
    Placement::Failover(Failover {
        labels: priorities(&setting.failover_priority, proxy, from),
        distance: by_distance.then(|| Distance {
            from: from.clone(),
            next_region: next_region(&setting.failover, from),
            regions_only: false,
        }),
    })
}

/// Zones are balanced among the endpoints of the client's own region; other regions come after it,
/// with or without outlier detection. A client that does not know where it is has no region.
fn regions(setting: &ZoneAwareLoadBalancerSetting, proxy: &Proxy, from: &Locality) -> Placement {
    let labels = priorities(&setting.failover_priority, proxy, from);
    let distance = (!from.region.is_empty()).then(|| Distance {
        // Zones are left out: all clients of the region get the same.
        from: Locality {
            region: from.region.clone(),
            ..Locality::default()
        },
        next_region: next_region(&setting.failover, from),
        regions_only: true,
    });
    if labels.is_empty() && distance.is_none() {
        return Placement::Anywhere;
    }
    Placement::Failover(Failover { labels, distance })
}

/// Labels, each with the client's value or the one that is asked for.
fn priorities(entries: &[String], proxy: &Proxy, from: &Locality) -> Vec<(String, String)> {
    if entries.is_empty() {
        return Vec::new();
    }
    let own = with_topology(&proxy.labels, from);
    let labels = entries.iter().map(|entry| {
        let (label, value) = match entry.split_once('=') {
            Some((label, value)) => (label, value.to_string()),
            None => (entry.as_str(), own.get(entry).cloned().unwrap_or_default()),
        };
        (label.to_string(), value)
    });
    labels.collect()
}

fn next_region(failover: &[api::Failover], from: &Locality) -> Option<String> {
    let own = failover.iter().find(|one| one.from == from.region);
    own.map(|one| one.to.clone())
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
        } else if self.regions_only {
            0
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
