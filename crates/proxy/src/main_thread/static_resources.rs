//! Listeners and clusters of the bootstrap file: from JSON to the bytes that discovery would have
//! brought. A file that cannot be honoured whole stops the start; nobody watches a proxy's log
//! for half of its configuration.

use std::path::Path;

use envoy_types::pb::google::protobuf::Any;
use lateen_proto::Descriptors;
use lateen_xds::client::Received;
use lateen_xds::type_url;
use serde_json::Value;

use super::Bootstrap;
use super::RunError;

/// Type URL and resources, clusters first.
pub(super) type Resources = Vec<(&'static str, Vec<Received>)>;

pub(super) fn read(bootstrap: &Bootstrap, path: &Path) -> Result<Resources, RunError> {
    if bootstrap.clusters.is_empty() && bootstrap.listeners.is_empty() {
        // The descriptors take megabytes; most proxies never need them.
        return Ok(Vec::new());
    }
    let fail = |name: String, reason: String| RunError::Static {
        path: path.to_owned(),
        name,
        reason,
    };
    let descriptors =
        Descriptors::load().map_err(|error| fail("descriptors".to_owned(), error.to_string()))?;
    let mut resources = Vec::new();
    for (url, key, list) in [
        (type_url::CLUSTER, "clusters", &bootstrap.clusters),
        (type_url::LISTENER, "listeners", &bootstrap.listeners),
    ] {
        let mut received = Vec::new();
        for (index, json) in list.iter().enumerate() {
            let at = || format!("{key}[{index}]");
            let one = encode(&descriptors, url, json).map_err(|reason| fail(at(), reason))?;
            received.push(one);
        }
        resources.push((url, received));
    }
    Ok(resources)
}

fn encode(descriptors: &Descriptors, url: &str, json: &Value) -> Result<Received, String> {
    let type_name = url.rsplit('/').next().unwrap_or(url);
    let value = descriptors
        .json_to_message(type_name, json)
        .map_err(|error| error.to_string())?;
    let name = json.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err("name: missing; it is how everything else refers to it".to_owned());
    }
    let any = Any {
        type_url: url.to_owned(),
        value,
    };
    Ok(Received {
        name: name.to_owned(),
        version: String::new(),
        any: any.into(),
    })
}
