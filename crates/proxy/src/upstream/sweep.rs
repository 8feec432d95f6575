//! Closes idle upstream connections: at once when the peer closes them, and after their idle time.
//!
//! One task per worker. An idle connection keeps its interest in its socket; the event that says
//! that the peer has closed wakes this task, which looks at all idle connections without a system
//! call. Original destinations that are no longer used are forgotten on the way.

use crate::stats::ClusterStat;
use crate::worker::state::Worker;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How often idle times are looked at while there are idle connections.
const EVERY: Duration = Duration::from_secs(1);

/// The waker of the sweeping task.
#[derive(Default)]
pub(crate) struct Sweeper(RefCell<Option<Waker>>);

impl Worker {
    /// Runs `f` so that what it waits for wakes the sweeper.
    pub(crate) fn clusters_sweeper<R>(&self, f: impl FnOnce(&mut Context<'_>) -> R) -> R {
        match self.sweeper.0.borrow().as_ref() {
            Some(waker) => f(&mut Context::from_waker(waker)),
            None => f(&mut Context::from_waker(Waker::noop())),
        }
    }
}

/// Runs for the life of the worker.
pub(crate) async fn run(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    poll_fn(|cx| {
        let same = worker
            .sweeper
            .0
            .borrow()
            .as_ref()
            .is_some_and(|w| w.will_wake(cx.waker()));
        if !same {
            *worker.sweeper.0.borrow_mut() = Some(cx.waker().clone());
        }
        while tick.poll_tick(cx).is_ready() {
            worker
                .clusters
                .for_each_active(|cluster| cluster.forget_unused());
        }
        sweep(&worker, cx);
        Poll::<()>::Pending
    })
    .await;
}

fn sweep(worker: &Rc<Worker>, cx: &mut Context<'_>) {
    let now = worker.timers.now();
    worker.clusters.for_each_active(|cluster| {
        let limit = cluster
            .config
            .http
            .idle_timeout
            .map(|d| d.as_millis() as u64);
        let mut dropped = Vec::new();
        for host in cluster.pooled_hosts() {
            for conn in host.http2.borrow().iter().filter(|conn| conn.is_in_use()) {
                if limit.is_some_and(|limit| conn.is_idle(now, limit)) {
                    cluster.stats.inc(ClusterStat::UpstreamCxIdleTimeout);
                    conn.retire();
                } else if cluster.is_too_old(conn.opened, now) {
                    // What is on it ends as it would.
                    conn.retire();
                }
            }
            let mut idle = host.idle.borrow_mut();
            if idle.is_empty() {
                continue;
            }
            let mut at = 0;
            while let Some(conn) = idle.get(at) {
                let old = limit.is_some_and(|limit| now >= conn.idle_since.saturating_add(limit));
                if old {
                    cluster.stats.inc(ClusterStat::UpstreamCxIdleTimeout);
                }
                if old || cluster.is_too_old(conn.opened, now) || conn.is_stale(cx) {
                    dropped.push(idle.remove(at));
                } else {
                    at += 1;
                }
            }
        }
        // Dropped outside the borrow: a connection's ticket may wake another task.
        drop(dropped);
    });
}
