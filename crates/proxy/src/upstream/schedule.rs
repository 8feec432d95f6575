//! Weighted turns: earliest deadline first, as Envoy's `EdfScheduler`. Something of weight 3 comes
//! three times as often as something of weight 1, evenly spread.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug, Default)]
pub(super) struct Schedule {
    turns: BinaryHeap<Turn>,
    now: f64,
    order: u64,
}

#[derive(Debug)]
struct Turn {
    at: f64,
    /// Of two at the same time the one entered first comes first.
    order: u64,
    index: usize,
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
            .then(other.order.cmp(&self.order))
    }
}

impl Schedule {
    pub(super) fn add(&mut self, index: usize, weight: f64) {
        self.turns.push(Turn {
            at: self.now + 1.0 / weight.max(f64::MIN_POSITIVE),
            order: self.order,
            index,
        });
        self.order += 1;
    }

    /// Whose turn it is. Its next one is by the weight it has now.
    pub(super) fn next(&mut self, weight_of: impl FnOnce(usize) -> f64) -> Option<usize> {
        let order = self.order;
        let mut turn = self.turns.peek_mut()?;
        let index = turn.index;
        self.now = turn.at;
        turn.at += 1.0 / weight_of(index).max(f64::MIN_POSITIVE);
        turn.order = order;
        self.order += 1;
        Some(index)
    }
}
