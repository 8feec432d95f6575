//! `lateen wait`: until a change has reached every proxy, or an object is gone.

use std::time::{Duration, Instant};

use lateen_api::Kind;
use serde_json::Value;

use crate::delete::exists;
use crate::failure::{Failure, Outcome};
use crate::resource::{dotted, named};
use crate::rest::{Server, ServerArgs};

/// How often the control plane is asked.
const INTERVAL: Duration = Duration::from_millis(50);

/// Wait until every connected proxy has accepted an object, or until it is deleted
#[derive(Debug, clap::Args)]
pub struct Args {
    /// KIND NAME[.NAMESPACE] or KIND/NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND")]
    pub what: Vec<String>,

    /// What to wait for
    #[arg(long = "for", value_enum, default_value = "distribution")]
    pub condition: Condition,

    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::control::duration)]
    pub timeout: Duration,

    /// Namespace of the object
    #[arg(short = 'n', long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Condition {
    /// Every connected proxy accepted it
    Distribution,
    /// It is no longer there
    Delete,
}

pub fn run(args: Args) -> Outcome {
    let (kind, name, namespace) = subject(&args)?;
    let server = args.server.connect()?;
    let until = Instant::now() + args.timeout;
    match args.condition {
        Condition::Delete => gone(&server, kind, &namespace, &name, until),
        Condition::Distribution => distributed(&server, kind, &namespace, &name, until),
    }
}

fn subject(args: &Args) -> Result<(Kind, String, String), Failure> {
    let mut named = named(&args.what)?;
    if named.len() != 1 {
        return Err(Failure::usage("name one object: KIND NAME[.NAMESPACE]"));
    }
    let (kind, name) = named.remove(0);
    // A dot cannot be told from a namespace by the syntax alone; istioctl takes the last part.
    Ok(match name.rsplit_once('.') {
        Some((name, namespace)) => (kind, name.to_owned(), namespace.to_owned()),
        None => (kind, name, args.namespace.clone()),
    })
}

fn gone(server: &Server, kind: Kind, namespace: &str, name: &str, until: Instant) -> Outcome {
    while exists(server, kind, namespace, name)?.is_some() {
        if Instant::now() > until {
            let what = format!("{}/{name} in {namespace}", dotted(kind));
            return Err(Failure::other(format!("timeout: {what} is still there")));
        }
        std::thread::sleep(INTERVAL);
    }
    outln!("{}/{name} is deleted", dotted(kind));
    Ok(())
}

fn distributed(
    server: &Server,
    kind: Kind,
    namespace: &str,
    name: &str,
    until: Instant,
) -> Outcome {
    let what = format!("{kind}/{namespace}/{name}");
    let mut revision = None;
    loop {
        if revision.is_none() {
            let object = exists(server, kind, namespace, name)?;
            let version = object
                .as_ref()
                .map(|o| o["metadata"]["resourceVersion"].as_str());
            revision = version.flatten().and_then(|v| v.parse::<u64>().ok());
        }
        let state = server.json("/debug/pushz")?;
        let proxies = state["proxies"].as_u64().unwrap_or(0);
        let empty = Vec::new();
        let pending = state["pending"].as_array().unwrap_or(&empty);
        let pushed = revision.is_some_and(|r| state["pushed"].as_u64().is_some_and(|p| p >= r));
        if pushed && pending.is_empty() {
            outln!("Resource {what} present on {proxies} out of {proxies} proxies");
            return Ok(());
        }
        if Instant::now() > until {
            return Err(late(&what, revision, pending, proxies));
        }
        std::thread::sleep(INTERVAL);
    }
}

fn late(what: &str, revision: Option<u64>, pending: &[Value], proxies: u64) -> Failure {
    if revision.is_none() {
        return Failure::other(format!("timeout: {what} does not exist"));
    }
    let names: Vec<&str> = pending.iter().filter_map(Value::as_str).collect();
    Failure::other(format!(
        "timeout: {what} has not been accepted by {} of {proxies} proxies: {}.\n\
         `lateen proxy-status NAME` says what was rejected and why",
        names.len(),
        names.join(", ")
    ))
}
