//! Counters of the server under Istio's names. Plain values for whoever renders them; no text
//! format and no HTTP here.

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
