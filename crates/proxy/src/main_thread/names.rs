//! Names for the workload: starts the DNS server where the node asks for it, and gives it what the
//! control plane knows. Also alone, as a process beside a proxy that has no DNS server.

use std::net::SocketAddr;
use std::path::Path;

use lateen_proxy_config::compile::compile_secret;
use lateen_xds::client::{Client, Config as AdsConfig, Event, Update};
use lateen_xds::{Node, Rejection, type_url};
use serde_json::Value;

use super::drain::Signals;
use super::run::{RunError, control_plane_tls, exit_with_parent, identity};
use super::secrets::Follower;
use super::{Bootstrap, LogControl, Options, secure};
use crate::dns::{Place, Server, Settings, servers_of};
use crate::tls::TlsStore;

/// Istio's agent: `ISTIO_META_NAME` sets the node's metadata `NAME`.
const SWITCH: &str = "ISTIO_META_DNS_CAPTURE";
const METADATA: &str = "DNS_CAPTURE";
/// Istio's agent: where to listen.
const ADDRESS: &str = "DNS_PROXY_ADDR";
const DEFAULT_ADDRESS: &str = "127.0.0.1:15053";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Puts what the environment says into the metadata that the control plane sees.
pub(super) fn adopt_environment(node: &mut Node) {
    if let (Ok(value), Value::Object(metadata)) = (std::env::var(SWITCH), &mut node.metadata) {
        metadata.insert(METADATA.to_owned(), Value::String(value));
    }
}

fn is_wanted(node: &Node) -> bool {
    match node.metadata.get(METADATA) {
        Some(Value::Bool(wanted)) => *wanted,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true") || text == "1",
        _ => false,
    }
}

/// The DNS server of this node, if it is to have one.
pub(super) async fn start(node: &Node) -> Result<Option<Server>, RunError> {
    match is_wanted(node) {
        true => start_always(node).await.map(Some),
        false => Ok(None),
    }
}

async fn start_always(node: &Node) -> Result<Server, RunError> {
    let text = std::env::var(ADDRESS).unwrap_or_else(|_| DEFAULT_ADDRESS.to_owned());
    let fail = |reason: String| RunError::Names {
        address: text.clone(),
        reason,
    };
    let address: SocketAddr = text
        .replace("localhost", "127.0.0.1")
        .parse()
        .map_err(|_| fail("not an address with a port, such as 127.0.0.1:15053".to_owned()))?;
    let resolv_conf = std::fs::read_to_string(Path::new(RESOLV_CONF)).unwrap_or_default();
    let (mut servers, search) = servers_of(&resolv_conf);
    // Asking ourselves would never end.
    servers.retain(|server| *server != address);
    let settings = Settings {
        address,
        place: place(node, search),
        servers,
    };
    let server = Server::start(settings.clone()).await;
    let server = server.map_err(|error| fail(error.to_string()))?;
    tracing::info!(address = %server.address(), servers = ?settings.servers, "DNS");
    Ok(server)
}

/// `default.svc.cluster.local` of a proxy in `default` is `svc.cluster.local`.
fn place(node: &Node, search: Option<String>) -> Place {
    let Some(parsed) = &node.parsed else {
        return Place::default();
    };
    let own = format!("{}.", parsed.namespace);
    let domain = parsed.domain.strip_prefix(&own).unwrap_or(&parsed.domain);
    Place {
        namespace: parsed.namespace.clone(),
        domain: domain.to_owned(),
        search,
    }
}

/// Takes the tables of an update and answers it.
pub(super) fn update(server: &Server, update: Update) {
    let mut rejections = Vec::new();
    for resource in &update.resources {
        if let Err(error) = server.update(&resource.any.value) {
            let (name, reason) = (resource.name.clone(), error.to_string());
            tracing::warn!(kind = "nds", name, reason, "refused");
            rejections.push(Rejection { name, reason });
        }
    }
    update.reply.reject(rejections);
}

/// Runs the DNS server alone, for the node of a bootstrap file, until told to stop.
pub fn run_dns(options: &Options) -> Result<(), RunError> {
    let _log = LogControl::start(&options.log_level)?;
    if options.exit_with_parent {
        exit_with_parent();
    }
    let bootstrap = Bootstrap::read(&options.config_path)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    runtime.block_on(async {
        let mut signals = Signals::listen().map_err(RunError::Runtime)?;
        let server = start_always(&bootstrap.node).await?;
        let Some(target) = bootstrap.ads.clone() else {
            signals.next().await;
            return Ok(());
        };
        let identity = identity(options, &bootstrap)?;
        let sockets = bootstrap.secret_sources.clone();
        let (mut follower, mut arrivals) = Follower::new(bootstrap.node.clone(), sockets, identity);
        let store = TlsStore::default();
        let mut config = AdsConfig::new(target, bootstrap.node.clone());
        if let Some(tls) = control_plane_tls(&bootstrap, options)? {
            secure::secrets(&tls)
                .iter()
                .for_each(|whose| follower.follow(whose));
            config.secure = Some(secure::secure(store.client(&tls, false), &config.target));
        }
        let (client, mut events) = Client::start(config);
        client.subscribe_all(type_url::NAME_TABLE);
        loop {
            tokio::select! {
                Some(arrived) = arrivals.recv() => {
                    let taken = compile_secret(&arrived.received.any.value);
                    let taken = taken.map(|secret| store.set_secret(arrived.whose, secret.value));
                    // The stream it came from may have ended.
                    let _ = arrived.verdict.send(taken.map_err(|error| error.to_string()));
                }
                event = events.recv() => match event {
                    Some(Event::Update(received)) => update(&server, received),
                    Some(Event::Connected | Event::Disconnected { .. }) => {}
                    None => return Ok(()),
                },
                _ = signals.next() => return Ok(()),
            }
        }
    })
}
