//! Memory, as proportional set size: idle, under load, after it, and per idle connection. Every
//! figure is of a process that was started for it.

use std::time::Duration;

use super::Figures;
use crate::Pace;
use crate::contestant::{ALL, Contestant, Kind, start};
use crate::error::Result;
use crate::ground::Ground;
use crate::load::client::Client;
use crate::load::{idle, wrk};
use crate::table::{Column, Row, Table};

/// Until a proxy has settled after it was started, or loaded.
const REST: Duration = Duration::from_secs(1);

const BUSY_CONNECTIONS: usize = 1_000;

pub fn run(ground: &Ground, pace: Pace) -> Vec<Table> {
    // A proxy may take two descriptors per connection, and the client shares its process with
    // the backend.
    let spare = ground.descriptors.saturating_sub(500) / 2;
    let idle = pace.idle_connections.min(spare as usize);
    let encrypted = idle / 5;
    vec![
        Table {
            title: "Memory".into(),
            note: format!(
                "Proportional set size one second after the start; while {BUSY_CONNECTIONS} \
                 connections are busy; one second after they have closed. HAProxy and nginx are \
                 set up for {idle} connections, which nginx pays for at its start."
            ),
            columns: vec![
                megabytes("idle MB"),
                megabytes("under load MB"),
                megabytes("after MB"),
            ],
            rows: each(ground, pace, "memory", |contestant| {
                idle_and_busy(contestant, pace)
            }),
        },
        Table {
            title: format!("Memory per idle connection, {idle} connections"),
            note: "Growth of the proportional set size, divided by connections; each has had one \
                   request. Kernel socket memory is not in it."
                .into(),
            columns: vec![Column {
                title: "bytes/connection",
                decimals: 0,
            }],
            rows: each(ground, pace, "idle connections", |contestant| {
                per_connection(contestant, idle)
            }),
        },
        Table {
            title: format!("Memory per idle mTLS connection, {encrypted} connections"),
            note: "The same after a full handshake with certificates of both sides.".into(),
            columns: vec![Column {
                title: "bytes/connection",
                decimals: 0,
            }],
            rows: each(ground, pace, "idle mTLS connections", |contestant| {
                per_tls_connection(ground, contestant, encrypted)
            }),
        },
    ]
}

fn megabytes(title: &'static str) -> Column {
    Column { title, decimals: 1 }
}

/// A fresh process for everybody in every round.
fn each(
    ground: &Ground,
    pace: Pace,
    what: &str,
    measure: impl Fn(&Contestant) -> Result<Figures>,
) -> Vec<Row> {
    let proxies = ALL.into_iter().filter(|kind| *kind != Kind::Direct);
    let mut rows: Vec<Row> = proxies
        .map(|kind| Row {
            kind,
            rounds: Vec::new(),
            failure: None,
        })
        .collect();
    for round in 1..=pace.rounds {
        eprintln!("==> {what}, round {round}");
        for row in rows.iter_mut().filter(|row| row.failure.is_none()) {
            let figures = start(ground, row.kind).and_then(|mut contestant| {
                std::thread::sleep(REST);
                let figures = measure(&contestant);
                contestant.check()?;
                figures
            });
            match figures {
                Ok(figures) => row.rounds.push(figures),
                Err(error) => {
                    eprintln!("{}: {error}", row.kind.name());
                    row.failure = Some(error.to_string());
                }
            }
        }
    }
    rows
}

fn idle_and_busy(contestant: &Contestant, pace: Pace) -> Result<Figures> {
    let to_megabytes = |bytes: u64| Some(bytes as f64 / 1e6);
    let idle = contestant.pss();
    let length = pace.round.max(Duration::from_secs(2));
    let (loaded, busy) = std::thread::scope(|scope| {
        let load = scope.spawn(|| wrk::run(contestant.http, BUSY_CONNECTIONS, length));
        std::thread::sleep(length - Duration::from_millis(500));
        let busy = contestant.pss();
        (load.join(), busy)
    });
    loaded.unwrap_or_else(|_| {
        let panicked = std::io::Error::other("the thread panicked");
        Err(crate::Error::io("run wrk", panicked))
    })?;
    std::thread::sleep(REST);
    Ok(vec![
        to_megabytes(idle),
        to_megabytes(busy),
        to_megabytes(contestant.pss()),
    ])
}

fn per_connection(contestant: &Contestant, count: usize) -> Result<Figures> {
    let before = contestant.pss();
    let connections = idle::open(count, || Client::connect(contestant.http))?;
    std::thread::sleep(REST);
    let growth = contestant.pss().saturating_sub(before);
    drop(connections);
    Ok(vec![Some(growth as f64 / count as f64)])
}

fn per_tls_connection(ground: &Ground, contestant: &Contestant, count: usize) -> Result<Figures> {
    let config = ground.credentials.client_config()?;
    let Some(to) = contestant.mtls else {
        return Ok(vec![None]);
    };
    let before = contestant.pss();
    let connections = idle::open(count, || Client::connect_tls(to, &config))?;
    std::thread::sleep(REST);
    let growth = contestant.pss().saturating_sub(before);
    drop(connections);
    Ok(vec![Some(growth as f64 / count as f64)])
}
