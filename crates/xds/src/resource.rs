//! One discovery resource: name, version, encoded bytes. Not what the bytes mean.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

/// A resource as it is sent. Shared between connections as `Arc<Resource>`; encoded once, and the
/// bytes of a large one are the same memory in every response that carries it.
///
/// Invariant: two resources of one type and name with equal versions have equal meaning. A
/// resource is sent again only when its version differs from the one the client holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub(crate) label: Arc<Label>,
    pub type_url: Arc<str>,
    /// The encoded message.
    pub value: Bytes,
}

/// Name and version, shared by all who remember that it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: Box<str>,
    /// Opaque; by default a hash of the content.
    pub(crate) version: Box<str>,
}

impl Label {
    pub(crate) fn new(name: impl Into<Box<str>>, version: impl Into<Box<str>>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
        }
    }
}

impl Resource {
    /// Encodes `message`; the version is a hash of the encoded bytes.
    ///
    /// Protobuf maps (`google.protobuf.Struct`, metadata, `typed_per_filter_config`) are
    /// `HashMap`s in the generated types and encode in a random order once they have two or more
    /// entries. A producer that encodes the same value again and again must therefore either keep
    /// the `Resource`, or name the version itself with [`Resource::with_version`].
    pub fn encode(name: impl Into<Box<str>>, type_url: &str, message: &impl Message) -> Self {
        Self::from_bytes(name, type_url, message.encode_to_vec())
    }

    /// Unique within the type.
    pub fn name(&self) -> &str {
        &self.label.name
    }

    /// Opaque; by default a hash of the content.
    pub fn version(&self) -> &str {
        &self.label.version
    }

    /// Takes bytes that are encoded already; the version is a hash of them.
    pub fn from_bytes(name: impl Into<Box<str>>, type_url: &str, value: Vec<u8>) -> Self {
        let version = content_hash(&value);
        Self {
            label: Arc::new(Label::new(name, version)),
            type_url: type_url.into(),
            value: value.into(),
        }
    }

    /// As [`Resource::encode`], with a version that the producer derives from its own inputs.
    pub fn with_version(
        name: impl Into<Box<str>>,
        version: impl Into<Box<str>>,
        type_url: &str,
        message: &impl Message,
    ) -> Self {
        Self {
            label: Arc::new(Label::new(name, version)),
            type_url: type_url.into(),
            value: message.encode_to_vec().into(),
        }
    }
}

/// A 128-bit FNV-1a hash in hex: stable between processes and releases, so that a proxy that
/// reconnects to another control plane is not sent what it holds. It tells versions apart; it
/// guards against no attacker.
fn content_hash(bytes: &[u8]) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    });
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_url;

    #[test]
    fn equal_bytes_have_equal_versions_and_one_bit_changes_it() {
        let version = |bytes: &[u8]| {
            let resource = Resource::from_bytes("a", type_url::CLUSTER, bytes.to_vec());
            resource.version().to_owned()
        };
        assert_eq!(version(b"one"), version(b"one"));
        assert_ne!(version(b"one"), version(b"onf"));
        assert_ne!(version(b""), version(b"\0"));
        // Published test vector of FNV-1a 128 for "foobar".
        assert_eq!(content_hash(b"foobar"), "343e1662793c64bf6f0d3597ba446f18");
    }
}
