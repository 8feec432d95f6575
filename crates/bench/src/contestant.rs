//! The contestants of the run: who they are, and where a running one is reached.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::ground::Ground;
use crate::load::client::Client;
use crate::peers;
use crate::process::Running;
use crate::resources::Chain;

/// Who takes part, in the order of every table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The backend without a proxy: the most that load and backend can do.
    Direct,
    Envoy(Chain),
    Haproxy,
    Nginx,
    Lateen(Chain),
}

pub const ALL: [Kind; 7] = [
    Kind::Direct,
    Kind::Envoy(Chain::Minimal),
    Kind::Envoy(Chain::Istio),
    Kind::Haproxy,
    Kind::Nginx,
    Kind::Lateen(Chain::Minimal),
    Kind::Lateen(Chain::Istio),
];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Envoy(Chain::Minimal) => "Envoy minimal",
            Self::Envoy(Chain::Istio) => "Envoy Istio-like chain",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Lateen(Chain::Minimal) => "Lateen minimal",
            Self::Lateen(Chain::Istio) => "Lateen Istio-like chain",
        }
    }

    /// Ours are compared with the others.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Lateen(_))
    }
}

/// Addresses of a running contestant.
pub struct Contestant {
    pub http: SocketAddr,
    /// HTTP/2 without TLS; the same as `http` where both are told apart by their first bytes.
    pub h2: SocketAddr,
    pub tcp: Option<SocketAddr>,
    /// Plaintext in, mutual TLS to [`Contestant::mtls`] of the same process, backend.
    pub pair: Option<SocketAddr>,
    pub mtls: Option<SocketAddr>,
    /// `None` without a proxy.
    pub process: Option<Running>,
}

/// One who takes part, or the reason why not.
pub struct Entry {
    pub kind: Kind,
    pub state: Result<Contestant>,
}

/// Starts everybody. They stay up during the whole run, so that rounds can be interleaved.
pub fn start_all(ground: &Ground) -> Vec<Entry> {
    ALL.into_iter()
        .map(|kind| {
            eprintln!("==> starting {}", kind.name());
            let state = start(ground, kind);
            if let Err(error) = &state {
                eprintln!("{}: {error}", kind.name());
            }
            Entry { kind, state }
        })
        .collect()
}

/// Starts one and waits until it answers.
pub fn start(ground: &Ground, kind: Kind) -> Result<Contestant> {
    match kind {
        Kind::Direct => Ok(Contestant {
            http: ground.backend.http,
            h2: ground.backend.http,
            tcp: Some(ground.backend.tcp),
            pair: None,
            mtls: None,
            process: None,
        }),
        Kind::Envoy(chain) => peers::xds::envoy(ground, kind.name(), chain),
        Kind::Haproxy => peers::haproxy::start(ground, kind.name()),
        Kind::Nginx => peers::nginx::start(ground, kind.name()),
        Kind::Lateen(chain) => peers::xds::lateen(ground, kind.name(), chain),
    }
}

impl Contestant {
    /// CPU time of the proxy so far; zero without one.
    pub fn cpu(&self) -> Duration {
        self.process.as_ref().map(Running::cpu).unwrap_or_default()
    }

    /// Proportional set size of the proxy in bytes; zero without one.
    pub fn pss(&self) -> u64 {
        self.process.as_ref().map(Running::pss).unwrap_or_default()
    }

    /// An error when the proxy has died.
    pub fn check(&mut self) -> Result {
        self.process.as_mut().map_or(Ok(()), Running::check)
    }

    /// Waits until the HTTP port gives the backend's answer. `objection` may say sooner why it
    /// never will.
    pub fn wait_until_ready(mut self, objection: impl Fn() -> Option<String>) -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(15);
        let start = Instant::now();
        let mut buffer = Vec::new();
        loop {
            self.check()?;
            let answer = Client::connect(self.http).and_then(|mut c| c.get(&mut buffer));
            let Err(last) = answer else {
                return Ok(self);
            };
            if let Some(reason) = objection() {
                return Err(Error::Rejected { reason });
            }
            if start.elapsed() > PATIENCE {
                return Err(Error::NotReady {
                    seconds: PATIENCE.as_secs(),
                    last: last.to_string(),
                    log: self
                        .process
                        .as_ref()
                        .map(Running::log_end)
                        .unwrap_or_default(),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
