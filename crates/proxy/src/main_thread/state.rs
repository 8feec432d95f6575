//! What the main thread knows, for those who read it (admin) or ask something of it.
//!
//! Architecture Invariant: admin reads here and sends [`Request`]s; it never changes configuration.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lateen_xds::Node;
use serde_json::Value;
use tokio::sync::mpsc;

use super::config::Config;
use super::logging::LogControl;
use crate::worker::Workers;

/// Shared between the main loop and admin; `Arc<ProxyState>`.
pub struct ProxyState {
    pub node: Node,
    /// The bootstrap as it was read, for `config_dump`.
    pub bootstrap: Value,
    pub options: super::Options,
    pub started: SystemTime,
    pub workers: Arc<Workers>,
    pub log: LogControl,
    config: Mutex<Config>,
    control_plane: Mutex<ControlPlane>,
    phase: AtomicU8,
    requests: mpsc::UnboundedSender<Request>,
}

/// Envoy's server states (`admin/v3/server_info.proto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Live = 0,
    Draining = 1,
    PreInitializing = 2,
    Initializing = 3,
}

impl Phase {
    /// As `/server_info` and `/ready` write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// The stream to the control plane.
#[derive(Clone, Debug, Default)]
pub struct ControlPlane {
    /// Empty: the bootstrap names none.
    pub target: String,
    pub connected: bool,
    pub since: Option<SystemTime>,
    /// Why there is no stream.
    pub last_error: Option<String>,
    pub reconnects: u64,
    pub updates: u64,
    pub rejected_updates: u64,
}

/// What admin may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `/quitquitquit`: end at once, without drain, as Envoy does.
    Quit,
    /// `/drain_listeners`; `graceful`: first tell clients to go, then close after the drain time.
    DrainListeners { graceful: bool },
    /// `/healthcheck/fail` and `/healthcheck/ok`.
    FailHealthcheck(bool),
}

impl ProxyState {
    pub(super) fn new(
        bootstrap: &super::Bootstrap,
        secret_sources: BTreeSet<Arc<str>>,
        options: super::Options,
        workers: Arc<Workers>,
        log: LogControl,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Request>) {
        let (requests, received) = mpsc::unbounded_channel();
        let target = bootstrap
            .ads
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let state = Self {
            node: bootstrap.node.clone(),
            bootstrap: bootstrap.raw.clone(),
            options,
            started: SystemTime::now(),
            workers,
            log,
            config: Mutex::new(Config::new(bootstrap.ads.is_some(), secret_sources)),
            control_plane: Mutex::new(ControlPlane {
                target,
                ..ControlPlane::default()
            }),
            phase: AtomicU8::new(Phase::PreInitializing as u8),
            requests,
        };
        (Arc::new(state), received)
    }

    /// Every resource with its version and error. Hold it shortly: the main loop waits for it.
    pub fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Live,
            1 => Phase::Draining,
            2 => Phase::PreInitializing,
            _ => Phase::Initializing,
        }
    }

    pub fn control_plane(&self) -> ControlPlane {
        self.control_plane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn request(&self, request: Request) {
        // Fails only when the process is ending already.
        let _ = self.requests.send(request);
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    pub(super) fn note_control_plane(&self, change: impl FnOnce(&mut ControlPlane)) {
        change(
            &mut self
                .control_plane
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}
