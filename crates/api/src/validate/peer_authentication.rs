//! Rules of `PeerAuthentication` (Istio's `ValidatePeerAuthentication`).

use super::{Checker, Validate, names};
use crate::peer_authentication::PeerAuthentication;

impl Validate for PeerAuthentication {
    fn validate(&self, check: &mut Checker) {
        check.some("selector", &self.selector, |check, selector| {
            names::selector(check, "matchLabels", &selector.match_labels);
        });
        if self.is_default() && !self.port_level_mtls.is_empty() {
            check.field("portLevelMtls", |check| {
                check.error_hint(
                    "mesh and namespace peer authentication cannot have port level mTLS",
                    "add a selector for the workloads that have these ports",
                );
            });
        }
        check.map(
            "portLevelMtls",
            &self.port_level_mtls,
            |check, port, _| match port.parse::<u32>() {
                Ok(0) => check.error("port cannot be 0"),
                Ok(number) => check.port(number),
                Err(_) => check.error_hint(
                    format!("{port:?} is not a port number"),
                    "write the number that the workload listens on, such as 8080",
                ),
            },
        );
    }
}
