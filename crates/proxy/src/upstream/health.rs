//! What the whole process knows of one endpoint's health.
//!
//! Every worker adds to these counters with single atomic operations; a threshold that is reached is
//! reported to the main thread, which alone decides about ejections ([`super::outlier`]). Reading
//! whether an endpoint is ejected happens when a worker arranges its endpoints, never per request.

use lateen_proxy_config::{Consecutive, OutlierDetection};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::mpsc;

/// One endpoint of one cluster.
#[derive(Debug)]
pub(crate) struct HostHealth {
    pub cluster: Arc<str>,
    pub address: SocketAddr,
    /// Since when it has been part of the cluster.
    pub since: Instant,
    ejected: AtomicBool,
    failures: [AtomicU32; 3],
    /// Answers, and connections made, in this interval.
    pub(super) external: Rate,
    pub(super) local: Rate,
    /// Bits of [`Failures`] that the main thread has not looked at yet.
    reported: AtomicU8,
    reports: Reports,
}

/// Where detections go. Holds at most one entry per endpoint.
pub(super) type Reports = mpsc::UnboundedSender<Arc<HostHealth>>;

/// Failures that are counted in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failures {
    Status5xx,
    Gateway,
    LocalOrigin,
}

impl Failures {
    pub(super) const ALL: [Failures; 3] = [
        Failures::Status5xx,
        Failures::Gateway,
        Failures::LocalOrigin,
    ];
}

/// What a try, or a TCP connection, showed of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// An answer with this status.
    Answer(u16),
    /// A connection that will carry requests.
    Connected,
    /// A connection that was all that was wanted (TCP).
    ConnectedOnly,
    /// No connection, or one that broke.
    LocalFailure,
    /// No answer in time.
    LocalTimeout,
}

/// Requests, and those that went well.
#[derive(Debug, Default)]
pub(super) struct Rate {
    total: AtomicU32,
    good: AtomicU32,
}

impl Rate {
    fn count(&self, good: bool) {
        self.total.fetch_add(1, Relaxed);
        if good {
            self.good.fetch_add(1, Relaxed);
        }
    }

    /// Reads and begins anew: percent of good ones, and how many there were.
    pub(super) fn take(&self) -> Option<(f64, u32)> {
        let (total, good) = (self.total.swap(0, Relaxed), self.good.swap(0, Relaxed));
        (total > 0).then(|| (f64::from(good) * 100.0 / f64::from(total), total))
    }
}

impl HostHealth {
    pub(super) fn new(cluster: Arc<str>, address: SocketAddr, reports: Reports) -> Arc<HostHealth> {
        Arc::new(HostHealth {
            cluster,
            address,
            since: Instant::now(),
            ejected: AtomicBool::new(false),
            failures: Default::default(),
            external: Rate::default(),
            local: Rate::default(),
            reported: AtomicU8::new(0),
            reports,
        })
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    pub(super) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Relaxed);
        if !ejected {
            // A few new failures must not be enough because of those before the ejection.
            Failures::ALL.iter().for_each(|kind| self.reset(*kind));
        }
    }

    /// Counts what was seen (Envoy, `DetectorHostMonitorImpl::putResult`).
    pub(crate) fn note(self: &Arc<Self>, config: &OutlierDetection, seen: Seen) {
        if config.split_local_origin {
            return match seen {
                Seen::Answer(status) => self.note_status(config, status),
                Seen::Connected | Seen::ConnectedOnly => {
                    self.count_rate(config, &self.local, true);
                    self.reset(Failures::LocalOrigin);
                }
                Seen::LocalFailure | Seen::LocalTimeout => {
                    self.count_rate(config, &self.local, false);
                    self.count(config.consecutive_local, Failures::LocalOrigin);
                }
            };
        }
        match seen {
            Seen::Answer(status) => self.note_status(config, status),
            Seen::ConnectedOnly => self.note_status(config, 200),
            Seen::LocalFailure => self.note_status(config, 503),
            Seen::LocalTimeout => self.note_status(config, 504),
            // What is sent over the connection will say how it is.
            Seen::Connected => {}
        }
    }

    fn note_status(self: &Arc<Self>, config: &OutlierDetection, status: u16) {
        let good = status < 500;
        self.count_rate(config, &self.external, good);
        if good {
            self.reset(Failures::Status5xx);
            self.reset(Failures::Gateway);
            return;
        }
        if matches!(status, 502..=504) {
            self.count(config.consecutive_gateway, Failures::Gateway);
        } else {
            self.reset(Failures::Gateway);
        }
        self.count(config.consecutive_5xx, Failures::Status5xx);
    }

    /// Rates cost two shared counters per request: they are only kept where they can eject.
    fn count_rate(&self, config: &OutlierDetection, rate: &Rate, good: bool) {
        let (rates, shares) = (&config.success_rate, &config.failure_percentage);
        if rates.enforcing | rates.enforcing_local | shares.enforcing | shares.enforcing_local > 0 {
            rate.count(good);
        }
    }

    fn count(self: &Arc<Self>, limit: Consecutive, kind: Failures) {
        let failures = self.failures[kind as usize].fetch_add(1, Relaxed);
        if failures.wrapping_add(1) == limit.threshold {
            let before = self.reported.fetch_or(1 << kind as u8, Relaxed);
            if before == 0 {
                // Fails when the main thread is gone, and then nobody ejects.
                let _ = self.reports.send(self.clone());
            }
        }
    }

    pub(super) fn reset(&self, kind: Failures) {
        let failures = &self.failures[kind as usize];
        // Most answers are good and follow good ones: no write then.
        if failures.load(Relaxed) != 0 {
            failures.store(0, Relaxed);
        }
    }

    /// Takes what was reported.
    pub(super) fn take_reported(&self) -> impl Iterator<Item = Failures> {
        let bits = self.reported.swap(0, Relaxed);
        Failures::ALL
            .into_iter()
            .filter(move |kind| bits & (1 << *kind as u8) != 0)
    }
}
