//! `lateen proxy`: the data plane as a process of its own.

use lateen_proxy::main_thread::{self, Options, ProxyArgs};

use crate::failure::{Failure, Outcome};

pub type Args = ProxyArgs;

pub fn run(args: Args) -> Outcome {
    main_thread::run(Options::from(args)).map_err(Failure::other)
}
