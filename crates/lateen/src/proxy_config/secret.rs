//! `proxy-config secret`.

use serde_json::json;

use super::From;
use crate::failure::Outcome;
use crate::output::{self, Format};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

/// The `SecretsConfigDump` section; a proxy has none until mutual TLS works.
pub fn run(args: &Args) -> Outcome {
    let dump = args.from.config_dump()?;
    let secrets = dump.secrets();
    if output::document(args.output, &json!(secrets)) {
        return Ok(());
    }
    if secrets.is_empty() {
        anstream::eprintln!(
            "The proxy has no secrets: this version of Lateen does not do TLS yet (docs/features.md)"
        );
    }
    for secret in secrets {
        outln!("{}", secret["name"].as_str().unwrap_or_default());
    }
    Ok(())
}
