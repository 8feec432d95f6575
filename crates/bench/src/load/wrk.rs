//! `wrk`: as many requests as the connections carry.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use super::Load;
use crate::error::{Error, Result};
use crate::process::output;

/// One run with one thread of load.
pub fn run(to: SocketAddr, connections: usize, round: Duration) -> Result<Load> {
    let mut command = Command::new("wrk");
    command
        .args(["-t1", "--latency"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{}s", round.as_secs()))
        .arg(format!("http://{to}/"));
    let text = output(&mut command)
        .map_err(|source| Error::io("start wrk (apt-get install wrk)", source))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Load> {
    let unexpected = || Error::Output {
        program: "wrk".into(),
        text: text.to_owned(),
    };
    for line in text.lines().map(str::trim) {
        if line.starts_with("Socket errors:") || line.starts_with("Non-2xx") {
            return Err(Error::Requests(line.to_owned()));
        }
    }
    let after = |start: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find_map(|line| Some(line.strip_prefix(start)?.trim()))
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .ok_or_else(unexpected)?;
    let rate = after("Requests/sec:")
        .and_then(|number| number.parse().ok())
        .ok_or_else(unexpected)?;
    Ok(Load {
        requests,
        rate,
        p99: after("99%").and_then(microseconds),
    })
}

/// `532.00us`, `1.20ms`, `2.00s`.
fn microseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Running 3s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.10ms  210.11us   9.32ms   91.01%
    Req/Sec    58.33k     2.61k   61.30k    86.67%
  Latency Distribution
     50%    1.05ms
     75%    1.20ms
     90%    1.30ms
     99%    1.89ms
  174210 requests in 3.00s, 190.34MB read
Requests/sec:  58041.88
Transfer/sec:     63.42MB
";

    #[test]
    fn the_summary_is_read() {
        let load = parse(TEXT).unwrap();
        assert_eq!(
            load,
            Load {
                requests: 174_210,
                rate: 58_041.88,
                p99: Some(1890.0)
            }
        );
    }

    #[test]
    fn a_run_with_failed_requests_has_no_figure() {
        for line in [
            "  Non-2xx or 3xx responses: 12",
            "  Socket errors: connect 0, read 3, write 0, timeout 0",
        ] {
            assert!(matches!(
                parse(&format!("{TEXT}{line}\n")),
                Err(Error::Requests(_))
            ));
        }
        assert!(matches!(
            parse("unable to connect"),
            Err(Error::Output { .. })
        ));
    }
}
