//! `lateen experimental`, also `x`: what istioctl has under this name.

mod authz;
mod describe;
mod describe_service;

use clap::Subcommand;

use crate::failure::Outcome;

/// Tell what is in force for a workload or a service (istioctl's experimental commands)
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, infer_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub part: Part,
}

#[derive(Debug, Subcommand)]
pub enum Part {
    /// AuthorizationPolicies, as a proxy has them
    Authz(authz::Args),
    /// Services, mTLS, policies and rules of a workload, or of a service
    #[command(visible_alias = "des")]
    Describe(describe::Args),
}

pub fn run(args: Args) -> Outcome {
    match args.part {
        Part::Authz(args) => authz::run(args),
        Part::Describe(args) => describe::run(&args),
    }
}
