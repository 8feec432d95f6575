//! Route tables after a change of rules or services: the ones before with the virtual hosts of the
//! hosts that are touched made anew. To put a table together from the whole mesh costs in proportion
//! to the mesh; this costs in proportion to the change.
//!
//! Only where that is certainly all that differs. Of a sidecar: no wildcard changed, and no two hosts
//! want the same domain; under a Sidecar, hosts that changed rules lead to are touched, too. Of a
//! gateway: its servers are the same. Everything else is put together anew when it is asked for.
//!
//! Invariant: what is carried over equals what would be made anew (a test compares them).

use std::sync::{OnceLock, PoisonError};

use lateen_model::MESH_GATEWAY;

use super::routes::Apart;
use super::*;
use crate::port_table::Claims;
use crate::route_table::UNREGISTERED_PORT;

/// What may make virtual hosts differ.
struct Touched<'a> {
    /// Hosts of the tables of sidecars; `None`: those tables can differ in anything.
    hosts: Option<BTreeSet<&'a str>>,
    /// Beside them, of sidecars under a Sidecar.
    led_to: BTreeSet<String>,
    /// As they were and as they are, those whose destinations changed among them.
    rules: Vec<&'a Arc<VirtualService>>,
    changes: &'a Changes,
}

/// A table that nobody asked for since so many changes is not taken along any more.
const MOST_CARRIED: u32 = 64;

/// A virtual host by its name; none when it went.
type Edit = (Arc<str>, Option<ById<EncodedHost>>);

impl<R> Translator<R> {
    /// Takes `changes`, which led to the snapshot `now`, into the tables that are remembered. To be
    /// called for every snapshot that proxies are given, before it is.
    pub fn advance(&self, now: &MeshSnapshot, changes: &Changes) {
        let before = {
            let mut routing = self.routing.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *routing, now.routing.clone())
        };
        if Arc::ptr_eq(&before, &now.routing) {
            return;
        }
        if let Some(touched) = touched(now, changes) {
            self.carry_views(&before, now, &touched);
        }
        // Not by snapshots: between two that differ in routes there may be many that do not.
        self.views.sweep();
    }

    fn carry_views(&self, before: &Arc<Identity>, now: &MeshSnapshot, touched: &Touched<'_>) {
        let asks_for_labels = now.rules_ask_for_labels();
        let views = self.views.known(|key| {
            Arc::ptr_eq(&key.snapshot.0, before)
                && (key.is_of_gateway() || key.labels.is_some() == asks_for_labels)
        });
        for (mut key, table, carried) in views {
            // What is not there may come.
            let (Some(table), true) = ((*table).as_ref(), carried < MOST_CARRIED) else {
                continue;
            };
            let next = match key.is_of_gateway() {
                true => self.carry_gateway(now, table, touched),
                false => self.carry(now, &key, table, touched),
            };
            if let Some(next) = next {
                key.snapshot = ById(now.routing.clone());
                self.views.put(key, Arc::new(Some(next)), carried + 1);
            }
        }
    }

    /// `None`: the table has to be made anew.
    fn carry_gateway(
        &self,
        now: &MeshSnapshot,
        table: &Arc<Parts<R>>,
        touched: &Touched<'_>,
    ) -> Option<Arc<Parts<R>>> {
        let proxy = &table.seen_by;
        let servers = gateway::http_servers(now, proxy).remove(&table.name)?;
        if routes::server_keys(&servers) != table.servers {
            return None;
        }
        let view = GatewayTable {
            snapshot: now,
            proxy,
            servers: &servers,
        };
        let rules = touched.rules.iter();
        let hosts: BTreeSet<String> = rules.flat_map(|rule| view.hosts_of_rule(rule)).collect();
        let mut edits: Vec<Edit> = Vec::new();
        for host in &hosts {
            let name = view.name(host);
            let old = table.hosts.get(name.as_str());
            match (view.host(host), old) {
                (Some(key), old) => {
                    let made = ById(self.encoded_host(key));
                    if old.is_none_or(|old| !old.says_the_same(&made)) {
                        edits.push((made.name.clone(), Some(made)));
                    }
                }
                (None, Some(old)) => edits.push((old.name.clone(), None)),
                (None, None) => {}
            }
        }
        if edits.is_empty() {
            return Some(table.clone());
        }
        let next = self.replaced(table, edits);
        // One that stands in for all others comes with the last that goes, and goes with the first.
        let stands_in = next.hosts.contains_key(view.name_of_none().as_str());
        (!next.hosts.is_empty() && !stands_in).then_some(next)
    }

    /// `None`: the table has to be made anew.
    fn carry(
        &self,
        now: &MeshSnapshot,
        key: &ViewKey,
        table: &Arc<Parts<R>>,
        touched: &Touched<'_>,
    ) -> Option<Arc<Parts<R>>> {
        let (kind, mut hosts) = (kind_of(&table.name)?, touched.hosts.clone()?);
        // Who has seen the table may be under another Sidecar by now.
        let sidecar = key.sidecar.as_ref().map(|sidecar| &sidecar.0);
        let scope = now.scope_with(&table.seen_by.namespace, sidecar);
        if scope.sidecar().is_some() {
            hosts.extend(touched.led_to.iter().map(String::as_str));
        }
        let viewer = Viewer {
            snapshot: now,
            scope: &scope,
            proxy: &table.seen_by,
        };
        let mut edits = Vec::new();
        for host in &hosts {
            edits.extend(self.edits(&viewer, table, kind, host, touched)?);
        }
        Some(match edits.is_empty() {
            true => table.clone(),
            false => self.replaced(table, edits),
        })
    }

    /// What becomes of the virtual hosts of one host; `None` when that may depend on others.
    fn edits(
        &self,
        viewer: &Viewer<'_>,
        table: &Parts<R>,
        kind: PortTable,
        host: &str,
        touched: &Touched<'_>,
    ) -> Option<Vec<Edit>> {
        let made = kind.hosts_of(viewer, host);
        let is_shaped_as_before = !touched.changes.services.contains_key(host);
        let (snapshot, proxy) = (viewer.snapshot, viewer.proxy);
        let is_disputed = |domain: &String| port_table::is_claimed(snapshot, proxy, domain, host);
        let mut claims = Claims::default();
        let mut edits: Vec<Edit> = Vec::new();
        let gone = touched.names_of(snapshot, host);
        let gone = gone.filter(|name| !made.iter().any(|key| key.name == *name));
        for old in gone.filter_map(|name| table.hosts.get(name.as_str())) {
            if domains_of(old).iter().any(is_disputed) {
                return None;
            }
            edits.push((old.name.clone(), None));
        }
        for mut key in made {
            let old = table.hosts.get(key.name.as_str());
            let had = old.map(domains_of).unwrap_or_default();
            if is_shaped_as_before && old.is_some() {
                key.domains = had.to_vec();
            } else {
                let added = key.domains.iter().filter(|domain| !had.contains(domain));
                let freed = had.iter().filter(|domain| !key.domains.contains(domain));
                if added.chain(freed).any(is_disputed) {
                    return None;
                }
            }
            let Some(key) = claims.admit(key) else {
                continue;
            };
            let made = ById(self.encoded_host(key));
            if old.is_none_or(|old| !old.says_the_same(&made)) {
                edits.push((made.name.clone(), Some(made)));
            }
        }
        Some(edits)
    }

    /// A table with some virtual hosts changed, new or gone.
    fn replaced(&self, table: &Arc<Parts<R>>, edits: Vec<Edit>) -> Arc<Parts<R>> {
        let mut hosts = table.hosts.clone();
        let mut differ = BTreeSet::new();
        let name: Arc<str> = table.name.as_str().into();
        let mut apart = table.apart.get().map(|apart| Apart {
            table: apart.table.clone(),
            hosts: apart.hosts.clone(),
        });
        for (host, edit) in edits {
            if let Some(apart) = &mut apart {
                let full: Arc<str> = match &edit {
                    Some(made) => {
                        let (full, made) = self.named_host(&name, made);
                        apart.hosts.insert_mut(full.clone(), made);
                        full
                    }
                    None => {
                        let full = routes::resource_name(&name, &host);
                        apart.hosts.remove_mut(full.as_str());
                        full.into()
                    }
                };
                differ.insert(full.to_string());
            }
            match edit {
                Some(made) => hosts.insert_mut(host, made),
                None => {
                    hosts.remove_mut(&host);
                }
            }
        }
        let known = apart.is_some();
        let next = Arc::new(Parts {
            name: table.name.clone(),
            hosts,
            rest: table.rest.clone(),
            divides: table.divides,
            seen_by: table.seen_by.clone(),
            servers: table.servers.clone(),
            apart: apart.map(OnceLock::from).unwrap_or_default(),
        });
        if known {
            let key = (ById(table.clone()), ById(next.clone()));
            self.differences.put(key, Arc::new(differ), 0);
        }
        next
    }
}

impl Touched<'_> {
    /// Names that virtual hosts of a host had or have.
    fn names_of(&self, now: &MeshSnapshot, host: &str) -> impl Iterator<Item = String> {
        let before = self.changes.services.get(host).and_then(Option::as_ref);
        let services = before.into_iter().chain(now.service(host));
        let ports = services.flat_map(|service| service.ports.iter().map(|port| port.number));
        let ports: BTreeSet<u32> = ports.chain([UNREGISTERED_PORT]).collect();
        ports.into_iter().map(move |port| format!("{host}:{port}"))
    }
}

fn domains_of(host: &ById<EncodedHost>) -> &[String] {
    host.key.as_deref().map_or(&[], |key| &key.domains)
}

/// Which hosts a table of many services is for.
fn kind_of(table: &str) -> Option<PortTable> {
    match table {
        names::HTTP_PROXY_ROUTES => Some(PortTable::All),
        port => Some(PortTable::Captured(port.parse().ok()?)),
    }
}

/// What changed rules and services touch; `None` when all tables can differ in anything.
fn touched<'a>(now: &'a MeshSnapshot, changes: &'a Changes) -> Option<Touched<'a>> {
    let hashed = |rule: &Arc<DestinationRule>| rule.hashes();
    let was_hashed = changes.destination_rules.values().flatten().any(hashed);
    let places = !changes.destination_rules.is_empty() && (was_hashed || now.rules_hash());
    if places || changes.everything {
        return None;
    }
    let mut rules: Vec<&Arc<VirtualService>> = changes.rules_then_and(now).collect();
    // The port of a destination is not written where it has only one.
    rules.extend(changes.rules_to_services(now));
    let headless = |one: &Arc<Service>| one.is_headless();
    let is_plain = !changes.services_then_and(now).any(headless);
    let hosts = rules.iter().filter(|rule| rule.is_bound_to(MESH_GATEWAY));
    let hosts = hosts.flat_map(|rule| &rule.hosts);
    let hosts = hosts.map(|host| (!host.contains('*')).then_some(host.as_str()));
    let services = changes.services.keys().map(|host| Some(&**host));
    Some(Touched {
        hosts: hosts
            .chain(services)
            .collect::<Option<_>>()
            .filter(|_| is_plain),
        led_to: changes.led_to(now),
        rules,
        changes,
    })
}

#[cfg(test)]
mod tests {
    use lateen_api::Object;
    use lateen_model::ObjectChange;

    use super::*;

    fn object(yaml: &str) -> Object {
        let mut read = lateen_api::parse("test.yaml", yaml, lateen_api::Mode::Strict).objects;
        read.pop().map(|one| one.object).unwrap()
    }

    fn service(name: &str, address: &str) -> Object {
        object(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}}}"
        ))
    }

    /// Whether the table known before is taken along to a mesh with one more object.
    fn is_carried(more: &Object) -> bool {
        let (a, b) = (service("a", "10.0.0.1"), service("b", "10.0.0.2"));
        let before = MeshSnapshot::build([&a, &b], 1, Arc::default(), None);
        let metadata = serde_json::json!({"INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": "15101"});
        let id = "sidecar~10.0.1.1~a-1.shop~shop.svc.cluster.local";
        let proxy = Proxy::from_node(id, &metadata).unwrap();
        let translator: Translator<Encoded> = Translator::new(|encoded| encoded);
        translator.advance(&before, &Changes::everything());
        translator.generate(&before, &proxy, type_url::ROUTE, None);
        let change = ObjectChange {
            before: None,
            after: Some(more),
        };
        let (now, changes) = before.updated(&[change], 2).unwrap();
        translator.advance(&now, &changes);
        let known = |key: &ViewKey| Arc::ptr_eq(&key.snapshot.0, &now.routing);
        !translator.views.known(known).is_empty()
    }

    #[test]
    fn tables_are_carried_over_unless_somebody_wants_what_another_has() {
        let rule = |host: &str| {
            object(&format!(
                "{{apiVersion: networking.istio.io/v1, kind: VirtualService, \
                 metadata: {{name: r, namespace: shop}}, spec: {{hosts: ['{host}'], \
                 http: [{{route: [{{destination: {{host: a}}}}]}}]}}}}"
            ))
        };
        assert!(is_carried(&service("c", "10.0.0.3")));
        assert!(is_carried(&rule("a")));
        assert!(is_carried(&rule("nobody.test")));
        assert!(!is_carried(&service("c", "10.0.0.2")));
        assert!(!is_carried(&rule("10.0.0.2")));
        assert!(!is_carried(&rule("*.test")));
    }
}
