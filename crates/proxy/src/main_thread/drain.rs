//! The end of the process: say goodbye, let what is in flight finish, close.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::{Options, Phase, ProxyState};

/// How often the count of open requests is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// For connections that were accepted last to say what they want.
const FIRST_WORD: Duration = Duration::from_millis(150);
/// For threads to end after their connections were cut.
const JOIN: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT, which mean the same.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one, by its number.
    pub(super) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// Tells clients to go, keeps accepting for the minimum time, then waits for what is in flight, at
/// most the maximum time. A second signal ends the process at once with 128 + its number.
pub(super) async fn drain(state: &ProxyState, options: &Options, signals: &mut Signals) {
    state.set_phase(Phase::Draining);
    let workers = &state.workers;
    tracing::info!(
        requests = workers.active_requests(), connections = workers.active_connections(),
        min = ?options.min_drain, max = ?options.max_drain, "draining"
    );
    tokio::select! {
        () = wind_down(state, options) => {}
        second = signals.next() => {
            tracing::warn!("second signal: leaving at once");
            std::process::exit(128 + second);
        }
    }
}

async fn wind_down(state: &ProxyState, options: &Options) {
    let workers = &state.workers;
    let end = Instant::now() + options.min_drain.max(options.max_drain);
    workers.set_draining(true);
    tokio::time::sleep(options.min_drain).await;
    workers.stop_listening();
    workers.flush().await;
    let heard = Instant::now() + FIRST_WORD.min(options.max_drain);
    let unheard = || workers.active_connections() > 0 && Instant::now() < heard;
    while (workers.active_requests() > 0 || unheard()) && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
    let left = workers.active_requests();
    if left > 0 {
        tracing::warn!(requests = left, "cut after {:?}", options.max_drain);
    }
    workers.shutdown(JOIN);
}
