//! `/config_dump`: every resource as it was received, with version, time and error.

use super::query::Query;
use super::{bad_request, json};
use crate::main_thread::ProxyState;
use crate::main_thread::config::{Config, Entry, Generation, Origin, UpdateFailure};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lateen_proto::Descriptors;
use lateen_proxy_config::re2;
use lateen_telemetry::format::timestamp;
use lateen_xds::client::Raw;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3";

pub(super) async fn show(proxy: Arc<ProxyState>, query: Query) -> Response {
    if query.has("unsupported") {
        return json(&unsupported(&proxy));
    }
    // A large configuration takes a while; the main loop goes on meanwhile.
    match tokio::task::spawn_blocking(move || dump(&proxy, &query)).await {
        Ok(Ok(value)) => json(&value),
        Ok(Err(Refused::Parameter(message))) => bad_request(message),
        Ok(Err(Refused::NotFound(message))) => {
            (StatusCode::NOT_FOUND, format!("{message}\n")).into_response()
        }
        Ok(Err(Refused::Internal(message))) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{message}\n")).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

enum Refused {
    Parameter(String),
    NotFound(String),
    Internal(String),
}

/// Fields that were accepted without effect, with the resource they stand in.
fn unsupported(proxy: &ProxyState) -> Value {
    let notices: Vec<Value> = proxy
        .config()
        .notices()
        .into_iter()
        .map(|(resource, n)| json!({ "resource": &*resource, "path": n.path, "what": n.what }))
        .collect();
    json!({ "unsupported": notices })
}

fn dump(proxy: &ProxyState, query: &Query) -> Result<Value, Refused> {
    let name_filter = query
        .get("name_regex")
        .filter(|r| !r.is_empty())
        .map(re2::full_match)
        .transpose()
        .map_err(Refused::Parameter)?;
    let resource = query.get("resource");
    let include_eds = query.has("include_eds") || resource.is_some_and(|r| r.contains("endpoint"));
    // Only references are copied under the lock; JSON is made without it.
    let sections = sections(&proxy.config(), include_eds);
    let descriptors = Descriptors::load().map_err(|e| Refused::Internal(e.to_string()))?;
    let mut dumps = vec![Dump {
        kind: "BootstrapConfigDump",
        fields: bootstrap(proxy, &descriptors),
        ..Dump::default()
    }];
    for section in sections {
        dumps.push(section.render(&descriptors, |name| {
            name_filter
                .as_ref()
                .is_none_or(|filter| filter.is_match(name.as_bytes()))
        }));
    }
    add_inline(&mut dumps, include_eds, |name| {
        name_filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(name.as_bytes()))
    });
    if name_filter.is_some() {
        // The bootstrap has no name.
        dumps.remove(0);
    }
    let mask = query.get("mask").filter(|m| !m.is_empty());
    let configs = match resource {
        None => dumps.into_iter().map(|d| d.into_json(mask)).collect(),
        Some(resource) => one_resource(dumps, resource, mask)?,
    };
    Ok(json!({ "configs": Value::Array(configs) }))
}

/// Envoy calls route tables inside listeners, and endpoints inside clusters, static resources.
fn add_inline(dumps: &mut [Dump], include_eds: bool, wanted: impl Fn(&str) -> bool) {
    const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    let (mut tables, mut assignments) = (Vec::new(), Vec::new());
    for dump in dumps.iter() {
        for resource in dump.fields.values().filter_map(Value::as_array).flatten() {
            inline(
                "route_config",
                ROUTES,
                &resource["active_state"]["listener"],
                &mut tables,
            );
            inline("route_config", ROUTES, &resource["listener"], &mut tables);
            inline(
                "load_assignment",
                ENDPOINTS,
                &resource["cluster"],
                &mut assignments,
            );
        }
    }
    let named = |key: &str, found: Vec<Value>, field: &str| -> Vec<Value> {
        let chosen = found
            .into_iter()
            .filter(|v| wanted(v[key].as_str().unwrap_or_default()));
        chosen.map(|value| json!({ field: value })).collect()
    };
    for dump in dumps {
        let (list, found) = match dump.kind {
            "RoutesConfigDump" => {
                let tables = std::mem::take(&mut tables);
                (
                    "static_route_configs",
                    named("name", tables, "route_config"),
                )
            }
            "EndpointsConfigDump" if include_eds => {
                let assignments = std::mem::take(&mut assignments);
                (
                    "static_endpoint_configs",
                    named("cluster_name", assignments, "endpoint_config"),
                )
            }
            _ => continue,
        };
        if !found.is_empty() {
            dump.fields.insert(list.to_owned(), found.into());
        }
    }
}

/// Every object under the key `field` anywhere in `json`, with its type.
fn inline(field: &str, type_url: &str, json: &Value, found: &mut Vec<Value>) {
    match json {
        Value::Array(items) => items.iter().for_each(|v| inline(field, type_url, v, found)),
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::Object(fields) if key == field => {
                        let mut typed = Map::new();
                        typed.insert("@type".to_owned(), type_url.into());
                        typed.extend(fields.clone());
                        found.push(Value::Object(typed));
                    }
                    value => inline(field, type_url, value, found),
                }
            }
        }
        _ => {}
    }
}

/// One entry of `configs`.
#[derive(Default)]
struct Dump {
    kind: &'static str,
    /// `version_info`, and lists such as `dynamic_listeners`.
    fields: Map<String, Value>,
    /// The message type of the items of each list.
    items: &'static [(&'static str, &'static str)],
}

impl Dump {
    fn into_json(self, mask: Option<&str>) -> Value {
        let mut fields = self.fields;
        if let Some(mask) = mask {
            fields = masked(&fields, mask);
        }
        let mut object = Map::new();
        object.insert("@type".to_owned(), format!("{ADMIN}.{}", self.kind).into());
        object.extend(fields);
        Value::Object(object)
    }
}

/// The items of one list, each on its own (`?resource=dynamic_listeners`).
fn one_resource(
    dumps: Vec<Dump>,
    resource: &str,
    mask: Option<&str>,
) -> Result<Vec<Value>, Refused> {
    for dump in dumps {
        let Some((_, kind)) = dump.items.iter().find(|(list, _)| *list == resource) else {
            continue;
        };
        let items = match dump.fields.get(resource) {
            Some(Value::Array(items)) => items.clone(),
            _ => Vec::new(),
        };
        let typed = items.into_iter().filter_map(|item| {
            let Value::Object(fields) = item else {
                return None;
            };
            let fields = match mask {
                Some(mask) => masked(&fields, mask),
                None => fields,
            };
            let mut object = Map::new();
            object.insert("@type".to_owned(), format!("{ADMIN}.{kind}").into());
            object.extend(fields);
            Some(Value::Object(object))
        });
        return Ok(typed.collect());
    }
    Err(Refused::NotFound(format!(
        "{resource} not found in config dump"
    )))
}

/// Only the fields of a mask (`name,active_state.version_info`); lists are masked item by item.
fn masked(fields: &Map<String, Value>, mask: &str) -> Map<String, Value> {
    let mut by_field: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in mask.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (field, rest) = path.split_once('.').unwrap_or((path, ""));
        by_field.entry(field).or_default().push(rest);
    }
    let mut out = Map::new();
    for (field, value) in fields {
        let Some(rest) = by_field.get(field.as_str()) else {
            continue;
        };
        let whole = rest.iter().any(|r| r.is_empty());
        let inner = rest.join(",");
        let value = match value {
            Value::Object(object) if !whole => Value::Object(masked(object, &inner)),
            Value::Array(items) if !whole => {
                let item = |item: &Value| match item {
                    Value::Object(object) => Value::Object(masked(object, &inner)),
                    other => other.clone(),
                };
                items.iter().map(item).collect()
            }
            other => other.clone(),
        };
        out.insert(field.clone(), value);
    }
    out
}

fn bootstrap(proxy: &ProxyState, descriptors: &Descriptors) -> Map<String, Value> {
    const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
    // In the same spelling as everything else, when it is a bootstrap without foreign extensions.
    let mut canonical = descriptors
        .json_to_message(BOOTSTRAP, &proxy.bootstrap)
        .and_then(|bytes| descriptors.message_to_json(BOOTSTRAP, &bytes))
        .unwrap_or_else(|_| proxy.bootstrap.clone());
    redact(&mut canonical);
    Map::from_iter([
        ("bootstrap".to_owned(), canonical),
        ("last_updated".to_owned(), timestamp(proxy.started).into()),
    ])
}

/// One kind of resource, still as it was received.
struct Section {
    kind: &'static str,
    version_info: Option<String>,
    items: &'static [(&'static str, &'static str)],
    /// The field that holds the resource: `cluster`, `listener`, ...
    field: &'static str,
    statics: Vec<Item>,
    active: Vec<Item>,
    warming: Vec<Item>,
    listeners: Vec<ListenerItem>,
}

#[derive(Clone)]
struct Item {
    name: Arc<str>,
    version_info: String,
    any: Arc<Raw>,
    last_updated: SystemTime,
    error: Option<UpdateFailure>,
    /// Of a route table, virtual hosts that came by themselves.
    hosts: Vec<Arc<Raw>>,
}

struct ListenerItem {
    name: Arc<str>,
    active: Option<Item>,
    warming: Option<Item>,
    error: Option<UpdateFailure>,
}

const CLUSTERS: &[(&str, &str)] = &[
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    (
        "dynamic_active_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
    (
        "dynamic_warming_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
];
const LISTENERS: &[(&str, &str)] = &[
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
];
const ROUTES: &[(&str, &str)] = &[
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    (
        "dynamic_route_configs",
        "RoutesConfigDump.DynamicRouteConfig",
    ),
];
const SECRETS: &[(&str, &str)] = &[
    ("static_secrets", "SecretsConfigDump.StaticSecret"),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
    ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
];
const ENDPOINTS: &[(&str, &str)] = &[
    (
        "static_endpoint_configs",
        "EndpointsConfigDump.StaticEndpointConfig",
    ),
    (
        "dynamic_endpoint_configs",
        "EndpointsConfigDump.DynamicEndpointConfig",
    ),
];

fn sections(config: &Config, include_eds: bool) -> Vec<Section> {
    let version = |name: &str| {
        let found = config.versions.iter().find(|(url, _)| url.ends_with(name));
        Some(found.map(|(_, v)| v.clone()).unwrap_or_default())
    };
    let mut sections = vec![
        Section::new(
            "ClustersConfigDump",
            CLUSTERS,
            "cluster",
            version(".Cluster"),
            &config.clusters,
        ),
        Section::listeners(version(".Listener"), &config.listeners),
        Section::new(
            "RoutesConfigDump",
            ROUTES,
            "route_config",
            None,
            &config.routes,
        )
        .with_hosts(config),
    ];
    if !config.secrets.is_empty() {
        let kind = "SecretsConfigDump";
        let secrets = config
            .secrets
            .iter()
            .map(|(whose, entry)| (&whose.name, entry));
        sections.push(Section::new(kind, SECRETS, "secret", None, secrets));
    }
    if include_eds {
        let kind = "EndpointsConfigDump";
        sections.push(Section::new(
            kind,
            ENDPOINTS,
            "endpoint_config",
            None,
            &config.endpoints,
        ));
    }
    sections
}

impl Section {
    fn new<'e, T: 'e>(
        kind: &'static str,
        items: &'static [(&'static str, &'static str)],
        field: &'static str,
        version_info: Option<String>,
        entries: impl IntoIterator<Item = (&'e Arc<str>, &'e Entry<T>)>,
    ) -> Self {
        let mut section = Self {
            kind,
            version_info,
            items,
            field,
            statics: Vec::new(),
            active: Vec::new(),
            warming: Vec::new(),
            listeners: Vec::new(),
        };
        for (name, entry) in entries {
            let item = |g: &Generation<T>| Item::new(name, g, entry.error.clone());
            if entry.origin == Origin::Static {
                section.statics.extend(entry.active.as_ref().map(item));
            } else {
                section.active.extend(entry.active.as_ref().map(item));
                section.warming.extend(entry.warming.as_ref().map(item));
            }
        }
        section
    }

    /// Route tables as they serve: with the virtual hosts that came by themselves.
    fn with_hosts(mut self, config: &Config) -> Self {
        for item in &mut self.active {
            item.hosts = config.discovered_hosts(&item.name).cloned().collect();
        }
        self
    }

    fn listeners<T>(version: Option<String>, entries: &BTreeMap<Arc<str>, Entry<T>>) -> Self {
        let statics = entries.iter().filter(|(_, e)| e.origin == Origin::Static);
        Self {
            kind: "ListenersConfigDump",
            version_info: version,
            items: LISTENERS,
            field: "listener",
            statics: statics
                .filter_map(|(name, e)| e.active.as_ref().map(|g| Item::new(name, g, None)))
                .collect(),
            active: Vec::new(),
            warming: Vec::new(),
            listeners: entries
                .iter()
                .filter(|(_, e)| e.origin == Origin::Ads)
                .map(|(name, e)| ListenerItem {
                    name: name.clone(),
                    active: e.active.as_ref().map(|g| Item::new(name, g, None)),
                    warming: e.warming.as_ref().map(|g| Item::new(name, g, None)),
                    error: e.error.clone(),
                })
                .collect(),
        }
    }

    fn render(self, descriptors: &Descriptors, wanted: impl Fn(&str) -> bool) -> Dump {
        let mut fields = Map::new();
        if let Some(version) = self.version_info {
            fields.insert("version_info".to_owned(), version.into());
        }
        let mut put = |list: &str, items: Vec<Value>| {
            if !items.is_empty() {
                fields.insert(list.to_owned(), items.into());
            }
        };
        let render = |items: &[Item], dynamic: bool| -> Vec<Value> {
            let chosen = items.iter().filter(|item| wanted(&item.name));
            chosen
                .map(|item| item.render(descriptors, self.field, dynamic))
                .collect()
        };
        let list = |at: usize| self.items.get(at).map_or("", |(list, _)| *list);
        let mut statics = render(&self.statics, false);
        if self.kind == "ListenersConfigDump" {
            put(list(0), statics);
            let chosen = self.listeners.iter().filter(|l| wanted(&l.name));
            put(list(1), chosen.map(|l| l.render(descriptors)).collect());
        } else {
            put(list(0), std::mem::take(&mut statics));
            put(list(1), render(&self.active, true));
            // Warming clusters have a list of their own; a warming route table is not in use yet.
            if self.items.len() > 2 {
                put(list(2), render(&self.warming, true));
            }
        }
        Dump {
            kind: self.kind,
            fields,
            items: self.items,
        }
    }
}

impl Item {
    fn new<T>(name: &Arc<str>, generation: &Generation<T>, error: Option<UpdateFailure>) -> Self {
        Self {
            name: name.clone(),
            version_info: generation.version_info.clone(),
            any: generation.any.clone(),
            last_updated: generation.last_updated,
            error,
            hosts: Vec::new(),
        }
    }

    fn render(&self, descriptors: &Descriptors, field: &str, dynamic: bool) -> Value {
        let mut object = Map::new();
        if dynamic {
            object.insert("version_info".to_owned(), self.version_info.clone().into());
        }
        let mut resource = descriptors.any_to_json(&self.any.type_url, &self.any.value);
        self.add_hosts(&mut resource, descriptors);
        redact(&mut resource);
        if field == "secret" {
            object.insert("name".to_owned(), (*self.name).into());
        }
        object.insert(field.to_owned(), resource);
        object.insert(
            "last_updated".to_owned(),
            timestamp(self.last_updated).into(),
        );
        if let Some(error) = &self.error {
            object.insert("error_state".to_owned(), failure(error, descriptors));
        }
        Value::Object(object)
    }
}

impl Item {
    fn add_hosts(&self, table: &mut Value, descriptors: &Descriptors) {
        const HOST: &str = "envoy.config.route.v3.VirtualHost";
        let hosts = self.hosts.iter();
        let hosts: Vec<Value> = hosts
            .filter_map(|any| descriptors.message_to_json(HOST, &any.value).ok())
            .collect();
        let Value::Object(fields) = table else { return };
        if hosts.is_empty() {
            return;
        }
        let all = fields.entry("virtual_hosts");
        if let Value::Array(all) = all.or_insert_with(|| Value::Array(Vec::new())) {
            all.extend(hosts);
        }
    }
}

impl ListenerItem {
    fn render(&self, descriptors: &Descriptors) -> Value {
        let mut object = Map::new();
        object.insert("name".to_owned(), (*self.name).into());
        for (state, item) in [
            ("active_state", &self.active),
            ("warming_state", &self.warming),
        ] {
            if let Some(item) = item {
                object.insert(state.to_owned(), item.render(descriptors, "listener", true));
            }
        }
        if let Some(error) = &self.error {
            object.insert("error_state".to_owned(), failure(error, descriptors));
        }
        Value::Object(object)
    }
}

/// Private keys and passwords are nobody's to read, wherever they stand.
fn redact(json: &mut Value) {
    match json {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(object) => {
            for (key, value) in object {
                let secret = matches!(
                    key.as_str(),
                    "private_key"
                        | "password"
                        | "pkcs12"
                        | "session_ticket_keys"
                        | "generic_secret"
                );
                match secret {
                    true => redact_sources(value),
                    false => redact(value),
                }
            }
        }
        _ => {}
    }
}

/// Data in place becomes Envoy's word for it, as text or in Base64.
fn redact_sources(json: &mut Value) {
    match json {
        Value::Array(items) => items.iter_mut().for_each(redact_sources),
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    "inline_string" => *value = "[redacted]".into(),
                    "inline_bytes" => *value = "W3JlZGFjdGVkXQ==".into(),
                    _ => redact_sources(value),
                }
            }
        }
        _ => {}
    }
}

fn failure(error: &UpdateFailure, descriptors: &Descriptors) -> Value {
    let mut failed = descriptors.any_to_json(&error.failed.type_url, &error.failed.value);
    redact(&mut failed);
    json!({
        "failed_configuration": failed,
        "last_update_attempt": timestamp(error.last_attempt),
        "details": error.details,
        "version_info": error.version_info,
    })
}
