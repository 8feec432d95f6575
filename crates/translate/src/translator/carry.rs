//! Route tables after a change of rules or services: the ones before with the virtual hosts of the
//! hosts that are touched made anew. To put a table together from the whole mesh costs in proportion
//! to the mesh; this costs in proportion to the change.
//!
//! Only where that is certainly all that differs: no wildcard changed, no Sidecar says what is seen,
//! and no two hosts want the same domain. Everything else is put together anew when it is asked for.
//!
//! Invariant: what is carried over equals what would be made anew (a test compares them).

use std::sync::{OnceLock, PoisonError};

use lateen_model::MESH_GATEWAY;

use super::routes::Apart;
use super::*;
use crate::port_table::Claims;
use crate::route_table::UNREGISTERED_PORT;

/// Hosts whose virtual hosts may differ after a change.
struct Touched<'a> {
    hosts: BTreeSet<&'a str>,
    changes: &'a Changes,
}

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
                && key.gateway.is_none()
                && key.sidecar.is_none()
                && key.labels.is_some() == asks_for_labels
        });
        for (mut key, table) in views {
            let carried = match (*table).as_ref() {
                Some(table) => self.carry(now, table, touched).map(Some),
                // Of a service that is not there.
                None => touched.spares(key.name()).then_some(None),
            };
            if let Some(carried) = carried {
                key.snapshot = ById(now.routing.clone());
                self.views.put(key, Arc::new(carried));
            }
        }
    }

    /// `None`: the table has to be made anew.
    fn carry(
        &self,
        now: &MeshSnapshot,
        table: &Arc<Parts<R>>,
        touched: &Touched<'_>,
    ) -> Option<Arc<Parts<R>>> {
        let Some(kind) = kind_of(&table.name) else {
            return touched.spares(&table.name).then(|| table.clone());
        };
        let viewer = Viewer {
            snapshot: now,
            scope: &now.scope(&table.seen_by),
            proxy: &table.seen_by,
        };
        let mut edits = Vec::new();
        for host in &touched.hosts {
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
            apart: apart.map(OnceLock::from).unwrap_or_default(),
        });
        if known {
            let key = (ById(table.clone()), ById(next.clone()));
            self.differences.put(key, Arc::new(differ));
        }
        next
    }
}

impl Touched<'_> {
    /// Whether a table of one service, `HOST:PORT`, is of none of these hosts.
    fn spares(&self, table: &str) -> bool {
        let of_service = table.rsplit_once(':').filter(|_| !table.contains('/'));
        of_service.is_some_and(|(host, _)| !self.hosts.contains(host))
    }

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

/// The hosts that changed rules and services are about; `None` when the tables can differ in
/// anything else.
fn touched<'a>(now: &'a MeshSnapshot, changes: &'a Changes) -> Option<Touched<'a>> {
    let hashed = |rule: &Arc<DestinationRule>| rule.hashes();
    let was_hashed = changes.destination_rules.values().flatten().any(hashed);
    let places = !changes.destination_rules.is_empty() && (was_hashed || now.rules_hash());
    if places || !changes.only_rules_and_services_of_routes(now) {
        return None;
    }
    let mut rules: Vec<&Arc<VirtualService>> = Vec::new();
    let mut hosts = BTreeSet::new();
    for (origin, before) in &changes.virtual_services {
        rules.extend(before.iter().chain(now.virtual_service(origin)));
    }
    for host in changes.services.keys() {
        hosts.insert(&**host);
        // The port of a destination is not written where it has only one.
        rules.extend(now.rules_to(host));
    }
    for rule in rules.iter().filter(|rule| rule.is_bound_to(MESH_GATEWAY)) {
        for host in &rule.hosts {
            hosts.insert((!host.contains('*')).then_some(host.as_str())?);
        }
    }
    Some(Touched { hosts, changes })
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
