//! Listeners (LDS) of one proxy. Those of captured service ports can be thousands, and are the same
//! for all proxies of a namespace but for a few things that a key names; the others are few and
//! cheap to make.

use super::*;
use crate::guard::Guards;
use crate::inbound_tls::Inbound;
use crate::{gateway_listeners, listener_wide, listeners};

/// What the listeners of captured service ports depend on, of a proxy and which mesh.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct OutboundKey {
    snapshot: ById<Identity>,
    /// Those that are asked for; `None`: all.
    names: Option<Vec<String>>,
    namespace: String,
    sidecar: Option<ById<Sidecar>>,
    /// Addresses that the mesh gave to services count, those of one family.
    dns_capture: Option<bool>,
    /// Only where a rule asks for them.
    labels: Option<BTreeMap<String, String>>,
    /// Only where a service without an address of its own has an endpoint there: a proxy does not
    /// capture connections to itself.
    address: Option<String>,
    http_10: bool,
}

impl OutboundKey {
    fn of(snapshot: &MeshSnapshot, proxy: &Proxy, names: Names<'_>) -> Self {
        let is_known = snapshot.headless_at(&proxy.address).next().is_some();
        let asks_for_labels = snapshot.rules_ask_for_labels();
        let of_ports = |names: &BTreeSet<String>| {
            let all = names.iter();
            all.filter(|name| capture::outbound::place(name).is_some())
                .cloned()
                .collect()
        };
        OutboundKey {
            snapshot: ById(snapshot.identity.clone()),
            names: names.map(of_ports),
            namespace: proxy.namespace.clone(),
            sidecar: snapshot.sidecar_of(proxy).cloned().map(ById),
            dns_capture: proxy.dns_capture.then(|| proxy.address.contains(':')),
            labels: asks_for_labels.then(|| proxy.labels.clone()),
            address: is_known.then(|| proxy.address.clone()),
            http_10: proxy.http_10,
        }
    }
}

impl<R> Translator<R> {
    pub(super) fn generate_listeners(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut made = Vec::new();
        let mut shared = Vec::new();
        match proxy.kind {
            ProxyKind::Gateway => {
                for port in gateway::ports(snapshot, proxy) {
                    made.extend(gateway_listeners::listener(snapshot, proxy, &port));
                }
            }
            ProxyKind::Sidecar => {
                let scope = snapshot.scope(proxy);
                if let Some(port) = proxy.http_proxy_port {
                    let mesh = &snapshot.settings;
                    made.push(listeners::http_proxy(&scope, proxy, port, mesh));
                }
                let inbound = sidecar::inbound_ports(snapshot, proxy, scope.sidecar());
                let guards = Guards::of(snapshot, proxy);
                if proxy.interception == Interception::Redirect {
                    shared = self.captured_ports(snapshot, &scope, proxy, names);
                    made.push(capture::outbound::virtual_outbound(snapshot, &scope));
                    made.push(capture::inbound::virtual_inbound(
                        snapshot, &scope, proxy, inbound, &guards,
                    ));
                } else {
                    let own = inbound.iter();
                    let mtls = snapshot.mtls_of(proxy);
                    let has_identity = snapshot.has_identity(proxy);
                    made.extend(own.map(|port| {
                        let transport = Inbound {
                            mode: mtls.of_port(port.known_as().into_iter().map(u32::from)),
                            has_identity,
                            mesh: &snapshot.settings,
                            own: port.tls.as_ref(),
                        };
                        listeners::inbound(port, &guards, &transport)
                    }));
                }
                for port in sidecar::egress_ports(&scope, proxy) {
                    made.extend(listeners::egress(snapshot, &scope, proxy, &port));
                }
                for (service, local_port) in &proxy.outbound {
                    let Some((host, port)) = service.rsplit_once(':') else {
                        continue;
                    };
                    let Some(service) = scope.service(host) else {
                        continue;
                    };
                    let Some(port) = port.parse().ok().and_then(|port| service.port(port)) else {
                        continue;
                    };
                    made.push(listeners::outbound_tcp(
                        snapshot,
                        &scope,
                        proxy,
                        service,
                        port,
                        *local_port,
                    ));
                }
            }
        }
        made.retain(|one| wanted(names, || one.name.clone()));
        let own = self.encoded_listeners(snapshot, proxy, made);
        own.into_iter().chain(shared).collect()
    }

    /// The listeners of service ports that a proxy captures.
    fn captured_ports(
        &self,
        snapshot: &MeshSnapshot,
        scope: &Scope<'_>,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let key = OutboundKey::of(snapshot, proxy, names);
        let made = self.outbound.get(key, |key| {
            let only = key.names.as_ref().map(|names| {
                let places = names.iter();
                places
                    .filter_map(|name| capture::outbound::place(name))
                    .collect()
            });
            let made = capture::outbound::listeners(snapshot, scope, proxy, only.as_ref());
            Arc::new(self.encoded_listeners(snapshot, proxy, made))
        });
        made.to_vec()
    }

    fn encoded_listeners(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        mut made: Vec<envoy::listener::Listener>,
    ) -> Vec<Arc<R>> {
        let of_all = listener_wide::Settings::of(proxy, &snapshot.settings);
        made.iter_mut().for_each(|one| of_all.apply(one));
        made.into_iter()
            .map(|one| self.listener(one.name.clone(), one.encode_to_vec()))
            .collect()
    }

    /// Equal listeners share one resource.
    pub(super) fn listener(&self, name: String, bytes: Vec<u8>) -> Arc<R> {
        self.listeners.get(bytes, |bytes| {
            self.wrap(name, type_url::LISTENER, bytes.clone())
        })
    }
}
