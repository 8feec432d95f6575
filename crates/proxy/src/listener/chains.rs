//! One configuration of a listener: its filter chains, ready to serve.

use super::guards::Guards;
use super::inspect::Inspectors;
use super::sighting::Sighting;
use crate::access_log::LogSink;
use crate::http::service::HttpService;
use crate::stats::{Page, Scope};
use crate::tcp::TcpService;
use crate::tls::ServerSlot;
use crate::worker::state::Worker;
use lateen_proxy_config::{FilterChain, Listener, Network, Transport};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// One configuration of a listener.
pub(crate) struct Generation {
    pub(super) listener: Arc<Listener>,
    chains: Vec<Rc<Chain>>,
    default: Option<Rc<Chain>>,
    pub(super) stats: Arc<Page>,
    pub(super) inspectors: Option<Inspectors>,
    /// Of connections that no chain takes; the others have the logs of what serves them.
    pub(super) logs: Vec<LogSink>,
}

/// One filter chain of one generation.
pub(crate) struct Chain {
    pub(super) tls: Option<ChainTls>,
    pub(super) guards: Guards,
    pub(super) serve: Serve,
    /// See [`FilterChain::content`].
    pub(super) content: u64,
}

impl Chain {
    /// Whether a connection that has passed the handshake of one chain has passed that of the other.
    pub(super) fn shakes_hands_like(&self, other: &Chain) -> bool {
        match (&self.tls, &other.tls) {
            (None, None) => true,
            // Equal contexts share their slot.
            (Some(tls), Some(other)) => Arc::ptr_eq(&tls.slot, &other.slot),
            _ => false,
        }
    }
}

/// TLS in front of what a chain serves.
pub(super) struct ChainTls {
    pub(super) slot: Arc<ServerSlot>,
    pub(super) limit: Option<Duration>,
}

pub(super) enum Serve {
    Http(Rc<HttpService>),
    Tcp(Rc<TcpService>),
    Close,
}

impl Generation {
    pub(super) fn new(worker: &Rc<Worker>, listener: Arc<Listener>) -> Generation {
        let chain = |config: &Arc<FilterChain>| {
            Rc::new(Chain {
                tls: match &config.transport {
                    Transport::Plain => None,
                    Transport::Tls(tls) => Some(ChainTls {
                        slot: worker.shared.tls.server(tls),
                        limit: config.handshake_timeout,
                    }),
                },
                guards: Guards::new(worker, &config.guards),
                serve: match &config.network {
                    Network::Http(manager) => {
                        let name = config.name.clone();
                        let service = HttpService::new(worker, name, manager);
                        Serve::Http(Rc::new(service))
                    }
                    Network::Tcp(proxy) => Serve::Tcp(Rc::new(TcpService::new(worker, proxy))),
                    Network::Close => Serve::Close,
                },
                content: config.content,
            })
        };
        let name = listener.stat_prefix.clone().unwrap_or_else(|| {
            let address = listener
                .addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            address.replace(':', "_").into()
        });
        Generation {
            chains: listener.filter_chains.iter().map(chain).collect(),
            default: listener.default_filter_chain.as_ref().map(chain),
            stats: worker.page(Scope::Listener(name)),
            logs: worker.logs.sinks(worker, &listener.access_log),
            inspectors: Inspectors::new(worker, &listener.filters),
            listener,
        }
    }

    /// Whether connections that one chain serves for their life have to go when this is what follows.
    pub(super) fn loses_any(&self, next: &Generation) -> bool {
        let stays = |chain: &Rc<Chain>| {
            let mut following = next.chains.iter().chain(&next.default);
            following.any(|other| other.content == chain.content)
        };
        let mut all = self.chains.iter().chain(&self.default);
        all.any(|chain| !stays(chain))
    }

    /// The chain that takes a connection.
    pub(super) fn chain_for(&self, sighting: &Sighting) -> Option<Rc<Chain>> {
        let found = self.listener.chain_index.find(&sighting.facts());
        found
            .and_then(|index| self.chains.get(index))
            .or(self.default.as_ref())
            .cloned()
    }
}
