//! Listeners of one worker: accept, find out, choose the filter chain, serve.
//!
//! | file | holds |
//! |---|---|
//! | `inspect.rs` | the listener filters of one connection, and the wait for its first bytes |
//! | `client_hello.rs`, `first_request.rs`, `proxy_header.rs` | what first bytes say; pure |
//! | `sighting.rs` | what became known, as filter chains match it |
//! | `chains.rs` | one configuration of a listener, ready to serve |
//! | `guards.rs` | what may refuse a connection |
//! | `connection.rs` | a connection while it is served |
//!
//! A listener has a slot for its life and a generation per configuration. A connection belongs to
//! the slot; before each HTTP request it takes the newest generation's chain, so a change reaches
//! connections that are open without closing them. A connection that the new generation would not
//! take, and every connection of a removed listener, is asked to go when its request is done. A TCP
//! connection or an HTTP/1 tunnel is served by one chain for its life: when that is gone or another
//! one, it ends after the drain time, as in Envoy. So does an HTTP/2 connection that no chain takes.
//!
//! Invariant: an update never closes a listening socket that the new configuration still has.

mod chains;
pub(crate) mod client_hello;
mod connection;
mod first_request;
mod guards;
mod inspect;
mod proxy_header;
mod sighting;

pub(crate) use connection::ConnInfo;

use crate::http;
use crate::io::Io;
use crate::stats::ListenerStat;
use crate::tcp;
use crate::unix;
use crate::worker::state::Worker;
use crate::worker::timers::Deadline;
use chains::{Chain, Generation, Serve};
use guards::Refusal;
use inspect::Inspection;
use lateen_proxy_config::{Address, Codec, Listener};
pub(crate) use sighting::Seen;
use sighting::{Refused, Sighting};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::{AbortHandle, spawn_local};

/// The listeners of a worker, and its open connections.
#[derive(Default)]
pub(crate) struct Listeners {
    slots: RefCell<HashMap<Arc<str>, Rc<Slot>>>,
    /// For connections that are handed over by where they were going.
    by_address: RefCell<HashMap<SocketAddr, Rc<Slot>>>,
    connections: RefCell<HashMap<u64, Rc<Deadline>>>,
}

/// One listener over all its generations.
pub(crate) struct Slot {
    current: RefCell<Rc<Generation>>,
    removed: Cell<bool>,
    accepting: RefCell<Vec<Accepting>>,
}

/// A listening socket, and the task that takes its connections.
struct Accepting {
    task: AbortHandle,
    socket: Rc<Listening>,
}

/// What connections are accepted on.
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// The system knows of which kind a socket is.
    fn new(socket: std::net::TcpListener) -> std::io::Result<Self> {
        if socket.local_addr().is_ok() {
            return TcpListener::from_std(socket).map(Listening::Tcp);
        }
        let socket = std::os::unix::net::UnixListener::from(OwnedFd::from(socket));
        UnixListener::from_std(socket).map(Listening::Unix)
    }

    /// A connection with the address of its client, if that has one.
    async fn accept(&self) -> std::io::Result<(TcpStream, Option<SocketAddr>)> {
        match self {
            Listening::Tcp(socket) => {
                let (tcp, peer) = socket.accept().await?;
                Ok((tcp, Some(peer)))
            }
            Listening::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                Ok((unix::as_tcp(stream.into_std()?)?, None))
            }
        }
    }

    fn socket(&self) -> socket2::SockRef<'_> {
        match self {
            Listening::Tcp(socket) => socket.into(),
            Listening::Unix(socket) => socket.into(),
        }
    }
}

/// How often the queue of a socket that closes is emptied, with a turn of the scheduler in between.
const LAST_LOOKS: usize = 3;
/// Connections that a socket which closes may still hold: Linux queues 4,096 at most by default.
const MAX_QUEUED: usize = 4096;

impl Listeners {
    /// A new listener, or a new generation of one.
    pub(crate) fn set(
        &self,
        worker: &Rc<Worker>,
        listener: Arc<Listener>,
        sockets: Option<Vec<std::net::TcpListener>>,
    ) {
        let name = listener.name.clone();
        let generation = Rc::new(Generation::new(worker, listener.clone()));
        let mut going = false;
        let slot = {
            let mut slots = self.slots.borrow_mut();
            match slots.get(&name) {
                Some(slot) => {
                    self.leave_addresses(slot);
                    going = slot.current.borrow().loses_any(&generation);
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
        self.enter_addresses(&slot, &listener);
        if let Some(sockets) = sockets {
            slot.stop(worker);
            sockets
                .into_iter()
                .for_each(|socket| slot.accept_on(worker, socket));
        }
        if going {
            self.wake_connections();
        }
    }

    /// Stops listening; connections go when their request is done.
    pub(crate) fn remove(&self, worker: &Rc<Worker>, name: &str) {
        if let Some(slot) = self.slots.borrow_mut().remove(name) {
            slot.removed.set(true);
            slot.stop(worker);
            self.leave_addresses(&slot);
        }
        self.wake_connections();
    }

    /// Closes all listening sockets.
    pub(crate) fn stop(&self, worker: &Rc<Worker>) {
        let slots: Vec<_> = self.slots.borrow().values().cloned().collect();
        slots.iter().for_each(|slot| slot.stop(worker));
    }

    /// Lets every connection look at its situation anew.
    pub(crate) fn wake_connections(&self) {
        self.connections
            .borrow()
            .values()
            .for_each(|deadline| deadline.wake());
    }

    fn deadline_of(&self, connection: u64) -> Rc<Deadline> {
        self.connections
            .borrow_mut()
            .entry(connection)
            .or_default()
            .clone()
    }

    fn forget(&self, connection: u64) {
        self.connections.borrow_mut().remove(&connection);
    }

    fn enter_addresses(&self, slot: &Rc<Slot>, listener: &Listener) {
        let mut by_address = self.by_address.borrow_mut();
        for address in &listener.addresses {
            if let Address::Socket(address) = address {
                by_address.insert(*address, slot.clone());
            }
        }
    }

    fn leave_addresses(&self, slot: &Rc<Slot>) {
        let mut by_address = self.by_address.borrow_mut();
        for address in &slot.current.borrow().listener.addresses {
            if let Address::Socket(address) = address
                && by_address
                    .get(address)
                    .is_some_and(|other| Rc::ptr_eq(other, slot))
            {
                by_address.remove(address);
            }
        }
    }

    /// The listener of an address, else the one of its port on every address.
    fn at(&self, address: SocketAddr) -> Option<Rc<Slot>> {
        let by_address = self.by_address.borrow();
        let any: IpAddr = match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        by_address
            .get(&address)
            .or_else(|| by_address.get(&SocketAddr::new(any, address.port())))
            .cloned()
    }
}

impl Slot {
    /// Stops listening. Connections that wait in the queue of a socket were made by clients that
    /// know nothing of this: they are taken before it closes.
    fn stop(self: &Rc<Self>, worker: &Rc<Worker>) {
        for Accepting { task, socket } in self.accepting.take() {
            task.abort();
            self.take_queued(worker, &socket);
            let (slot, worker) = (self.clone(), worker.clone());
            spawn_local(async move {
                // The task above still holds the socket until its turn comes.
                for _ in 0..LAST_LOOKS {
                    tokio::task::yield_now().await;
                    slot.take_queued(&worker, &socket);
                }
            });
        }
    }

    /// Takes what is in the queue of a socket now.
    fn take_queued(self: &Rc<Self>, worker: &Rc<Worker>, socket: &Listening) {
        let socket = socket.socket();
        for _ in 0..MAX_QUEUED {
            let Ok((connection, peer)) = socket.accept() else {
                return;
            };
            let tcp = std::net::TcpStream::from(connection);
            let tcp = tcp.set_nonblocking(true).and(Ok(tcp));
            if let Ok(tcp) = tcp.and_then(TcpStream::from_std) {
                accepted(worker, self, tcp, peer.as_socket());
            }
        }
    }

    fn accept_on(self: &Rc<Self>, worker: &Rc<Worker>, socket: std::net::TcpListener) {
        match Listening::new(socket) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                let task = accept(worker.clone(), self.clone(), socket.clone());
                let task = spawn_local(task).abort_handle();
                self.accepting.borrow_mut().push(Accepting { task, socket });
            }
            Err(error) => tracing::error!(%error, "a listening socket cannot be used"),
        }
    }
}

async fn accept(worker: Rc<Worker>, slot: Rc<Slot>, socket: Rc<Listening>) {
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => accepted(&worker, &slot, tcp, peer),
            Err(error) => {
                // Out of file descriptors, most likely: the connection stays in the queue. Trying
                // at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn accepted(worker: &Rc<Worker>, slot: &Rc<Slot>, tcp: TcpStream, peer: Option<SocketAddr>) {
    worker.timers.read();
    if let (Some(keepalive), Some(_)) = (&slot.current.borrow().listener.tcp_keepalive, peer) {
        crate::upstream::pool::set_keepalive(&tcp, keepalive);
    }
    if let Ok(sighting) = Sighting::new(&tcp, peer) {
        arrived(worker, slot, tcp, sighting, HandOver::Possible);
    }
}

/// Whether a connection may still go to another listener. It does so once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HandOver {
    Possible,
    Done,
}

/// Sends a connection through the listener's filters.
fn arrived(
    worker: &Rc<Worker>,
    slot: &Rc<Slot>,
    tcp: TcpStream,
    sighting: Sighting,
    hand_over: HandOver,
) {
    let mut inspection = Inspection::new(tcp, sighting);
    if inspection.ready(&slot.current.borrow().listener.filters) {
        return inspected(worker, slot, inspection, hand_over);
    }
    let (worker, slot) = (worker.clone(), slot.clone());
    spawn_local(async move {
        let waiting = Waiting::new(&worker, &slot);
        let inspection = inspection.run(&worker, &slot, &waiting.deadline).await;
        drop(waiting);
        if let Some(inspection) = inspection {
            worker.timers.read();
            inspected(&worker, &slot, inspection, hand_over);
        }
    });
}

/// A connection whose first bytes are awaited.
struct Waiting {
    worker: Rc<Worker>,
    generation: Rc<Generation>,
    id: u64,
    deadline: Rc<Deadline>,
}

impl Waiting {
    fn new(worker: &Rc<Worker>, slot: &Slot) -> Waiting {
        let id = worker.connection_id();
        let generation = slot.current.borrow().clone();
        generation.stats.inc(ListenerStat::DownstreamPreCxActive);
        Waiting {
            worker: worker.clone(),
            generation,
            id,
            deadline: worker.listeners.deadline_of(id),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.generation
            .stats
            .dec(ListenerStat::DownstreamPreCxActive);
        self.worker.listeners.forget(self.id);
    }
}

/// Hands a connection over to the listener of the address it was going to, or serves it.
fn inspected(worker: &Rc<Worker>, slot: &Rc<Slot>, inspection: Inspection, hand_over: HandOver) {
    let Inspection { tcp, sighting, .. } = inspection;
    if hand_over == HandOver::Possible
        && slot.current.borrow().listener.use_original_dst
        && let Some(destination) = sighting.original_destination
        && let Some(other) = worker.listeners.at(destination)
        && !Rc::ptr_eq(&other, slot)
    {
        return arrived(worker, &other, tcp, sighting, HandOver::Done);
    }
    serve(worker, slot, tcp, sighting);
}

/// Chooses the chain of a connection and serves it.
fn serve(worker: &Rc<Worker>, slot: &Rc<Slot>, tcp: TcpStream, sighting: Sighting) {
    let generation = slot.current.borrow().clone();
    let Some(chain) = generation.chain_for(&sighting) else {
        generation.stats.inc(ListenerStat::NoFilterChainMatch);
        let refused = Refused(&sighting);
        generation.logs.iter().for_each(|log| log.write(&refused));
        return;
    };
    let info = ConnInfo::open(worker, slot, &generation, &chain, sighting);
    if chain.tls.is_some() {
        let worker = worker.clone();
        // The handshake ends in a task of its own size; what serves is another.
        spawn_local(async move { encrypted(worker, chain, info, tcp).await });
        return;
    }
    let deadline = worker.listeners.deadline_of(info.id);
    begin(worker, &chain, info, Io::new(tcp), deadline);
}

/// Shakes hands with a client, and serves it.
async fn encrypted(worker: Rc<Worker>, chain: Rc<Chain>, info: Rc<ConnInfo>, tcp: TcpStream) {
    let Some(tls) = &chain.tls else { return };
    match crate::tls::handshake::accept(tcp, &tls.slot, tls.limit).await {
        Ok((io, peer)) => {
            info.shaken(peer);
            worker.timers.read();
            let deadline = worker.listeners.deadline_of(info.id);
            begin(&worker, &chain, info, io, deadline);
        }
        Err(failed) => info.not_shaken(&failed),
    }
}

/// Lets the guards judge the connection, and starts what serves it.
fn begin(
    worker: &Rc<Worker>,
    chain: &Rc<Chain>,
    info: Rc<ConnInfo>,
    io: Io,
    deadline: Rc<Deadline>,
) {
    if chain.guards.asks {
        let (worker, chain) = (worker.clone(), chain.clone());
        spawn_local(async move {
            let refusal = chain.guards.ask(&worker, &info).await;
            worker.timers.read();
            judged(&worker, &chain, info, io, deadline, refusal);
        });
        return;
    }
    let refusal = chain.guards.refuse(&info);
    judged(worker, chain, info, io, deadline, refusal);
}

fn judged(
    worker: &Rc<Worker>,
    chain: &Chain,
    info: Rc<ConnInfo>,
    io: Io,
    deadline: Rc<Deadline>,
    refusal: Option<Refusal>,
) {
    if let Some(refusal) = refusal {
        if let Serve::Tcp(service) = &chain.serve {
            tcp::refused(service, info, refusal.outcome, refusal.details);
        }
        return;
    }
    let http2 = info.tls().is_some_and(|tls| tls.http2);
    match &chain.serve {
        Serve::Http(service)
            if service.manager.codec == Codec::Http2
                || (service.manager.codec == Codec::Auto && http2) =>
        {
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
