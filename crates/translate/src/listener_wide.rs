//! What all listeners of a proxy have in common, whatever they serve: a log of connections that no
//! filter chain takes, and HTTP/1.0 where the proxy asks for it.

use lateen_model::{MeshSettings, Proxy};
use prost::Message;

use crate::connection_manager;
use crate::envoy::{self, accesslog, core, hcm, listener};

/// Of one proxy.
pub struct Settings {
    log: Vec<accesslog::AccessLog>,
    http_10: bool,
}

impl Settings {
    pub fn of(proxy: &Proxy, mesh: &MeshSettings) -> Self {
        Settings {
            log: refusals(mesh),
            http_10: proxy.http_10,
        }
    }

    pub fn apply(&self, listener: &mut listener::Listener) {
        // The API listener of a gRPC client accepts no connections.
        if listener.api_listener.is_none() {
            listener.access_log = self.log.clone();
        }
        if self.http_10 {
            let chains = listener.filter_chains.iter_mut();
            let chains = chains.chain(&mut listener.default_filter_chain);
            chains
                .flat_map(|chain| &mut chain.filters)
                .for_each(accept_http_10);
        }
    }
}

/// The access log of the mesh, for connections without a chain alone (Istio's
/// `setListenerAccessLog`): all others are logged by what serves them.
fn refusals(mesh: &MeshSettings) -> Vec<accesslog::AccessLog> {
    use accesslog::access_log_filter::FilterSpecifier;
    let only = accesslog::AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(
            accesslog::ResponseFlagFilter {
                flags: vec!["NR".to_string()],
            },
        )),
    };
    let mut logs = connection_manager::access_log(mesh);
    for log in &mut logs {
        log.filter = Some(only.clone());
    }
    logs
}

/// Istio's agent has no other way to say so than the metadata of its proxy, which is as rare as it
/// sounds: the connection manager is taken apart again rather than told by everybody who makes one.
fn accept_http_10(filter: &mut listener::Filter) {
    use listener::filter::ConfigType;
    let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type else {
        return;
    };
    let own = envoy::any(&hcm::HttpConnectionManager::default());
    if config.type_url != own.type_url {
        return;
    }
    if let Ok(mut manager) = hcm::HttpConnectionManager::decode(&config.value[..]) {
        manager.http_protocol_options = Some(core::Http1ProtocolOptions {
            accept_http_10: true,
            ..manager.http_protocol_options.take().unwrap_or_default()
        });
        config.value = manager.encode_to_vec();
    }
}
