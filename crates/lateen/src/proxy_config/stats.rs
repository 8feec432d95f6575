//! `proxy-config stats`: the proxy's own counters, in Envoy's text form.
//!
//! istioctl never had it (`istioctl x envoy-stats` is the nearest); people type it all the same.

use std::fmt::Write;

use clap::ValueEnum;

use super::From;
use super::cluster::Direction;
use crate::failure::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    /// Only statistics whose name contains this; may be repeated
    #[arg(long = "stat", visible_alias = "filter", value_name = "NAME")]
    pub stats: Vec<String>,

    /// Only those of inbound or of outbound traffic
    #[arg(long, value_enum, value_name = "DIRECTION")]
    pub direction: Option<Direction>,

    /// Only histograms, and of each this quantile, e.g. 0.99
    #[arg(long, value_name = "Q", value_parser = quantile)]
    pub quantile: Option<f64>,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Envoy's names, a line each
    #[value(alias = "table")]
    Text,
    /// Prometheus' text form
    #[value(alias = "prom-merged", alias = "prometheus")]
    Prom,
}

/// Envoy computes these, in percent (`Histogram::supportedQuantiles`).
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

fn quantile(text: &str) -> Result<f64, String> {
    let asked: Option<f64> = text.parse().ok();
    let known = |percent: f64| QUANTILES.iter().any(|q| (q - percent).abs() < 1e-6);
    asked
        .map(|quantile| quantile * 100.0)
        .filter(|percent| known(*percent))
        .ok_or_else(|| "use 0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999 or 1".to_owned())
}

pub fn run(args: &Args) -> Outcome {
    if args.from.file.is_some() {
        let text = "a config dump has no statistics; name a workload, or --admin HOST:PORT";
        return Err(Failure::usage(text));
    }
    let prom = args.output == Output::Prom;
    if prom && args.quantile.is_some() {
        let text = "Prometheus' form has buckets, no quantiles; leave out -o prom or --quantile";
        return Err(Failure::usage(text));
    }
    let page = if prom { "/stats/prometheus" } else { "/stats" };
    out!("{}", select(args, &args.from.ask(page)?.text()));
    Ok(())
}

fn select(args: &Args, text: &str) -> String {
    let mut selected = String::new();
    for line in text.lines() {
        let name = match args.output {
            Output::Text => line.split_once(": ").map_or(line, |(name, _)| name),
            Output::Prom => line,
        };
        let named = args.stats.is_empty() || args.stats.iter().any(|part| name.contains(&**part));
        let directed = args.direction.is_none_or(|way| name.contains(way.name()));
        if !named || !directed {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = match args.quantile {
            None => writeln!(selected, "{line}"),
            Some(percent) => match value_at(line, percent) {
                Some(value) => writeln!(selected, "{name}: {value}"),
                None => Ok(()),
            },
        };
    }
    selected
}

/// The value since the start in `name: P0(nan,1) P99(nan,24.4)`: first the interval's, then this.
fn value_at(line: &str, percent: f64) -> Option<&str> {
    let values = line.split_once(": ")?.1.split(' ');
    let mut values = values.filter_map(|part| part.strip_prefix('P')?.split_once('('));
    let (_, pair) = values.find(|(at, _)| {
        at.parse::<f64>()
            .is_ok_and(|at| (at - percent).abs() < 1e-6)
    })?;
    pair.strip_suffix(')')?.split_once(',').map(|(_, all)| all)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn statistics_are_selected_as_people_ask_for_them() {
        let text = "cluster.inbound|80||.upstream_rq_total: 7\n\
                    cluster.outbound|80||a.upstream_rq_total: 9\n\
                    cluster.outbound|80||a.upstream_rq_time: P0(nan,1) P99(2.5,24.4) P99.9(nan,30)\n";
        let check = |arguments: &[&str], expect: &str| {
            let all = ["stats", "--admin", "a:1"].iter().chain(arguments);
            let line = Line::try_parse_from(all).map_err(|e| e.to_string());
            let selected = line.map(|line| select(&line.args, text));
            assert_eq!(selected.as_deref(), Ok(expect), "{arguments:?}");
        };
        check(&[], text);
        check(
            &["--direction", "inbound"],
            "cluster.inbound|80||.upstream_rq_total: 7\n",
        );
        check(
            &["--stat=upstream_rq_total", "--direction=outbound"],
            "cluster.outbound|80||a.upstream_rq_total: 9\n",
        );
        check(
            &["--quantile", "0.99"],
            "cluster.outbound|80||a.upstream_rq_time: 24.4\n",
        );
        check(&["--stat", "nothing"], "");
        assert!(quantile("0.42").is_err());
        assert!(quantile("many").is_err());
    }
}
