//! The `lateen` command line: one binary for the control plane, the proxy and every verb.
//!
//! It parses arguments, calls one function of one crate, and turns the outcome into a message and
//! an exit code. It has no logic of its own: a verb that grows logic moves it into a crate.

#[macro_use]
mod output;

mod agent;
mod analyze;
mod apply;
mod bootstrap;
mod cli;
mod control;
mod delete;
mod demo;
mod documents;
mod exec;
mod experimental;
mod failure;
mod get;
mod hidden;
mod progress;
mod proxy;
mod proxy_config;
mod proxy_status;
mod resource;
mod rest;
mod session;
mod summary;
mod table;
mod up;
mod validate;
mod verify_install;
mod version;
mod wait;
mod watched;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(code) => return code,
    };
    match cli::dispatch(command).and_then(|()| output::complete()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
