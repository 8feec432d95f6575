//! Envoy's `/config_dump`: its sections, and the resources in them.

use serde_json::Value;

use crate::failure::Failure;

/// A whole dump. Fields have the names of the protobuf files (`dynamic_active_clusters`).
#[derive(Debug)]
pub struct Dump(Value);

impl Dump {
    pub fn new(document: Value) -> Result<Self, Failure> {
        match document["configs"].is_array() {
            true => Ok(Self(document)),
            false => Err(Failure::data(
                "this is no config dump: it has no list \"configs\"",
            )),
        }
    }

    pub fn whole(&self) -> &Value {
        &self.0
    }

    pub fn clusters(&self) -> Vec<&Value> {
        let mut found = self.listed("ClustersConfigDump", "dynamic_active_clusters", "/cluster");
        found.extend(self.listed("ClustersConfigDump", "static_clusters", "/cluster"));
        found
    }

    pub fn listeners(&self) -> Vec<&Value> {
        let dynamic = "/active_state/listener";
        let mut found = self.listed("ListenersConfigDump", "dynamic_listeners", dynamic);
        found.extend(self.listed("ListenersConfigDump", "static_listeners", "/listener"));
        found
    }

    pub fn routes(&self) -> Vec<&Value> {
        let mut found = self.listed("RoutesConfigDump", "dynamic_route_configs", "/route_config");
        found.extend(self.listed("RoutesConfigDump", "static_route_configs", "/route_config"));
        found
    }

    pub fn endpoints(&self) -> Vec<&Value> {
        let pointer = "/endpoint_config";
        let mut found = self.listed("EndpointsConfigDump", "dynamic_endpoint_configs", pointer);
        found.extend(self.listed("EndpointsConfigDump", "static_endpoint_configs", pointer));
        found
    }

    /// The entries of the `SecretsConfigDump` section, with istioctl's word for their state.
    pub fn secrets(&self) -> Vec<(&'static str, &Value)> {
        let lists = [
            ("dynamic_warming_secrets", "WARMING"),
            ("dynamic_active_secrets", "ACTIVE"),
            ("static_secrets", "ACTIVE"),
        ];
        let listed = |(list, status)| {
            let found = self.listed("SecretsConfigDump", list, "");
            found.into_iter().map(move |secret| (status, secret))
        };
        lists.into_iter().flat_map(listed).collect()
    }

    /// The `BootstrapConfigDump` section.
    pub fn bootstrap(&self) -> Option<&Value> {
        self.sections("BootstrapConfigDump").next()
    }

    fn sections<'a>(&'a self, message: &'a str) -> impl Iterator<Item = &'a Value> {
        let configs = self.0["configs"].as_array().into_iter().flatten();
        configs.filter(move |section| {
            let url = section["@type"].as_str().unwrap_or_default();
            url.rsplit('.').next() == Some(message)
        })
    }

    fn listed<'a>(&'a self, message: &'a str, list: &'a str, pointer: &'a str) -> Vec<&'a Value> {
        let entries = self
            .sections(message)
            .filter_map(move |section| section[list].as_array());
        entries
            .flatten()
            .filter_map(|entry| entry.pointer(pointer))
            .collect()
    }
}
