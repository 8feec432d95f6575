//! Secrets (SDS): the certificates and authorities that TLS settings name.
//!
//! Names are Istio's: `kubernetes://NAME` is looked for in the proxy's own namespace,
//! `kubernetes://NAMESPACE/NAME` and `kubernetes-gateway://NAMESPACE/NAME` say theirs; the ending
//! `-cacert` asks for the authorities for clients, which stand in a Secret of that name or in the
//! one without the ending.
//!
//! Invariant: a proxy gets nothing of another namespace, only gateways get anything, and of those the
//! ones whose roles let them (`lateen_model`, `roles.rs`).

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
    let (name, authorities) = own(snapshot, proxy, resource)?;
    let secret = snapshot.secret(&proxy.namespace, name)?;
    let has_it = match authorities {
        true => secret.authorities.is_some(),
        false => secret.pair.is_some(),
    };
    (has_it && snapshot.may_have_secret(proxy, name)).then(|| SecretKey {
        name: resource.to_string(),
        secret: ById(secret.clone()),
        authorities,
    })
}

/// Whether roles keep a gateway from the Secret of a resource name: it must not go on with what it may
/// have got before. (One that is not there keeps serving.)
pub fn is_refused(snapshot: &MeshSnapshot, proxy: &Proxy, resource: &str) -> bool {
    own(snapshot, proxy, resource).is_some_and(|(name, _)| !snapshot.may_have_secret(proxy, name))
}

/// The name of the Secret that a resource name leads a gateway to in its own namespace, and whether
/// the authorities in it are meant.
fn own<'a>(
    snapshot: &MeshSnapshot,
    proxy: &'a Proxy,
    resource: &'a str,
) -> Option<(&'a str, bool)> {
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
    Some(match name.strip_suffix(AUTHORITY_SUFFIX) {
        None => (name, false),
        Some(_) if snapshot.secret(namespace, name).is_some() => (name, true),
        Some(of) => (of, true),
    })
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
    #[test]
    fn clusters_with_a_secret_that_roles_refuse_lead_nowhere() {
        use crate::envoy::cluster::Cluster;
        use crate::translator::{Encoded, Translator, type_url};
        let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {name: out, namespace: edge}\n\
             spec: {hosts: [out.test], resolution: STATIC, endpoints: [{address: 192.0.2.1}], \
             ports: [{number: 80, name: http, protocol: HTTP}]}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {name: out, namespace: edge}\n\
             spec: {host: out.test, trafficPolicy: {tls: {mode: SIMPLE, credentialName: out}}}\n---\n";
        let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n\
             metadata: {name: a, namespace: edge}\n\
             rules: [{apiGroups: [''], resources: [secrets], verbs: [list]}]\n";
        let is_secure = |yaml: &str, kind: &str| {
            let (snapshot, proxy) = (snapshot(yaml), proxy(kind, "edge"));
            let translator = Translator::new(|made: Encoded| made.bytes);
            let made = translator.generate(&snapshot, &proxy, type_url::CLUSTER, None);
            let mut clusters = made.iter().map(|one| Cluster::decode(&one[..]).unwrap());
            let found = clusters
                .find(|one| one.name == "outbound|80||out.test")
                .unwrap();
            (
                found.transport_socket.is_some(),
                found.eds_cluster_config.is_some(),
            )
        };
        assert_eq!(is_secure(yaml, "router"), (true, true));
        assert_eq!(
            is_secure(&format!("{yaml}{role}"), "router"),
            (false, false)
        );
        // Sidecars have no Secret of the rule, with or without roles.
        assert_eq!(
            is_secure(&format!("{yaml}{role}"), "sidecar"),
            (false, true)
        );
    }
}
