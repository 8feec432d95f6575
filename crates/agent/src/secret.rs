//! What a workload has, as Envoy's secrets: `default` is its certificate, `ROOTCA` says whom it
//! trusts. The names are Istio's.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use zeroize::Zeroize;

use crate::Material;

pub const TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The workload's certificate.
pub const CERTIFICATE: &str = "default";
/// The authorities it trusts.
pub const ROOTS: &str = "ROOTCA";

/// A secret with the version of its content; it is cleared when it is dropped.
#[derive(Clone, PartialEq)]
pub struct Versioned {
    pub name: Arc<str>,
    pub version: String,
    any: Any,
}

impl Versioned {
    /// The secret, for who sends it.
    pub fn take(mut self) -> Any {
        std::mem::take(&mut self.any)
    }
}

impl fmt::Debug for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Drop for Versioned {
    fn drop(&mut self) {
        self.any.value.zeroize();
    }
}

/// Whether there will ever be such a secret.
pub fn is_known(name: &str) -> bool {
    matches!(name, CERTIFICATE | ROOTS)
}

/// The secret of this name; `None`: there is none, or not yet.
pub fn of(material: &Material, name: &str) -> Option<Versioned> {
    let inline = |text: &str| inline(text.as_bytes());
    let kind = match name {
        CERTIFICATE => {
            let identity = material.identity.as_ref()?;
            let certificate = tls::TlsCertificate {
                certificate_chain: Some(inline(&identity.chain)),
                private_key: Some(inline(&identity.key)),
                ..Default::default()
            };
            tls::secret::Type::TlsCertificate(certificate)
        }
        ROOTS => {
            let validation = tls::CertificateValidationContext {
                trusted_ca: Some(inline(material.roots.as_deref()?)),
                crl: material.revoked.as_deref().map(inline),
                ..Default::default()
            };
            tls::secret::Type::ValidationContext(validation)
        }
        _ => return None,
    };
    Some(versioned(name.into(), kind))
}

/// A secret with this content.
pub(crate) fn versioned(name: Arc<str>, kind: tls::secret::Type) -> Versioned {
    let mut secret = tls::Secret {
        name: name.to_string(),
        r#type: Some(kind),
    };
    let value = secret.encode_to_vec();
    if let Some(tls::secret::Type::TlsCertificate(certificate)) = &mut secret.r#type
        && let Some(Specifier::InlineBytes(key)) = certificate
            .private_key
            .as_mut()
            .and_then(|key| key.specifier.as_mut())
    {
        key.zeroize();
    }
    Versioned {
        name,
        version: version(&value),
        any: Any {
            type_url: TYPE_URL.to_owned(),
            value,
        },
    }
}

pub(crate) fn inline(content: &[u8]) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(content.to_vec())),
        ..DataSource::default()
    }
}

/// The same in every process that has the same content.
fn version(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
