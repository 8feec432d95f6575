//! `cargo xtask diff`: the differential harness as a program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use lateen_differ::corpus::Corpus;
use lateen_differ::run::{self, Selection};
use lateen_differ::world::{Binaries, corpus_directory};
use lateen_differ::{Failure, Result, failed};

/// Run the same rules and requests through stock Envoy and our proxy, and show what differs
#[derive(Parser)]
#[command(name = "cargo xtask diff", bin_name = "cargo xtask diff")]
struct Args {
    /// Only cases with this name; `*` stands for anything (repeatable)
    #[arg(long = "case", value_name = "GLOB")]
    cases: Vec<String>,

    /// Only the groups that continuous integration runs
    #[arg(long)]
    quick: bool,

    /// Print the names of the cases and run nothing
    #[arg(long)]
    list: bool,

    /// Show everything both planes did, not only what differs
    #[arg(long, short)]
    verbose: bool,

    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,

    /// Directory of the corpus
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("diff: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<bool> {
    let corpus = args.corpus.clone().unwrap_or_else(corpus_directory);
    if args.list {
        for case in Corpus::read(&corpus)?.cases()? {
            println!("{}", case.name);
        }
        return Ok(true);
    }
    let binaries = Binaries::find().map_err(|missing| Failure(format!("{missing} is missing")))?;
    let selection = Selection {
        cases: args.cases.clone(),
        quick: args.quick,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(failed("threads"))?;
    let report = runtime.block_on(run::run(&corpus, &binaries, &selection))?;
    match args.output {
        Output::Json => {
            let json = serde_json::to_string_pretty(&report).map_err(failed("the report"))?;
            println!("{json}");
        }
        Output::Text => {
            if args.verbose {
                for case in &report.cases {
                    println!("{}\n{:#}", case.name, case.outcome);
                }
            }
            print!("{}", report.to_text());
        }
    }
    Ok(report.passes())
}
