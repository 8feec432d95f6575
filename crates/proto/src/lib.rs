//! Protobuf descriptors of the Envoy API and JSON conversion through them.
//!
//! Compiled types (`envoy-types`) know no JSON; configuration dumps and bootstrap files are JSON. The
//! descriptors are packed into the binary, loaded on demand ([`Descriptors::load`]) and gone when the
//! value is dropped, so that an idle proxy does not carry them.
//!
//! What it is not: no code generated per message. [`nds`] and [`istio_ca`] are what `envoy-types` lacks.
//! `descriptors.bin.z` and `transport_sockets.bin.z` are made by `examples/make_descriptors.rs`.

pub mod istio_ca;
pub mod nds;
mod to_json;

use flate2::read::ZlibDecoder;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage};
use serde_json::Value;
use std::io::Read;

const PACKED: &[u8] = include_bytes!("../descriptors.bin.z");
const TRANSPORT_SOCKETS: &[u8] = include_bytes!("../transport_sockets.bin.z");

/// The descriptors of the Envoy API that travel between control plane and proxy.
#[derive(Clone, Debug)]
pub struct Descriptors {
    pool: DescriptorPool,
}

/// Why a conversion failed.
#[derive(Debug, thiserror::Error)]
pub enum ProtoError {
    /// The descriptors in this binary are damaged.
    #[error("the packed protobuf descriptors cannot be read: {0}")]
    Descriptors(String),
    /// The type is not among the descriptors.
    #[error("the message type '{0}' is not known")]
    UnknownType(String),
    /// The bytes are no such message.
    #[error("the bytes are no '{type_name}': {source}")]
    Decode {
        type_name: String,
        source: prost::DecodeError,
    },
    /// The JSON is no such message.
    #[error("the JSON is no '{type_name}': {source}")]
    Json {
        type_name: String,
        source: serde_json::Error,
    },
}

impl Descriptors {
    /// Unpacks the descriptors. Takes some milliseconds and some megabytes: keep the value only as
    /// long as there is something to convert.
    pub fn load() -> Result<Self, ProtoError> {
        Self::unpack(PACKED)
    }

    /// Only the transport sockets of clusters and listeners: a seventh of the memory, for what
    /// every sidecar reads at its start.
    pub fn load_transport_sockets() -> Result<Self, ProtoError> {
        Self::unpack(TRANSPORT_SOCKETS)
    }

    fn unpack(packed: &[u8]) -> Result<Self, ProtoError> {
        let mut bytes = Vec::with_capacity(packed.len() * 4);
        let damaged = |e: &dyn std::fmt::Display| ProtoError::Descriptors(e.to_string());
        ZlibDecoder::new(packed)
            .read_to_end(&mut bytes)
            .map_err(|e| damaged(&e))?;
        let pool = DescriptorPool::decode(bytes.as_slice()).map_err(|e| damaged(&e))?;
        Ok(Self { pool })
    }

    /// A packed message as proto3 JSON with the names of the .proto file (as Envoy's admin port prints
    /// it) and its `@type`. A type that is not known is `{"@type": .., "value": <base64>}`, here and
    /// anywhere inside.
    pub fn any_to_json(&self, type_url: &str, value: &[u8]) -> Value {
        to_json::any(&self.pool, type_url, value)
    }

    /// A message of a known type as proto3 JSON, without `@type`.
    pub fn message_to_json(&self, type_name: &str, bytes: &[u8]) -> Result<Value, ProtoError> {
        let message =
            DynamicMessage::decode(self.descriptor(type_name)?, bytes).map_err(|source| {
                ProtoError::Decode {
                    type_name: type_name.to_owned(),
                    source,
                }
            })?;
        Ok(to_json::message(&self.pool, &message))
    }

    /// The bytes of a message given as proto3 JSON, with names of either spelling. Fields that do not
    /// exist are errors.
    pub fn json_to_message(&self, type_name: &str, json: &Value) -> Result<Vec<u8>, ProtoError> {
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        DynamicMessage::deserialize_with_options(self.descriptor(type_name)?, json, &options)
            .map(|message| message.encode_to_vec())
            .map_err(|source| ProtoError::Json {
                type_name: type_name.to_owned(),
                source,
            })
    }

    fn descriptor(&self, type_name: &str) -> Result<prost_reflect::MessageDescriptor, ProtoError> {
        self.pool
            .get_message_by_name(type_name)
            .ok_or_else(|| ProtoError::UnknownType(type_name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
