//! `proxy-config secret`.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lateen_agent::About;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::From;
use super::dump::Dump;
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::table::Table;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub from: From,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

/// The `SecretsConfigDump` section. Private keys are not in it: both proxies leave them out.
pub fn run(args: &Args) -> Outcome {
    let dump = args.from.config_dump()?;
    let secrets: Vec<&Value> = dump
        .secrets()
        .into_iter()
        .map(|(_, secret)| secret)
        .collect();
    if output::document(args.output, &json!(secrets)) {
        return Ok(());
    }
    match secrets.is_empty() {
        true => anstream::eprintln!(
            "The proxy has no secrets: it has no identity (CA_ADDR), and no gateway of its \
             serves TLS"
        ),
        false => table(&dump, SystemTime::now()).print(),
    }
    Ok(())
}

/// istioctl's columns, in its order.
pub fn table(dump: &Dump, now: SystemTime) -> Table {
    let head = [
        "RESOURCE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
        "TRUST DOMAIN",
    ];
    let mut table = Table::new(5, head);
    for (status, secret) in dump.secrets() {
        let name = secret["name"].as_str().unwrap_or_default().to_owned();
        let status = match secret["version_info"].as_str() {
            Some("uninitialized") => "UNINITIALIZED",
            _ => status,
        };
        let Some(about) = about(&secret["secret"]) else {
            let nothing = String::new;
            let row = [name, nothing(), status.to_owned(), "false".to_owned()];
            table.row(row.into_iter().chain(std::iter::repeat_n(nothing(), 4)));
            continue;
        };
        table.row([
            name,
            if about.is_authority {
                "CA"
            } else {
                "Cert Chain"
            }
            .to_owned(),
            status.to_owned(),
            about.is_valid(now).to_string(),
            about.serial,
            rfc3339(about.not_after),
            rfc3339(about.not_before),
            about.trust_domain.unwrap_or_default(),
        ]);
    }
    table
}

fn rfc3339(time: SystemTime) -> String {
    let text = OffsetDateTime::from(time).format(&Rfc3339);
    text.unwrap_or_default()
}

/// The certificate in a secret, or the first of those that it trusts.
fn about(secret: &Value) -> Option<About> {
    let source = [
        "/tls_certificate/certificate_chain",
        "/validation_context/trusted_ca",
    ]
    .into_iter()
    .find_map(|place| secret.pointer(place))?;
    let pem = match (
        source["inline_bytes"].as_str(),
        source["inline_string"].as_str(),
    ) {
        (Some(bytes), _) => STANDARD.decode(bytes).ok()?,
        (None, text) => text?.as_bytes().to_vec(),
    };
    About::of_pem(&pem)
}
