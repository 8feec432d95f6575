//! A control plane, and a gRPC client over TLS as a workload's agent is one.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value as ProtoValue};
use hyper_util::rt::TokioIo;
use lateen_control::{Control, Options};
use lateen_proto::istio_ca::{IstioCertificateRequest, IstioCertificateServiceClient};
use lateen_testkit::http::Call;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub const ISTIOD: &str = "istiod.istio-system.svc";

/// A control plane on free ports.
pub struct Plane {
    pub control: Control,
    pub directory: Arc<tempfile::TempDir>,
}

impl Plane {
    pub async fn start() -> Self {
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), |_| ()).await
    }

    pub async fn start_with(
        directory: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let mut options = Options {
            xds_port: 0,
            secure_port: 0,
            api_port: 0,
            monitoring_port: 0,
            debounce_after: Duration::from_millis(10),
            ..Options::new(directory.path().join("data"))
        };
        change(&mut options);
        let control = Control::start(options).await.unwrap();
        Self { control, directory }
    }

    /// Stops it and starts it again on the same data.
    pub async fn restart(self, change: impl FnOnce(&mut Options)) -> Self {
        self.control.stop().await;
        Self::start_with(self.directory, change).await
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn secure(&self) -> SocketAddr {
        self.control.addresses().secure
    }

    pub async fn apply(&self, path: &str, document: &str) {
        let call = Call::get("127.0.0.1", path).method("PATCH");
        let call = call.header("content-type", "application/apply-patch+yaml");
        let answer = call
            .body(document.to_owned())
            .send(self.control.addresses().api)
            .await
            .unwrap();
        assert!(answer.status < 300, "{path}: {}", answer.body);
    }

    pub async fn get(&self, path: &str) -> String {
        let answer = Call::get("127.0.0.1", path)
            .send(self.control.addresses().api)
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    pub async fn roots(&self) -> String {
        self.get("/debug/root-cert.pem").await
    }

    /// A token of the control plane itself.
    pub async fn token(&self, namespace: &str, account: &str, audience: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let body = serde_json::json!({"spec": {"audiences": [audience]}}).to_string();
        let call = Call::get("127.0.0.1", &path).method("POST").body(body);
        let answer = call.send(self.control.addresses().api).await.unwrap();
        assert_eq!(answer.status, 201, "{}", answer.body);
        let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A channel to the secure port; the handshake is part of the first call.
    pub async fn channel(&self, with: Option<&Certificate>) -> Channel {
        channel(self.secure(), &self.roots().await, with)
    }

    /// The certificate of a service account, by token.
    pub async fn certificate(&self, namespace: &str, account: &str) -> Certificate {
        let token = self.token(namespace, account, "istio-ca").await;
        let channel = self.channel(None).await;
        create(channel, Some(&format!("Bearer {token}")), 0)
            .await
            .unwrap()
    }
}

/// A certificate chain, leaf first, and its key in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub chain: Vec<String>,
    pub key: String,
}

pub fn channel(address: SocketAddr, roots: &str, with: Option<&Certificate>) -> Channel {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates(roots));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store);
    let mut config = match with {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(certificates(&own.chain.concat()), key)
                .unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let socket = TcpStream::connect(address).await?;
            let name = ServerName::try_from(ISTIOD).unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, socket).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://control").timeout(Duration::from_secs(20));
    endpoint.connect_with_connector_lazy(connect)
}

pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    all.collect::<Result<_, _>>().unwrap()
}

pub fn csr() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    (request.pem().unwrap(), key.serialize_pem())
}

/// Asks for a certificate with a new key.
pub async fn create(
    channel: Channel,
    authorization: Option<&str>,
    seconds: i64,
) -> Result<Certificate, Status> {
    let (csr, key) = csr();
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: seconds,
        metadata: None,
    });
    if let Some(value) = authorization {
        let value = MetadataValue::try_from(value).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = IstioCertificateServiceClient::new(channel);
    let answer = client.create_certificate(request).await?;
    let chain = answer.into_inner().cert_chain;
    Ok(Certificate { chain, key })
}

/// The node of a proxy.
pub fn node(kind: &str, name: &str, namespace: &str, account: &str) -> core::Node {
    let text = |text: &str| ProtoValue {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let mut fields = std::collections::HashMap::new();
    fields.insert("NAMESPACE".to_owned(), text(namespace));
    if !account.is_empty() {
        fields.insert("SERVICE_ACCOUNT".to_owned(), text(account));
    }
    core::Node {
        id: format!("{kind}~127.0.0.1~{name}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        ..Default::default()
    }
}

/// An open ADS stream.
pub struct Ads {
    requests: tokio::sync::mpsc::Sender<discovery::DiscoveryRequest>,
    pub responses: tonic::Streaming<discovery::DiscoveryResponse>,
}

impl Ads {
    /// Opens a stream and asks for resources of one type; the first answer.
    pub async fn ask(
        channel: Channel,
        authorization: Option<&str>,
        node: core::Node,
        type_url: &str,
        names: &[&str],
    ) -> Result<(Self, discovery::DiscoveryResponse), Status> {
        let (requests, stream) = tokio::sync::mpsc::channel(8);
        let first = discovery::DiscoveryRequest {
            node: Some(node),
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let mut request = Request::new(stream);
        if let Some(value) = authorization {
            let value = MetadataValue::try_from(value).unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(request).await?;
        let mut ads = Self {
            requests,
            responses: responses.into_inner(),
        };
        let first = tokio::time::timeout(Duration::from_secs(20), ads.responses.message());
        let first = first
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))??;
        let first = first.ok_or_else(|| Status::new(Code::Unknown, "the stream ended"))?;
        Ok((ads, first))
    }

    /// The names of the secrets that are sent. A request for clusters follows the one for secrets:
    /// what was not sent when it is answered is not sent.
    pub async fn secrets(
        channel: Channel,
        authorization: Option<&str>,
        node: core::Node,
        names: &[&str],
    ) -> Vec<String> {
        const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        let (mut ads, _) = Self::ask(channel, authorization, node, CLUSTER, &[])
            .await
            .unwrap();
        let listener = "type.googleapis.com/envoy.config.listener.v3.Listener";
        for (type_url, names) in [(SECRET, names), (listener, &[])] {
            let request = discovery::DiscoveryRequest {
                type_url: type_url.to_owned(),
                resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
                ..Default::default()
            };
            ads.requests.send(request).await.unwrap();
        }
        let mut found = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), ads.responses.message());
            let next = next.await.expect("an answer in time").unwrap().unwrap();
            if next.type_url == listener {
                found.sort();
                return found;
            }
            if next.type_url == SECRET {
                found.extend(next.resources.iter().map(|any| {
                    use prost::Message as _;
                    tls::Secret::decode(any.value.as_slice()).unwrap().name
                }));
            }
        }
    }

    pub fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }
}
