//! Secrets (SDS): the certificates and authorities that TLS settings name.
//!
//! Names are Istio's: `kubernetes://NAME` is looked for in the proxy's own namespace,
//! `kubernetes://NAMESPACE/NAME` and `kubernetes-gateway://NAMESPACE/NAME` say theirs; the ending
//! `-cacert` asks for the authorities for clients, which stand in a Secret of that name or in the
//! one without the ending.
//!
//! Invariant: a proxy gets nothing of another namespace, and only gateways get anything.

use std::sync::Arc;

use lateen_api::secret::AUTHORITY_SUFFIX;
use lateen_model::{MeshSnapshot, Proxy, ProxyKind, Secret};
use prost::Message;

use crate::cache::ById;
use crate::envoy::{core, tls};

/// What one secret resource is made from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SecretKey {
    pub name: String,
    secret: ById<Secret>,
    authorities: bool,
}

/// The secret of a resource name; `None` when the proxy may not have it or there is none.
pub fn find(snapshot: &MeshSnapshot, proxy: &Proxy, resource: &str) -> Option<SecretKey> {
    if proxy.kind != ProxyKind::Gateway {
        return None;
    }
    let rest = ["kubernetes://", "kubernetes-gateway://"]
        .iter()
        .find_map(|scheme| resource.strip_prefix(scheme))?;
    let (namespace, name) = rest.split_once('/').unwrap_or((&proxy.namespace, rest));
    if namespace != proxy.namespace {
        return None;
    }
    let key = |secret: &Arc<Secret>, authorities| SecretKey {
        name: resource.to_string(),
        secret: ById(secret.clone()),
        authorities,
    };
    let Some(of) = name.strip_suffix(AUTHORITY_SUFFIX) else {
        let secret = snapshot.secret(namespace, name)?;
        return secret.pair.is_some().then(|| key(secret, false));
    };
    let secret = snapshot
        .secret(namespace, name)
        .or_else(|| snapshot.secret(namespace, of))?;
    secret.authorities.is_some().then(|| key(secret, true))
}

/// The encoded secret.
pub fn encode(key: &SecretKey) -> Vec<u8> {
    let inline = |content: &Vec<u8>| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(content.clone())),
        ..Default::default()
    };
    let content = if key.authorities {
        tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: key.secret.authorities.as_ref().map(inline),
            crl: key.secret.revocations.as_ref().map(inline),
            ..Default::default()
        })
    } else {
        let pair = key.secret.pair.as_ref();
        tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: pair.map(|pair| inline(&pair.chain)),
            private_key: pair.map(|pair| inline(&pair.key)),
            ..Default::default()
        })
    };
    let secret = tls::Secret {
        name: key.name.clone(),
        r#type: Some(content),
    };
    secret.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_api::{Mode, parse};
    use serde_json::json;

    const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----
MIIBbzCCARWgAwIBAgIUZm1m0mJ0nUuXyQ1mZr0u0r0u0r0wCgYIKoZIzj0EAwIw
-----END CERTIFICATE-----";

    fn snapshot(yaml: &str) -> MeshSnapshot {
        let parsed = parse("test.yaml", yaml, Mode::Strict);
        let objects: Vec<_> = parsed.objects.iter().map(|one| &one.object).collect();
        MeshSnapshot::build(objects, 1, Default::default(), None)
    }

    fn proxy(kind: &str, namespace: &str) -> Proxy {
        let id = format!("{kind}~127.0.0.1~x.{namespace}~{namespace}.svc.cluster.local");
        Proxy::from_node(&id, &json!({})).unwrap()
    }

    #[test]
    fn a_broken_certificate_is_never_sent() {
        let text = AUTHORITY.replace('\n', "\n    ");
        let yaml = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: a, namespace: edge}}\nstringData:\n  \
             ca.crt: |\n    {text}\n"
        );
        let snapshot = snapshot(&yaml);
        assert!(find(&snapshot, &proxy("router", "edge"), "kubernetes://a-cacert").is_none());
    }
}
