//! `lateen verify-install`: whether the control plane answers and every proxy is in step with it.
//!
//! istioctl dropped this verb after 1.23; people still type it.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::rest::ServerArgs;

/// Check that the control plane answers and that every proxy has what it was sent
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: Args) -> Outcome {
    let server = args.server.connect()?;
    let version = server.json("/debug/versionz")?;
    let version = version["version"].as_str().unwrap_or("unknown");
    outln!(
        "\u{2714} The control plane answers at {} (version {version})",
        server.address()
    );
    let status = server.json("/debug/syncz")?;
    let proxies = status.as_array().map(Vec::as_slice).unwrap_or_default();
    let behind: Vec<&str> = proxies
        .iter()
        .filter(|proxy| !is_in_step(proxy))
        .map(|proxy| proxy["proxy"].as_str().unwrap_or_default())
        .collect();
    if !behind.is_empty() {
        return Err(Failure::other(format!(
            "{} of {} proxies have not accepted what they were sent: {}.\n\
             `lateen proxy-status NAME` says what and why",
            behind.len(),
            proxies.len(),
            behind.join(", ")
        )));
    }
    match proxies.len() {
        0 => outln!("\u{2714} No proxy is connected yet"),
        1 => outln!("\u{2714} 1 proxy is connected and in step"),
        count => outln!("\u{2714} {count} proxies are connected, all in step"),
    }
    outln!("\u{2714} Lateen is installed and verified successfully");
    Ok(())
}

fn is_in_step(proxy: &Value) -> bool {
    let types = proxy["types"].as_object();
    let mut types = types.into_iter().flatten();
    // Secrets that are not there are not sent.
    types.all(|(name, kind)| match kind["state"].as_str() {
        Some("NOT SENT") => name == "sds",
        state => state == Some("SYNCED"),
    })
}
