//! `lateen-bench`: our proxy beside Envoy, HAProxy and nginx, in one interleaved run.
//!
//! A program of its own and not a part of `xtask`: its backend and loaders must be built with
//! optimisation or they would be the bottleneck, and `cargo xtask test` must not wait for gRPC to
//! compile. `cargo xtask bench` installs the peers, builds everything in release and starts it.
//!
//! Invariants: a peer that is missing, or fails, is reported and never guessed; nothing that was
//! started outlives the run, whether it ends well, by an error or by a signal.

mod ads;
mod backend;
mod contestant;
mod control;
mod credentials;
mod error;
mod ground;
mod load;
mod machine;
mod peers;
mod process;
mod resources;
mod scenario;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use error::{Error, Result};
use ground::Ground;

/// Measures our proxy against Envoy, HAProxy and nginx.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Args {
    /// What to measure instead of proxies
    #[arg(value_enum, value_name = "WHAT")]
    what: Option<What>,

    /// Of the control plane: numbers of services
    #[arg(long, value_delimiter = ',', default_value = "100,1000,2500,5000")]
    services: Vec<usize>,

    /// Of the control plane: connected proxies
    #[arg(long, default_value_t = 100)]
    clients: usize,

    /// Of the control plane: what the connected proxies are
    #[arg(long, value_enum, default_value_t = control::Kind::Sidecar)]
    proxies: control::Kind,

    /// Of the control plane: changes of each kind
    #[arg(long, default_value_t = 30)]
    changes: usize,

    /// Smoke run: one round of one second, 1,000 idle connections, nothing saved
    #[arg(long)]
    quick: bool,

    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,

    /// Length of one round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Rounds per contestant
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Leave the placement of proxies and load to the scheduler
    #[arg(long)]
    no_pin: bool,

    /// Print only, write no file
    #[arg(long)]
    no_save: bool,

    /// Where tables are saved (default: docs/benchmarks of this repository)
    #[arg(long, value_name = "DIR", env = "LATEEN_BENCH_SAVE")]
    save: Option<PathBuf>,

    /// Directory with the release binaries `lateen` and `lateen-proxy`
    #[arg(long, value_name = "DIR", env = "LATEEN_BENCH_BINARIES")]
    binaries: PathBuf,
}

/// What else than proxies can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The control plane with many proxies, services and rules
    Control,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// HTTP/1.1, one hop: saturated, with 1,000 connections, at 5,000 requests a second
    Http1,
    /// HTTP/2 in, HTTP/1.1 out
    H2,
    /// TCP passthrough
    Tcp,
    /// Mutual TLS: a pair of hops, and full handshakes
    Tls,
    /// Memory when idle, under 1,000 connections, and per idle connection
    Memory,
    /// Size on disk
    Size,
    /// What a decision costs when there are a thousand authorization policies
    Rbac,
}

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
struct Pace {
    round: Duration,
    rounds: u32,
    idle_connections: usize,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result {
    if args.what == Some(What::Control) {
        return run_control(args);
    }
    let pace = if args.quick {
        Pace {
            round: Duration::from_secs(1),
            rounds: 1,
            idle_connections: 1_000,
        }
    } else {
        Pace {
            round: Duration::from_secs(args.seconds),
            rounds: args.rounds,
            idle_connections: 10_000,
        }
    };
    let ground = Ground::prepare(&args.binaries, !args.no_pin)?;
    let head = machine::describe(&ground, pace);
    println!("{head}");
    let mut sections = Vec::new();
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut done = |section: String| {
        println!("{section}");
        sections.push(section);
    };
    if [Part::Http1, Part::H2, Part::Tcp, Part::Tls]
        .into_iter()
        .any(wanted)
    {
        let mut contestants = contestant::start_all(&ground);
        if wanted(Part::Http1) {
            for table in scenario::http1::run(pace, &mut contestants) {
                done(table.markdown());
            }
        }
        if wanted(Part::H2) {
            done(scenario::http2::run(pace, &mut contestants).markdown());
        }
        if wanted(Part::Tcp) {
            done(scenario::tcp::run(pace, &mut contestants).markdown());
        }
        if wanted(Part::Tls) {
            for table in scenario::tls::run(&ground, pace, &mut contestants)? {
                done(table.markdown());
            }
        }
    }
    if wanted(Part::Memory) {
        for table in scenario::memory::run(&ground, pace) {
            done(table.markdown());
        }
    }
    if wanted(Part::Rbac) {
        done(scenario::rbac::run()?);
    }
    if wanted(Part::Size) {
        done(scenario::size::run(&ground));
    }
    if !args.quick && !args.no_save {
        save(args, "", &head, &sections)?;
    }
    Ok(())
}

fn run_control(args: &Args) -> Result {
    let plan = control::Plan {
        sizes: args.services.clone(),
        clients: args.clients,
        kind: args.proxies,
        changes: if args.quick { 5 } else { args.changes },
    };
    let head = machine::describe_briefly();
    let table = control::run(&args.binaries, &plan)?;
    println!("{head}{table}");
    if !args.quick && !args.no_save {
        let prefix = match args.proxies {
            control::Kind::Sidecar => "control-",
            control::Kind::Captured => "control-captured-",
            control::Kind::Gateway => "control-gateway-",
        };
        save(args, prefix, &head, &[table])?;
    }
    Ok(())
}

fn save(args: &Args, prefix: &str, head: &str, sections: &[String]) -> Result {
    let Some(directory) = &args.save else {
        return Ok(());
    };
    let path = directory.join(format!("{prefix}{}.md", machine::file_stem()));
    let mut text = head.to_owned();
    for section in sections {
        text.push('\n');
        text.push_str(section);
    }
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&path, text))
        .map_err(|source| Error::io(format!("write {}", path.display()), source))?;
    println!("saved {}", path.display());
    Ok(())
}
