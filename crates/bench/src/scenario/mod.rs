//! The measurements. Each gives one or more tables and never stops for a contestant that fails.

pub mod http1;
pub mod http2;
pub mod memory;
pub mod rbac;
pub mod size;
pub mod tcp;
pub mod tls;

use std::time::Duration;

use crate::Pace;
use crate::contestant::{Contestant, Entry};
use crate::error::Result;
use crate::load::Load;
use crate::table::Row;

/// The figures of one round.
type Figures = Vec<Option<f64>>;

/// Measures everybody in turn, round after round, the order reversed in every second one. Who
/// fails is measured no more and shown with the reason.
fn interleaved(
    what: &str,
    pace: Pace,
    mut entries: Vec<&mut Entry>,
    warm_up: impl Fn(&Contestant) -> Result,
    measure: impl Fn(&Contestant) -> Result<Figures>,
) -> Vec<Row> {
    let mut rows: Vec<Row> = entries
        .iter()
        .map(|entry| Row {
            kind: entry.kind,
            rounds: Vec::new(),
            failure: entry.state.as_ref().err().map(ToString::to_string),
        })
        .collect();
    for round in 0..=pace.rounds {
        eprintln!("==> {what}, {}", round_name(round));
        let mut turns: Vec<_> = entries.iter_mut().zip(&mut rows).collect();
        if round % 2 == 0 {
            turns.reverse();
        }
        for (entry, row) in turns {
            let (Ok(contestant), None) = (&mut entry.state, &row.failure) else {
                continue;
            };
            let result = if round == 0 {
                warm_up(contestant).map(|()| None)
            } else {
                measure(contestant).map(Some)
            };
            // A dead proxy explains more than the failed requests it causes.
            match contestant.check().and(result) {
                Ok(figures) => row.rounds.extend(figures),
                Err(error) => {
                    eprintln!("{}: {error}", entry.kind.name());
                    row.failure = Some(error.to_string());
                }
            }
        }
    }
    rows
}

fn round_name(round: u32) -> String {
    match round {
        0 => "warm-up".into(),
        round => format!("round {round}"),
    }
}

const WARM_UP: Duration = Duration::from_secs(1);

/// Runs a load and gives CPU microseconds per request, requests per second, p99 in microseconds.
fn cost_per_request(
    contestant: &Contestant,
    load: impl FnOnce() -> Result<Load>,
) -> Result<Figures> {
    let before = contestant.cpu();
    let load = load()?;
    let used = contestant.cpu() - before;
    let per_request = used.as_secs_f64() * 1e6 / load.requests.max(1) as f64;
    let cost = contestant.process.is_some().then_some(per_request);
    Ok(vec![cost, Some(load.rate), load.p99])
}
