//! Requests stay in the proxy's own zone as far as its endpoints can take them (Envoy,
//! `ZoneAwareLoadBalancerBase`): the share of this proxy's siblings in a zone is compared with the
//! share of the endpoints there. Where the endpoints are the fewer, what they cannot take goes to
//! zones that have more than their siblings need.
//!
//! All of it is computed when endpoints or siblings change; a request draws at most three numbers.

use super::priority::Group;
use crate::stats::ClusterStat;
use lateen_proxy_config::{EndpointSet, Locality, ZoneAware};
use std::sync::Arc;

/// Shares are in parts of this.
const WHOLE: u64 = 10_000;

/// What the bootstrap says of the proxy itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The cluster of its own service (`cluster_manager.local_cluster_name`).
    pub cluster: Arc<str>,
    /// Where it runs (`node.locality`).
    pub locality: Locality,
}

/// How the endpoints of the proxy's own service are spread over zones.
#[derive(Debug, Default)]
pub(crate) struct Siblings {
    home: Locality,
    zones: Vec<Zone>,
    all: usize,
    healthy: usize,
}

#[derive(Debug)]
struct Zone {
    locality: Arc<Locality>,
    healthy: usize,
    weight: u64,
}

impl Siblings {
    pub(super) fn of(endpoints: &EndpointSet, home: &Locality) -> Siblings {
        let mut siblings = Siblings {
            home: home.clone(),
            ..Siblings::default()
        };
        // As in Envoy, which takes no other priorities of a local cluster.
        let first = endpoints.localities.iter().filter(|one| one.priority == 0);
        for group in first.filter(|group| !group.endpoints.is_empty()) {
            let healthy = || group.endpoints.iter().filter(|one| one.health.is_healthy());
            let (count, weight) = (
                healthy().count(),
                healthy().map(|one| u64::from(one.weight)),
            );
            siblings.all += group.endpoints.len();
            siblings.healthy += count;
            let known = siblings.zones.iter_mut();
            let weight = weight.sum();
            match known
                .into_iter()
                .find(|zone| zone.locality == group.locality)
            {
                Some(zone) => {
                    zone.healthy += count;
                    zone.weight += weight;
                }
                None => siblings.zones.push(Zone {
                    locality: group.locality.clone(),
                    healthy: count,
                    weight,
                }),
            }
        }
        siblings
    }

    fn has_home(&self) -> bool {
        self.zones.iter().any(|zone| *zone.locality == self.home)
    }

    fn panics(&self, threshold: f64) -> bool {
        100.0 * self.healthy as f64 / (self.all.max(1) as f64) < threshold
    }

    /// The part of the siblings that is in this zone.
    fn share(&self, locality: &Locality, by_weight: bool) -> u64 {
        let size = |zone: &Zone| match by_weight {
            true => zone.weight,
            false => zone.healthy as u64,
        };
        let of_zone = self.zones.iter().find(|zone| *zone.locality == *locality);
        part(of_zone.map_or(0, size), self.zones.iter().map(size).sum())
    }
}

/// How the requests of one priority are spread over zones.
#[derive(Debug)]
pub(super) struct Spread {
    /// Percent of the requests that zones are looked at for.
    routed: u32,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// All to the proxy's own zone, which comes first.
    Direct,
    Residual {
        /// So much of the whole stays in the first zone.
        stays: u64,
        /// What zones have left, each with all before it.
        left: Vec<u64>,
    },
    /// Too few siblings are healthy to go by them.
    Unknown { fail: bool },
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goes {
    Anywhere,
    /// To the zone at this place.
    To(usize),
    Nowhere,
}

/// The endpoints of a level by zone: the proxy's own first, the others by name.
pub(super) fn by_zone(level: Vec<Group>, siblings: &Siblings) -> Vec<Group> {
    let mut zones: Vec<Group> = Vec::new();
    for group in level.into_iter().filter(|group| !group.all.is_empty()) {
        let same = zones
            .iter_mut()
            .find(|zone| zone.locality == group.locality);
        match same {
            Some(zone) => {
                zone.all.extend(group.all);
                zone.healthy.extend(group.healthy);
            }
            None => zones.push(group),
        }
    }
    zones.sort_by(|a, b| {
        let away = |zone: &Group| *zone.locality != siblings.home;
        (away(a), a.name()).cmp(&(away(b), b.name()))
    });
    zones
}

impl Spread {
    /// How requests are to be spread over these zones; [`None`]: zones do not matter, for the reason
    /// that is counted.
    pub(super) fn over(
        zones: &[Group],
        siblings: &Siblings,
        config: ZoneAware,
        panic_threshold: f64,
        count: impl Fn(ClusterStat),
    ) -> Option<Spread> {
        count(ClusterStat::LbRecalculateZoneStructures);
        let forced = config.force_local;
        if zones.len() < 2 || (siblings.zones.len() < 2 && forced.is_none()) {
            return None;
        }
        if !siblings.has_home() {
            count(ClusterStat::LbLocalClusterNotOk);
            return None;
        }
        let healthy: usize = zones.iter().map(|zone| zone.healthy.len()).sum();
        if (healthy as u64) < config.min_cluster_size {
            count(ClusterStat::LbZoneClusterTooSmall);
            return None;
        }
        let way = match siblings.panics(panic_threshold) {
            true => Way::Unknown {
                fail: config.fail_on_panic,
            },
            false => Way::over(zones, siblings, config),
        };
        Some(Spread {
            routed: config.routed,
            way,
        })
    }

    pub(super) fn choose(
        &self,
        mut random: impl FnMut() -> u64,
        count: impl Fn(ClusterStat),
    ) -> Goes {
        if self.routed < 100 && random() % 100 >= u64::from(self.routed) {
            return Goes::Anywhere;
        }
        let (stays, left) = match &self.way {
            Way::Direct => {
                count(ClusterStat::LbZoneRoutingAllDirectly);
                return Goes::To(0);
            }
            Way::Unknown { fail } => {
                count(ClusterStat::LbLocalClusterNotOk);
                return match fail {
                    true => Goes::Nowhere,
                    false => Goes::Anywhere,
                };
            }
            Way::Residual { stays, left } => (*stays, left),
        };
        if random() % WHOLE < stays {
            count(ClusterStat::LbZoneRoutingSampled);
            return Goes::To(0);
        }
        count(ClusterStat::LbZoneRoutingCrossZone);
        let total = left.last().copied().unwrap_or(0);
        if total == 0 {
            // Only by rounding.
            count(ClusterStat::LbZoneNoCapacityLeft);
            return Goes::To((random() % left.len().max(1) as u64) as usize);
        }
        let drawn = random() % total;
        Goes::To(left.partition_point(|upto| *upto <= drawn))
    }
}

impl Way {
    fn over(zones: &[Group], siblings: &Siblings, config: ZoneAware) -> Way {
        let size = |zone: &Group| match config.by_weight {
            true => zone.healthy.iter().map(|(_, weight)| *weight as u64).sum(),
            false => zone.healthy.len() as u64,
        };
        let total = zones.iter().map(size).sum();
        // Of a zone without healthy endpoints it does not matter how many siblings are there.
        let shares = zones.iter().map(|zone| match zone.healthy.is_empty() {
            true => (0, 0),
            false => {
                let siblings = siblings.share(&zone.locality, config.by_weight);
                (siblings, part(size(zone), total))
            }
        });
        let shares: Vec<(u64, u64)> = shares.collect();
        let home = zones
            .first()
            .filter(|zone| *zone.locality == siblings.home)
            .map(|zone| zone.healthy.len());
        let (mine, there) = match home {
            Some(_) => shares.first().copied().unwrap_or_default(),
            None => (0, 0),
        };
        let forced = config
            .force_local
            .is_some_and(|least| home.is_some_and(|healthy| healthy >= least as usize));
        if (there > 0 && there >= mine) || forced {
            return Way::Direct;
        }
        let mut upto = 0;
        let left = shares
            .iter()
            .enumerate()
            .map(|(at, (siblings, endpoints))| {
                if at > 0 || home.is_none() {
                    upto += endpoints.saturating_sub(*siblings);
                }
                upto
            });
        Way::Residual {
            stays: (there * WHOLE).checked_div(mine).unwrap_or(0),
            left: left.collect(),
        }
    }
}

fn part(some: u64, all: u64) -> u64 {
    (WHOLE * some).checked_div(all).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Host;
    use lateen_proxy_config::{Address, Endpoint, HealthStatus, LocalityEndpoints};
    use std::cell::RefCell;

    /// Zone, healthy ones, all.
    type Zones<'a> = &'a [(&'a str, usize, usize)];

    const EVEN: Zones<'_> = &[("a", 1, 1), ("b", 1, 1)];

    fn at(zone: &str) -> Arc<Locality> {
        Arc::new(Locality {
            region: "r".into(),
            zone: zone.into(),
            sub_zone: Box::default(),
        })
    }

    /// Those of a proxy in `a`.
    fn siblings(zones: Zones<'_>) -> Siblings {
        let endpoint = |healthy| Endpoint {
            address: Address::Socket(([127, 0, 0, 1], 1).into()),
            health: match healthy {
                true => HealthStatus::Healthy,
                false => HealthStatus::Unhealthy,
            },
            weight: 1,
            hostname: Box::default(),
            metadata: None,
        };
        let group = |(zone, healthy, all): &(&str, usize, usize)| LocalityEndpoints {
            locality: at(zone),
            priority: 0,
            weight: None,
            endpoints: (0..*all).map(|i| endpoint(i < *healthy)).collect(),
        };
        let set = EndpointSet {
            localities: zones.iter().map(group).collect(),
            ..EndpointSet::default()
        };
        Siblings::of(&set, &at("a"))
    }

    fn groups(zones: Zones<'_>) -> Vec<Group> {
        let host = |port| {
            (
                Host::new(([127, 0, 0, 1], port).into(), Box::default()),
                1.0,
            )
        };
        let group = |(zone, healthy, all): &(&str, usize, usize)| {
            let all: Vec<_> = (0..*all).map(|i| host(i as u16)).collect();
            Group {
                locality: at(zone),
                weight: None,
                healthy: all.iter().take(*healthy).cloned().collect(),
                all,
            }
        };
        zones.iter().map(group).collect()
    }

    fn any_size() -> ZoneAware {
        ZoneAware {
            min_cluster_size: 1,
            ..ZoneAware::default()
        }
    }

    /// How many of ten thousand numbers that can be drawn lead to each zone (those that stay may
    /// draw the same as those that leave); and what was counted.
    fn spread(
        own: Zones<'_>,
        theirs: Zones<'_>,
        config: ZoneAware,
    ) -> (Vec<u64>, Vec<ClusterStat>) {
        let counted = RefCell::new(Vec::new());
        let siblings = siblings(own);
        let zones = by_zone(groups(theirs), &siblings);
        let count = |stat| counted.borrow_mut().push(stat);
        let spread = Spread::over(&zones, &siblings, config, 50.0, count);
        let mut shares = vec![0; zones.len()];
        for drawn in 0..WHOLE {
            // First the number that decides what stays, then one of another order.
            let mut draws = [drawn, drawn * 7919].into_iter();
            let mut random = || draws.next().unwrap();
            let goes = spread
                .as_ref()
                .map(|spread| spread.choose(&mut random, |_| {}));
            if let Some(Goes::To(zone)) = goes {
                shares[zone] += 1;
            }
        }
        let mut counted = counted.into_inner();
        assert_eq!(counted.remove(0), ClusterStat::LbRecalculateZoneStructures);
        (shares, counted)
    }

    #[test]
    fn a_zone_gets_what_its_endpoints_can_take() {
        let near = |found: &[u64], expect: &[u64]| {
            let off = |(a, b): (&u64, &u64)| a.abs_diff(*b) > 100;
            found.len() == expect.len() && !found.iter().zip(expect).any(off)
        };
        let check = |own, theirs, expect: &[u64]| {
            let (shares, counted) = spread(own, theirs, any_size());
            assert!(near(&shares, expect), "{theirs:?}: {shares:?}");
            assert_eq!(counted, []);
        };
        check(EVEN, EVEN, &[10_000, 0]);
        check(EVEN, &[("b", 1, 1), ("a", 3, 3)], &[10_000, 0]);
        // Half of the proxies are here, a quarter of the endpoints: half of the requests stays.
        check(EVEN, &[("a", 1, 1), ("b", 3, 3)], &[5000, 5000]);
        check(EVEN, &[("a", 0, 1), ("b", 1, 1)], &[0, 10_000]);
        // Here are none: b and c come by their names, and c has more to give.
        check(EVEN, &[("c", 3, 3), ("b", 2, 2)], &[0, 10_000]);
        // 0.4, 0.4, 0.2 of the proxies, 0.25, 0.5, 0.25 of the endpoints: 0.625 stays, the others
        // have 0.1 and 0.05 left.
        let own: Zones<'_> = &[("a", 2, 2), ("b", 2, 2), ("c", 1, 1)];
        let theirs: Zones<'_> = &[("c", 1, 1), ("b", 2, 2), ("a", 1, 1)];
        check(own, theirs, &[6250, 2500, 1250]);
    }

    #[test]
    fn zones_do_not_matter_where_little_is_known() {
        use ClusterStat::{LbLocalClusterNotOk, LbZoneClusterTooSmall};
        let elsewhere: Zones<'_> = &[("b", 1, 1), ("c", 1, 1)];
        let one: Zones<'_> = &[("a", 2, 2)];
        for (own, theirs, config, why) in [
            (EVEN, one, any_size(), vec![]),
            (one, EVEN, any_size(), vec![]),
            (elsewhere, EVEN, any_size(), vec![LbLocalClusterNotOk]),
            (
                EVEN,
                EVEN,
                ZoneAware::default(),
                vec![LbZoneClusterTooSmall],
            ),
        ] {
            let found = spread(own, theirs, config);
            assert_eq!(found, (vec![0; theirs.len()], why), "{own:?} {theirs:?}");
        }
    }

    #[test]
    fn siblings_that_are_not_healthy_say_nothing() {
        let siblings = siblings(&[("a", 1, 4), ("b", 0, 4)]);
        for (fail_on_panic, expect) in [(false, Goes::Anywhere), (true, Goes::Nowhere)] {
            let config = ZoneAware {
                fail_on_panic,
                ..any_size()
            };
            let zones = by_zone(groups(EVEN), &siblings);
            let spread = Spread::over(&zones, &siblings, config, 50.0, |_| {}).unwrap();
            assert_eq!(spread.choose(|| 0, |_| {}), expect);
        }
    }

    #[test]
    fn a_part_of_the_requests_and_a_forced_zone() {
        let half = ZoneAware {
            routed: 50,
            ..any_size()
        };
        assert_eq!(spread(EVEN, EVEN, half).0, [5000, 0]);
        let forced = ZoneAware {
            force_local: Some(2),
            ..any_size()
        };
        let alone: Zones<'_> = &[("a", 1, 1)];
        assert_eq!(
            spread(alone, &[("a", 2, 2), ("b", 8, 8)], forced).0,
            [10_000, 0]
        );
        // Too few for that: by their share.
        assert_eq!(
            spread(alone, &[("a", 1, 1), ("b", 9, 9)], forced).0,
            [1000, 9000]
        );
    }
}
