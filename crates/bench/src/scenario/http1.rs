//! HTTP/1.1, one hop: as fast as it goes, with many connections, and at a sidecar's real load.

use super::{WARM_UP, cost_per_request, interleaved};
use crate::Pace;
use crate::contestant::Entry;
use crate::load::{paced, wrk};
use crate::table::{Column, Table};

const RATE: u32 = 5_000;

pub fn run(pace: Pace, entries: &mut [Entry]) -> Vec<Table> {
    vec![
        saturated(pace, entries, 64),
        saturated(pace, entries, 1_000),
        at_rate(pace, entries),
    ]
}

fn saturated(pace: Pace, entries: &mut [Entry], connections: usize) -> Table {
    let title = format!("HTTP/1.1 one hop, saturated, {connections} connections");
    let rows = interleaved(
        &title,
        pace,
        entries.iter_mut().collect(),
        |contestant| wrk::run(contestant.http, connections, WARM_UP).map(drop),
        |contestant| {
            cost_per_request(contestant, || {
                wrk::run(contestant.http, connections, pace.round)
            })
        },
    );
    Table {
        note: format!("`wrk -t 1 -c {connections}`."),
        title,
        columns: columns(),
        rows,
    }
}

fn at_rate(pace: Pace, entries: &mut [Entry]) -> Table {
    let title = format!("HTTP/1.1 one hop, {RATE} requests a second");
    let rows = interleaved(
        &title,
        pace,
        entries.iter_mut().collect(),
        |contestant| paced::run(contestant.http, RATE, WARM_UP).map(drop),
        |contestant| cost_per_request(contestant, || paced::run(contestant.http, RATE, pace.round)),
    );
    Table {
        note: "Open loop, evenly spread over 64 connections; latency counts from when a request \
               was due and contains the loader's own wake-up."
            .into(),
        title,
        columns: columns(),
        rows,
    }
}

fn columns() -> Vec<Column> {
    vec![
        Column {
            title: "CPU us/request",
            decimals: 1,
        },
        Column {
            title: "requests/s",
            decimals: 0,
        },
        Column {
            title: "p99 us",
            decimals: 0,
        },
    ]
}
