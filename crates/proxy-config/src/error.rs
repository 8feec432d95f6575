//! How a compile ends: a value with notices, or an error that names the field.

use std::sync::Arc;

/// A resource the proxy does not take. Its text goes to the control plane in the NACK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", prefix(path))]
pub struct ConfigError {
    /// Where, in proto field names: `filter_chains[0].filters[1].typed_config.route_config`.
    pub path: String,
    /// What is wrong there, and what would be right.
    pub reason: String,
}

fn prefix(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}

/// A field that was accepted but changes nothing in this proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where, in proto field names.
    pub path: String,
    /// What will not happen.
    pub what: String,
}

/// A compiled resource.
#[derive(Clone, Debug)]
pub struct Compiled<T> {
    /// The runtime configuration.
    pub value: Arc<T>,
    /// Fields that were accepted without effect, each once, at its first place.
    pub unsupported: Vec<Notice>,
}
