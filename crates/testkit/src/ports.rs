//! Ports for programs that must be told a number before they listen.
//!
//! Invariant: two tests that run at once, in one process or in several, get different ports. A
//! reserved port is held by a UDP socket, which the other tests' reservations meet and which
//! leaves TCP free. The range lies below those that systems hand out to outgoing connections.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Mutex;

const FIRST: u16 = 17_000;
const LAST: u16 = 31_900;

static HELD: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// A TCP port of 127.0.0.1 that nobody else is told until this process ends.
pub fn reserve() -> u16 {
    block(1)
}

/// The first of `count` such ports in a row.
pub fn block(count: u16) -> u16 {
    // Processes that start together begin at different places.
    let mut port = FIRST + (std::process::id().wrapping_mul(67) % 14_000) as u16;
    for _ in FIRST..=LAST {
        if port + count > LAST {
            port = FIRST;
        }
        let sockets: Vec<UdpSocket> = (port..port + count).map_while(take).collect();
        if sockets.len() == usize::from(count) {
            if let Ok(mut held) = HELD.lock() {
                held.extend(sockets);
            }
            return port;
        }
        port += sockets.len() as u16 + 1;
    }
    panic!("no {count} free ports in a row from {FIRST} to {LAST}");
}

fn take(port: u16) -> Option<UdpSocket> {
    let address = (Ipv4Addr::LOCALHOST, port);
    let held = UdpSocket::bind(address).ok()?;
    TcpListener::bind(address).ok()?;
    Some(held)
}
