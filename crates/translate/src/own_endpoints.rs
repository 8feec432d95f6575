//! The endpoints of a proxy's own services (EDS `local_cluster`): how clients are spread over zones,
//! which zone-aware balancing compares with how the endpoints are. Asked for by proxies that say so
//! (`ENABLE_SELF_DISCOVERY`); nobody connects to them.

use std::collections::BTreeSet;

use lateen_model::{Locality, MeshSnapshot, Proxy, Service, ServiceEndpoints, Workload};

use crate::cache::ById;
use crate::endpoints;
use crate::envoy::endpoint;
use crate::names;

/// What they are made of. Proxies of one service and region share them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OwnEndpoints {
    /// Of the services that select the proxy's workload, by host name.
    services: Vec<ById<ServiceEndpoints>>,
    /// Labels that siblings have in common, with their values; others are another version.
    siblings: Vec<(String, String)>,
    /// Of the proxy: clients elsewhere do not compete for the same endpoints. Empty: all.
    region: String,
}

impl OwnEndpoints {
    /// [`None`]: the proxy has not said that it needs them.
    pub fn of(snapshot: &MeshSnapshot, proxy: &Proxy, place: &Locality) -> Option<OwnEndpoints> {
        let names = proxy.self_discovery.as_ref()?;
        let workload = snapshot.workload_of(proxy);
        let services = workload.map(|workload| snapshot.services_of(workload));
        let services = services.into_iter().flatten();
        let value = |name: &String| proxy.labels.get(name).cloned().unwrap_or_default();
        Some(OwnEndpoints {
            services: services
                .map(|service: &std::sync::Arc<Service>| {
                    ById(snapshot.endpoints(&service.hostname))
                })
                .collect(),
            siblings: names
                .iter()
                .map(|name| (name.clone(), value(name)))
                .collect(),
            region: place.region.clone(),
        })
    }

    /// Each workload once, at its first port: what counts is how many there are.
    pub fn load_assignment(&self) -> endpoint::ClusterLoadAssignment {
        let mut seen: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
        let all = self
            .services
            .iter()
            .flat_map(|of| of.by_port.values().flatten());
        let siblings = all.filter(|one| self.is_sibling(&one.workload));
        let once = siblings.filter(|one| {
            let workload = &one.workload;
            seen.insert((&workload.namespace, &workload.name, &workload.address))
        });
        endpoints::plain_assignment(names::LOCAL_CLUSTER, once)
    }

    fn is_sibling(&self, workload: &Workload) -> bool {
        let value = |name: &String| workload.labels.get(name).map_or("", String::as_str);
        let near = self.region.is_empty() || self.region == workload.locality.region;
        near && self.siblings.iter().all(|(name, own)| value(name) == own)
    }
}
