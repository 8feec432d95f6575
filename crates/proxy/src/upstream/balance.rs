//! Which endpoint a request takes: round robin, least request, random; all weighted.

use super::Host;
use lateen_proxy_config::LbPolicy;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::rc::Rc;

/// The endpoints of one priority and the way to choose among them.
#[derive(Debug)]
pub(super) struct Balancer {
    hosts: Vec<Rc<Host>>,
    policy: Policy,
}

#[derive(Debug)]
enum Policy {
    /// All weights equal.
    Rotate(Cell<usize>),
    /// Earliest deadline first: an endpoint comes again after 1/weight.
    Deadlines(RefCell<BinaryHeap<Turn>>),
    Least {
        choices: u32,
        weights: Option<Weights>,
    },
    Random(Option<Weights>),
}

/// Running sums of weights; [`None`] elsewhere means all are equal.
#[derive(Debug)]
struct Weights {
    sums: Vec<f64>,
    each: Vec<f64>,
}

#[derive(Debug)]
struct Turn {
    at: f64,
    index: usize,
    every: f64,
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Turn {}
impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Turn {
    /// The heap gives the largest; the earliest turn is the largest.
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .at
            .total_cmp(&self.at)
            .then(other.index.cmp(&self.index))
    }
}

impl Balancer {
    pub(super) fn new(policy: LbPolicy, hosts: Vec<(Rc<Host>, f64)>, random: u64) -> Balancer {
        let weights: Vec<f64> = hosts.iter().map(|(_, weight)| *weight).collect();
        let hosts: Vec<Rc<Host>> = hosts.into_iter().map(|(host, _)| host).collect();
        let equal = weights.windows(2).all(|w| w[0] == w[1]);
        let weighted = || (!equal).then(|| Weights::new(weights.clone()));
        let policy = match policy {
            LbPolicy::RoundRobin if equal => {
                // Workers and proxies begin at different endpoints.
                Policy::Rotate(Cell::new(
                    (random as usize).checked_rem(hosts.len()).unwrap_or(0),
                ))
            }
            LbPolicy::RoundRobin => Policy::Deadlines(RefCell::new(turns(&weights))),
            LbPolicy::LeastRequest { choices } => Policy::Least {
                choices: choices.max(2),
                weights: weighted(),
            },
            LbPolicy::Random | LbPolicy::ClusterProvided => Policy::Random(weighted()),
        };
        Balancer { hosts, policy }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// The next endpoint.
    pub(super) fn pick(&self, mut random: impl FnMut() -> u64) -> Option<&Rc<Host>> {
        let len = self.hosts.len();
        if len <= 1 {
            return self.hosts.first();
        }
        let index = match &self.policy {
            Policy::Rotate(next) => {
                let index = next.get() % len;
                next.set(index + 1);
                index
            }
            Policy::Deadlines(turns) => {
                let mut turns = turns.borrow_mut();
                let mut turn = turns.peek_mut()?;
                let index = turn.index;
                turn.at += turn.every;
                index
            }
            Policy::Least { choices, weights } => {
                self.least_busy(*choices, weights.as_ref(), random)?
            }
            Policy::Random(weights) => draw(weights.as_ref(), len, random()),
        };
        self.hosts.get(index)
    }

    /// The least busy of some drawn by weight; busy is measured per weight.
    fn least_busy(
        &self,
        choices: u32,
        weights: Option<&Weights>,
        mut random: impl FnMut() -> u64,
    ) -> Option<usize> {
        let load = |index: usize| {
            let active = self.hosts.get(index).map_or(0, |host| host.active.get());
            let weight = weights
                .and_then(|w| w.each.get(index))
                .copied()
                .unwrap_or(1.0);
            f64::from(active) / weight
        };
        let mut best = draw(weights, self.hosts.len(), random());
        for _ in 1..choices {
            let other = draw(weights, self.hosts.len(), random());
            if load(other) < load(best) {
                best = other;
            }
        }
        Some(best)
    }
}

impl Weights {
    fn new(each: Vec<f64>) -> Weights {
        let mut sum = 0.0;
        let sums = each
            .iter()
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        Weights { sums, each }
    }
}

fn draw(weights: Option<&Weights>, len: usize, random: u64) -> usize {
    match weights {
        None => (random % len as u64) as usize,
        Some(weights) => {
            let total = weights.sums.last().copied().unwrap_or(0.0);
            let at = (random >> 11) as f64 / (1u64 << 53) as f64 * total;
            weights.sums.partition_point(|sum| *sum <= at).min(len - 1)
        }
    }
}

fn turns(weights: &[f64]) -> BinaryHeap<Turn> {
    weights
        .iter()
        .enumerate()
        .map(|(index, weight)| {
            let every = 1.0 / weight.max(f64::MIN_POSITIVE);
            Turn {
                at: every,
                index,
                every,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngCore, SeedableRng};

    fn hosts(weights: &[u32]) -> Vec<(Rc<Host>, f64)> {
        let host = |i: usize| Host::new(([127, 0, 0, 1], 1 + i as u16).into(), Box::default());
        weights
            .iter()
            .enumerate()
            .map(|(i, w)| (host(i), f64::from(*w)))
            .collect()
    }

    fn counts(policy: LbPolicy, weights: &[u32], picks: usize) -> Vec<usize> {
        let balancer = Balancer::new(policy, hosts(weights), 0);
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = vec![0; weights.len()];
        for _ in 0..picks {
            let host = balancer.pick(|| rng.next_u64()).unwrap();
            counts[usize::from(host.address.port()) - 1] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_gives_each_its_turns() {
        assert_eq!(
            counts(LbPolicy::RoundRobin, &[1, 1, 1], 300),
            [100, 100, 100]
        );
        assert_eq!(counts(LbPolicy::RoundRobin, &[3, 1], 400), [300, 100]);
        assert_eq!(counts(LbPolicy::RoundRobin, &[5], 10), [10]);
    }

    #[test]
    fn weights_hold_on_average_where_chance_decides() {
        for policy in [LbPolicy::Random, LbPolicy::LeastRequest { choices: 2 }] {
            let counts = counts(policy, &[9, 1], 10_000);
            assert!((700..1300).contains(&counts[1]), "{policy:?} {counts:?}");
        }
    }

    #[test]
    fn the_busier_endpoint_gets_less() {
        let hosts = hosts(&[1, 1]);
        hosts[0].0.active.set(5);
        let balancer = Balancer::new(LbPolicy::LeastRequest { choices: 2 }, hosts, 0);
        let mut rng = SmallRng::seed_from_u64(7);
        let busy = (0..1000)
            .filter(|_| balancer.pick(|| rng.next_u64()).unwrap().address.port() == 1)
            .count();
        assert!((150..350).contains(&busy), "{busy}");
    }
}
