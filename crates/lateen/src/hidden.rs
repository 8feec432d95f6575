//! Verbs that `lateen demo` and `lateen up` start as child processes; help does not list them.

use std::ffi::OsString;

use clap::ValueEnum;
use lateen_local::bookinfo::{self, App, Settings};

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

    /// Port to listen on (127.0.0.1)
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
    bookinfo::run(settings, args.port).map_err(Failure::other)
}

pub fn run_child(args: RunChildArgs) -> Outcome {
    match lateen_local::supervise::run_child(&args.command) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::silent(code)),
        Err(error) => Err(Failure::other(error)),
    }
}
