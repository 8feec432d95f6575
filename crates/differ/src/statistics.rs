//! Whether two counts come from the same distribution.
//!
//! A case with `many` is sent so many times to each plane. For every kind of answer the two
//! shares are compared by the two-proportion z-test; |z| above [`LIMIT`] is a difference. Two
//! planes that draw alike exceed it once in 150,000 comparisons.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::compare::Difference;

/// In standard deviations: a two-sided confidence of 99.9993 %.
pub const LIMIT: f64 = 4.5;

/// How often each kind of thing was seen.
pub type Counts = BTreeMap<String, usize>;

/// Every kind whose shares of `total` differ more than chance lets them.
pub fn differences(envoy: &Counts, lateen: &Counts, total: usize) -> Vec<Difference> {
    let kinds = envoy.keys().chain(lateen.keys());
    let kinds: std::collections::BTreeSet<_> = kinds.collect();
    let count = |counts: &Counts, kind: &str| counts.get(kind).copied().unwrap_or_default();
    kinds
        .into_iter()
        .filter_map(|kind| {
            let (theirs, ours) = (count(envoy, kind), count(lateen, kind));
            let z = z(theirs, ours, total);
            (z.abs() > LIMIT).then(|| Difference {
                field: format!("share.{kind}"),
                envoy: json!({"count": theirs, "of": total}),
                lateen: json!({"count": ours, "of": total, "z": (z * 10.0).round() / 10.0}),
            })
        })
        .collect()
}

/// The two-proportion z statistic of two counts out of `total` each. A count above `total`
/// (attempts, mirrored copies) is taken as it is with the variance of a Poisson count.
fn z(a: usize, b: usize, total: usize) -> f64 {
    let (a, b, n) = (a as f64, b as f64, total as f64);
    let pooled = (a + b) / (2.0 * n);
    let variance = match pooled < 1.0 {
        true => 2.0 * n * pooled * (1.0 - pooled),
        false if a == b => return 0.0,
        false => a + b,
    };
    match variance > 0.0 {
        true => (b - a) / variance.sqrt(),
        false => 0.0,
    }
}

/// Counts as they are shown.
pub fn shown(counts: &Counts) -> Value {
    json!(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(a: usize, b: usize) -> Counts {
        [("a".to_owned(), a), ("b".to_owned(), b)].into()
    }

    #[test]
    fn chance_is_no_difference_and_another_weight_is() {
        assert!(differences(&counts(700, 300), &counts(680, 320), 1000).is_empty());
        assert_eq!(
            differences(&counts(700, 300), &counts(560, 440), 1000).len(),
            2
        );
        assert!(differences(&counts(1000, 0), &counts(1000, 0), 1000).is_empty());
        // What never happens with one and often with the other.
        assert!(!differences(&counts(1000, 0), &counts(950, 50), 1000).is_empty());
    }
}
