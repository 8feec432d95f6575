//! How requests are shared among priorities and localities (Envoy, `LoadBalancerBase`).

use super::balance::{Balancer, Weighted};
use super::schedule::Schedule;
use super::zones::{self, Goes, Siblings};
use crate::stats::ClusterStat;
use lateen_proxy_config::{LbPolicy, Locality, LocalityLb, ZoneAware};
use std::cell::RefCell;
use std::sync::Arc;

/// The endpoints of one locality at one priority.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub locality: Arc<Locality>,
    /// Of the locality; [`None`] gets nothing where localities are weighted.
    pub weight: Option<u32>,
    pub all: Vec<Weighted>,
    pub healthy: Vec<Weighted>,
}

/// One priority while it is being arranged.
pub(super) type Level = Vec<Group>;

/// One priority.
#[derive(Debug)]
pub(super) struct Priority {
    /// Its share of requests, percent.
    share: u32,
    balancers: Vec<Balancer>,
    spread: Spread,
}

/// Which of the balancers of a priority has a request.
#[derive(Debug)]
enum Spread {
    /// The first.
    Together,
    /// The first, for want of healthy endpoints; or none.
    Panic { fail: bool },
    /// One for each locality, which take turns.
    Weighted {
        turns: RefCell<Schedule>,
        weights: Vec<f64>,
    },
    /// The first is for all zones, and one for each zone follows.
    Zones(zones::Spread),
}

/// What decides how levels are arranged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrangement<'a> {
    pub policy: LbPolicy,
    pub locality: LocalityLb,
    /// Percent.
    pub panic_threshold: f64,
    /// Percent.
    pub overprovisioning: u32,
    /// Where the proxy knows them.
    pub siblings: Option<&'a Siblings>,
}

/// Arranges all levels.
pub(super) fn arrange(
    levels: Vec<Level>,
    how: Arrangement<'_>,
    mut random: impl FnMut() -> u64,
    count: impl Fn(ClusterStat),
) -> Vec<Priority> {
    let counts: Vec<Count> = levels.iter().map(|level| Count::of(level)).collect();
    let (shares, panics) = shares(&counts, how);
    let mut made = Vec::with_capacity(levels.len());
    for ((level, share), panic) in levels.into_iter().zip(shares).zip(panics) {
        // Zones are looked at in the first priority only, as in Envoy.
        let siblings = how.siblings.filter(|_| made.is_empty());
        let how = Arrangement { siblings, ..how };
        made.push(Priority::new(level, share, panic, how, &mut random, &count));
    }
    made
}

impl Priority {
    fn new(
        level: Level,
        share: u32,
        panic: bool,
        how: Arrangement<'_>,
        random: &mut impl FnMut() -> u64,
        count: impl Fn(ClusterStat),
    ) -> Priority {
        let mut balancer = |hosts| Balancer::new(how.policy, hosts, random());
        let (balancers, mut spread) = match how.locality {
            _ if how.policy.hashes() => {
                let by_locality = how.locality == LocalityLb::Weighted;
                let hosts = normalized(level, panic, by_locality);
                (vec![balancer(hosts)], Spread::Together)
            }
            // In panic nobody looks at localities.
            _ if panic => {
                let all = level.into_iter().flat_map(|group| group.all);
                (vec![balancer(all.collect())], Spread::Together)
            }
            LocalityLb::Weighted => weighted(level, how.overprovisioning, balancer),
            LocalityLb::Zones(config) => in_zones(level, how, config, balancer, count),
        };
        if panic {
            let fail = matches!(how.locality, LocalityLb::Zones(zones) if zones.fail_on_panic);
            spread = Spread::Panic {
                fail: fail && !how.policy.hashes(),
            };
        }
        Priority {
            share,
            balancers,
            spread,
        }
    }

    /// The balancer whose turn it is.
    pub(super) fn balancer(
        &self,
        random: impl FnMut() -> u64,
        count: impl Fn(ClusterStat),
    ) -> Option<&Balancer> {
        let index = match &self.spread {
            Spread::Together => 0,
            Spread::Panic { fail } => {
                count(ClusterStat::LbHealthyPanic);
                if *fail {
                    return None;
                }
                0
            }
            Spread::Weighted { turns, weights } => {
                let weight = |index: usize| weights.get(index).copied().unwrap_or(1.0);
                turns.borrow_mut().next(weight)?
            }
            Spread::Zones(zones) => match zones.choose(random, count) {
                Goes::Anywhere => 0,
                Goes::To(zone) => zone + 1,
                Goes::Nowhere => return None,
            },
        };
        self.balancers.get(index).filter(|b| !b.is_empty())
    }
}

/// Localities that take turns by their weights.
fn weighted(
    level: Level,
    overprovisioning: u32,
    mut balancer: impl FnMut(Vec<Weighted>) -> Balancer,
) -> (Vec<Balancer>, Spread) {
    let (mut localities, mut weights) = (Vec::new(), Vec::new());
    for group in level {
        let weight = group.effective_weight(overprovisioning);
        if weight > 0.0 {
            weights.push(weight);
            localities.push(balancer(group.healthy));
        }
    }
    match localities.len() {
        0 => (vec![balancer(Vec::new())], Spread::Together),
        1 => (localities, Spread::Together),
        _ => {
            let mut turns = Schedule::default();
            for (index, weight) in weights.iter().enumerate() {
                turns.add(index, *weight);
            }
            let turns = RefCell::new(turns);
            (localities, Spread::Weighted { turns, weights })
        }
    }
}

/// All endpoints together; and by zone, if the proxy's own is to be preferred.
fn in_zones(
    level: Level,
    how: Arrangement<'_>,
    config: ZoneAware,
    mut balancer: impl FnMut(Vec<Weighted>) -> Balancer,
    count: impl Fn(ClusterStat),
) -> (Vec<Balancer>, Spread) {
    let healthy = |level: &Level| -> Vec<Weighted> {
        level
            .iter()
            .flat_map(|group| group.healthy.clone())
            .collect()
    };
    let Some(siblings) = how.siblings.filter(|_| config.routed > 0) else {
        let all = level.into_iter().flat_map(|group| group.healthy);
        return (vec![balancer(all.collect())], Spread::Together);
    };
    let mut balancers = vec![balancer(healthy(&level))];
    let zones = zones::by_zone(level, siblings);
    let spread = zones::Spread::over(&zones, siblings, config, how.panic_threshold, count);
    let Some(spread) = spread else {
        return (balancers, Spread::Together);
    };
    balancers.extend(zones.into_iter().map(|zone| balancer(zone.healthy)));
    (balancers, Spread::Zones(spread))
}

/// The endpoints of a ring or table with the share of each, together 1. Computed step by step as
/// Envoy does it (`ThreadAwareLoadBalancerBase`): a table in which 3 x 1/7 is a little more than 3/7
/// has other places.
///
/// Where localities are weighted they are here whatever their health, and in panic too.
fn normalized(mut level: Level, panic: bool, by_locality: bool) -> Vec<Weighted> {
    let used = |group: Group| if panic { group.all } else { group.healthy };
    let share_out = |hosts: Vec<Weighted>, share: f64| {
        let sum: f64 = hosts.iter().map(|(_, weight)| weight).sum();
        let part = move |(host, weight): Weighted| (host, weight * share / sum);
        hosts.into_iter().map(part)
    };
    if !by_locality {
        return share_out(level.into_iter().flat_map(used).collect(), 1.0).collect();
    }
    let sum: f64 = level.iter().map(|group| f64::from(group.weight())).sum();
    level.retain(|group| group.weight() > 0);
    level.sort_by(|a, b| a.name().cmp(&b.name()));
    let shared = level.into_iter().map(|group| {
        let share = f64::from(group.weight()) / sum;
        share_out(used(group), share)
    });
    shared.flatten().collect()
}

/// The priority that a number falls on.
pub(super) fn choose(priorities: &[Priority], hash: u64) -> Option<&Priority> {
    let mut left = (hash % 100) as u32;
    for priority in priorities {
        match left.checked_sub(priority.share) {
            Some(rest) => left = rest,
            None => return Some(priority),
        }
    }
    None
}

impl Group {
    pub(super) fn name(&self) -> [&str; 3] {
        let Locality {
            region,
            zone,
            sub_zone,
        } = &*self.locality;
        [region, zone, sub_zone]
    }

    fn weight(&self) -> u32 {
        self.weight.unwrap_or(0)
    }

    /// The locality's weight, less where endpoints are missing that over-provisioning does not
    /// make up for.
    fn effective_weight(&self, overprovisioning: u32) -> f64 {
        let weight = f64::from(self.weight());
        if self.all.is_empty() || self.healthy.is_empty() {
            return 0.0;
        }
        let healthy = self.healthy.len() as f64 / self.all.len() as f64;
        weight * (healthy * f64::from(overprovisioning) / 100.0).min(1.0)
    }
}

/// Endpoints of a level.
#[derive(Clone, Copy, Debug)]
struct Count {
    all: usize,
    healthy: usize,
}

impl Count {
    fn of(level: &[Group]) -> Count {
        Count {
            all: level.iter().map(|group| group.all.len()).sum(),
            healthy: level.iter().map(|group| group.healthy.len()).sum(),
        }
    }

    /// Percent, over-provisioned.
    fn availability(self, overprovisioning: u32) -> u32 {
        let percent = self.healthy as u64 * u64::from(overprovisioning) / self.all.max(1) as u64;
        percent.min(100) as u32
    }
}

/// Each priority's share of requests, and whether all of its endpoints are used. A priority takes
/// what its healthy part, over-provisioned, can; what is left goes to the next. Where all of them
/// together cannot take everything, a priority with too few healthy endpoints panics.
fn shares(counts: &[Count], how: Arrangement<'_>) -> (Vec<u32>, Vec<bool>) {
    let over = how.overprovisioning;
    let available: Vec<u32> = counts.iter().map(|c| c.availability(over)).collect();
    let total = available.iter().sum::<u32>().min(100);
    let few = |count: &Count| {
        let percent = 100.0 * count.healthy as f64 / count.all.max(1) as f64;
        count.all == 0 || percent < how.panic_threshold
    };
    let panics: Vec<bool> = counts
        .iter()
        .map(|count| total < 100 && how.panic_threshold > 0.0 && few(count))
        .collect();
    let mut shares = if !panics.is_empty() && panics.iter().all(|panic| *panic) {
        // Health says nothing any more: by the number of endpoints.
        let all: usize = counts.iter().map(|count| count.all).sum();
        counts
            .iter()
            .map(|count| (100 * count.all).checked_div(all).unwrap_or(0) as u32)
            .collect()
    } else {
        let mut left = 100u32;
        available
            .iter()
            .map(|percent| {
                let share = left.min((percent * 100).checked_div(total).unwrap_or(0));
                left -= share;
                share
            })
            .collect::<Vec<u32>>()
    };
    // What rounding has left goes to the first that takes any; with none, the first gets all.
    let rest = 100u32.saturating_sub(shares.iter().sum());
    let first = shares.iter().position(|share| *share > 0).unwrap_or(0);
    if let Some(first) = shares.get_mut(first) {
        *first += rest;
    }
    (shares, panics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Host;
    use std::rc::Rc;

    const TOGETHER: LocalityLb = LocalityLb::Zones(ZoneAware {
        routed: 100,
        min_cluster_size: 6,
        fail_on_panic: false,
        by_weight: false,
        force_local: None,
    });

    fn how(panic_threshold: f64, locality: LocalityLb) -> Arrangement<'static> {
        Arrangement {
            siblings: None,
            policy: LbPolicy::RoundRobin { slow_start: None },
            locality,
            panic_threshold,
            overprovisioning: 140,
        }
    }

    #[test]
    fn traffic_fails_over_by_the_healthy_share_of_each_priority() {
        for (counts, threshold, expect, panic) in [
            (vec![(4, 4), (4, 4)], 50.0, vec![100, 0], vec![false, false]),
            (vec![(3, 4), (4, 4)], 50.0, vec![100, 0], vec![false, false]),
            (vec![(1, 2), (4, 4)], 50.0, vec![70, 30], vec![false, false]),
            (vec![(0, 4), (4, 4)], 50.0, vec![0, 100], vec![false, false]),
            (vec![(0, 4), (0, 4)], 50.0, vec![50, 50], vec![true, true]),
            (vec![(0, 4), (0, 4)], 0.0, vec![100, 0], vec![false, false]),
            (vec![(1, 4)], 50.0, vec![100], vec![true]),
            (vec![(1, 4)], 0.0, vec![100], vec![false]),
            (vec![(1, 4), (1, 4)], 0.0, vec![50, 50], vec![false, false]),
            (vec![(2, 4), (1, 10)], 30.0, vec![84, 16], vec![false, true]),
        ] {
            let counts: Vec<Count> = counts
                .into_iter()
                .map(|(healthy, all)| Count { all, healthy })
                .collect();
            let found = shares(&counts, how(threshold, TOGETHER));
            assert_eq!(found, (expect, panic), "{counts:?} {threshold}");
        }
    }

    fn group(weight: u32, first: u16, healthy: usize, all: usize) -> Group {
        let host = |i: usize| {
            let address = ([127, 0, 0, 1], first + i as u16).into();
            (Host::new(address, Box::default()), 1.0)
        };
        let all: Vec<(Rc<Host>, f64)> = (0..all).map(host).collect();
        Group {
            locality: Arc::default(),
            weight: Some(weight),
            healthy: all[..healthy].to_vec(),
            all,
        }
    }

    #[test]
    fn shares_are_rounded_as_envoys() {
        let level = || {
            let mut group = group(7, 10, 4, 4);
            for (at, weight) in [1.0, 3.0, 2.0, 1.0].into_iter().enumerate() {
                group.healthy[at].1 = weight;
            }
            vec![group]
        };
        for by_locality in [false, true] {
            let found: Vec<f64> = normalized(level(), false, by_locality)
                .into_iter()
                .map(|(_, weight)| weight)
                .collect();
            assert_eq!(found, [1.0 / 7.0, 3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0]);
        }
        // Half of a locality does not lower its share, and one without weight has none.
        let level = vec![group(1, 10, 1, 2), group(3, 20, 2, 2), group(0, 30, 1, 1)];
        let found = normalized(level, false, true);
        let weights: Vec<f64> = found.into_iter().map(|(_, weight)| weight).collect();
        assert_eq!(weights, [0.25, 0.375, 0.375]);
    }

    #[test]
    fn localities_are_taken_by_their_weight_and_health() {
        for (locality, groups, expect) in [
            (
                LocalityLb::Weighted,
                [group(3, 10, 1, 1), group(1, 20, 4, 4)],
                300,
            ),
            (TOGETHER, [group(3, 10, 1, 1), group(1, 20, 4, 4)], 80),
            // Half of it, over-provisioned, is 70 %: 0.7 to 1.
            (
                LocalityLb::Weighted,
                [group(1, 10, 2, 4), group(1, 20, 4, 4)],
                165,
            ),
            (
                LocalityLb::Weighted,
                [group(1, 10, 0, 4), group(1, 20, 4, 4)],
                0,
            ),
        ] {
            let priorities = arrange(vec![groups.into()], how(0.0, locality), || 0, |_| {});
            let mut first = 0;
            for _ in 0..400 {
                let priority = choose(&priorities, 0).unwrap();
                let host = priority
                    .balancer(|| 0, |_| {})
                    .unwrap()
                    .pick(0, 0, || 0)
                    .unwrap();
                first += usize::from(host.address.port() < 20);
            }
            assert_eq!(first, expect, "{locality:?}");
        }
    }
}
