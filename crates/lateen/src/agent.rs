//! `lateen agent`: the identity of the workload beside a stock Envoy.

use std::path::PathBuf;

use lateen_agent::{Agent, IdentityArgs, sds};

use crate::control::{asked_to_leave, log_to_stderr};
use crate::failure::{Failure, Outcome};

/// Keep a workload's certificate, and give it to the stock Envoy beside it
///
/// Makes the workload's key, has it certified by the mesh's authority, renews the certificate at
/// half its life, and answers Envoy's secret discovery (`default` and `ROOTCA`) on a Unix socket
/// that nobody else can use. Lateen's own proxy needs no agent: it takes the same flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Unix socket on which Envoy asks for its secrets
    #[arg(
        long,
        value_name = "FILE",
        default_value = "./var/run/secrets/workload-spiffe-uds/socket"
    )]
    pub sds_socket: PathBuf,

    #[command(flatten)]
    pub identity: IdentityArgs,

    /// Leave when standard input ends: the parent process holds it open
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

pub fn run(args: Args) -> Outcome {
    if args.exit_with_parent {
        lateen_local::exit_with_parent();
    }
    log_to_stderr();
    let config = args.identity.config(None, None).map_err(Failure::usage)?;
    let config = config.ok_or_else(|| {
        Failure::usage("name the mesh's certificate authority with --ca-address HOST:PORT")
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let listener = sds::bind(&args.sds_socket).map_err(Failure::other)?;
        tracing::info!(socket = %args.sds_socket.display(), "secrets");
        let agent = Agent::start(config);
        tokio::select! {
            () = sds::serve(listener, agent.watch()) => {}
            () = asked_to_leave() => {}
        }
        // Nobody answers there any more.
        let _ = std::fs::remove_file(&args.sds_socket);
        Ok(())
    })
}
