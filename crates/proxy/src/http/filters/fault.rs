//! Delays and aborts that routes ask for (`envoy.filters.http.fault`).
//!
//! Delay and abort are drawn independently; a request with both is delayed first.

use super::Flow;
use crate::http::exchange::Exchange;
use crate::http::local;
use crate::http::request::Routed;
use crate::http::stream::Downstream;
use crate::outcome::Outcome;
use crate::stats::{HttpStat, Page};
use crate::worker::limits::{give, take};
use lateen_proxy_config::{AbortStatus, Fault, FaultAbort, FaultFilter};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::Poll;
use std::time::Duration;

/// What is to be injected into one request.
pub(super) struct Chosen<'a> {
    delay: Option<Duration>,
    abort: Option<&'a FaultAbort>,
    max_active: Option<u32>,
}

/// Draws what is to be injected; [`None`]: nothing.
pub(super) fn choose<'a>(
    x: &Exchange,
    routed: Option<Routed<'a>>,
    filter: &'a FaultFilter,
) -> Option<Chosen<'a>> {
    let own = filter.fault.as_deref();
    let fault: &Fault = match routed {
        Some(routed) => routed.route.filters.fault.over(own)?,
        None => own?,
    };
    if !fault.headers.iter().all(|h| h.matches(&x.request)) {
        return None;
    }
    let drawn = || x.worker.random();
    let delay = fault.delay.filter(|(share, _)| share.includes(drawn()));
    let abort = fault.abort.as_ref();
    let abort = abort.filter(|(share, _)| share.includes(drawn()));
    let delay = delay.map(|(_, delay)| delay);
    let chosen = Chosen {
        delay: delay.filter(|delay| delay.as_millis() > 0),
        abort: abort.map(|(_, abort)| abort),
        max_active: fault.max_active,
    };
    (chosen.delay.is_some() || chosen.abort.is_some()).then_some(chosen)
}

pub(super) async fn inject<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    filter: &FaultFilter,
    chosen: Chosen<'_>,
) -> Flow {
    if let Some(delay) = chosen.delay
        && begin(x, filter, chosen.max_active)
    {
        x.marks.get_or_insert_default().delayed = true;
        x.service.stats.inc(HttpStat::FaultDelaysInjected);
        match wait(x, down, delay).await {
            Ok(()) => {}
            Err(Outcome::ClientGone) => {
                x.outcome = Outcome::ClientGone;
                down.abort();
                return Flow::Answered;
            }
            Err(outcome) => {
                local::refuse_as(x, down, routed, outcome, outcome.row().status).await;
                return Flow::Answered;
            }
        }
    }
    let Some(abort) = chosen.abort else {
        return Flow::Continue;
    };
    if !begin(x, filter, chosen.max_active) {
        return Flow::Continue;
    }
    x.service.stats.inc(HttpStat::FaultAbortsInjected);
    x.outcome = Outcome::FaultAbort;
    let usual = Outcome::FaultAbort.row().body;
    let body = abort.body.as_deref().unwrap_or(usual);
    let (status, grpc) = match abort.status {
        AbortStatus::Http(status) => (status, None),
        AbortStatus::Grpc(status) => (200, Some(status)),
    };
    let head = local::head(x, status, None, body.len());
    local::send_as(x, down, routed, head, body.as_bytes(), grpc).await;
    Flow::Answered
}

/// Waits as long as the client stays and its stream may be idle.
async fn wait<D: Downstream>(x: &Exchange, down: &mut D, delay: Duration) -> Result<(), Outcome> {
    let timers = &x.worker.timers;
    let from = timers.now();
    let after = |d: Duration| from.saturating_add(d.as_millis() as u64);
    let end = after(delay);
    let idle = x.service.manager.timeouts.stream_idle.map(after);
    let idle = idle.filter(|idle| *idle < end);
    timers.set(down.deadline(), Some(idle.unwrap_or(end)));
    poll_fn(|cx| {
        if down.poll_gone(cx, &x.worker).is_ready() {
            return Poll::Ready(Err(Outcome::ClientGone));
        }
        if timers.poll(down.deadline(), cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match idle {
            Some(_) => Err(Outcome::StreamIdle),
            None => Ok(()),
        })
    })
    .await
}

/// Counts the request among those with a fault, until it ends; false: there are enough.
fn begin(x: &mut Exchange, filter: &FaultFilter, max: Option<u32>) -> bool {
    if x.marks.as_ref().is_some_and(|m| m.fault.is_some()) {
        return true;
    }
    if !take(&filter.active, max.unwrap_or(u32::MAX)) {
        x.service.stats.inc(HttpStat::FaultsOverflow);
        return false;
    }
    x.service.stats.inc(HttpStat::ActiveFaults);
    x.marks.get_or_insert_default().fault = Some(ActiveFault {
        active: filter.active.clone(),
        stats: x.service.stats.clone(),
    });
    true
}

/// A request with a fault, as long as it lives.
pub(super) struct ActiveFault {
    active: Arc<AtomicU32>,
    stats: Arc<Page>,
}

impl Drop for ActiveFault {
    fn drop(&mut self) {
        give(&self.active);
        self.stats.dec(HttpStat::ActiveFaults);
    }
}
