//! Counters of the server under Istio's names. Plain values for whoever renders them; no text
//! format and no HTTP here.
//!
//! Names, help texts' meaning and buckets follow Istio (`pilot/pkg/xds/monitoring.go`), so that
//! its control-plane dashboards read them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::{ProxyStatus, type_url};

/// One metric with its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    Value {
        labels: Vec<(&'static str, String)>,
        value: f64,
    },
    Histogram {
        labels: Vec<(&'static str, String)>,
        /// Upper bounds and cumulative counts, without `+Inf`.
        buckets: Vec<(f64, u64)>,
        sum: f64,
        count: u64,
    },
}

const CONVERGENCE: &[f64] = &[0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const SECONDS: &[f64] = &[0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const BYTES: &[f64] = &[1.0, 10_000.0, 1e6, 4e6, 1e7, 4e7];

/// The live counters of one server. Touched per push and per request, never per byte.
pub(crate) struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pushes: BTreeMap<&'static str, u64>,
    rejects: BTreeMap<&'static str, u64>,
    expired_nonces: BTreeMap<&'static str, u64>,
    write_timeouts: u64,
    internal_errors: u64,
    convergence: Histogram,
    push_time: BTreeMap<&'static str, Histogram>,
    send_time: Histogram,
    config_size: BTreeMap<&'static str, Histogram>,
}

#[derive(Default)]
struct Histogram {
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::default(),
        }
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn pushed(&self, type_url: &str, bytes: usize, sending: Duration) {
        let label = label(type_url);
        self.with(|m| {
            *m.pushes.entry(label).or_default() += 1;
            m.config_size
                .entry(label)
                .or_default()
                .observe(BYTES, bytes as f64);
            m.send_time.observe(SECONDS, sending.as_secs_f64());
        });
    }

    pub(crate) fn generated(&self, type_url: &str, took: Duration) {
        let label = label(type_url);
        self.with(|m| {
            m.push_time
                .entry(label)
                .or_default()
                .observe(SECONDS, took.as_secs_f64());
        });
    }

    pub(crate) fn rejected(&self, type_url: &str) {
        self.with(|m| *m.rejects.entry(label(type_url)).or_default() += 1);
    }

    pub(crate) fn expired_nonce(&self, type_url: &str) {
        self.with(|m| *m.expired_nonces.entry(label(type_url)).or_default() += 1);
    }

    pub(crate) fn write_timeout(&self) {
        self.with(|m| m.write_timeouts += 1);
    }

    pub(crate) fn internal_error(&self) {
        self.with(|m| m.internal_errors += 1);
    }

    pub(crate) fn converged(&self, took: Duration) {
        self.with(|m| m.convergence.observe(CONVERGENCE, took.as_secs_f64()));
    }

    /// Everything, for the given open streams.
    pub(crate) fn read(&self, open: &[ProxyStatus]) -> Vec<Metric> {
        let m = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = vec![
            connections(open),
            counter(
                "pilot_xds_pushes",
                "Pilot build and send successes for lds, rds, cds and eds.",
                by_type(&m.pushes),
            ),
            counter(
                "pilot_total_xds_rejects",
                "Total number of XDS responses from pilot rejected by proxy.",
                by_type(&m.rejects),
            ),
            counter(
                "pilot_xds_expired_nonce",
                "Total number of XDS requests with an expired nonce.",
                by_type(&m.expired_nonces),
            ),
            counter(
                "pilot_xds_write_timeout",
                "Pilot XDS response write timeouts.",
                vec![value(vec![], m.write_timeouts as f64)],
            ),
            counter(
                "pilot_total_xds_internal_errors",
                "Total number of internal XDS errors in pilot.",
                vec![value(vec![], m.internal_errors as f64)],
            ),
            histogram(
                "pilot_proxy_convergence_time",
                "Delay in seconds between config change and a proxy receiving all required \
                 configuration.",
                vec![m.convergence.sample(CONVERGENCE, vec![])],
            ),
            histogram(
                "pilot_xds_push_time",
                "Total time in seconds Pilot takes to push lds, rds, cds and eds.",
                m.push_time
                    .iter()
                    .map(|(t, h)| h.sample(SECONDS, typed(t)))
                    .collect(),
            ),
            histogram(
                "pilot_xds_send_time",
                "Total time in seconds Pilot takes to send generated configuration.",
                vec![m.send_time.sample(SECONDS, vec![])],
            ),
            histogram(
                "pilot_xds_config_size_bytes",
                "Distribution of configuration sizes pushed to clients.",
                m.config_size
                    .iter()
                    .map(|(t, h)| h.sample(BYTES, typed(t)))
                    .collect(),
            ),
        ];
        all.extend(rejecting(open));
        all
    }
}

/// The label of a type. Types out of a client's mouth must not make new series.
fn label(type_url: &str) -> &'static str {
    match type_url {
        type_url::CLUSTER => "cds",
        type_url::ENDPOINT => "eds",
        type_url::LISTENER => "lds",
        type_url::ROUTE => "rds",
        type_url::VIRTUAL_HOST => "vhds",
        type_url::SECRET => "sds",
        type_url::EXTENSION_CONFIG => "ecds",
        _ => "other",
    }
}

fn connections(open: &[ProxyStatus]) -> Metric {
    let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
    for proxy in open {
        let version = proxy
            .node
            .metadata_str("ISTIO_VERSION")
            .unwrap_or("unknown");
        *versions.entry(version).or_default() += 1;
    }
    Metric {
        name: "pilot_xds",
        help: "Number of endpoints connected to this pilot using XDS.",
        kind: MetricKind::Gauge,
        samples: versions
            .into_iter()
            .map(|(version, count)| value(vec![("version", version.to_owned())], count as f64))
            .collect(),
    }
}

/// `pilot_xds_{cds,eds,lds,rds}_reject`: the proxies whose last answer was a rejection. A virtual
/// host that comes by itself is a part of its route table.
fn rejecting(open: &[ProxyStatus]) -> impl Iterator<Item = Metric> {
    const KINDS: [(&str, &str, &str); 4] = [
        (
            type_url::CLUSTER,
            "pilot_xds_cds_reject",
            "Pilot rejected CDS configs.",
        ),
        (
            type_url::ENDPOINT,
            "pilot_xds_eds_reject",
            "Pilot rejected EDS.",
        ),
        (
            type_url::LISTENER,
            "pilot_xds_lds_reject",
            "Pilot rejected LDS.",
        ),
        (
            type_url::ROUTE,
            "pilot_xds_rds_reject",
            "Pilot rejected RDS.",
        ),
    ];
    KINDS.into_iter().map(|(url, name, help)| {
        let samples = open
            .iter()
            .filter_map(|proxy| {
                let nack_of = |url| proxy.types.get(url)?.nack.as_ref();
                let part = (url == type_url::ROUTE).then_some(type_url::VIRTUAL_HOST);
                let nack = nack_of(url).or_else(|| nack_of(part?))?;
                let code = format!("{:?}", tonic::Code::from_i32(nack.code));
                Some(value(
                    vec![("node", proxy.node.id.clone()), ("err", code)],
                    1.0,
                ))
            })
            .collect();
        Metric {
            name,
            help,
            kind: MetricKind::Gauge,
            samples,
        }
    })
}

fn value(labels: Vec<(&'static str, String)>, value: f64) -> Sample {
    Sample::Value { labels, value }
}

fn typed(kind: &str) -> Vec<(&'static str, String)> {
    vec![("type", kind.to_owned())]
}

fn by_type(counts: &BTreeMap<&'static str, u64>) -> Vec<Sample> {
    counts
        .iter()
        .map(|(kind, count)| value(typed(kind), *count as f64))
        .collect()
}

fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Metric {
    Metric {
        name,
        help,
        kind: MetricKind::Counter,
        samples,
    }
}

fn histogram(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Metric {
    Metric {
        name,
        help,
        kind: MetricKind::Histogram,
        samples,
    }
}

impl Histogram {
    fn observe(&mut self, bounds: &[f64], value: f64) {
        self.counts.resize(bounds.len(), 0);
        if let Some(index) = bounds.iter().position(|bound| value <= *bound) {
            self.counts[index] += 1;
        }
        self.sum += value;
        self.count += 1;
    }

    fn sample(&self, bounds: &[f64], labels: Vec<(&'static str, String)>) -> Sample {
        let mut below = 0;
        let buckets = bounds
            .iter()
            .enumerate()
            .map(|(index, bound)| {
                below += self.counts.get(index).copied().unwrap_or_default();
                (*bound, below)
            })
            .collect();
        Sample::Histogram {
            labels,
            buckets,
            sum: self.sum,
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_buckets_are_cumulative() {
        let metrics = Metrics::new();
        for millis in [50, 400, 400, 60_000] {
            metrics.converged(Duration::from_millis(millis));
        }
        let all = metrics.read(&[]);
        let convergence = all
            .iter()
            .find(|m| m.name == "pilot_proxy_convergence_time")
            .unwrap();
        let Sample::Histogram {
            buckets,
            sum,
            count,
            ..
        } = &convergence.samples[0]
        else {
            panic!("a histogram")
        };
        assert_eq!(buckets[..3], [(0.1, 1), (0.5, 3), (1.0, 3)]);
        assert_eq!(buckets[7], (30.0, 3));
        assert_eq!((*count, *sum), (4, 60.85));
    }

    #[test]
    fn types_that_nobody_knows_share_one_series() {
        let metrics = Metrics::new();
        metrics.rejected("type.googleapis.com/x.Y");
        metrics.rejected("evil");
        metrics.rejected(type_url::CLUSTER);
        let all = metrics.read(&[]);
        let rejects = all
            .iter()
            .find(|m| m.name == "pilot_total_xds_rejects")
            .unwrap();
        assert_eq!(
            rejects.samples,
            [
                value(vec![("type", "cds".into())], 1.0),
                value(vec![("type", "other".into())], 2.0),
            ]
        );
    }
}
