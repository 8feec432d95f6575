//! The head of a report: when, on what machine, with which versions.

use std::fmt::Write;

use time::OffsetDateTime;

use crate::Pace;
use crate::ground::{Ground, program, version_line};
use crate::peers::xds::envoy_program;

/// `2026-11-21-0931`, in UTC.
pub fn file_stem() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{}-{:02}{:02}", now.date(), now.hour(), now.minute())
}

/// Title and machine, for a run without peers.
pub fn describe_briefly() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "# Benchmark, {}\n\n- machine: {}\n- kernel: {}\n- commit: {}\n- load average at start: {}\n\n",
        file_stem(),
        machine(cores),
        first_line("/proc/sys/kernel/osrelease"),
        commit(),
        first_line("/proc/loadavg"),
    )
}

/// Title, machine, versions and conditions of a run.
pub fn describe(ground: &Ground, pace: Pace) -> String {
    let mut text = format!("# Benchmark, {}\n\n", file_stem());
    let mut line = |name: &str, value: String| {
        // Writing into a String does not fail.
        let _ = writeln!(text, "- {name}: {value}");
    };
    line("machine", machine(ground.core_count));
    line("kernel", first_line("/proc/sys/kernel/osrelease"));
    line("commit", commit());
    for (name, arguments, found) in [
        ("Envoy", "--version", envoy_program()),
        ("HAProxy", "-v", program("haproxy", None, "")),
        ("nginx", "-v", program("nginx", None, "")),
        ("wrk", "-v", program("wrk", None, "")),
        ("h2load", "--version", program("h2load", None, "")),
    ] {
        let version = match found {
            Ok(path) => version_line(&path, &[arguments]).map(short_version),
            Err(_) => Some("not installed".into()),
        };
        line(name, version.unwrap_or_else(|| "unknown".into()));
    }
    let placement = match ground.cores() {
        Some(cores) => format!(
            "proxy on core {}, load and backend on {:?}",
            cores.proxy, cores.load
        ),
        None => "left to the scheduler".into(),
    };
    line("placement", placement);
    let Pace { round, rounds, .. } = pace;
    line(
        "rounds",
        format!("{rounds} of {round:?}, interleaved, every second one backwards, after a warm-up"),
    );
    line("load average at start", first_line("/proc/loadavg"));
    text.push_str(
        "\nOne worker thread per proxy, everything on 127.0.0.1 without TLS, 1 KB responses, \
         keep-alive. CPU is user and system time of all threads of the proxy, divided by \
         requests. Medians, with lowest and highest in parentheses; ratios are formed within a \
         round.\n",
    );
    text
}

/// The number out of what a program says of its version.
fn short_version(line: String) -> String {
    // Envoy's line begins with the path of the program, which may hold numbers as well.
    let after_path = line
        .split_once("version: ")
        .map_or(&*line, |(_, rest)| rest);
    let mut words = after_path.split([' ', '/']);
    let version =
        words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    version.unwrap_or(&line).to_owned()
}

fn machine(cores: usize) -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gigabytes = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes / 1_000_000);
    format!("{cores} cores ({model}), {gigabytes} GB")
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".into();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}, with local changes"),
    }
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_without_path_and_address() {
        let check = |line: &str, expect| assert_eq!(short_version(line.into()), expect);
        check(
            "/x/3.11/envoy  version: 9e55809/1.40.0/Clean/RELEASE/BoringSSL",
            "1.40.0",
        );
        check(
            "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
            "2.6.12-1+deb12u4",
        );
        check("nginx version: nginx/1.22.1", "1.22.1");
        check(
            "wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012",
            "4.1.0-3+b2",
        );
        check("h2load nghttp2/1.52.0", "1.52.0");
        check("something else 7", "something else 7");
    }
}
