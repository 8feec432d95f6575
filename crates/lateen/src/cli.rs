//! The command tree: what `lateen --help` shows, and which function each verb calls.
//!
//! One verb is one module of this crate with an `Args` struct (clap's `Args`) and
//! `pub fn run(args: Args) -> Outcome`; it is registered here in [`Command`] and [`dispatch`].

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

use crate::failure::Outcome;
use crate::{
    agent, analyze, apply, bootstrap, control, delete, demo, exec, experimental, get, hidden,
    proxy, proxy_config, proxy_status, up, validate, verify_install, version, wait,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Lateen: an Istio-compatible service mesh in one small binary.
///
/// Start with `lateen demo`: a whole mesh with the Bookinfo application on this machine, without
/// Kubernetes and without root. Then change its routing with Istio YAML: `lateen apply -f FILE`.
#[derive(Debug, Parser)]
#[command(name = "lateen", version, styles = STYLES, arg_required_else_help = true)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The verbs, in the order in which help lists them.
#[derive(Debug, Subcommand)]
pub enum Command {
    Demo(demo::Args),
    Up(up::Args),
    Apply(apply::Args),
    Get(get::Args),
    Delete(delete::Args),
    Wait(wait::Args),
    Validate(validate::Args),
    Analyze(analyze::Args),
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy_status::Args),
    #[command(visible_alias = "pc")]
    ProxyConfig(proxy_config::Args),
    VerifyInstall(verify_install::Args),
    Version(version::Args),
    #[command(visible_alias = "x")]
    Experimental(experimental::Args),
    Control(control::Args),
    Proxy(proxy::Args),
    Agent(agent::Args),
    Bootstrap(bootstrap::Args),
    Exec(exec::Args),
    #[command(hide = true, disable_version_flag = true)]
    Bookinfo(hidden::BookinfoArgs),
    #[command(hide = true)]
    RunChild(hidden::RunChildArgs),
    #[command(hide = true)]
    InNamespace(hidden::InNamespaceArgs),
    #[command(hide = true)]
    Dns(proxy::Args),
}

/// Runs one verb to its end.
pub fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Up(args) => up::run(args),
        Command::Apply(args) => apply::run(args),
        Command::Get(args) => get::run(args),
        Command::Delete(args) => delete::run(args),
        Command::Wait(args) => wait::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Analyze(args) => analyze::run(args),
        Command::ProxyStatus(args) => proxy_status::run(args),
        Command::ProxyConfig(args) => proxy_config::run(args),
        Command::VerifyInstall(args) => verify_install::run(args),
        Command::Version(args) => version::run(args),
        Command::Experimental(args) => experimental::run(args),
        Command::Control(args) => control::run(args),
        Command::Proxy(args) => proxy::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Bootstrap(args) => bootstrap::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Bookinfo(args) => hidden::bookinfo(args),
        Command::RunChild(args) => hidden::run_child(args),
        Command::InNamespace(args) => hidden::in_namespace(args),
        Command::Dns(args) => hidden::dns(args),
    }
}

/// Parses the command line. On `--help`, `--version` or a mistake the text is already printed and
/// the exit code is returned: 0, or 64 for a mistake as istioctl does (clap's own code is 2).
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, ExitCode> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(cli.command),
        Err(error) => {
            let _ = error.print();
            let code = match error.kind() {
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => 0,
                _ => 64,
            };
            Err(ExitCode::from(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
