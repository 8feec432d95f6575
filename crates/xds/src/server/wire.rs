//! The two protocols on the wire: requests as the session takes them, and responses as gRPC
//! messages in pieces.
//!
//! A response is not built as a message and then encoded: its fields are written one after the
//! other, and the content of a large resource stands among them as the bytes that all connections
//! share. So a hundred proxies that see one table of a megabyte cost one megabyte.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node as ProtoNode;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::session::{Request, Response};
use crate::{Protocol, Resource};

/// Smaller contents are copied: a piece of its own costs more than the copy.
const SHARED: usize = 4096;

/// Compression flag and length (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(super) const HEADER: usize = 5;

/// What differs between the two protocols.
pub(super) trait Wire: Send + 'static {
    type Request: Message + Default + Send + 'static;
    const PROTOCOL: Protocol;

    fn take_node(request: &mut Self::Request) -> Option<ProtoNode>;
    fn request(request: Self::Request) -> Request;
    /// A gRPC message, header included.
    fn encode(response: &Response, control_plane: &str) -> Vec<Bytes>;
}

pub(super) struct Delta;
pub(super) struct Sotw;

impl Wire for Delta {
    type Request = discovery::DeltaDiscoveryRequest;
    const PROTOCOL: Protocol = Protocol::Delta;

    fn take_node(request: &mut Self::Request) -> Option<ProtoNode> {
        request.node.take()
    }

    fn request(request: Self::Request) -> Request {
        Request::Delta(request)
    }

    /// `envoy.service.discovery.v3.DeltaDiscoveryResponse` and, in it, `Resource`.
    fn encode(response: &Response, control_plane: &str) -> Vec<Bytes> {
        let mut message = Pieces::for_resources(&response.resources);
        message.text(1, &response.version);
        for resource in &response.resources {
            let any = any_len(resource);
            let whole = field_len(1, resource.version().len())
                + field_len(2, any)
                + field_len(3, resource.name().len());
            message.begin(2, whole);
            message.field(1, resource.version().as_bytes());
            message.field(3, resource.name().as_bytes());
            message.any(2, any, resource);
        }
        message.text(4, &response.type_url);
        message.text(5, &response.nonce);
        for name in &response.removed {
            message.field(6, name.as_bytes());
        }
        message.begin(7, field_len(1, control_plane.len()));
        message.field(1, control_plane.as_bytes());
        message.finish()
    }
}

impl Wire for Sotw {
    type Request = discovery::DiscoveryRequest;
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn take_node(request: &mut Self::Request) -> Option<ProtoNode> {
        request.node.take()
    }

    fn request(request: Self::Request) -> Request {
        Request::Sotw(request)
    }

    /// `envoy.service.discovery.v3.DiscoveryResponse`.
    fn encode(response: &Response, control_plane: &str) -> Vec<Bytes> {
        let mut message = Pieces::for_resources(&response.resources);
        message.text(1, &response.version);
        for resource in &response.resources {
            message.any(2, any_len(resource), resource);
        }
        message.text(4, &response.type_url);
        message.text(5, &response.nonce);
        message.begin(6, field_len(1, control_plane.len()));
        message.field(1, control_plane.as_bytes());
        message.finish()
    }
}

/// Length of a `google.protobuf.Any` with the resource in it.
fn any_len(resource: &Resource) -> usize {
    field_len(1, resource.type_url.len()) + field_len(2, resource.value.len())
}

fn field_len(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

/// A gRPC message that is being written.
struct Pieces {
    done: Vec<Piece>,
    open: Vec<u8>,
}

enum Piece {
    Written(Vec<u8>),
    Shared(Bytes),
}

impl Pieces {
    /// With room for what will be copied.
    fn for_resources<'a>(
        resources: impl IntoIterator<Item = &'a std::sync::Arc<Resource>>,
    ) -> Self {
        let room = |resource: &Resource| {
            let copied = match resource.value.len() {
                length if length < SHARED => length,
                _ => 0,
            };
            copied + resource.name().len() + resource.version().len() + resource.type_url.len() + 32
        };
        let room: usize = resources.into_iter().map(|one| room(one)).sum();
        let mut open = Vec::with_capacity(room + 512);
        open.resize(HEADER, 0);
        Self {
            done: Vec::new(),
            open,
        }
    }

    /// Key and length of a field whose content follows.
    fn begin(&mut self, field: u32, length: usize) {
        encode_key(field, WireType::LengthDelimited, &mut self.open);
        encode_varint(length as u64, &mut self.open);
    }

    fn field(&mut self, field: u32, content: &[u8]) {
        self.begin(field, content.len());
        self.open.extend_from_slice(content);
    }

    /// A field that is left out when it has its default value.
    fn text(&mut self, field: u32, content: &str) {
        if !content.is_empty() {
            self.field(field, content.as_bytes());
        }
    }

    fn any(&mut self, field: u32, length: usize, resource: &Resource) {
        self.begin(field, length);
        self.field(1, resource.type_url.as_bytes());
        self.begin(2, resource.value.len());
        if resource.value.len() < SHARED {
            self.open.extend_from_slice(&resource.value);
        } else {
            self.done
                .push(Piece::Written(std::mem::take(&mut self.open)));
            self.done.push(Piece::Shared(resource.value.clone()));
        }
    }

    /// All pieces, with the length in the first.
    fn finish(mut self) -> Vec<Bytes> {
        self.done.push(Piece::Written(self.open));
        let total: usize = self.done.iter().map(Piece::len).sum();
        if let Some(Piece::Written(first)) = self.done.first_mut()
            && let Some(header) = first.get_mut(1..HEADER)
        {
            // A response of 4 GB and more does not exist.
            let length = u32::try_from(total - HEADER).unwrap_or(u32::MAX);
            header.copy_from_slice(&length.to_be_bytes());
        }
        let pieces = self.done.into_iter().map(|piece| match piece {
            Piece::Written(bytes) => Bytes::from(bytes),
            Piece::Shared(bytes) => bytes,
        });
        pieces.filter(|piece| !piece.is_empty()).collect()
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Written(bytes) => bytes.len(),
            Piece::Shared(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::type_url::CLUSTER;

    fn response(sizes: &[usize]) -> Response {
        let resources = sizes.iter().enumerate();
        let resources = resources.map(|(index, size)| {
            let value = vec![index as u8; *size];
            Arc::new(Resource::from_bytes(format!("r{index}"), CLUSTER, value))
        });
        Response {
            type_url: CLUSTER.to_owned(),
            version: "7".to_owned(),
            nonce: "n-1".to_owned(),
            resources: resources.collect(),
            removed: vec!["gone".to_owned(), String::new()],
        }
    }

    fn whole(pieces: &[Bytes]) -> Vec<u8> {
        let bytes = pieces.concat();
        let length = u32::from_be_bytes(bytes[1..HEADER].try_into().unwrap());
        assert_eq!((bytes[0], length as usize), (0, bytes.len() - HEADER));
        bytes[HEADER..].to_vec()
    }

    #[test]
    fn pieces_are_the_message_that_prost_would_write_and_large_contents_are_not_copied() {
        for sizes in [
            &[][..],
            &[0],
            &[10, SHARED - 1],
            &[SHARED, 3, 100_000],
            &[70_000],
        ] {
            let response = response(sizes);
            let pieces = Delta::encode(&response, "lateen");
            let read = discovery::DeltaDiscoveryResponse::decode(&*whole(&pieces)).unwrap();
            let expected = discovery::DeltaDiscoveryResponse {
                system_version_info: "7".to_owned(),
                type_url: CLUSTER.to_owned(),
                nonce: "n-1".to_owned(),
                removed_resources: response.removed.clone(),
                resources: response.resources.iter().map(|one| expected(one)).collect(),
                control_plane: read.control_plane.clone(),
                ..Default::default()
            };
            assert_eq!(read, expected);
            assert_eq!(read.control_plane.unwrap().identifier, "lateen");
            for resource in response
                .resources
                .iter()
                .filter(|r| r.value.len() >= SHARED)
            {
                let same = |piece: &Bytes| piece.as_ptr() == resource.value.as_ptr();
                assert!(pieces.iter().any(same), "{sizes:?}");
            }

            let pieces = Sotw::encode(&response, "lateen");
            let read = discovery::DiscoveryResponse::decode(&*whole(&pieces)).unwrap();
            let any: Vec<_> = expected
                .resources
                .into_iter()
                .map(|r| r.resource.unwrap())
                .collect();
            assert_eq!(read.resources, any);
            assert_eq!((&*read.version_info, &*read.nonce), ("7", "n-1"));
            assert_eq!(
                (&*read.type_url, read.control_plane.unwrap().identifier),
                (CLUSTER, "lateen".to_owned())
            );
        }
    }

    fn expected(resource: &Resource) -> discovery::Resource {
        discovery::Resource {
            name: resource.name().to_string(),
            version: resource.version().to_string(),
            resource: Some(envoy_types::pb::google::protobuf::Any {
                type_url: CLUSTER.to_owned(),
                value: resource.value.to_vec(),
            }),
            ..Default::default()
        }
    }
}
