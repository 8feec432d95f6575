//! What a workload has, as Envoy's secrets: `default` is its certificate, `ROOTCA` says whom it
//! trusts. The names are Istio's.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::Material;

pub const TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The workload's certificate.
pub const CERTIFICATE: &str = "default";
/// The authorities it trusts.
pub const ROOTS: &str = "ROOTCA";

/// A secret with the version of its content.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    pub name: &'static str,
    pub version: String,
    pub any: Any,
}

/// Whether there will ever be such a secret.
pub fn is_known(name: &str) -> bool {
    matches!(name, CERTIFICATE | ROOTS)
}

/// The secret of this name; `None`: there is none, or not yet.
pub fn of(material: &Material, name: &str) -> Option<Versioned> {
    let inline = |text: &str| DataSource {
        specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())),
        ..DataSource::default()
    };
    let (name, kind) = match name {
        CERTIFICATE => {
            let identity = material.identity.as_ref()?;
            let certificate = tls::TlsCertificate {
                certificate_chain: Some(inline(&identity.chain)),
                private_key: Some(inline(&identity.key)),
                ..Default::default()
            };
            let kind = tls::secret::Type::TlsCertificate(certificate);
            (CERTIFICATE, kind)
        }
        ROOTS => {
            let validation = tls::CertificateValidationContext {
                trusted_ca: Some(inline(material.roots.as_deref()?)),
                ..Default::default()
            };
            let kind = tls::secret::Type::ValidationContext(validation);
            (ROOTS, kind)
        }
        _ => return None,
    };
    let secret = tls::Secret {
        name: name.to_owned(),
        r#type: Some(kind),
    };
    let value = secret.encode_to_vec();
    Some(Versioned {
        name,
        version: version(&value),
        any: Any {
            type_url: TYPE_URL.to_owned(),
            value,
        },
    })
}

/// The same in every process that has the same content.
fn version(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
