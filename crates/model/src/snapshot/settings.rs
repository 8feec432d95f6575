//! The settings of the mesh as objects say them.

use std::sync::Arc;

use lateen_api::{MeshConfig, Object, Spec};

use crate::registry;
use crate::settings::MeshSettings;

/// The settings with what IstioOperators and the mesh's ConfigMap say.
pub(super) fn configured(objects: &[&Object], base: Arc<MeshSettings>) -> Arc<MeshSettings> {
    let mut operators: Vec<_> = Vec::new();
    let mut config_map = None;
    let mut closed = false;
    for object in objects {
        match &object.spec {
            Spec::IstioOperator(operator) => {
                closed |= object.closed;
                operators.push((registry::origin(object), operator));
            }
            Spec::ConfigMap(map)
                if object.meta.name == MESH_CONFIG_MAP
                    && object.meta.namespace == base.root_namespace =>
            {
                closed |= object.closed;
                config_map = map.data.get("mesh");
            }
            _ => {}
        }
    }
    operators.sort_by(|a, b| a.0.cmp(&b.0));
    let operators = operators
        .iter()
        .filter_map(|(_, operator)| operator.mesh_config.clone());
    let configs: Vec<MeshConfig> = operators
        .chain(config_map.and_then(|text| MeshConfig::read(text)))
        .collect();
    if configs.is_empty() && !closed {
        return base;
    }
    let mut settings = MeshSettings {
        closed,
        ..(*base).clone()
    };
    for config in &configs {
        settings.configure(config);
    }
    Arc::new(settings)
}

/// Name of the ConfigMap that holds the mesh's settings.
const MESH_CONFIG_MAP: &str = "istio";
