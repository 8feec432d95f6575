//! `h2load`: HTTP/2 with prior knowledge, many streams on few connections.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use super::Load;
use crate::error::{Error, Result};
use crate::process::output;

/// One run with one thread of load.
pub fn run(to: SocketAddr, connections: usize, streams: usize, round: Duration) -> Result<Load> {
    let mut command = Command::new("h2load");
    command
        .arg(format!("-c{connections}"))
        .arg(format!("-m{streams}"))
        .arg(format!("--duration={}", round.as_secs()))
        .arg(format!("http://{to}/"));
    let text = output(&mut command)
        .map_err(|source| Error::io("start h2load (apt-get install nghttp2-client)", source))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Load> {
    let unexpected = || Error::Output {
        program: "h2load".into(),
        text: text.to_owned(),
    };
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let counts = line("requests:").ok_or_else(unexpected)?;
    let codes = line("status codes:").ok_or_else(unexpected)?;
    let field = |fields: &str, name: &str| {
        fields
            .split(',')
            .find_map(|field| field.trim().strip_suffix(name)?.trim().parse::<u64>().ok())
    };
    let succeeded = field(counts, "succeeded").ok_or_else(unexpected)?;
    // h2load calls every whole answer below 400 a success and reports the rest here.
    let failed = [
        ("failed", counts),
        ("4xx", codes),
        ("5xx", codes),
        ("3xx", codes),
    ]
    .iter()
    .filter_map(|(name, fields)| field(fields, name))
    .any(|count| count > 0);
    if failed {
        return Err(Error::Requests(format!(
            "{}; {}",
            counts.trim(),
            codes.trim()
        )));
    }
    let rate = line("finished in ")
        .and_then(|rest| {
            rest.split(", ")
                .nth(1)?
                .strip_suffix(" req/s")?
                .parse()
                .ok()
        })
        .ok_or_else(unexpected)?;
    Ok(Load {
        requests: succeeded,
        rate,
        p99: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "starting benchmark...
Application protocol: h2c
finished in 3.00s, 40321.33 req/s, 41.55MB/s
requests: 120964 total, 121284 started, 120964 done, 120964 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 121006 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 124.65MB (130704108) total, 1.27MB (1330604) headers
";

    #[test]
    fn the_summary_is_read() {
        let load = parse(TEXT).unwrap();
        assert_eq!((load.requests, load.rate), (120_964, 40_321.33));
    }

    #[test]
    fn a_run_with_failed_requests_has_no_figure() {
        for (from, to) in [("0 failed", "7 failed"), ("0 5xx", "5 5xx")] {
            let text = TEXT.replace(from, to);
            assert!(matches!(parse(&text), Err(Error::Requests(_))), "{to}");
        }
        assert!(matches!(parse(""), Err(Error::Output { .. })));
    }
}
