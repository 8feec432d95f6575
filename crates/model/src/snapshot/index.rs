//! The indexes of a snapshot: what one thing contributes to each, put in or taken out.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::WorkloadKey;
use super::update::Update;
use crate::rules::{Origin, VirtualService};
use crate::service::{Resolution, Service, ServiceEndpoints, Workload};

impl Update<'_> {
    pub(super) fn index_rule(&mut self, rule: &Arc<VirtualService>, present: bool) {
        let origin = &rule.origin;
        let at = |key: &String| (key.clone(), origin.clone());
        let by_host = rule.hosts.iter().map(at).collect();
        put(&mut self.next.rules_by_host, by_host, rule, present);
        let by_gateway = rule.gateways.iter().map(at).collect();
        put(&mut self.next.rules_by_gateway, by_gateway, rule, present);
        let to = rule.destinations(&self.next.settings.domain_suffix);
        let by_destination = to.iter().map(at).collect();
        put(
            &mut self.next.rules_by_destination,
            by_destination,
            rule,
            present,
        );
        let of_connections = &mut self.next.connection_rules;
        match present && rule.is_of_connections() {
            true => of_connections.insert_mut(origin.clone(), rule.clone()),
            false => {
                of_connections.remove_mut(origin);
            }
        }
        let labelled = usize::from(asks_for_labels(rule));
        self.next.labelled_rules = match present {
            true => self.next.labelled_rules + labelled,
            false => self.next.labelled_rules.saturating_sub(labelled),
        };
    }

    pub(super) fn index_labels(
        &mut self,
        (namespace, name, kind): &WorkloadKey,
        of: &Workload,
        add: bool,
    ) {
        for (label, value) in &of.labels {
            let own = (name.clone(), *kind);
            let index = (namespace.clone(), label.clone(), value.clone(), own);
            match add {
                true => self.next.labelled.insert_mut(index, ()),
                false => {
                    self.next.labelled.remove_mut(&index);
                }
            }
        }
    }

    pub(super) fn index_service(&mut self, service: &Service, present: bool) {
        for address in service.addresses.iter().chain(&service.auto_addresses) {
            let key = (address.clone(), service.hostname.clone());
            match present {
                true => self.next.addressed.insert_mut(key, ()),
                false => {
                    self.next.addressed.remove_mut(&key);
                }
            }
        }
        let by_request = usize::from(service.resolution == Resolution::ByRequest);
        self.next.by_request = match present {
            true => self.next.by_request + by_request,
            false => self.next.by_request.saturating_sub(by_request),
        };
        self.index_selector(service, present);
    }

    fn index_selector(&mut self, service: &Service, present: bool) {
        let Some((label, value)) = service.selector.iter().next() else {
            return;
        };
        let host = service.hostname.clone();
        let index = (
            service.namespace.clone(),
            label.clone(),
            value.clone(),
            host,
        );
        match present {
            true => self.next.selecting.insert_mut(index, ()),
            false => {
                self.next.selecting.remove_mut(&index);
            }
        }
    }

    pub(super) fn index_headless(&mut self, host: &Arc<str>, of: &ServiceEndpoints, present: bool) {
        let index = &mut self.next.headless;
        if !present && index.is_empty() {
            return;
        }
        for endpoint in of.by_port.values().flatten() {
            let key = (endpoint.workload.address.clone(), host.clone());
            match present {
                true => index.insert_mut(key, ()),
                false => {
                    index.remove_mut(&key);
                }
            }
        }
    }
}

/// VirtualServices by something that they name.
type RuleIndex = RedBlackTreeMapSync<(String, Origin), Arc<VirtualService>>;

fn put(
    index: &mut RuleIndex,
    keys: Vec<(String, Origin)>,
    rule: &Arc<VirtualService>,
    present: bool,
) {
    for key in keys {
        match present {
            true => index.insert_mut(key, rule.clone()),
            false => {
                index.remove_mut(&key);
            }
        }
    }
}

/// Whether routes of the rule depend on the labels of the client.
fn asks_for_labels(rule: &VirtualService) -> bool {
    let http = rule.spec.http.iter().flat_map(|http| &http.matches);
    let tls = rule.spec.tls.iter().flat_map(|tls| &tls.matches);
    let tcp = rule.spec.tcp.iter().flat_map(|tcp| &tcp.matches);
    http.map(|item| &item.source_labels)
        .chain(tls.map(|item| &item.source_labels))
        .chain(tcp.map(|item| &item.source_labels))
        .any(|labels| !labels.is_empty())
}
