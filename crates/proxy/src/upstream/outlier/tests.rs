//! Ejection over time: which endpoints go, for how long, and who comes back.

use super::super::health::Seen;
use super::*;
use lateen_proxy_config::{
    Address, Consecutive, Endpoint, FailurePercentage, HealthStatus, LocalityEndpoints, SuccessRate,
};

fn config() -> OutlierDetection {
    let consecutive = |threshold, enforcing| Consecutive {
        threshold,
        enforcing,
    };
    OutlierDetection {
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_time_jitter: Duration::ZERO,
        max_ejection_percent: 100,
        always_eject_one: false,
        split_local_origin: false,
        consecutive_5xx: consecutive(5, 100),
        consecutive_gateway: consecutive(3, 0),
        consecutive_local: consecutive(2, 100),
        success_rate: SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            deviations: 1.9,
            enforcing: 0,
            enforcing_local: 0,
        },
        failure_percentage: FailurePercentage {
            threshold: 85,
            minimum_hosts: 5,
            request_volume: 50,
            enforcing: 0,
            enforcing_local: 0,
        },
    }
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1 + index as u16))
}

struct Bench {
    detector: Detector,
    inbox: mpsc::UnboundedReceiver<Arc<HostHealth>>,
    now: Instant,
}

impl Bench {
    fn new(config: OutlierDetection, hosts: usize) -> Bench {
        let (reports, inbox) = mpsc::unbounded_channel();
        let now = Instant::now();
        let endpoint = |index| Endpoint {
            address: Address::Socket(address(index)),
            health: HealthStatus::Unknown,
            weight: 1,
            hostname: Box::default(),
            metadata: None,
        };
        let endpoints = EndpointSet {
            localities: vec![LocalityEndpoints {
                locality: Arc::default(),
                priority: 0,
                weight: None,
                endpoints: (0..hosts).map(endpoint).collect(),
            }],
            ..EndpointSet::default()
        };
        let mut detector = Detector {
            due: Some(now + config.interval),
            config: Some(Arc::new(config)),
            hosts: HashMap::new(),
            counts: Counts::default(),
        };
        detector.set_endpoints(&"c".into(), &endpoints, &reports);
        Bench {
            detector,
            inbox,
            now,
        }
    }

    fn see(&mut self, index: usize, seen: &[Seen]) {
        let health = self.detector.hosts[&address(index)].health.clone();
        let config = self.detector.config.clone().unwrap();
        for seen in seen {
            health.note(&config, *seen);
            while let Ok(report) = self.inbox.try_recv() {
                self.detector.detected(&report, self.now);
            }
        }
    }

    fn is_ejected(&self, index: usize) -> bool {
        self.detector.hosts[&address(index)].health.is_ejected()
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds / 10 {
            self.now += Duration::from_secs(10);
            self.detector.tick(self.now);
        }
    }
}

#[test]
fn failures_in_a_row_eject_and_a_good_answer_begins_anew() {
    use Seen::{Answer, Connected, LocalFailure, LocalTimeout};
    let split = OutlierDetection {
        split_local_origin: true,
        ..config()
    };
    let gateway = OutlierDetection {
        consecutive_gateway: Consecutive {
            threshold: 3,
            enforcing: 100,
        },
        ..config()
    };
    for (config, seen, expect) in [
        (config(), vec![Answer(500); 5], true),
        (config(), vec![Answer(500); 4], false),
        (config(), vec![Answer(404); 50], false),
        (
            config(),
            [
                vec![Answer(500); 4],
                vec![Answer(200)],
                vec![Answer(500); 4],
            ]
            .concat(),
            false,
        ),
        // Failures to connect count as 503, timeouts as 504.
        (
            config(),
            [vec![LocalFailure; 3], vec![LocalTimeout; 2]].concat(),
            true,
        ),
        // Detected, but not enforced unless set.
        (config(), vec![Answer(503); 4], false),
        (gateway.clone(), vec![Answer(503); 3], true),
        (gateway.clone(), vec![LocalFailure; 3], true),
        (
            gateway,
            vec![Answer(503), Answer(500), Answer(503), Answer(504)],
            false,
        ),
        (split.clone(), vec![LocalFailure; 2], true),
        (
            split.clone(),
            vec![LocalFailure, Connected, LocalFailure],
            false,
        ),
        (
            split.clone(),
            vec![LocalFailure, Answer(500), LocalTimeout],
            true,
        ),
        (
            split,
            vec![
                Connected,
                Answer(500),
                Connected,
                Answer(500),
                Connected,
                Answer(500),
            ],
            false,
        ),
    ] {
        let mut bench = Bench::new(config, 4);
        bench.see(0, &seen);
        assert_eq!(bench.is_ejected(0), expect, "{seen:?}");
        assert!(!bench.is_ejected(1));
    }
}

#[test]
fn an_ejection_lasts_longer_each_time_up_to_a_limit_and_shorter_after_quiet_times() {
    let mut bench = Bench::new(config(), 2);
    let mut lengths = Vec::new();
    for _ in 0..13 {
        bench.see(0, &[Seen::Answer(500); 5]);
        let mut seconds = 0;
        while bench.is_ejected(0) {
            bench.pass(10);
            seconds += 10;
        }
        lengths.push(seconds);
    }
    assert_eq!(lengths[..4], [30, 60, 90, 120]);
    assert_eq!(lengths[10..], [300, 300, 300]);
    // One step less for each quiet interval.
    bench.pass(200);
    bench.see(0, &[Seen::Answer(500); 5]);
    bench.pass(30);
    assert!(!bench.is_ejected(0));
}

#[test]
fn no_more_than_the_allowed_share_is_ejected() {
    for (percent, always_one, hosts, expect) in [
        (10, false, 10, 1),
        (10, false, 9, 0),
        (10, true, 9, 1),
        (50, false, 5, 2),
        (100, false, 5, 5),
    ] {
        let config = OutlierDetection {
            max_ejection_percent: percent,
            always_eject_one: always_one,
            ..config()
        };
        let mut bench = Bench::new(config, hosts);
        for index in 0..hosts {
            bench.see(index, &[Seen::Answer(500); 5]);
        }
        let ejected = (0..hosts).filter(|i| bench.is_ejected(*i)).count();
        assert_eq!(ejected, expect, "{percent} of {hosts}");
        assert_eq!(bench.detector.counts.overflow, (hosts - expect) as u64);
    }
}

#[test]
fn rates_eject_what_is_far_below_the_others() {
    let answers = |good: usize, bad: usize| {
        let mut all = Vec::new();
        for i in 0..(good + bad) {
            all.push(Seen::Answer(
                if i * bad / (good + bad) != (i + 1) * bad / (good + bad) {
                    500
                } else {
                    200
                },
            ));
        }
        all
    };
    let mut rates = config();
    rates.success_rate.enforcing = 100;
    rates.consecutive_5xx.threshold = 1000;
    let mut shares = config();
    shares.failure_percentage.enforcing = 100;
    shares.failure_percentage.threshold = 40;
    shares.consecutive_5xx.threshold = 1000;
    for (config, volume, expect) in [
        (rates.clone(), 100, true),
        (rates, 90, false),
        (shares, 50, true),
    ] {
        let mut bench = Bench::new(config, 6);
        for index in 0..5 {
            bench.see(index, &answers(volume, 0));
        }
        bench.see(5, &answers(volume / 2, volume / 2));
        assert!(!bench.is_ejected(5));
        bench.pass(10);
        let ejected: Vec<_> = (0..6).filter(|i| bench.is_ejected(*i)).collect();
        assert_eq!(ejected, if expect { vec![5] } else { vec![] });
    }
}

#[test]
fn endpoints_that_stay_keep_their_state() {
    let mut bench = Bench::new(config(), 3);
    bench.see(1, &[Seen::Answer(500); 5]);
    let before = bench.detector.hosts[&address(1)].health.clone();
    let (reports, _inbox) = mpsc::unbounded_channel();
    let fewer = Bench::new(config(), 2);
    let endpoints = EndpointSet {
        localities: vec![LocalityEndpoints {
            locality: Arc::default(),
            priority: 0,
            weight: None,
            endpoints: fewer
                .detector
                .hosts
                .keys()
                .map(|address| Endpoint {
                    address: Address::Socket(*address),
                    health: HealthStatus::Unknown,
                    weight: 1,
                    hostname: Box::default(),
                    metadata: None,
                })
                .collect(),
        }],
        ..EndpointSet::default()
    };
    bench
        .detector
        .set_endpoints(&"c".into(), &endpoints, &reports);
    assert!(bench.is_ejected(1));
    assert!(Arc::ptr_eq(
        &bench.detector.hosts[&address(1)].health,
        &before
    ));
    assert_eq!(bench.detector.hosts.len(), 2);
}
