//! A fixed rate, open loop: a request is due when its time has come, whether or not earlier ones
//! are answered. This is how a sidecar lives: most of a request's cost is then in wake-ups.
//!
//! One blocking thread per connection, their turns evenly spread: timers of an event loop are a
//! millisecond coarse and would send in bursts, which spares the proxy the very wake-ups that are
//! to be measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Load;
use super::client::Client;
use crate::error::{Error, Result};

/// Connections among which the requests go round.
const CONNECTIONS: u32 = 64;

/// Latency is counted from when a request was due, so that a stall is not hidden by requests that
/// were never sent.
pub fn run(to: SocketAddr, rate: u32, round: Duration) -> Result<Load> {
    let step = Duration::from_secs(1) / rate;
    let turn = step * CONNECTIONS;
    let turns = (round.as_secs_f64() / turn.as_secs_f64()).max(1.0) as u32;
    let io = |source| Error::io("send at a fixed rate", source);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(to).map_err(io)?);
    }
    let start = Instant::now() + Duration::from_millis(20);
    let threads: Vec<_> = (0..CONNECTIONS)
        .zip(clients)
        .map(|(index, mut client)| {
            std::thread::spawn(move || {
                let mut buffer = Vec::with_capacity(2048);
                let mut latencies = Vec::with_capacity(turns as usize);
                for number in 0..turns {
                    let due = start + step * index + turn * number;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    client.get(&mut buffer)?;
                    latencies.push(due.elapsed());
                }
                Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for thread in threads {
        let ended: std::io::Result<Vec<Duration>> = thread.join().unwrap_or_else(|_| {
            let panicked = std::io::Error::other("a thread of the loader panicked");
            Err(panicked)
        });
        latencies.extend(ended.map_err(io)?);
    }
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    let rank = latencies.len() * 99 / 100;
    Ok(Load {
        requests: latencies.len() as u64,
        rate: latencies.len() as f64 / elapsed.as_secs_f64(),
        p99: latencies.get(rank).map(|late| late.as_secs_f64() * 1e6),
    })
}
