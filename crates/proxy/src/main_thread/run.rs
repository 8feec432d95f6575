//! The main loop: one thread, one small runtime, everything that is not traffic.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lateen_proxy_config::{Cluster, SecretRef, SecretSource, UpstreamTls};
use lateen_xds::client::{Client, Config as AdsConfig, Event, Reply, Update};
use lateen_xds::{Rejection, type_url};
use thiserror::Error;
use tokio::sync::mpsc;

use super::config::Outside;
use super::dns::{Resolved, Resolver};
use super::drain::{self, Signals};
use super::secrets::{Arrived, Follower};
use super::{
    Bootstrap, BootstrapError, LevelError, LogControl, Options, Phase, ProxyState, Request,
};
use super::{names, secrets, secure, static_resources};
use crate::dns::Server;
use crate::worker::{StartError, WorkerUpdate, Workers, default_concurrency};

/// How often certificate files are looked at. Asking costs a system call per file, and works with
/// every way in which files are replaced.
const FILES: Duration = Duration::from_secs(1);

/// Why a proxy could not run.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error(transparent)]
    Workers(#[from] StartError),
    #[error("cannot start the runtime of the main thread: {0}")]
    Runtime(std::io::Error),
    #[error(
        "cannot listen on the admin address {address}: {source}; stop what uses it or change \
         admin.address in {path}"
    )]
    Admin {
        address: SocketAddr,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "cannot answer DNS on {address}: {reason}; stop what uses it, choose another with \
         DNS_PROXY_ADDR, or do without (metadata DNS_CAPTURE)"
    )]
    Names { address: String, reason: String },
    #[error(transparent)]
    Identity(#[from] lateen_agent::ConfigError),
    #[error("{path}: transport_socket of the control plane's cluster: {reason}")]
    Secure { path: PathBuf, reason: String },
    #[error("{path}: static_resources: {name}: {reason}")]
    Static {
        path: PathBuf,
        name: String,
        reason: String,
    },
}

/// Runs a proxy until it is told to stop. Returns after a clean end.
pub fn run(options: Options) -> Result<(), RunError> {
    super::memory::no_huge_pages();
    let log = LogControl::start(&options.log_level)?;
    if options.exit_with_parent {
        exit_with_parent();
    }
    let mut bootstrap = Bootstrap::read(&options.config_path)?;
    names::adopt_environment(&mut bootstrap.node);
    for notice in &bootstrap.notices {
        tracing::warn!(file = %options.config_path.display(), field = notice.path, "{}", notice.what);
    }
    let concurrency = if options.concurrency == 0 {
        default_concurrency()
    } else {
        options.concurrency
    };
    let workers = Arc::new(Workers::start(concurrency)?);
    workers.set_drain_time(options.chain_drain);
    if let Some(home) = bootstrap.home() {
        workers.set_home(home);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Some for the names of clusters, some for what must not wait for those: the name of the
        // control plane, keys, the configuration dump.
        .max_blocking_threads(super::dns::AT_ONCE + 4)
        .thread_stack_size(512 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(RunError::Runtime)?;
    let identity = identity(&options, &bootstrap)?;
    let sources = secrets::sources(&bootstrap.secret_sources, identity.as_ref());
    let (state, requests) = ProxyState::new(&bootstrap, sources, options, workers, log);
    runtime.block_on(MainLoop::serve(state, requests, bootstrap, identity))
}

/// The identity that the flags ask for, of the workload that the bootstrap names.
pub(super) fn identity(
    options: &Options,
    bootstrap: &Bootstrap,
) -> Result<Option<lateen_agent::Config>, lateen_agent::ConfigError> {
    let node = &bootstrap.node;
    let of_id = node.parsed.as_ref().map(|id| id.namespace.as_str());
    let namespace = node.metadata_str("NAMESPACE").or(of_id);
    let account = node.metadata_str("SERVICE_ACCOUNT");
    options.identity.config(namespace, account)
}

/// The parent holds our standard input open and never writes: when it dies, however it dies, the
/// read ends.
pub(super) fn exit_with_parent() {
    let watch = || {
        let mut sink = std::io::sink();
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut sink);
        std::process::exit(0);
    };
    let thread = std::thread::Builder::new()
        .name("parent".into())
        .stack_size(64 * 1024);
    if let Err(error) = thread.spawn(watch) {
        tracing::warn!(%error, "cannot watch the parent process");
    }
}

fn start_admin(state: &Arc<ProxyState>, address: Option<SocketAddr>) -> Result<(), RunError> {
    let Some(address) = address else {
        return Ok(());
    };
    let path = state.options.config_path.clone();
    let bound = crate::admin::start(address, state.clone()).map_err(|source| RunError::Admin {
        address,
        path,
        source,
    })?;
    tracing::info!(address = %bound, "admin");
    Ok(())
}

struct MainLoop {
    state: Arc<ProxyState>,
    ads: Option<Client>,
    resolver: Resolver,
    follower: Follower,
    names: Option<Server>,
    /// LDS answers that wait for listeners to be bound.
    owed: VecDeque<Owed>,
}

/// An answer to the control plane that is not complete yet.
struct Owed {
    reply: Reply,
    /// Listener name and version.
    undecided: BTreeSet<(String, String)>,
    rejections: Vec<Rejection>,
}

/// One step's view of the world outside the configuration.
struct Effects<'a> {
    workers: &'a Workers,
    ads: Option<&'a Client>,
    resolver: &'a mut Resolver,
    follower: &'a mut Follower,
    decided: Vec<(String, String, Result<(), String>)>,
}

impl Outside for Effects<'_> {
    fn worker(&mut self, update: WorkerUpdate) -> Result<(), String> {
        self.workers
            .update(update)
            .map_err(|error| error.to_string())
    }

    fn subscribe(&mut self, type_url: &'static str, name: &str) {
        if let Some(ads) = self.ads {
            ads.subscribe(type_url, [name.to_owned()]);
        }
    }

    fn unsubscribe(&mut self, type_url: &'static str, name: &str) {
        if let Some(ads) = self.ads {
            ads.unsubscribe(type_url, [name.to_owned()]);
        }
    }

    fn subscribe_all(&mut self, type_url: &'static str) {
        if let Some(ads) = self.ads {
            ads.subscribe_all(type_url);
        }
    }

    fn forget(&mut self, type_url: &'static str, prefix: &str) {
        if let Some(ads) = self.ads {
            ads.forget(type_url, prefix);
        }
    }

    fn follow(&mut self, secret: &SecretRef) {
        match &secret.source {
            SecretSource::Ads => self.subscribe(type_url::SECRET, &secret.name),
            SecretSource::Cluster(_) => self.follower.follow(secret),
        }
    }

    fn unfollow(&mut self, secret: &SecretRef) {
        match &secret.source {
            SecretSource::Ads => self.unsubscribe(type_url::SECRET, &secret.name),
            SecretSource::Cluster(_) => self.follower.unfollow(secret),
        }
    }

    fn resolve(&mut self, cluster: &Arc<Cluster>) {
        self.resolver.start(cluster.clone());
    }

    fn stop_resolving(&mut self, cluster: &str) {
        self.resolver.stop(cluster);
    }

    fn listener_decided(&mut self, name: &str, version: &str, outcome: Result<(), String>) {
        if let Err(reason) = &outcome {
            tracing::warn!(listener = name, reason, "listener refused");
        }
        self.decided
            .push((name.to_owned(), version.to_owned(), outcome));
    }
}

impl MainLoop {
    async fn serve(
        state: Arc<ProxyState>,
        mut requests: mpsc::UnboundedReceiver<Request>,
        bootstrap: Bootstrap,
        identity: Option<lateen_agent::Config>,
    ) -> Result<(), RunError> {
        let mut signals = Signals::listen().map_err(RunError::Runtime)?;
        start_admin(&state, bootstrap.admin)?;
        let workers = state.workers.clone();
        tokio::spawn(async move { workers.watch_endpoints().await });
        let names = names::start(&state.node).await?;
        let (resolver, mut resolved) = Resolver::new();
        let sockets = bootstrap.secret_sources.clone();
        let (follower, mut arrivals) = Follower::new(state.node.clone(), sockets, identity);
        let secured = control_plane_tls(&bootstrap, &state.options)?;
        let own = secured.as_ref().map(|tls| secure::secrets(tls));
        let (ads, mut events) = match bootstrap.ads.clone() {
            Some(target) => {
                let slot = secured.map(|tls| state.workers.client_tls(&tls));
                let secure = slot.map(|slot| secure::secure(slot, &target));
                let mut config = AdsConfig::new(target, state.node.clone());
                config.secure = secure;
                let (client, events) = Client::start(config);
                client.subscribe_all(type_url::CLUSTER);
                client.subscribe_all(type_url::LISTENER);
                if names.is_some() {
                    client.subscribe_all(type_url::NAME_TABLE);
                }
                (Some(client), Some(events))
            }
            None => (None, None),
        };
        let mut main = Self {
            state,
            ads,
            resolver,
            follower,
            names,
            owed: VecDeque::new(),
        };
        main.state.set_phase(Phase::Initializing);
        main.step(|config, _, out| config.need_secrets(own.unwrap_or_default(), out));
        main.apply_static(&bootstrap)?;
        let mut files = tokio::time::interval(FILES);
        files.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            main.note_phase();
            let deadline = main.state.config().next_deadline();
            tokio::select! {
                event = next(&mut events) => main.event(event),
                Some(arrived) = arrivals.recv() => main.secret(arrived),
                Some(resolved) = resolved.recv() => main.resolved(resolved),
                () = sleep_until(deadline) => main.step(|config, now, out| config.settle(now, out)),
                _ = files.tick(), if main.state.workers.watches_files() => {
                    main.state.workers.reload_files();
                }
                Some(request) = requests.recv() => {
                    if main.request(request) {
                        main.state.workers.shutdown(Duration::from_millis(500));
                        return Ok(());
                    }
                }
                _ = signals.next() => {
                    drain::drain(&main.state, &main.state.options, &mut signals).await;
                    return Ok(());
                }
            }
        }
    }

    fn apply_static(&mut self, bootstrap: &Bootstrap) -> Result<(), RunError> {
        let path = self.state.options.config_path.clone();
        let fail = |name: &str, reason: &str| RunError::Static {
            path: path.clone(),
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        for (url, resources) in static_resources::read(bootstrap, &path)? {
            let refused =
                self.step(|config, now, out| config.apply_static(url, &resources, now, out));
            if let Some(refused) = refused.first() {
                return Err(fail(&refused.name, &refused.reason));
            }
        }
        self.step(|config, now, out| config.settle(now, out));
        let config = self.state.config();
        for (name, entry) in &config.listeners {
            if let Some(error) = &entry.error {
                return Err(fail(name, &error.details));
            }
        }
        for (path, notice) in config.notices() {
            tracing::warn!(resource = %path, field = notice.path, "{}", notice.what);
        }
        Ok(())
    }

    /// Changes the configuration, then gives the answers that have become complete.
    fn step<T>(
        &mut self,
        change: impl FnOnce(&mut super::config::Config, Instant, &mut dyn Outside) -> T,
    ) -> T {
        let mut out = Effects {
            workers: &self.state.workers,
            ads: self.ads.as_ref(),
            resolver: &mut self.resolver,
            follower: &mut self.follower,
            decided: Vec::new(),
        };
        let result = change(&mut self.state.config(), Instant::now(), &mut out);
        for (name, version, outcome) in out.decided {
            self.decided(name, version, outcome);
        }
        self.answer();
        result
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Connected => {
                tracing::info!("connected to the control plane");
                self.state.note_control_plane(|control| {
                    control.connected = true;
                    control.since = Some(SystemTime::now());
                    control.last_error = None;
                });
            }
            Event::Disconnected { reason, retry_in } => {
                // Once is news; the attempts that follow are not.
                if self.state.control_plane().last_error.is_none() {
                    tracing::warn!(reason, ?retry_in, "no control plane; serving on as before");
                } else {
                    tracing::debug!(reason, ?retry_in, "still no control plane");
                }
                self.state.note_control_plane(|control| {
                    if control.connected {
                        control.since = Some(SystemTime::now());
                    }
                    control.connected = false;
                    control.reconnects += 1;
                    control.last_error = Some(reason);
                });
            }
            Event::Update(update) => match &self.names {
                Some(server) if update.type_url == type_url::NAME_TABLE => {
                    names::update(server, update);
                }
                _ => self.update(update),
            },
        }
    }

    fn update(&mut self, update: Update) {
        let Update {
            type_url: url,
            version,
            resources,
            removed,
            reply,
        } = update;
        let started = Instant::now();
        let is_listeners = url == type_url::LISTENER;
        let mut owed = Owed {
            reply,
            undecided: BTreeSet::new(),
            rejections: Vec::new(),
        };
        if is_listeners {
            owed.undecided = resources
                .iter()
                .map(|r| (r.name.clone(), r.version.clone()))
                .collect();
        }
        let mut out = Effects {
            workers: &self.state.workers,
            ads: self.ads.as_ref(),
            resolver: &mut self.resolver,
            follower: &mut self.follower,
            decided: Vec::new(),
        };
        let rejections = {
            let mut config = self.state.config();
            config.versions.insert(url.clone(), version.clone());
            config.apply(&url, &resources, &removed, started, &mut out)
        };
        let decided = out.decided;
        for rejection in &rejections {
            let (name, reason) = (&rejection.name, &rejection.reason);
            tracing::warn!(kind = type_url::short(&url), name, reason, "refused");
            owed.undecided.retain(|(listener, _)| listener != name);
        }
        tracing::debug!(
            kind = type_url::short(&url), version, resources = resources.len(),
            removed = removed.len(), refused = rejections.len(), took = ?started.elapsed(), "update"
        );
        self.state.note_control_plane(|control| {
            control.updates += 1;
            control.rejected_updates += u64::from(!rejections.is_empty());
        });
        owed.rejections = rejections;
        if is_listeners {
            self.owed.push_back(owed);
        } else {
            owed.reply.reject(owed.rejections);
        }
        for (name, version, outcome) in decided {
            self.decided(name, version, outcome);
        }
        self.answer();
    }

    fn decided(&mut self, name: String, version: String, outcome: Result<(), String>) {
        let key = (name, version);
        for owed in &mut self.owed {
            if owed.undecided.remove(&key)
                && let Err(reason) = &outcome
            {
                let reason = reason.clone();
                owed.rejections.push(Rejection {
                    name: key.0.clone(),
                    reason,
                });
            }
        }
    }

    /// Gives the answers of which every listener is decided.
    fn answer(&mut self) {
        while self
            .owed
            .front()
            .is_some_and(|owed| owed.undecided.is_empty())
        {
            if let Some(owed) = self.owed.pop_front() {
                owed.reply.reject(owed.rejections);
            }
        }
    }

    fn secret(&mut self, arrived: Arrived) {
        let Arrived {
            whose,
            received,
            verdict,
        } = arrived;
        let outcome =
            self.step(|config, now, out| config.apply_secret(&whose, &received, now, out));
        if let Err(reason) = &outcome {
            tracing::warn!(kind = "sds", name = &*whose.name, reason, "refused");
        }
        // The stream it came from may have ended.
        let _ = verdict.send(outcome);
    }

    fn resolved(&mut self, resolved: Resolved) {
        let Resolved { cluster, endpoints } = resolved;
        self.step(|config, now, out| config.resolved(&cluster, endpoints, now, out));
    }

    /// True: the process is to end.
    fn request(&mut self, request: Request) -> bool {
        match request {
            Request::Quit => return true,
            Request::FailHealthcheck(failed) => self.state.workers.set_draining(failed),
            Request::DrainListeners { graceful: false } => self.state.workers.stop_listening(),
            Request::DrainListeners { graceful: true } => {
                self.state.workers.set_draining(true);
                let (workers, wait) = (self.state.workers.clone(), self.state.options.max_drain);
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    workers.stop_listening();
                });
            }
        }
        false
    }

    fn note_phase(&self) {
        if self.state.phase() == Phase::Initializing && self.state.config().is_live() {
            self.state.set_phase(Phase::Live);
            let took = self.state.started.elapsed().unwrap_or_default();
            tracing::info!(?took, "ready");
        }
    }
}

/// The TLS of connections to the control plane; `None`: they are in plaintext.
pub(super) fn control_plane_tls(
    bootstrap: &Bootstrap,
    options: &Options,
) -> Result<Option<Arc<UpstreamTls>>, RunError> {
    let Some(socket) = &bootstrap.ads_transport else {
        return Ok(None);
    };
    secure::compile(socket).map_err(|reason| RunError::Secure {
        path: options.config_path.clone(),
        reason,
    })
}

async fn next(events: &mut Option<mpsc::Receiver<Event>>) -> Event {
    match events {
        Some(events) => match events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
