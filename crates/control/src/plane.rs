//! The control plane as a whole: what starts when, and how it ends.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_model::MeshSettings;
use lateen_store::{Directory, DirectoryOptions, Limits, Store};
use lateen_xds::Server;
use lateen_xds::debounce::Settings;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::advice;
use crate::error::ControlError;
use crate::jwks::Keys;
use crate::listen;
use crate::mesh::{self, Mesh};
use crate::monitoring::{self, Monitor};
use crate::options::Options;
use crate::rest::{self, Api};
use crate::secure::{self, Counters, Tls};
use crate::source::Discovery;
use crate::trust::Trust;

/// How long open requests and streams get to end.
const GRACE: Duration = Duration::from_secs(3);

/// Where a control plane listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Discovery without TLS.
    pub xds: SocketAddr,
    /// The authority, and discovery over TLS.
    pub secure: SocketAddr,
    pub api: SocketAddr,
    pub monitoring: SocketAddr,
}

/// A control plane that runs.
pub struct Control {
    addresses: Addresses,
    leaving: watch::Sender<bool>,
    tasks: JoinSet<Result<(), ControlError>>,
    _directory: Option<Arc<Directory>>,
}

/// Runs a control plane until `shutdown`, or until a part of it fails.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), ControlError> {
    let mut control = Control::start(options).await?;
    let addresses = control.addresses();
    tracing::info!(
        xds = %addresses.xds,
        secure = %addresses.secure,
        api = %addresses.api,
        monitoring = %addresses.monitoring,
        "the control plane is ready"
    );
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        failed = control.failed() => Err(failed),
    };
    control.stop().await;
    outcome
}

impl Control {
    /// Loads all configuration, then listens. Ready when it returns.
    pub async fn start(options: Options) -> Result<Self, ControlError> {
        let listeners = Listeners::bind(&options).await?;
        let addresses = listeners.addresses()?;
        let opened = options.clone();
        let opening = tokio::task::spawn_blocking(move || open(&opened)).await;
        let (store, directory) = opening.map_err(|error| ControlError::Task {
            task: "opening the store",
            reason: error.to_string(),
        })??;
        let settings = MeshSettings {
            compliance: options.compliance,
            wildcard_tls_at_gateways: options.wildcard_tls_at_gateways,
            tls_at_sidecars: options.tls_at_sidecars,
            handshake_timeout: options.handshake_timeout,
            keys_fetched_by: options.keys.fetched_by,
            keys_cache: options.keys.proxy_cache,
            ..MeshSettings::default()
        };
        let mesh = Arc::new(Mesh::new(store.clone(), settings));
        let starting = Keys::start(mesh.clone(), &options.keys, &options.data_dir).await;
        let (keys, fetching) = starting.map_err(|reason| ControlError::Task {
            task: "fetching the keys of tokens",
            reason,
        })?;
        let (trust, tls) = trusted(options.clone(), mesh.clone(), addresses.secure).await?;
        let counters = Arc::new(Counters::default());
        let snapshot = mesh.snapshot();
        let discovery = Arc::new(Discovery::new(
            mesh.clone(),
            &snapshot,
            options.plaintext_credentials,
        ));
        let server = Server::new(
            discovery.clone(),
            mesh::first_push(snapshot.clone()),
            lateen_xds::Limits {
                first_request: options.patience,
                ..lateen_xds::Limits::default()
            },
        );
        let (leaving, left) = watch::channel(false);
        let (advising, viewing) = (mesh.clone(), mesh.clone());
        let api = Api {
            store,
            advice: Arc::new(move |object| advice::warnings(&advising.refresh(), object)),
            view: Arc::new(move || viewing.refresh()),
            leaving: left.clone(),
            trust: trust.clone(),
            issues_tokens: options.bind.is_loopback(),
        };
        let for_sweeping = discovery.clone();
        let monitor = Monitor {
            mesh: mesh.clone(),
            server: server.clone(),
            discovery,
            directory: directory.clone(),
            started: Instant::now(),
            trust: trust.clone(),
            certificates: counters.clone(),
        };
        let debug = monitoring::debug::router(monitor.clone());
        let api =
            rest::router(api).merge(debug.clone().layer(axum::middleware::from_fn(rest::guard)));
        let monitoring = monitoring::router(monitor).merge(debug);
        let settings = Settings {
            quiet: options.debounce_after,
            max: options.debounce_max,
        };

        let patience = options.patience;
        let mut tasks = JoinSet::new();
        for (listener, router) in [(listeners.api, api), (listeners.monitoring, monitoring)] {
            let serving = listen::serve(listener, router, patience, left.clone());
            tasks.spawn(async move {
                serving.await;
                Ok(())
            });
        }
        let services = secure::Services::new(trust.clone(), server.clone(), counters);
        let (port, until) = (tls.clone(), left.clone());
        tasks.spawn(async move {
            secure::serve(services, port, listeners.secure, patience, until).await;
            Ok(())
        });
        let until = left.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = follow_trust(trust, tls) => {}
                () = gone(until) => {}
            }
            Ok(())
        });
        let (xds, until) = (server.clone(), left.clone());
        tasks.spawn(async move {
            xds.serve(listeners.xds, gone(until)).await;
            Ok(())
        });
        tasks.spawn(async move {
            let _fetching = fetching;
            tokio::select! {
                ended = mesh::follow(mesh, server, for_sweeping, settings, snapshot, keys) => Ok(ended?),
                () = gone(left) => Ok(()),
            }
        });
        Ok(Self {
            addresses,
            leaving,
            tasks,
            _directory: directory,
        })
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Completes when a part of the control plane ended by itself.
    pub async fn failed(&mut self) -> ControlError {
        let reason = match self.tasks.join_next().await {
            Some(Ok(Err(error))) => return error,
            Some(Err(error)) => error.to_string(),
            Some(Ok(Ok(()))) | None => "it returned".to_owned(),
        };
        ControlError::Task {
            task: "a server of the control plane",
            reason,
        }
    }

    /// Ends watches and streams, finishes open requests, closes the store.
    pub async fn stop(mut self) {
        self.leaving.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("some connections did not end in time and are cut");
        }
    }
}

struct Listeners {
    xds: TcpListener,
    secure: TcpListener,
    api: TcpListener,
    monitoring: TcpListener,
}

impl Listeners {
    /// All or none, before anything else happens: a taken port is the likeliest failure.
    async fn bind(options: &Options) -> Result<Self, ControlError> {
        let bind = |ip, port, purpose, flag| async move {
            let address = SocketAddr::new(ip, port);
            let listener = TcpListener::bind(address).await;
            listener.map_err(|source| ControlError::Listen {
                purpose,
                address,
                flag,
                source,
            })
        };
        Ok(Self {
            xds: bind(
                options.xds_bind.unwrap_or(options.bind),
                options.xds_port,
                "xDS",
                "--xds-port",
            )
            .await?,
            secure: bind(
                options.xds_bind.unwrap_or(options.bind),
                options.secure_port,
                "certificates and xDS over TLS",
                "--secure-port",
            )
            .await?,
            api: bind(options.bind, options.api_port, "the API", "--api-port").await?,
            monitoring: bind(
                options.bind,
                options.monitoring_port,
                "monitoring",
                "--monitoring-port",
            )
            .await?,
        })
    }

    fn addresses(&self) -> Result<Addresses, ControlError> {
        let of = |listener: &TcpListener| {
            listener.local_addr().map_err(|error| ControlError::Task {
                task: "a listening socket",
                reason: error.to_string(),
            })
        };
        Ok(Addresses {
            xds: of(&self.xds)?,
            secure: of(&self.secure)?,
            api: of(&self.api)?,
            monitoring: of(&self.monitoring)?,
        })
    }
}

/// How often files, Secret and clock are looked at.
const TRUST_PERIOD: Duration = Duration::from_secs(2);

async fn trusted(
    options: Options,
    mesh: Arc<Mesh>,
    secure: SocketAddr,
) -> Result<(Arc<Trust>, Arc<Tls>), ControlError> {
    let compliance = options.compliance;
    let opening = tokio::task::spawn_blocking(move || {
        let trust = Arc::new(Trust::open(&options, mesh)?);
        let tls = Tls::new(trust.clone(), &[options.bind, secure.ip()], compliance);
        let tls = tls.map_err(|reason| ControlError::Task {
            task: "the certificate of the control plane",
            reason,
        })?;
        Ok((trust, Arc::new(tls)))
    });
    opening.await.map_err(|error| ControlError::Task {
        task: "opening the authority",
        reason: error.to_string(),
    })?
}

async fn follow_trust(trust: Arc<Trust>, tls: Arc<Tls>) {
    let mut period = tokio::time::interval(TRUST_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let (trust, tls) = (trust.clone(), tls.clone());
        let looked = tokio::task::spawn_blocking(move || {
            trust.refresh();
            tls.refresh();
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "the authority cannot be looked at");
        }
    }
}

type Opened = (Arc<Store>, Option<Arc<Directory>>);

fn open(options: &Options) -> Result<Opened, ControlError> {
    let limits = Limits {
        revisions: options.history,
        ..Limits::default()
    };
    let store = Arc::new(Store::open(&options.data_dir.join("store.redb"), limits)?);
    let retired = Directory::retire_others(&store, options.config.as_deref())?;
    if retired > 0 {
        tracing::info!(
            objects = retired,
            "removed the objects of a directory used before"
        );
    }
    let directory = match &options.config {
        None => None,
        Some(path) => {
            let directory = Directory::start(store.clone(), path, DirectoryOptions::default())?;
            Some(Arc::new(directory))
        }
    };
    Ok((store, directory))
}

pub(crate) async fn gone(mut leaving: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is leaving too.
    let _ = leaving.wait_for(|leaving| *leaving).await;
}
