//! Endpoints that EndpointSlices and Endpoints give a Service.
//!
//! A Service without a selector has these alone. Where it has one, what it selects is known here from
//! the pods themselves: slices that Kubernetes makes of a selector are left out then, all others count
//! beside the pods. (`Endpoints` of a Service with a selector are made in the same way, and left out.)

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::endpoints::{
    AddressType, EndpointPort, MANAGED_BY, SELECTOR_CONTROLLER, SERVICE_NAME,
};
use lateen_api::kubernetes::TransportProtocol;
use lateen_api::{Object, Spec};

use crate::rules::Origin;
use crate::service::{Locality, Service, Workload, WorkloadKind};

/// What one object gives a Service of its namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slice {
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// It was made of the Service's selector.
    of_selector: bool,
    endpoints: Vec<Arc<Workload>>,
}

impl Slice {
    /// `None` for what belongs to no Service.
    pub fn of(origin: &Origin, object: &Object) -> Option<Slice> {
        let labels = &object.meta.labels;
        let slice = |service: &str, of_selector| Slice {
            namespace: origin.namespace.clone(),
            service: service.to_string(),
            of_selector,
            endpoints: Vec::new(),
        };
        Some(match &object.spec {
            Spec::EndpointSlice(spec) => {
                let by = labels.get(MANAGED_BY).map(String::as_str);
                let mut slice = slice(labels.get(SERVICE_NAME)?, by == Some(SELECTOR_CONTROLLER));
                if spec.address_type == Some(AddressType::Fqdn) {
                    return Some(slice);
                }
                let ports = ports(&spec.ports);
                for endpoint in &spec.endpoints {
                    let conditions = endpoint.conditions.as_ref();
                    let ready = conditions.and_then(|all| all.ready);
                    let said = (ready != Some(false), &*endpoint.hostname, &*endpoint.zone);
                    for address in &endpoint.addresses {
                        slice.add(origin, address, &ports, said);
                    }
                }
                slice
            }
            Spec::Endpoints(spec) => {
                let mut slice = slice(&origin.name, true);
                for subset in &spec.subsets {
                    let ports = ports(&subset.ports);
                    let ready = subset.addresses.iter().map(|one| (one, true));
                    let others = subset.not_ready_addresses.iter().map(|one| (one, false));
                    for (address, ready) in ready.chain(others) {
                        slice.add(origin, &address.ip, &ports, (ready, &address.hostname, ""));
                    }
                }
                slice
            }
            _ => return None,
        })
    }

    /// Its endpoints, if they count for a Service.
    pub fn endpoints_for(&self, service: &Service) -> &[Arc<Workload>] {
        match self.of_selector && !service.selector.is_empty() {
            true => &[],
            false => &self.endpoints,
        }
    }

    fn add(
        &mut self,
        origin: &Origin,
        address: &str,
        ports: &BTreeMap<String, u32>,
        (ready, hostname, zone): (bool, &str, &str),
    ) {
        let dns_name = (hostname.to_string(), self.service.clone());
        self.endpoints.push(Arc::new(Workload {
            kind: WorkloadKind::Slice,
            name: format!("{}-{}", origin.name, self.endpoints.len()),
            namespace: self.namespace.clone(),
            address: address.to_string(),
            ports: ports.clone(),
            labels: BTreeMap::new(),
            locality: Locality {
                zone: zone.to_string(),
                ..Locality::default()
            },
            weight: 1,
            service_account: String::new(),
            healthy: ready,
            dns_name: (!hostname.is_empty()).then_some(dns_name),
        }));
    }
}

/// Names and numbers of the ports over TCP.
fn ports(ports: &[EndpointPort]) -> BTreeMap<String, u32> {
    let tcp = ports
        .iter()
        .filter(|port| port.protocol.unwrap_or_default() == TransportProtocol::Tcp);
    tcp.filter_map(|port| Some((port.name.clone(), port.port?)))
        .collect()
}
