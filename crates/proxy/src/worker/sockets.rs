//! Listening sockets: opened on the main thread, accepted on by the workers.
//!
//! Invariant: a listener that keeps its addresses keeps its sockets, so an update loses no
//! connection that waits in an accept queue.

use lateen_proxy_config::{Address, Listener};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Why a listener cannot listen. Its text goes to the control plane in the NACK.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "listener {listener}: {address} is taken by another process; \
         stop that process or give the listener another port"
    )]
    Taken {
        listener: Arc<str>,
        address: Address,
    },
    #[error("listener {listener}: {address} is already used by listener {other}")]
    Duplicate {
        listener: Arc<str>,
        address: Address,
        other: Arc<str>,
    },
    #[error(
        "listener {listener}: this process may not listen on {address}; \
         ports below 1024 need the capability NET_BIND_SERVICE"
    )]
    Denied {
        listener: Arc<str>,
        address: Address,
    },
    #[error("listener {listener}: cannot listen on {address}: {source}")]
    Other {
        listener: Arc<str>,
        address: String,
        #[source]
        source: io::Error,
    },
}

/// Which listener has which sockets.
#[derive(Default)]
pub(super) struct Sockets {
    open: HashMap<Arc<str>, Open>,
    /// Addresses that a worker may still be closing.
    closing: Vec<SocketAddr>,
}

struct Open {
    /// Empty for a listener without sockets.
    configured: Vec<Address>,
    /// As `/listeners` shows them.
    bound: Vec<Address>,
}

/// For each worker, its sockets, those of Unix domains among them; [`None`]: keep those it has.
type Opened = Vec<Option<Vec<TcpListener>>>;

impl Sockets {
    pub(super) fn open(
        &mut self,
        listener: &Arc<Listener>,
        workers: usize,
    ) -> Result<Opened, BindError> {
        let configured = listener.addresses.clone();
        if !listener.bind_to_port {
            // Only others hand connections to it.
            self.close(&listener.name);
            let open = Open {
                configured: Vec::new(),
                bound: configured,
            };
            self.open.insert(listener.name.clone(), open);
            return Ok((0..workers).map(|_| Some(Vec::new())).collect());
        }
        if self
            .open
            .get(&listener.name)
            .is_some_and(|open| open.configured == configured)
        {
            return Ok((0..workers).map(|_| None).collect());
        }
        self.check_duplicates(listener, &configured)?;
        let mut per_worker: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
        let mut bound = Vec::new();
        for address in &configured {
            let sockets = match address {
                Address::Socket(address) => self.bind_for_workers(listener, *address, workers)?,
                Address::Pipe(path) => listen_for_workers(listener, path, workers)?,
            };
            for (i, (socket, mine)) in sockets.into_iter().zip(&mut per_worker).enumerate() {
                if i == 0 {
                    let found = socket.local_addr().map(Address::Socket);
                    bound.push(found.unwrap_or_else(|_| address.clone()));
                }
                mine.push(socket);
            }
        }
        self.close(&listener.name);
        self.open
            .insert(listener.name.clone(), Open { configured, bound });
        Ok(per_worker.into_iter().map(Some).collect())
    }

    fn check_duplicates(
        &self,
        listener: &Arc<Listener>,
        configured: &[Address],
    ) -> Result<(), BindError> {
        for (name, open) in self.open.iter().filter(|(name, _)| **name != listener.name) {
            let same = configured
                .iter()
                .find(|a| a.socket().is_none_or(|a| a.port() != 0) && open.configured.contains(a));
            if let Some(address) = same {
                return Err(BindError::Duplicate {
                    listener: listener.name.clone(),
                    address: address.clone(),
                    other: name.clone(),
                });
            }
        }
        Ok(())
    }

    fn bind_for_workers(
        &mut self,
        listener: &Arc<Listener>,
        address: SocketAddr,
        workers: usize,
    ) -> Result<Vec<TcpListener>, BindError> {
        let failed = |source| bind_error(listener, Address::Socket(address), source);
        let first = self.bind_patiently(listener, address).map_err(failed)?;
        if workers == 1 {
            return Ok(vec![first]);
        }
        if !listener.reuse_port {
            return (0..workers)
                .map(|_| first.try_clone())
                .collect::<Result<_, _>>()
                .map_err(failed);
        }
        // The first socket was opened without SO_REUSEPORT, which found out whether another
        // process listens there; sockets that share a port must all have the option.
        let address = first.local_addr().map_err(failed)?;
        drop(first);
        (0..workers)
            .map(|_| bind(listener, address, true))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }

    /// A listener that was removed a moment ago may still be open in a worker.
    fn bind_patiently(
        &mut self,
        listener: &Listener,
        address: SocketAddr,
    ) -> io::Result<TcpListener> {
        let mut tries = if self.closing.contains(&address) {
            50
        } else {
            0
        };
        loop {
            match bind(listener, address, false) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(Duration::from_millis(4));
                }
                result => {
                    self.closing.retain(|a| *a != address);
                    return result;
                }
            }
        }
    }

    pub(super) fn close(&mut self, name: &str) {
        if let Some(open) = self.open.remove(name)
            && !open.configured.is_empty()
        {
            for address in open.bound {
                match address {
                    Address::Socket(address) => self.closing.push(address),
                    Address::Pipe(path) => crate::unix::forget(&path),
                }
            }
            // Bounded: only the latest matter, since workers close within milliseconds.
            let excess = self.closing.len().saturating_sub(1024);
            self.closing.drain(..excess);
        }
    }

    pub(super) fn close_all(&mut self) {
        let all: Vec<Arc<str>> = self.open.keys().cloned().collect();
        all.iter().for_each(|name| self.close(name));
    }

    pub(super) fn list(&self) -> Vec<super::OpenAddress> {
        let mut list: Vec<_> = self
            .open
            .iter()
            .map(|(name, open)| super::OpenAddress {
                listener: name.clone(),
                addresses: open.bound.clone(),
            })
            .collect();
        list.sort_by(|a, b| a.listener.cmp(&b.listener));
        list
    }
}

/// One socket, which all workers accept on.
fn listen_for_workers(
    listener: &Listener,
    path: &Path,
    workers: usize,
) -> Result<Vec<TcpListener>, BindError> {
    let failed = |source| bind_error(listener, Address::Pipe(path.to_owned()), source);
    let socket = crate::unix::listen(path).map_err(failed)?;
    let copies = (0..workers).map(|_| Ok(TcpListener::from(OwnedFd::from(socket.try_clone()?))));
    copies.collect::<io::Result<_>>().map_err(failed)
}

fn bind(listener: &Listener, address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    #[cfg(target_os = "linux")]
    {
        if listener.transparent {
            socket.set_ip_transparent_v4(true)?;
        }
        if listener.freebind {
            socket.set_freebind_v4(true)?;
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Linux cuts this down to net.core.somaxconn.
    let backlog = listener
        .backlog
        .map_or(4096, |b| i32::try_from(b).unwrap_or(i32::MAX));
    socket.listen(backlog)?;
    Ok(socket.into())
}

fn bind_error(listener: &Listener, address: Address, source: io::Error) -> BindError {
    let listener = listener.name.clone();
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { listener, address },
        io::ErrorKind::PermissionDenied => BindError::Denied { listener, address },
        _ => BindError::Other {
            listener,
            address: address.to_string(),
            source,
        },
    }
}
