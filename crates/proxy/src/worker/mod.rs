//! The workers as other threads see them: start, configure, observe, drain.
//!
//! Each worker is one OS thread with its own runtime, listening sockets, upstream pools, timers
//! and statistics pages ([`state`], [`run`]). This handle lives on the main thread. Configuration
//! goes to every worker's mailbox as `Arc`s; a worker stores them in plain fields, and a request
//! keeps the ones it began with until it ends.
//!
//! Invariant: nothing here is called by a request, and no call here waits for a request.

pub(crate) mod limits;
mod mailbox;
mod run;
mod sockets;
pub(crate) mod state;
mod threads;
pub(crate) mod timers;

pub use limits::{ClusterLimits, ClusterLoad, Limits};
pub use mailbox::WorkerUpdate;
pub use sockets::BindError;
pub use threads::default_concurrency;

use crate::access_log::AccessLogWriters;
use crate::stats::{Registry, StatsSnapshot};
use crate::tls::{ClientSlot, Listing, TlsStore};
pub use crate::upstream::Home;
use crate::upstream::outlier::{Detectors, OutlierStatus};
use lateen_proxy_config::{Address, UpstreamTls};
use mailbox::{Command, Mailbox, OpenListener};
use sockets::Sockets;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What all workers and the main thread share. Requests touch only its atomics.
pub(crate) struct Shared {
    pub stats: Registry,
    pub limits: Limits,
    pub detectors: Detectors,
    pub access_logs: AccessLogWriters,
    pub tls: TlsStore,
    /// What the proxy knows of its own service; never where it knows nothing.
    pub home: OnceLock<Home>,
    /// Responses ask their client to go away (`Connection: close`, GOAWAY).
    pub draining: AtomicBool,
    /// How long TCP connections may outlive the filter chain that serves them, in milliseconds.
    pub drain_ms: AtomicU64,
    /// Downstream connections that are open now.
    pub connections: AtomicU64,
    /// TCP connections being proxied now.
    pub tcp: AtomicU64,
}

/// Envoy's default of `--drain-time-s`.
const DRAIN_MS: u64 = 600_000;

/// The data plane's threads.
pub struct Workers {
    shared: Arc<Shared>,
    mailboxes: Vec<Mailbox>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sockets: Mutex<Sockets>,
}

/// Why the workers could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start worker thread {index}: {source}; check the limits on threads and open files")]
pub struct StartError {
    pub index: usize,
    #[source]
    pub source: std::io::Error,
}

/// A listener that is open, for `/listeners`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAddress {
    pub listener: Arc<str>,
    /// As bound: the port is never 0.
    pub addresses: Vec<Address>,
}

impl Workers {
    /// Starts `concurrency` workers (at least one), with no listeners and no clusters.
    pub fn start(concurrency: usize) -> Result<Workers, StartError> {
        let shared = Arc::new(Shared {
            stats: Registry::default(),
            limits: Limits::default(),
            detectors: Detectors::default(),
            access_logs: AccessLogWriters::default(),
            tls: TlsStore::default(),
            home: OnceLock::new(),
            draining: AtomicBool::new(false),
            drain_ms: AtomicU64::new(DRAIN_MS),
            connections: AtomicU64::new(0),
            tcp: AtomicU64::new(0),
        });
        let mut workers = Workers {
            shared,
            mailboxes: Vec::new(),
            threads: Mutex::default(),
            sockets: Mutex::default(),
        };
        for index in 0..concurrency.max(1) {
            let (mailbox, inbox) = mailbox::channel();
            let thread = run::spawn(index, workers.shared.clone(), inbox)
                .map_err(|source| StartError { index, source })?;
            workers.mailboxes.push(mailbox);
            workers
                .threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok(workers)
    }

    /// Says which cluster is the proxy's own service, before any cluster is known.
    pub fn set_home(&self, home: Home) {
        // Said once.
        let _ = self.shared.home.set(home);
    }

    /// How many workers there are.
    pub fn concurrency(&self) -> usize {
        self.mailboxes.len()
    }

    /// Gives one update to every worker. A listener's sockets are opened here, so that a port that
    /// is taken comes back as an error before any worker has seen the listener.
    ///
    /// A listener that is known by name and keeps its addresses keeps its sockets: connections in
    /// the accept queue are not lost. Its old connections finish under the old generation.
    pub fn update(&self, update: WorkerUpdate) -> Result<(), BindError> {
        match update {
            WorkerUpdate::Listener(listener) => {
                let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
                let opened = sockets.open(&listener, self.mailboxes.len())?;
                self.shared.tls.prepare_listener(&listener);
                for (mailbox, sockets) in self.mailboxes.iter().zip(opened) {
                    let listener = listener.clone();
                    mailbox.send(Command::Listener(OpenListener { listener, sockets }));
                }
            }
            WorkerUpdate::RemoveListener(name) => {
                self.sockets
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .close(&name);
                self.shared.tls.forget_listener(&name);
                self.send_all(|| Command::Update(WorkerUpdate::RemoveListener(name.clone())));
            }
            // Workers find the new contexts where the old ones were.
            WorkerUpdate::Secret(whose, secret) => self.shared.tls.set_secret(whose, secret),
            update => {
                let detectors = &self.shared.detectors;
                match &update {
                    WorkerUpdate::RemoveCluster(name) => {
                        self.shared.stats.forget_cluster(name);
                        self.shared.tls.forget_cluster(name);
                        detectors.remove_cluster(name);
                    }
                    WorkerUpdate::Cluster(cluster) => {
                        self.shared.tls.prepare_cluster(cluster);
                        detectors.set_cluster(cluster);
                    }
                    WorkerUpdate::Endpoints(cluster, endpoints) => {
                        detectors.set_endpoints(cluster, endpoints);
                    }
                    _ => {}
                }
                self.send_all(|| Command::Update(update.clone()));
            }
        }
        Ok(())
    }

    /// Ejects endpoints that fail and takes them back, as long as it is polled. For the main thread.
    pub async fn watch_endpoints(&self) {
        loop {
            for cluster in self.shared.detectors.changes().await {
                self.send_all(|| Command::Rearrange(cluster.clone()));
            }
        }
    }

    /// What outlier detection has found in a cluster; [`None`]: it has none.
    pub fn outlier_status(&self, cluster: &str) -> Option<OutlierStatus> {
        self.shared.detectors.status(cluster)
    }

    /// Returns when every worker has applied all updates sent before.
    pub async fn flush(&self) {
        for mailbox in &self.mailboxes {
            let (done, wait) = tokio::sync::oneshot::channel();
            mailbox.send(Command::Flush(done));
            // A worker that has stopped has nothing left to apply.
            let _ = wait.await;
        }
    }

    /// The open listeners with the addresses they are bound to.
    pub fn listeners(&self) -> Vec<OpenAddress> {
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .list()
    }

    /// Counters and gauges, summed over all workers.
    pub fn stats(&self) -> StatsSnapshot {
        self.shared.stats.snapshot()
    }

    /// Load of a cluster against its circuit breakers now.
    pub fn cluster_load(&self, cluster: &str) -> ClusterLoad {
        self.shared.limits.load(cluster)
    }

    /// Downstream connections that are open now.
    pub fn active_connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Requests and TCP connections being served now.
    pub fn active_requests(&self) -> u64 {
        self.shared.stats.active_requests() + self.shared.tcp.load(Relaxed)
    }

    /// Whether clients are being asked to go elsewhere.
    pub fn draining(&self) -> bool {
        self.shared.draining.load(Relaxed)
    }

    /// How long TCP connections may outlive the filter chain that serves them.
    pub fn set_drain_time(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.shared.drain_ms.store(millis, Relaxed);
    }

    /// From now on (or no longer) every HTTP/1 response says `Connection: close` and every HTTP/2
    /// connection gets GOAWAY. New connections are still taken: this is `/healthcheck/fail` and the
    /// first step of a shutdown.
    pub fn set_draining(&self, draining: bool) {
        self.shared.draining.store(draining, Relaxed);
        self.send_all(|| Command::Draining(draining));
    }

    /// Closes all listening sockets; connections that are open go on (`/drain_listeners`).
    pub fn stop_listening(&self) {
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .close_all();
        self.send_all(|| Command::StopListening);
    }

    /// The certificates of every TLS context.
    pub(crate) fn certificates(&self) -> Vec<Listing> {
        self.shared.tls.listings()
    }

    /// Where the newest context stands for a connection of the main thread's own.
    pub(crate) fn client_tls(&self, tls: &Arc<UpstreamTls>) -> Arc<ClientSlot> {
        self.shared.tls.client(tls, false)
    }

    /// Whether certificates are read from files, so that they have to be looked at now and then.
    pub fn watches_files(&self) -> bool {
        self.shared.tls.watches()
    }

    /// Reads certificate files anew that have changed.
    pub fn reload_files(&self) {
        self.shared.tls.reload();
    }

    /// Opens access-log files anew (after log rotation).
    pub fn reopen_access_logs(&self) {
        self.shared.access_logs.reopen();
    }

    /// Lines that access logs had to drop because their disk or reader was too slow.
    pub fn access_log_lines_dropped(&self) -> u64 {
        self.shared.access_logs.dropped()
    }

    /// Ends all connections at once, stops the threads and waits for them, `limit` at most each.
    pub fn shutdown(&self, limit: Duration) {
        self.stop_listening();
        self.send_all(|| Command::Stop);
        let threads: Vec<_> =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let until = std::time::Instant::now() + limit;
        for thread in threads {
            while !thread.is_finished() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("a worker thread ended with a panic");
            }
        }
        self.shared.access_logs.flush();
    }

    fn send_all(&self, command: impl Fn() -> Command) {
        for mailbox in &self.mailboxes {
            mailbox.send(command());
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.send_all(|| Command::Stop);
    }
}
