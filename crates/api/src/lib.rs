//! Istio and Kubernetes kinds: types, YAML with source locations, per-object validation.
//!
//! A document becomes an [`Object`] in four steps, each in its own module:
//!
//! 1. `yaml` reads text into a tree of [`node::Node`]s, every key and value with its line and column;
//! 2. `decode` fills the types of a kind from such a tree, driven by the declarations made with
//!    `message!`: unknown fields, wrong types and fields without effect are found here;
//! 3. `validate` checks what one object can say about itself (ranges, names, exclusive fields);
//! 4. `parse` puts the three together and returns the objects and *every* [`Diagnostic`] at once.
//!
//! The way back is [`Object::to_json`] and [`Object::to_yaml`].
//!
//! To add a kind: one file with its messages and its rules (`validate::Validate`), and one line in
//! `kind.rs`. To make a field work: `effective` instead of `pending` in its declaration.
//!
//! Invariant: no I/O, no clock, no panic on any input. Whether objects fit *together* (a subset that
//! no DestinationRule defines) is not known here; that is the `analysis` crate.

pub mod authorization_policy;
pub mod certificate;
mod closed;
mod decode;
mod diagnostic;
mod duration;
mod field;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod key_set;
mod kind;
pub mod node;
mod object;
mod parse;
mod path;
#[cfg(test)]
mod properties;
mod schema;
mod suggest;
mod validate;
mod yaml;

pub mod destination_rule;
pub mod endpoints;
pub mod gateway;
pub mod istio_operator;
pub mod kubernetes;
pub mod mesh_config;
pub mod mesh_file;
pub mod meta;
pub mod peer_authentication;
pub mod pod;
pub mod request_authentication;
pub mod role;
pub mod secret;
pub mod service_entry;
pub mod sidecar;
pub mod target_reference;
pub mod virtual_service;
pub mod workload_entry;

pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use diagnostic::{Diagnostic, Lines, Severity};
pub use duration::{format_duration, parse_duration};
pub use field::{Field, IntOrString};
pub use gateway::Gateway;
pub use istio_operator::IstioOperator;
pub use kind::{Kind, KindInfo, UnknownKind};
pub use kubernetes::{ConfigMap, Namespace, Service};
pub use mesh_config::MeshConfig;
pub use mesh_file::{MeshFile, ParsedMeshFile, parse_mesh_file};
pub use meta::ObjectMeta;
pub use object::{Object, Spec};
pub use parse::{Location, Mode, Parsed, ParsedObject, Refused, parse};
pub use path::Path;
pub use peer_authentication::PeerAuthentication;
pub use pod::{Pod, PodStatus};
pub use request_authentication::RequestAuthentication;
pub use schema::{Choice, FieldInfo, MessageInfo, Schema, Support, Variant};
pub use secret::Secret;
pub use service_entry::ServiceEntry;
pub use sidecar::Sidecar;
pub use virtual_service::VirtualService;
pub use workload_entry::WorkloadEntry;
/// Any JSON as a YAML document, written as [`Object::to_yaml`] writes.
pub use yaml::write as to_yaml;
