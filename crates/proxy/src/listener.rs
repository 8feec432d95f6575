//! Listeners of one worker: accept, choose the filter chain, serve.
//!
//! A listener has a slot for its life and a generation per configuration. A connection belongs to
//! the slot; before each HTTP request it takes the newest generation's chain, so a change reaches
//! connections that are open without closing them. A connection that the new generation would not
//! take, and every connection of a removed listener, is asked to go when its request is done.
//!
//! Invariant: an update never closes a listening socket that the new configuration still has.

use crate::http;
use crate::http::service::HttpService;
use crate::io::Io;
use crate::stats::{ListenerStat, Page, Scope};
use crate::tcp::{self, TcpService};
use crate::worker::state::Worker;
use crate::worker::timers::Deadline;
use lateen_proxy_config::{Codec, FilterChain, Listener, Network};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, spawn_local};

/// The listeners of a worker, and its open connections.
#[derive(Default)]
pub(crate) struct Listeners {
    slots: RefCell<HashMap<Arc<str>, Rc<Slot>>>,
    connections: RefCell<HashMap<u64, Rc<Deadline>>>,
}

/// One listener over all its generations.
pub(crate) struct Slot {
    current: RefCell<Rc<Generation>>,
    removed: Cell<bool>,
    accepting: RefCell<Vec<AbortHandle>>,
}

/// One configuration of a listener.
pub(crate) struct Generation {
    listener: Arc<Listener>,
    chains: Vec<Rc<Chain>>,
    default: Option<Rc<Chain>>,
    stats: Arc<Page>,
}

/// One filter chain of one generation.
pub(crate) struct Chain {
    config: Arc<FilterChain>,
    serve: Serve,
}

enum Serve {
    Http(Rc<HttpService>),
    Tcp(Rc<TcpService>),
    Close,
}

/// What is known about a client's connection.
pub(crate) struct ConnInfo {
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Where the client was going before it was redirected here.
    pub original_destination: Option<SocketAddr>,
    slot: Rc<Slot>,
    generation: RefCell<Rc<Generation>>,
    chain: RefCell<Rc<Chain>>,
    /// The newest generation does not take this connection.
    outdated: Cell<bool>,
    stats: Arc<Page>,
    worker: Rc<Worker>,
}

impl Listeners {
    /// A new listener, or a new generation of one.
    pub(crate) fn set(
        &self,
        worker: &Rc<Worker>,
        listener: Arc<Listener>,
        sockets: Option<Vec<std::net::TcpListener>>,
    ) {
        let name = listener.name.clone();
        let generation = Rc::new(Generation::new(worker, listener));
        let slot = {
            let mut slots = self.slots.borrow_mut();
            match slots.get(&name) {
                Some(slot) => {
                    *slot.current.borrow_mut() = generation;
                    slot.clone()
                }
                None => {
                    let slot = Rc::new(Slot {
                        current: RefCell::new(generation),
                        removed: Cell::new(false),
                        accepting: RefCell::default(),
                    });
                    slots.insert(name, slot.clone());
                    slot
                }
            }
        };
        if let Some(sockets) = sockets {
            slot.stop();
            sockets
                .into_iter()
                .for_each(|socket| slot.accept_on(worker, socket));
        }
    }

    /// Stops listening; connections go when their request is done.
    pub(crate) fn remove(&self, name: &str) {
        if let Some(slot) = self.slots.borrow_mut().remove(name) {
            slot.removed.set(true);
            slot.stop();
        }
        self.wake_connections();
    }

    /// Closes all listening sockets.
    pub(crate) fn stop(&self) {
        self.slots.borrow().values().for_each(|slot| slot.stop());
    }

    /// Lets every connection look at its situation anew.
    pub(crate) fn wake_connections(&self) {
        self.connections
            .borrow()
            .values()
            .for_each(|deadline| deadline.wake());
    }
}

impl Slot {
    fn stop(&self) {
        self.accepting
            .borrow_mut()
            .drain(..)
            .for_each(|task| task.abort());
    }

    fn accept_on(self: &Rc<Self>, worker: &Rc<Worker>, socket: std::net::TcpListener) {
        match TcpListener::from_std(socket) {
            Ok(socket) => {
                let task = spawn_local(accept(worker.clone(), self.clone(), socket));
                self.accepting.borrow_mut().push(task.abort_handle());
            }
            Err(error) => tracing::error!(%error, "a listening socket cannot be used"),
        }
    }
}

async fn accept(worker: Rc<Worker>, slot: Rc<Slot>, socket: TcpListener) {
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => connected(&worker, &slot, tcp, peer),
            Err(error) => {
                // Out of file descriptors, most likely: the connection stays in the queue. Trying
                // at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Chooses the chain of a new connection and serves it.
fn connected(worker: &Rc<Worker>, slot: &Rc<Slot>, tcp: TcpStream, peer: SocketAddr) {
    worker.timers.read();
    let generation = slot.current.borrow().clone();
    let Ok(local) = tcp.local_addr() else { return };
    let config = &generation.listener;
    if let Some(keepalive) = &config.tcp_keepalive {
        crate::upstream::pool::set_keepalive(&tcp, keepalive);
    }
    let original_destination = if config.filters.original_dst {
        original_destination(&tcp, local)
    } else {
        None
    };
    let destination = original_destination.unwrap_or(local);
    let Some(chain) = generation.chain_for(destination, peer) else {
        generation.stats.inc(ListenerStat::NoFilterChainMatch);
        return;
    };
    let info = ConnInfo::open(
        worker,
        slot,
        &generation,
        &chain,
        peer,
        local,
        original_destination,
    );
    let deadline = worker.listeners.deadline_of(info.id);
    let io = Io::new(tcp);
    match &chain.serve {
        Serve::Http(service) if service.manager.codec == Codec::Http2 => {
            spawn_local(crate::http2::server::serve(
                io,
                Vec::new(),
                info,
                worker.clone(),
                deadline,
            ));
        }
        Serve::Http(_) => {
            spawn_local(http::conn::serve(io, info, worker.clone(), deadline));
        }
        Serve::Tcp(service) => {
            spawn_local(tcp::serve(
                io,
                service.clone(),
                info,
                worker.clone(),
                deadline,
            ));
        }
        Serve::Close => {}
    }
}

impl Listeners {
    fn deadline_of(&self, connection: u64) -> Rc<Deadline> {
        self.connections
            .borrow_mut()
            .entry(connection)
            .or_default()
            .clone()
    }
}

impl Generation {
    fn new(worker: &Rc<Worker>, listener: Arc<Listener>) -> Generation {
        let chain = |config: &Arc<FilterChain>| {
            Rc::new(Chain {
                serve: match &config.network {
                    Network::Http(manager) => {
                        let name = config.name.clone();
                        let service = HttpService::new(worker, name, manager);
                        Serve::Http(Rc::new(service))
                    }
                    Network::Tcp(proxy) => Serve::Tcp(Rc::new(TcpService::new(worker, proxy))),
                    Network::Close => Serve::Close,
                },
                config: config.clone(),
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
            listener,
        }
    }

    /// The chain that takes a connection.
    fn chain_for(&self, destination: SocketAddr, peer: SocketAddr) -> Option<Rc<Chain>> {
        let mut matching: Vec<&Rc<Chain>> = self
            .chains
            .iter()
            .filter(|chain| matches(&chain.config.matches, destination, peer))
            .collect();
        matching.sort_by_key(|chain| std::cmp::Reverse(specificity(&chain.config.matches)));
        matching.first().copied().or(self.default.as_ref()).cloned()
    }
}

/// Whether a plaintext connection fits.
fn matches(
    wanted: &lateen_proxy_config::FilterChainMatch,
    destination: SocketAddr,
    peer: SocketAddr,
) -> bool {
    use lateen_proxy_config::SourceType;
    let within = |ranges: &[lateen_proxy_config::CidrRange], ip| {
        ranges.is_empty() || ranges.iter().any(|range| range.contains(ip))
    };
    let local = peer.ip().is_loopback() || peer.ip() == destination.ip();
    wanted
        .destination_port
        .is_none_or(|port| port == destination.port())
        && within(&wanted.destination_ranges, destination.ip())
        && within(&wanted.direct_source_ranges, peer.ip())
        && within(&wanted.source_ranges, peer.ip())
        && (wanted.source_ports.is_empty() || wanted.source_ports.contains(&peer.port()))
        && matches!(&*wanted.transport_protocol, "" | "raw_buffer")
        && wanted.server_names.is_empty()
        && wanted.application_protocols.is_empty()
        && match wanted.source_type {
            SourceType::Any => true,
            SourceType::SameIpOrLoopback => local,
            SourceType::External => !local,
        }
}

/// Envoy compares criteria in a fixed order; the first that is given counts most.
fn specificity(wanted: &lateen_proxy_config::FilterChainMatch) -> [u32; 6] {
    let longest = |ranges: &[lateen_proxy_config::CidrRange]| {
        ranges
            .iter()
            .map(|range| u32::from(range.prefix_len) + 1)
            .max()
            .unwrap_or(0)
    };
    [
        u32::from(wanted.destination_port.is_some()),
        longest(&wanted.destination_ranges),
        u32::from(!wanted.transport_protocol.is_empty()),
        longest(&wanted.direct_source_ranges),
        u32::from(wanted.source_type != lateen_proxy_config::SourceType::Any),
        longest(&wanted.source_ranges) + u32::from(!wanted.source_ports.is_empty()),
    ]
}

#[cfg(target_os = "linux")]
fn original_destination(tcp: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(tcp);
    let address = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    // Without redirection the kernel has nothing to tell, or tells the address of the socket
    // itself; to go there would be to call oneself.
    address
        .ok()?
        .as_socket()
        .filter(|address| *address != local)
}

#[cfg(not(target_os = "linux"))]
fn original_destination(_tcp: &TcpStream, _local: SocketAddr) -> Option<SocketAddr> {
    None
}

impl ConnInfo {
    fn open(
        worker: &Rc<Worker>,
        slot: &Rc<Slot>,
        generation: &Rc<Generation>,
        chain: &Rc<Chain>,
        peer: SocketAddr,
        local: SocketAddr,
        original_destination: Option<SocketAddr>,
    ) -> Rc<ConnInfo> {
        generation.stats.inc(ListenerStat::DownstreamCxTotal);
        generation.stats.inc(ListenerStat::DownstreamCxActive);
        worker.shared.connections.fetch_add(1, Relaxed);
        Rc::new(ConnInfo {
            id: worker.connection_id(),
            peer,
            local,
            original_destination,
            slot: slot.clone(),
            generation: RefCell::new(generation.clone()),
            chain: RefCell::new(chain.clone()),
            outdated: Cell::new(false),
            stats: generation.stats.clone(),
            worker: worker.clone(),
        })
    }

    /// How to serve the next request of this connection: by the newest generation if it has an HTTP
    /// chain for it.
    pub(crate) fn http_service(&self) -> Option<Rc<HttpService>> {
        let newest = self.slot.current.borrow();
        if !Rc::ptr_eq(&newest, &self.generation.borrow()) {
            *self.generation.borrow_mut() = newest.clone();
            let destination = self.original_destination.unwrap_or(self.local);
            match newest.chain_for(destination, self.peer) {
                Some(chain) if matches!(chain.serve, Serve::Http(_)) => {
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
        self.worker
            .listeners
            .connections
            .borrow_mut()
            .remove(&self.id);
    }
}
