//! One virtual host: the routes for one service (or rule host) on one port.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::virtual_service::HttpRoute;
use lateen_model::{MeshSettings, VirtualService};
use prost::Message;
use route::route::Action;

use crate::cache::ById;
use crate::destination_policy::{self, Hashed};
use crate::envoy::route;
use crate::names;
use crate::route_action::KnownHosts;
use crate::route_action::{self, Destinations};
use crate::route_match::{self, Audience};

/// Everything a virtual host is made from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VirtualHostKey {
    pub name: String,
    pub domains: Vec<String>,
    /// The rules for the host, oldest first; empty means the default route.
    pub rules: Vec<ById<VirtualService>>,
    /// Fully qualified host and port of the service, where there is one: its default route.
    pub service: Option<(String, u32)>,
    /// Ports of destination hosts that have exactly one.
    pub known: KnownHosts,
    /// DestinationRules of destinations that hash.
    pub hashed: Hashed,
    pub audience: Audience,
    /// Plain requests are redirected to https.
    pub require_tls: bool,
    pub mesh: ById<MeshSettings>,
}

/// A virtual host, encoded but for its name, which is longer where it is a resource of its own.
pub struct EncodedHost {
    /// What it was made from, if it is one of a service or rule.
    pub key: Option<Arc<VirtualHostKey>>,
    pub name: Arc<str>,
    body: Vec<u8>,
}

impl EncodedHost {
    /// `host` without its name.
    pub fn new(name: &str, host: route::VirtualHost) -> EncodedHost {
        EncodedHost {
            key: None,
            name: name.into(),
            body: encode_nameless(host),
        }
    }

    /// Whether both are the same but for their names.
    pub fn says_the_same(&self, other: &EncodedHost) -> bool {
        self.body == other.body
    }

    /// The message under a name.
    pub fn named(&self, name: &str) -> Vec<u8> {
        const NAME: u32 = 1;
        let mut bytes = Vec::with_capacity(self.body.len() + name.len() + 8);
        append(NAME, name.as_bytes(), &mut bytes);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The virtual host of a key. Route tables are put together from these bytes.
pub fn encode(key: &Arc<VirtualHostKey>) -> EncodedHost {
    EncodedHost {
        key: Some(key.clone()),
        ..EncodedHost::new(&key.name, virtual_host(key))
    }
}

fn encode_nameless(mut host: route::VirtualHost) -> Vec<u8> {
    const ROUTES: u32 = 3;
    host.name.clear();
    let routes = std::mem::take(&mut host.routes);
    let mut bytes = host.encode_to_vec();
    for one in routes {
        append(ROUTES, &encode_route(one), &mut bytes);
    }
    bytes
}

/// A route with its map of filter configurations in a fixed order: maps encode in any order, and
/// what is sent anew depends on whether the bytes differ.
fn encode_route(mut made: route::Route) -> Vec<u8> {
    const TYPED_PER_FILTER_CONFIG: u32 = 13;
    let filters: BTreeMap<_, _> = made.typed_per_filter_config.drain().collect();
    let mut bytes = made.encode_to_vec();
    for (name, config) in filters {
        let mut entry = Vec::new();
        append(1, name.as_bytes(), &mut entry);
        append(2, &config.encode_to_vec(), &mut entry);
        append(TYPED_PER_FILTER_CONFIG, &entry, &mut bytes);
    }
    bytes
}

/// Appends one value of a field to an encoded message.
pub fn append(field: u32, value: &[u8], bytes: &mut Vec<u8>) {
    use prost::encoding::{WireType, encode_key, encode_varint};
    encode_key(field, WireType::LengthDelimited, bytes);
    encode_varint(value.len() as u64, bytes);
    bytes.extend_from_slice(value);
}

fn virtual_host(key: &VirtualHostKey) -> route::VirtualHost {
    let mut routes = if key.rules.is_empty() {
        key.service
            .iter()
            .map(|(host, port)| {
                let mut made = default_route(host, *port);
                if let (Some(retries), Some(Action::Route(to))) =
                    (&key.mesh.http_retries, &mut made.action)
                {
                    to.retry_policy = route_action::retries(Some(retries));
                }
                made
            })
            .collect::<Vec<_>>()
    } else {
        rule_routes(key)
    };
    destination_policy::hash_routes(&mut routes, &key.hashed);
    route::VirtualHost {
        name: key.name.clone(),
        domains: key.domains.clone(),
        routes,
        require_tls: if key.require_tls {
            route::virtual_host::TlsRequirementType::All as i32
        } else {
            route::virtual_host::TlsRequirementType::None as i32
        },
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// The route of a service that no rule speaks of.
pub fn default_route(host: &str, port: u32) -> route::Route {
    route::Route {
        name: "default".to_string(),
        r#match: Some(route_match::everything()),
        decorator: Some(route::Decorator {
            operation: format!("{host}:{port}/*"),
            propagate: None,
        }),
        action: Some(route_action::forward_to(names::outbound_cluster(
            port, "", host,
        ))),
        ..Default::default()
    }
}

/// Routes of all rules in order; what follows a catch-all is left out, and where several rules
/// share a host the catch-alls go last (fact 1).
fn rule_routes(key: &VirtualHostKey) -> Vec<route::Route> {
    let mut specific = Vec::new();
    let mut catch_alls = Vec::new();
    for rule in &key.rules {
        for (made, catch_all) in routes_of(rule, key) {
            if catch_all {
                catch_alls.push(made)
            } else {
                specific.push(made)
            }
        }
    }
    // Only the first catch-all can be reached.
    specific.extend(catch_alls.into_iter().next());
    specific
}

/// The routes of one rule, each with whether it takes every request; stops at the first that does.
fn routes_of(rule: &VirtualService, key: &VirtualHostKey) -> Vec<(route::Route, bool)> {
    let mut routes = Vec::new();
    for http in &rule.spec.http {
        if http.matches.is_empty() {
            routes.push((
                route(rule, http, None, route_match::everything(), key),
                true,
            ));
            return routes;
        }
        for item in &http.matches {
            if !route_match::applies(item, &rule.origin.namespace, &key.audience) {
                continue;
            }
            let matched = route_match::translate(item);
            let catch_all = route_match::is_catch_all(item);
            routes.push((route(rule, http, Some(item), matched, key), catch_all));
            if catch_all {
                return routes;
            }
        }
    }
    routes
}

fn route(
    rule: &VirtualService,
    http: &HttpRoute,
    item: Option<&lateen_api::virtual_service::HttpMatchRequest>,
    matched: route::RouteMatch,
    key: &VirtualHostKey,
) -> route::Route {
    let item_name = item.map(|item| item.name.as_str()).unwrap_or_default();
    // With the point even where the rule has no name, as in Istio.
    let name = match item_name {
        "" => http.name.clone(),
        item_name => format!("{}.{item_name}", http.name),
    };
    let config = format!(
        "/apis/networking.istio.io/v1/namespaces/{}/virtual-service/{}",
        rule.origin.namespace, rule.origin.name
    );
    let to = Destinations {
        rule_namespace: &rule.origin.namespace,
        domain_suffix: &key.mesh.domain_suffix,
        listen_port: key
            .service
            .as_ref()
            .map_or(key.audience.port, |(_, port)| *port),
        known: &key.known,
    };
    let mut made = route::Route {
        name,
        r#match: Some(matched),
        stat_prefix: item
            .map(|item| item.stat_prefix.clone())
            .unwrap_or_default(),
        metadata: Some(crate::envoy::metadata("istio", &[("config", config)])),
        decorator: Some(route::Decorator {
            operation: operation(http, key),
            propagate: None,
        }),
        ..Default::default()
    };
    route_action::apply(
        &mut made,
        &with_mesh_retries(http, &key.mesh),
        item.and_then(|item| item.uri.as_ref()),
        &to,
    );
    made
}

/// `host:port/*`, the name of the operation in traces.
fn operation(http: &HttpRoute, key: &VirtualHostKey) -> String {
    match (
        &key.service,
        http.route.first().and_then(|r| r.destination.as_ref()),
    ) {
        (Some((host, port)), _) => format!("{host}:{port}/*"),
        (None, Some(destination)) => format!("{}:{}/*", destination.host, key.audience.port),
        (None, None) => format!("{}/*", key.name),
    }
}

/// A route that says nothing of retries has those of the mesh.
fn with_mesh_retries<'a>(http: &'a HttpRoute, mesh: &MeshSettings) -> Cow<'a, HttpRoute> {
    match &mesh.http_retries {
        Some(retries) if http.retries.is_none() => Cow::Owned(HttpRoute {
            retries: Some((**retries).clone()),
            ..http.clone()
        }),
        _ => Cow::Borrowed(http),
    }
}
