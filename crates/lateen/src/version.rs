//! `lateen version`: of this program, of the control plane, and of the proxies connected to it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::rest::ServerArgs;

/// Print the versions of the client, the control plane and the data plane
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the version numbers, as it does anyway
    #[arg(short = 's', long, hide = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub short: Option<bool>,

    /// Ask the control plane too
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub remote: bool,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,

    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: Args) -> Outcome {
    let client = env!("CARGO_PKG_VERSION");
    let mut document = json!({"clientVersion": {"version": client}});
    let server = args.server.connect()?;
    let there = args.remote && server.is_there();
    if there {
        let control = server.json("/debug/versionz")?;
        let proxies = server.json("/debug/syncz")?;
        document["meshVersion"] = json!([{"Component": "pilot", "Info": control}]);
        document["dataPlaneVersion"] = proxies
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| json!({"ID": p["proxy"], "IstioVersion": version_of(p)}))
            .collect();
    }
    if output::document(args.output, &document) {
        return Ok(());
    }
    outln!("client version: {client}");
    if there {
        let control = &document["meshVersion"][0]["Info"]["version"];
        outln!(
            "control plane version: {}",
            control.as_str().unwrap_or("unknown")
        );
        outln!("{}", data_plane(&document["dataPlaneVersion"]));
    } else if args.remote {
        outln!("no control plane answers at {}", server.address());
    }
    Ok(())
}

fn version_of(proxy: &Value) -> String {
    let told = ["istio_version", "user_agent_version"];
    let mut told = told.iter().filter_map(|field| proxy[field].as_str());
    told.find(|version| !version.is_empty())
        .unwrap_or("unknown")
        .to_owned()
}

/// `data plane version: 1.2 (5 proxies), 1.1 (1 proxies)`, istioctl's words.
fn data_plane(proxies: &Value) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for proxy in proxies.as_array().into_iter().flatten() {
        *counts
            .entry(proxy["IstioVersion"].as_str().unwrap_or("unknown"))
            .or_default() += 1;
    }
    if counts.is_empty() {
        return "data plane version: none".to_owned();
    }
    let counts = counts
        .iter()
        .rev()
        .map(|(version, count)| format!("{version} ({count} proxies)"));
    format!(
        "data plane version: {}",
        counts.collect::<Vec<_>>().join(", ")
    )
}
