//! Rules of `IstioOperator`.

use super::{Checker, Validate, mesh_config};
use crate::istio_operator::IstioOperator;

impl Validate for IstioOperator {
    fn validate(&self, check: &mut Checker) {
        check.some("meshConfig", &self.mesh_config, mesh_config::validate);
    }
}
