//! Kubernetes' `Pod`: where workload code of a cluster runs.
//!
//! A pod has hundreds of fields; the mesh reads a dozen. Whatever is written is kept as it is and
//! given back, and only what is read is judged: names of ports, the name under a headless Service,
//! the service account, and of the status the addresses, the phase and readiness.

use serde_json::Value as Json;

use crate::decode::{Decoder, Problem};
use crate::field::Field;
use crate::kubernetes::TransportProtocol;
use crate::node::{Entry, Node, Value};
use crate::path::Path;
use crate::schema::{Schema, choice, message};

/// The `spec` of a Pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// All of it, as written.
    pub written: Json,
    /// What the mesh reads of it.
    pub spec: PodSpec,
}

message! {
    pub struct PodSpec {
        effective containers: Vec<Container>,
        effective init_containers "initContainers": Vec<Container>,
        effective service_account_name "serviceAccountName": String,
        /// The old name of `serviceAccountName`.
        effective service_account "serviceAccount": String,
        /// First part of its name under the Service that `subdomain` names.
        effective hostname: String,
        effective subdomain: String,
    }
}

message! {
    pub struct Container {
        effective name: String,
        effective ports: Vec<ContainerPort>,
        /// `Always` makes an init container one that keeps running beside the others.
        effective restart_policy "restartPolicy": String,
    }
}

message! {
    pub struct ContainerPort {
        effective name: String,
        effective container_port "containerPort": u32,
        effective protocol: Option<TransportProtocol>,
    }
}

message! {
    /// What the mesh reads of a Pod's `status`.
    pub struct PodStatus {
        effective phase: Option<Phase>,
        effective pod_ip "podIP": String,
        effective pod_ips "podIPs": Vec<PodIp>,
        effective conditions: Vec<Condition>,
    }
}

message! {
    pub struct PodIp {
        effective ip: String,
    }
}

message! {
    pub struct Condition {
        effective condition_type "type": String,
        /// `True`, `False` or `Unknown`.
        effective status: String,
    }
}

choice! {
    pub enum Phase {
        #[default]
        effective Pending = "Pending",
        effective Running = "Running",
        effective Succeeded = "Succeeded",
        effective Failed = "Failed",
        effective Unknown = "Unknown",
    }
}

impl Field for Pod {
    fn schema() -> Schema {
        Schema::Any
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        Some(Pod {
            written: node.to_json(),
            spec: PodSpec::decode(&known(node, PodSpec::schema()), decoder)?,
        })
    }

    fn encode(&self) -> Json {
        self.written.clone()
    }
}

impl Pod {
    /// Every pod runs under one; the cluster writes `default` where nobody said another.
    pub fn service_account(&self) -> &str {
        let spec = &self.spec;
        let given = [&spec.service_account_name, &spec.service_account];
        let given = given.into_iter().find(|name| !name.is_empty());
        given.map_or("default", String::as_str)
    }

    /// Containers that run while the pod does, in the order in which Kubernetes looks for a port.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        let beside = self.spec.init_containers.iter();
        let beside = beside.filter(|one| one.restart_policy == "Always");
        self.spec.containers.iter().chain(beside)
    }
}

impl PodStatus {
    /// What can be read of a status.
    pub fn of(status: Option<&Json>) -> PodStatus {
        PodStatus::read(status).0
    }

    /// The same, and what is wrong with it.
    pub(crate) fn read(status: Option<&Json>) -> (PodStatus, Vec<Problem>) {
        let Some(status) = status else {
            return Default::default();
        };
        let mut decoder = Decoder::new(Path::root(), false);
        let node = known(&Node::from_json(status), PodStatus::schema());
        let status = PodStatus::decode(&node, &mut decoder).unwrap_or_default();
        (status, decoder.problems)
    }

    /// Whether it serves: the condition `Ready` is `True`.
    pub fn is_ready(&self) -> bool {
        let mut conditions = self.conditions.iter();
        conditions.any(|one| one.condition_type == "Ready" && one.status == "True")
    }

    /// Whether all its containers have ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Some(Phase::Succeeded | Phase::Failed))
    }

    /// Its first address; empty while it has none.
    pub fn address(&self) -> &str {
        let first = self.pod_ips.first().map(|one| one.ip.as_str());
        match self.pod_ip.as_str() {
            "" => first.unwrap_or_default(),
            own => own,
        }
    }
}

/// The part of a tree that a form knows.
fn known(node: &Node, schema: Schema) -> Node {
    let value = match (&node.value, schema) {
        (Value::Mapping(entries), Schema::Message(info)) => {
            let known = entries.iter().filter_map(|entry| {
                let field = info.field(&entry.key)?;
                Some(Entry {
                    key: entry.key.clone(),
                    key_at: entry.key_at,
                    value: known(&entry.value, (field.schema)()),
                })
            });
            Value::Mapping(known.collect())
        }
        (Value::Sequence(items), Schema::List(of)) => {
            Value::Sequence(items.iter().map(|item| known(item, of())).collect())
        }
        (value, _) => value.clone(),
    };
    Node { at: node.at, value }
}
