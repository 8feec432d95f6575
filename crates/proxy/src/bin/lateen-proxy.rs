//! The data plane alone, for container images: `lateen-proxy -c bootstrap.json`.

use std::process::ExitCode;

use clap::Parser;
use lateen_proxy::main_thread::{Options, ProxyArgs, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Proxy of the Lateen service mesh
#[derive(Parser)]
#[command(name = "lateen-proxy", version)]
struct Command {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn main() -> ExitCode {
    match run(Options::from(Command::parse().proxy)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lateen-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}
