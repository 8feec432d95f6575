//! HTTP/2 from the client, HTTP/1.1 to the backend.

use super::{WARM_UP, cost_per_request, interleaved};
use crate::Pace;
use crate::contestant::{Entry, Kind};
use crate::load::h2load;
use crate::table::{Column, Table};

const CONNECTIONS: usize = 10;
const STREAMS: usize = 32;

pub fn run(pace: Pace, entries: &mut [Entry]) -> Table {
    let title = "HTTP/2 in, HTTP/1.1 out".to_owned();
    // The backend speaks HTTP/1.1 only.
    let proxies = |entry: &&mut Entry| entry.kind != Kind::Direct;
    let rows = interleaved(
        &title,
        pace,
        entries.iter_mut().filter(proxies).collect(),
        |contestant| h2load::run(contestant.h2, CONNECTIONS, STREAMS, WARM_UP).map(drop),
        |contestant| {
            cost_per_request(contestant, || {
                h2load::run(contestant.h2, CONNECTIONS, STREAMS, pace.round)
            })
        },
    );
    Table {
        title,
        note: format!("`h2load -c {CONNECTIONS} -m {STREAMS}`, prior knowledge."),
        columns: vec![
            Column {
                title: "CPU us/request",
                decimals: 1,
            },
            Column {
                title: "requests/s",
                decimals: 0,
            },
        ],
        rows,
    }
}
