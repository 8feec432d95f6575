//! TCP passthrough: bytes from the backend through the proxy, four connections.

use std::time::Duration;

use super::{Figures, WARM_UP, interleaved};
use crate::Pace;
use crate::contestant::{Contestant, Entry, Kind};
use crate::error::{Error, Result};
use crate::load::stream;
use crate::resources::Chain;
use crate::table::{Column, Table};

pub fn run(pace: Pace, entries: &mut [Entry]) -> Table {
    let title = "TCP passthrough".to_owned();
    // The chains differ in HTTP only.
    let distinct = |entry: &&mut Entry| {
        !matches!(
            entry.kind,
            Kind::Envoy(Chain::Istio) | Kind::Lateen(Chain::Istio)
        )
    };
    let rows = interleaved(
        &title,
        pace,
        entries.iter_mut().filter(distinct).collect(),
        |contestant| measure(contestant, WARM_UP).map(drop),
        |contestant| measure(contestant, pace.round),
    );
    Table {
        title,
        note: "Four connections, backend to client, no pause.".into(),
        columns: vec![
            Column {
                title: "CPU s/GB",
                decimals: 3,
            },
            Column {
                title: "GB/s",
                decimals: 2,
            },
        ],
        rows,
    }
}

fn measure(contestant: &Contestant, round: Duration) -> Result<Figures> {
    let Some(tcp) = contestant.tcp else {
        return Err(Error::Unsuitable(
            "Debian's light package has no TCP proxy".into(),
        ));
    };
    let (bytes, elapsed, before, after) = stream::run(tcp, round, || contestant.cpu())?;
    let gigabytes = bytes as f64 / 1e9;
    let cost = (after - before).as_secs_f64() / gigabytes;
    Ok(vec![
        contestant.process.is_some().then_some(cost),
        Some(gigabytes / elapsed.as_secs_f64()),
    ])
}
