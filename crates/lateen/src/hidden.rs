//! Verbs that `lateen demo` and `lateen up` start as child processes; help does not list them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;
use lateen_local::bookinfo::{self, App, Settings};
use lateen_local::capture::{Entry, enter};
use lateen_proxy::main_thread::{self, Options, ProxyArgs};

use crate::failure::{Failure, Outcome};

/// The applications of Bookinfo.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum BookinfoApp {
    Productpage,
    Details,
    Ratings,
    Reviews,
}

/// Run one application of Bookinfo
#[derive(Debug, clap::Args)]
pub struct BookinfoArgs {
    pub app: BookinfoApp,

    /// Version of the application, e.g. v2
    #[arg(long = "version", value_name = "VERSION", default_value = "v1")]
    pub app_version: String,

    /// Address to listen on
    #[arg(
        long,
        env = "LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "127.0.0.1"
    )]
    pub address: std::net::IpAddr,

    /// Port to listen on
    #[arg(long, env = "PORT", value_name = "PORT", default_value_t = 9080)]
    pub port: u16,

    /// Leave when standard input ends: the parent process holds it open
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// Run a command that ends when this process's parent does
#[derive(Debug, clap::Args)]
pub struct RunChildArgs {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// Run a command in a network namespace
#[derive(Debug, clap::Args)]
pub struct InNamespaceArgs {
    /// The namespace, as a file
    #[arg(long, value_name = "FILE")]
    pub net: PathBuf,

    /// What stands for /etc/resolv.conf
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,

    /// User and group of the command
    #[arg(long, value_name = "ID")]
    pub user: Option<u32>,

    /// A word of the command that is a file only root can reach
    #[arg(long, value_name = "FILE")]
    pub keep: Vec<PathBuf>,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

pub fn in_namespace(args: InNamespaceArgs) -> Outcome {
    let entry = Entry {
        net: args.net,
        resolv_conf: args.resolv_conf,
        user: args.user,
        keep: args.keep,
        command: args.command,
    };
    Err(Failure::other(enter(&entry)))
}

/// Answer DNS for the workload of a bootstrap, beside a proxy that does not
pub fn dns(args: ProxyArgs) -> Outcome {
    main_thread::run_dns(&Options::from(args)).map_err(Failure::other)
}

pub fn bookinfo(args: BookinfoArgs) -> Outcome {
    if args.exit_with_parent {
        lateen_local::exit_with_parent();
    }
    let app = match args.app {
        BookinfoApp::Productpage => App::Productpage,
        BookinfoApp::Details => App::Details,
        BookinfoApp::Ratings => App::Ratings,
        BookinfoApp::Reviews => App::Reviews,
    };
    let settings = Settings::from_environment(app, &args.app_version);
    bookinfo::run(settings, (args.address, args.port).into()).map_err(Failure::other)
}

pub fn run_child(args: RunChildArgs) -> Outcome {
    match lateen_local::supervise::run_child(&args.command) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::silent(code)),
        Err(error) => Err(Failure::other(error)),
    }
}
