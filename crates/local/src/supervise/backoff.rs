//! How long to wait before a process is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// A process that was ready for this long has recovered.
pub const HEALTHY: Duration = Duration::from_secs(10);

/// 100 ms, doubled at each restart up to 5 s; back to 100 ms after a healthy run.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    pub fn new() -> Self {
        Self { next: FIRST }
    }

    /// The delay before the next start, after a run that was ready for `ready_for`.
    pub fn after(&mut self, ready_for: Duration) -> Duration {
        if ready_for >= HEALTHY {
            self.next = FIRST;
        }
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_seconds_and_start_over_after_a_healthy_run() {
        let mut backoff = Backoff::new();
        let crash = Duration::from_millis(3);
        let delays: Vec<u128> = (0..8).map(|_| backoff.after(crash).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(HEALTHY).as_millis(), 100);
        assert_eq!(backoff.after(crash).as_millis(), 200);
    }
}
