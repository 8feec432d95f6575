//! Which traffic policy applies to one port of one subset.

use lateen_api::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection,
    PortTrafficPolicy, ProxyProtocol, RetryBudget, SimpleLb, TrafficPolicy, TunnelSettings,
};
use lateen_model::DestinationRule;

/// The groups of a traffic policy after merging. A missing group means the mesh's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub load_balancer: Option<LoadBalancerSettings>,
    pub connection_pool: Option<ConnectionPoolSettings>,
    pub outlier_detection: Option<OutlierDetection>,
    pub retry_budget: Option<RetryBudget>,
    pub tls: Option<ClientTlsSettings>,
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Policy {
    /// The policy for a port of a subset (or of no subset).
    ///
    /// A subset's groups replace those of the rule one by one. Settings for the port replace *all*
    /// groups: what they leave out goes back to the defaults (fact 31).
    pub fn of(rule: Option<&DestinationRule>, subset: &str, port: u32) -> Policy {
        let Some(rule) = rule else {
            return Policy::default();
        };
        let mut policy = Policy::default();
        policy.apply(rule.traffic_policy.as_ref(), port);
        if let Some(subset) = rule.subset(subset) {
            policy.apply(subset.traffic_policy.as_ref(), port);
        }
        policy
    }

    fn apply(&mut self, over: Option<&TrafficPolicy>, port: u32) {
        let Some(over) = over else { return };
        if over.load_balancer.is_some() {
            self.load_balancer.clone_from(&over.load_balancer);
        }
        if over.connection_pool.is_some() {
            self.connection_pool.clone_from(&over.connection_pool);
        }
        if over.outlier_detection.is_some() {
            self.outlier_detection.clone_from(&over.outlier_detection);
        }
        if over.retry_budget.is_some() {
            self.retry_budget.clone_from(&over.retry_budget);
        }
        if over.tls.is_some() {
            self.tls.clone_from(&over.tls);
        }
        if over.proxy_protocol.is_some() {
            self.proxy_protocol.clone_from(&over.proxy_protocol);
        }
        let of_port = |settings: &&PortTrafficPolicy| {
            settings.port.as_ref().is_some_and(|p| p.number == port)
        };
        if let Some(settings) = over.port_level_settings.iter().find(of_port) {
            *self = Policy {
                load_balancer: settings.load_balancer.clone(),
                connection_pool: settings.connection_pool.clone(),
                outlier_detection: settings.outlier_detection.clone(),
                tls: settings.tls.clone(),
                // Not part of port settings; the whole policy's hold, as in Istio.
                retry_budget: self.retry_budget.take(),
                proxy_protocol: self.proxy_protocol.take(),
            };
        }
    }

    /// The tunnel of a subset, or of no subset: a subset without one has none, whatever the rule as a
    /// whole says (`pilot/pkg/networking/core/tunnelingconfig`).
    pub fn tunnel<'r>(
        rule: Option<&'r DestinationRule>,
        subset: &str,
    ) -> Option<&'r TunnelSettings> {
        let rule = rule?;
        let policy = match subset {
            "" => rule.traffic_policy.as_ref(),
            name => rule.subset(name)?.traffic_policy.as_ref(),
        };
        policy?.tunnel.as_ref()
    }

    /// The connection pool's limits.
    pub fn pool(&self) -> Option<&ConnectionPoolSettings> {
        self.connection_pool.as_ref()
    }

    /// The simple balancer; least request unless something else is asked for (fact 33).
    pub fn simple_balancer(&self) -> SimpleLb {
        match self
            .load_balancer
            .as_ref()
            .and_then(|lb| lb.simple)
            .unwrap_or_default()
        {
            SimpleLb::Unspecified | SimpleLb::LeastConn => SimpleLb::LeastRequest,
            other => other,
        }
    }
}
