//! Listeners whose address was taken: tried again until it is free, or they are changed or gone.
//!
//! The control plane has had its answer, the NACK, so it sends nothing more; without this a
//! listener would stay closed long after whatever had its port has left. When it is open at last,
//! it is asked for again, so that the control plane gets a better answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_proxy_config::Listener;

use super::{Config, Generation, Outside};
use crate::worker::WorkerUpdate;

/// Between the first failure and the next try; doubled after each one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(8);

/// A generation that could not be bound.
#[derive(Debug)]
pub(super) struct Unbound {
    pub generation: Generation<Listener>,
    pub next: Instant,
    wait: Duration,
}

impl Unbound {
    pub(super) fn new(generation: Generation<Listener>, now: Instant) -> Self {
        Self {
            generation,
            next: now + FIRST,
            wait: FIRST,
        }
    }

    fn later(mut self, now: Instant) -> Self {
        self.wait = (self.wait * 2).min(LONGEST);
        self.next = now + self.wait;
        self
    }
}

impl Config {
    /// Tries those whose time has come.
    pub(super) fn rebind(&mut self, now: Instant, out: &mut dyn Outside) {
        let due: Vec<Arc<str>> = self
            .wait
            .unbound
            .iter()
            .filter(|(_, unbound)| now >= unbound.next)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(unbound) = self.wait.unbound.remove(&name) else {
                continue;
            };
            let Some(entry) = self.listeners.get_mut(&name) else {
                continue;
            };
            let generation = &unbound.generation;
            let version = generation.version_info.clone();
            // A later version may have been refused for another reason, which then still holds.
            let is_last_error = entry
                .error
                .as_ref()
                .is_some_and(|error| error.version_info == version);
            match out.worker(WorkerUpdate::Listener(generation.value.clone())) {
                Ok(()) => {
                    tracing::info!(listener = %name, "listening: the address is free now");
                    if is_last_error {
                        entry.error = None;
                        // Sent once more it is accepted: the only way to take a NACK back.
                        out.subscribe(lateen_xds::type_url::LISTENER, &name);
                    }
                    entry.active = Some(unbound.generation);
                    self.refresh_rds(out);
                }
                Err(reason) => {
                    tracing::debug!(listener = %name, reason, "still refused");
                    if is_last_error {
                        entry.fail(generation.any.clone(), &version, &reason);
                    }
                    self.wait.unbound.insert(name, unbound.later(now));
                }
            }
        }
    }
}
