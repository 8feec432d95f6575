//! What is known about a client's connection while it is served.

use super::Slot;
use super::chains::{Chain, Generation, Serve};
use super::sighting::Sighting;
use crate::http::service::HttpService;
use crate::stats::{ListenerStat, Page};
use crate::tls::handshake::Failed;
use crate::tls::peer::Peer;
use crate::worker::state::Worker;
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What is known about a client's connection.
pub(crate) struct ConnInfo {
    pub id: u64,
    /// Where the connection comes from; behind a PROXY header not the other end of the socket.
    pub peer: SocketAddr,
    /// Where the client was going: behind a redirection not this end of the socket.
    pub local: SocketAddr,
    /// The same, if the client was not going to the socket itself.
    pub original_destination: Option<SocketAddr>,
    sighting: Box<Sighting>,
    slot: Rc<Slot>,
    generation: RefCell<Rc<Generation>>,
    chain: RefCell<Rc<Chain>>,
    /// The newest generation does not take this connection.
    outdated: Cell<bool>,
    /// When it has to be gone (see [`ConnInfo::leaves_at`]).
    leaves: Cell<Option<u64>>,
    tls: OnceCell<Box<Peer>>,
    stats: Arc<Page>,
    worker: Rc<Worker>,
}

impl ConnInfo {
    pub(super) fn open(
        worker: &Rc<Worker>,
        slot: &Rc<Slot>,
        generation: &Rc<Generation>,
        chain: &Rc<Chain>,
        sighting: Sighting,
    ) -> Rc<ConnInfo> {
        generation.stats.inc(ListenerStat::DownstreamCxTotal);
        generation.stats.inc(ListenerStat::DownstreamCxActive);
        worker.shared.connections.fetch_add(1, Relaxed);
        Rc::new(ConnInfo {
            id: worker.connection_id(),
            peer: sighting.peer,
            local: sighting.destination(),
            original_destination: sighting.original_destination,
            sighting: Box::new(sighting),
            slot: slot.clone(),
            generation: RefCell::new(generation.clone()),
            chain: RefCell::new(chain.clone()),
            outdated: Cell::new(false),
            leaves: Cell::new(None),
            tls: OnceCell::new(),
            stats: generation.stats.clone(),
            worker: worker.clone(),
        })
    }

    /// The server name that the client's TLS asked for; empty without one.
    pub(crate) fn server_name(&self) -> &str {
        let seen = &self.sighting.seen.server_name;
        match self.tls() {
            Some(tls) if seen.is_empty() => &tls.server_name,
            _ => seen,
        }
    }

    /// What its TLS handshake came to; [`None`]: the connection is plain.
    pub(crate) fn tls(&self) -> Option<&Peer> {
        self.tls.get().map(|peer| &**peer)
    }

    pub(super) fn shaken(&self, peer: Peer) {
        self.stats.inc(ListenerStat::SslHandshake);
        if peer.reused {
            self.stats.inc(ListenerStat::SslSessionReused);
        }
        if peer.certificate.is_none() {
            self.stats.inc(ListenerStat::SslNoCertificate);
        }
        let _ = self.tls.set(Box::new(peer));
    }

    pub(super) fn not_shaken(&self, failed: &Failed) {
        tracing::debug!(peer = %self.peer, reason = failed.reason(), "no TLS handshake");
        match failed {
            Failed::NoSecret => self
                .stats
                .inc(ListenerStat::DownstreamContextSecretsNotReady),
            Failed::Timeout => {
                self.stats
                    .inc(ListenerStat::DownstreamCxTransportSocketConnectTimeout);
            }
            Failed::Closed => self.stats.inc(ListenerStat::SslConnectionError),
            Failed::Tls(error) => self.stats.inc(match &**error {
                rustls::Error::NoCertificatesPresented => ListenerStat::SslFailVerifyNoCert,
                rustls::Error::InvalidCertificate(
                    rustls::CertificateError::ApplicationVerificationFailure,
                ) => ListenerStat::SslFailVerifySan,
                rustls::Error::InvalidCertificate(_) => ListenerStat::SslFailVerifyError,
                _ => ListenerStat::SslConnectionError,
            }),
        }
    }

    /// The other end of the socket.
    pub(crate) fn direct_peer(&self) -> SocketAddr {
        self.sighting.direct_peer
    }

    /// How to serve the next request of this connection: by the newest generation if it has an HTTP
    /// chain for it that would have asked for the same handshake.
    pub(crate) fn http_service(&self) -> Option<Rc<HttpService>> {
        let newest = self.slot.current.borrow();
        if !Rc::ptr_eq(&newest, &self.generation.borrow()) {
            *self.generation.borrow_mut() = newest.clone();
            match newest.chain_for(&self.sighting) {
                Some(chain)
                    if matches!(chain.serve, Serve::Http(_))
                        && chain.shakes_hands_like(&self.chain.borrow())
                        && chain.guards.refuse(self).is_none() =>
                {
                    *self.chain.borrow_mut() = chain;
                    self.outdated.set(false);
                }
                _ => self.outdated.set(true),
            }
        }
        match &self.chain.borrow().serve {
            Serve::Http(service) => Some(service.clone()),
            Serve::Tcp(_) | Serve::Close => None,
        }
    }

    /// When a connection that one chain serves for its life has to be gone: the drain time after an
    /// update that took the chain away or made it another one.
    pub(crate) fn leaves_at(&self) -> Option<u64> {
        self.leaves_when(|| self.lost_its_chain())
    }

    /// When a connection whose requests take the newest chain has to be gone: the drain time after it
    /// was found that none takes them.
    pub(crate) fn leaves_without_chain_at(&self) -> Option<u64> {
        self.leaves_when(|| self.slot.removed.get() || self.outdated.get())
    }

    fn leaves_when(&self, lost: impl Fn() -> bool) -> Option<u64> {
        if self.leaves.get().is_none() && lost() {
            let now = self.worker.timers.now();
            let drain = self.worker.shared.drain_ms.load(Relaxed);
            self.leaves.set(Some(now.saturating_add(drain)));
        }
        self.leaves.get()
    }

    fn lost_its_chain(&self) -> bool {
        if self.slot.removed.get() {
            return true;
        }
        let newest = self.slot.current.borrow();
        if Rc::ptr_eq(&newest, &self.generation.borrow()) {
            return false;
        }
        *self.generation.borrow_mut() = newest.clone();
        match newest.chain_for(&self.sighting) {
            Some(chain) if chain.content == self.chain.borrow().content => {
                *self.chain.borrow_mut() = chain;
                false
            }
            _ => true,
        }
    }

    /// Whether the client should go elsewhere with its next request.
    pub(crate) fn draining(&self) -> bool {
        self.worker.draining.get() || self.slot.removed.get() || self.outdated.get()
    }
}

impl Drop for ConnInfo {
    fn drop(&mut self) {
        self.stats.dec(ListenerStat::DownstreamCxActive);
        self.stats.inc(ListenerStat::DownstreamCxDestroy);
        self.worker.shared.connections.fetch_sub(1, Relaxed);
        self.worker.listeners.forget(self.id);
    }
}
