//! `proxy-config bootstrap`: JSON unless asked otherwise, as in istioctl.

use super::From;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    /// How to print; `table` (or `short`) gives the versions only
    #[arg(short = 'o', long, value_enum, default_value = "json")]
    pub output: Format,
}

pub fn run(args: &Args) -> Outcome {
    let dump = args.from.config_dump()?;
    let Some(bootstrap) = dump.bootstrap() else {
        return Err(Failure::other("the dump has no bootstrap section"));
    };
    if !output::document(args.output, bootstrap) {
        let node = &bootstrap["bootstrap"]["node"];
        let text = |pointer: &str| {
            node.pointer(pointer)
                .and_then(|v| v.as_str())
                .unwrap_or("-")
        };
        outln!("Istio Version:       {}", text("/metadata/ISTIO_VERSION"));
        outln!("Proxy:               {}", text("/user_agent_name"));
        outln!("Node:                {}", text("/id"));
    }
    Ok(())
}
