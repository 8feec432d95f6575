//! The filters that decide who may come in, before those that say where requests go.
//!
//! They stand in front of all others, in Istio's order
//! (`pilot/pkg/networking/core/listener_builder.go`): external authorizers, then tokens, then
//! authorization. Only what comes to a workload and what comes to a gateway is guarded; what a
//! workload sends is its peers' business.

use lateen_model::{MeshSnapshot, Proxy};

use crate::authorization::Authorization;
use crate::envoy::{hcm, listener};
use crate::jwt_authn;

/// What guards a proxy's workload; of a gateway: everything it serves.
pub struct Guards<'a> {
    authorization: Authorization<'a>,
    /// Reads and checks tokens, at every port.
    tokens: Option<hcm::HttpFilter>,
}

/// What guards one port.
pub struct Guard {
    http: Vec<hcm::HttpFilter>,
    network: Vec<listener::Filter>,
}

impl<'a> Guards<'a> {
    pub fn of(snapshot: &'a MeshSnapshot, proxy: &'a Proxy) -> Self {
        Guards {
            authorization: Authorization::of(snapshot, proxy),
            tokens: jwt_authn::filter(snapshot, proxy),
        }
    }

    /// What guards the port that a listener stands for: `numbers` are its own, then others that
    /// policies may know it by.
    pub fn at(&self, numbers: &[u16]) -> Guard {
        let custom = self.authorization.custom(numbers);
        let local = self.authorization.local(numbers);
        let tokens = self.tokens.iter().cloned();
        Guard {
            http: custom
                .http
                .into_iter()
                .chain(tokens)
                .chain(local.http)
                .collect(),
            network: custom.network.into_iter().chain(local.network).collect(),
        }
    }
}

impl Guard {
    /// The connection manager, guarded.
    pub fn over_http(&self, mut manager: hcm::HttpConnectionManager) -> hcm::HttpConnectionManager {
        manager.http_filters.splice(0..0, self.http.iter().cloned());
        manager
    }

    /// The filters of a chain that ends in a TCP proxy, guarded.
    pub fn over_tcp(&self, mut filters: Vec<listener::Filter>) -> Vec<listener::Filter> {
        filters.splice(0..0, self.network.iter().cloned());
        filters
    }
}
