//! Which endpoint of a locality, or of a whole priority, a request takes.

use super::Host;
use super::hash_table::{Maglev, Ring};
use super::schedule::Schedule;
use lateen_proxy_config::{LbPolicy, SlowStart};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Endpoints and the way to choose among them.
#[derive(Debug)]
pub(super) struct Balancer {
    hosts: Vec<Rc<Host>>,
    policy: Policy,
}

#[derive(Debug)]
enum Policy {
    /// All weights equal.
    Rotate(Cell<usize>),
    /// By weights, which may change with age and load.
    Turns(Turns),
    Least {
        choices: u32,
    },
    Random,
    Ring(Ring),
    Maglev(Maglev),
}

#[derive(Debug)]
struct Turns {
    schedule: RefCell<Schedule>,
    weights: Vec<f64>,
    /// Divides by the active requests to this power.
    bias: Option<f64>,
    slow_start: Option<SlowStart>,
}

/// An endpoint with its weight. Those of rings and tables add up to 1.
pub(super) type Weighted = (Rc<Host>, f64);

impl Balancer {
    pub(super) fn new(policy: LbPolicy, hosts: Vec<Weighted>, random: u64) -> Balancer {
        let (hosts, weights): (Vec<Rc<Host>>, Vec<f64>) = hosts.into_iter().unzip();
        let equal = weights.windows(2).all(|w| w[0] == w[1]);
        let warming = policy
            .slow_start()
            .filter(|slow| hosts.iter().any(|host| slow.factor(host.age()) < 1.0));
        let turns = |weights: Vec<f64>, bias| {
            let turns = Turns {
                schedule: RefCell::default(),
                weights,
                bias,
                slow_start: warming,
            };
            turns.begin(&hosts, random);
            Policy::Turns(turns)
        };
        let policy = match policy {
            LbPolicy::RoundRobin { .. } if equal && warming.is_none() => {
                // Workers and proxies begin at different endpoints.
                Policy::Rotate(Cell::new(
                    (random as usize).checked_rem(hosts.len()).unwrap_or(0),
                ))
            }
            LbPolicy::RoundRobin { .. } => turns(weights, None),
            LbPolicy::LeastRequest { choices, .. } if equal && warming.is_none() => Policy::Least {
                choices: choices.max(2),
            },
            LbPolicy::LeastRequest { bias, .. } => turns(weights, Some(bias)),
            // As in Envoy, chance does not look at weights.
            LbPolicy::Random | LbPolicy::ClusterProvided => Policy::Random,
            LbPolicy::RingHash {
                minimum_size,
                maximum_size,
                key,
            } => Policy::Ring(Ring::new(
                &hosts,
                &weights,
                (minimum_size, maximum_size),
                key,
            )),
            LbPolicy::Maglev { table_size, key } => {
                Policy::Maglev(Maglev::new(&hosts, &weights, table_size, key))
            }
        };
        Balancer { hosts, policy }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// The next endpoint. `hash` is the request's, or by chance; `attempt` counts the endpoints that
    /// were refused for this request.
    pub(super) fn pick(
        &self,
        hash: u64,
        attempt: u32,
        mut random: impl FnMut() -> u64,
    ) -> Option<&Rc<Host>> {
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
            Policy::Turns(turns) => turns.next(&self.hosts)?,
            Policy::Least { choices } => self.least_busy(*choices, random),
            Policy::Random => (random() % len as u64) as usize,
            Policy::Ring(ring) => ring.pick(hash, attempt)?,
            Policy::Maglev(table) => table.pick(hash, attempt)?,
        };
        self.hosts.get(index)
    }

    /// The least busy of some drawn by chance.
    fn least_busy(&self, choices: u32, mut random: impl FnMut() -> u64) -> usize {
        let len = self.hosts.len() as u64;
        let load = |index: usize| self.hosts.get(index).map_or(0, |host| host.active.get());
        let mut best = (random() % len) as usize;
        for _ in 1..choices {
            let other = (random() % len) as usize;
            if load(other) < load(best) {
                best = other;
            }
        }
        best
    }
}

impl Turns {
    /// Envoy begins anywhere, so that not all proxies begin with the same endpoint.
    fn begin(&self, hosts: &[Rc<Host>], random: u64) {
        {
            let mut schedule = self.schedule.borrow_mut();
            for (index, host) in hosts.iter().enumerate() {
                schedule.add(index, self.weight(index, host));
            }
        }
        for _ in 0..(random as usize).checked_rem(hosts.len()).unwrap_or(0) {
            self.next(hosts);
        }
    }

    fn next(&self, hosts: &[Rc<Host>]) -> Option<usize> {
        let mut schedule = self.schedule.borrow_mut();
        schedule.next(|index| {
            hosts
                .get(index)
                .map_or(1.0, |host| self.weight(index, host))
        })
    }

    fn weight(&self, index: usize, host: &Host) -> f64 {
        let mut weight = self.weights.get(index).copied().unwrap_or(1.0);
        if let Some(bias) = self.bias.filter(|bias| *bias > 0.0) {
            weight /= f64::from(host.active.get() + 1).powf(bias);
        }
        if let Some(slow) = self.slow_start {
            weight *= slow.factor(host.age());
        }
        weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_proxy_config::HashKey;
    use rand::rngs::SmallRng;
    use rand::{RngCore, SeedableRng};

    const ROUND_ROBIN: LbPolicy = LbPolicy::RoundRobin { slow_start: None };
    const LEAST: LbPolicy = LbPolicy::LeastRequest {
        choices: 2,
        bias: 1.0,
        slow_start: None,
    };

    fn hosts(weights: &[u32]) -> Vec<Weighted> {
        let host = |i: usize| Host::new(([127, 0, 0, 1], 1 + i as u16).into(), Box::default());
        weights
            .iter()
            .enumerate()
            .map(|(i, w)| (host(i), f64::from(*w)))
            .collect()
    }

    fn counts(policy: LbPolicy, weights: &[u32], picks: usize) -> Vec<usize> {
        let balancer = Balancer::new(policy, hosts(weights), 0);
        counts_of(&balancer, weights.len(), picks)
    }

    fn counts_of(balancer: &Balancer, len: usize, picks: usize) -> Vec<usize> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = vec![0; len];
        for _ in 0..picks {
            let hash = rng.next_u64();
            let host = balancer.pick(hash, 0, || rng.next_u64()).unwrap();
            counts[usize::from(host.address.port()) - 1] += 1;
        }
        counts
    }

    #[test]
    fn turns_are_taken_by_weight() {
        assert_eq!(counts(ROUND_ROBIN, &[1, 1, 1], 300), [100, 100, 100]);
        assert_eq!(counts(ROUND_ROBIN, &[3, 1], 400), [300, 100]);
        assert_eq!(counts(ROUND_ROBIN, &[5], 10), [10]);
        assert_eq!(counts(LEAST, &[3, 1], 400), [300, 100]);
    }

    #[test]
    fn chance_does_not_look_at_weights() {
        let counts = counts(LbPolicy::Random, &[9, 1], 10_000);
        assert!((4700..5300).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn the_busier_endpoint_gets_less() {
        let hosts = hosts(&[1, 1]);
        hosts[0].0.active.set(5);
        let balancer = Balancer::new(LEAST, hosts, 0);
        let mut rng = SmallRng::seed_from_u64(7);
        let busy = (0..1000)
            .filter(|_| {
                let picked = balancer.pick(0, 0, || rng.next_u64()).unwrap();
                picked.address.port() == 1
            })
            .count();
        assert!((150..350).contains(&busy), "{busy}");
    }

    #[test]
    fn where_weights_differ_load_divides_the_weight() {
        let hosts = hosts(&[2, 1]);
        // Two requests more make a third of the weight of it.
        hosts[0].0.active.set(2);
        let balancer = Balancer::new(LEAST, hosts, 0);
        let busy = (0..100)
            .filter(|_| balancer.pick(0, 0, || 0).unwrap().address.port() == 1)
            .count();
        assert_eq!(busy, 40);
    }

    #[test]
    fn hashes_spread_requests_by_weight() {
        let key = HashKey::Address;
        let ring = LbPolicy::RingHash {
            minimum_size: 100_000,
            maximum_size: 8_388_608,
            key,
        };
        let maglev = LbPolicy::Maglev {
            table_size: 65_537,
            key,
        };
        for policy in [ring, maglev] {
            let shares = [0.75, 0.25];
            let hosts = hosts(&[1, 1]).into_iter().zip(shares);
            let hosts = hosts.map(|((host, _), share)| (host, share)).collect();
            let counts = counts_of(&Balancer::new(policy, hosts, 0), 2, 10_000);
            assert!((2200..2800).contains(&counts[1]), "{policy:?} {counts:?}");
        }
    }
}
