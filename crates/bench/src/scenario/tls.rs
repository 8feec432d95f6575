//! Mutual TLS: requests over a pair of proxies, and full handshakes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::{Figures, WARM_UP, cost_per_request, interleaved};
use crate::Pace;
use crate::contestant::{Contestant, Entry, Kind};
use crate::error::{Error, Result};
use crate::ground::Ground;
use crate::load::client::Client;
use crate::load::{paced, wrk};
use crate::table::{Column, Table};

const CONNECTIONS: usize = 64;
const RATE: u32 = 2_000;
/// Threads that shake hands at once.
const HANDS: usize = 4;

pub fn run(ground: &Ground, pace: Pace, entries: &mut [Entry]) -> Result<Vec<Table>> {
    let config = ground.credentials.client_config()?;
    let pair = "HTTP/1.1 over a pair with mutual TLS";
    let saturated = table(
        format!("{pair}, saturated, {CONNECTIONS} connections"),
        "Both hops in one process: plaintext in, mutual TLS to itself, plaintext to the backend.",
        REQUESTS,
        pace,
        entries,
        |contestant, length| {
            let to = contestant.pair.ok_or_else(no_tls)?;
            cost_per_request(contestant, || wrk::run(to, CONNECTIONS, length))
        },
    );
    let at_rate = table(
        format!("{pair}, {RATE} requests a second"),
        "Open loop, evenly spread over 64 connections.",
        REQUESTS,
        pace,
        entries,
        |contestant, length| {
            let to = contestant.pair.ok_or_else(no_tls)?;
            cost_per_request(contestant, || paced::run(to, RATE, length))
        },
    );
    let handshakes = table(
        "Full handshakes with mutual TLS, one request each".to_owned(),
        "New connections, no session resumed, P-256 certificates on both sides; four at a time.",
        ["CPU us/handshake", "handshakes/s", "handshakes/CPU s"],
        pace,
        entries,
        |contestant, length| {
            let to = contestant.mtls.ok_or_else(no_tls)?;
            shake(contestant, to, &config, length)
        },
    );
    Ok(vec![saturated, at_rate, handshakes])
}

const REQUESTS: [&str; 3] = ["CPU us/request", "requests/s", "p99 us"];

fn table(
    title: String,
    note: &str,
    columns: [&'static str; 3],
    pace: Pace,
    entries: &mut [Entry],
    measure: impl Fn(&Contestant, Duration) -> Result<Figures>,
) -> Table {
    let proxies = entries
        .iter_mut()
        .filter(|entry| entry.kind != Kind::Direct);
    let rows = interleaved(
        &title,
        pace,
        proxies.collect(),
        |contestant| measure(contestant, WARM_UP).map(drop),
        |contestant| measure(contestant, pace.round),
    );
    let [first, second, third] = columns;
    let column = |title, decimals| Column { title, decimals };
    Table {
        title,
        note: note.to_owned(),
        columns: vec![column(first, 1), column(second, 0), column(third, 0)],
        rows,
    }
}

fn no_tls() -> Error {
    Error::Unsuitable("it has no port with mutual TLS".to_owned())
}

/// Connects, asks once and closes, again and again.
fn shake(
    contestant: &Contestant,
    to: SocketAddr,
    config: &Arc<ClientConfig>,
    length: Duration,
) -> Result<Figures> {
    let before = contestant.cpu();
    let started = Instant::now();
    let counts: Vec<std::io::Result<u64>> = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = Vec::with_capacity(2048);
                    let mut count = 0;
                    while started.elapsed() < length {
                        Client::connect_tls(to, config)?.get(&mut buffer)?;
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        let panicked = || Err(std::io::Error::other("the thread panicked"));
        let joined = hands.into_iter().map(|hand| hand.join());
        joined
            .map(|count| count.unwrap_or_else(|_| panicked()))
            .collect()
    });
    let elapsed = started.elapsed();
    let used = contestant.cpu() - before;
    let mut total = 0;
    for count in counts {
        total += count.map_err(|source| Error::io("shake hands", source))?;
    }
    let total = total.max(1) as f64;
    Ok(vec![
        Some(used.as_secs_f64() * 1e6 / total),
        Some(total / elapsed.as_secs_f64()),
        Some(total / used.as_secs_f64().max(1e-9)),
    ])
}
