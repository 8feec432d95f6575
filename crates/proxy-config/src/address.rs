//! Addresses as configuration gives them.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Socket(SocketAddr),
    /// A Unix domain socket.
    Pipe(PathBuf),
}

impl Address {
    /// What stands for it where addresses are told apart: of a Unix domain socket one that no other
    /// endpoint has (100::/64, RFC 6666), by its path.
    pub fn key(&self) -> SocketAddr {
        match self {
            Address::Socket(address) => *address,
            Address::Pipe(path) => {
                let mut hasher = DefaultHasher::new();
                path.hash(&mut hasher);
                let low = u128::from(hasher.finish());
                SocketAddr::new(Ipv6Addr::from(0x0100 << 112 | low).into(), 0)
            }
        }
    }

    /// The address of a TCP socket.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Address::Socket(address) => Some(*address),
            Address::Pipe(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(a) => a.fmt(f),
            Address::Pipe(p) => p.display().fmt(f),
        }
    }
}

/// A host name (or IP) and port that DNS resolves later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub host: Arc<str>,
    pub port: u16,
}

/// An IP prefix such as `10.0.0.0/8`, its host bits cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CidrRange {
    pub network: IpAddr,
    pub prefix_len: u8,
}

impl CidrRange {
    /// Whether `ip` lies in the prefix. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.network, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix_len))
                    .unwrap_or(0);
                u32::from(net) == u32::from(ip) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix_len))
                    .unwrap_or(0);
                u128::from(net) == u128::from(ip) & mask
            }
            _ => false,
        }
    }
}
