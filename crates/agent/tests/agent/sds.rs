//! Secret discovery over the agent's socket, in both protocols.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::Any;
use hyper_util::rt::TokioIo;
use lateen_agent::{Agent, sds, secret};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::authority::Ca;

const PATIENCE: Duration = Duration::from_secs(20);

fn serve(ca: &Ca, agent: &Agent) -> PathBuf {
    let socket = ca.path("run/sds.sock");
    let listener = sds::bind(&socket).unwrap();
    tokio::spawn(sds::serve(listener, agent.watch()));
    socket
}

async fn client(socket: PathBuf) -> SecretDiscoveryServiceClient<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://sds");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    SecretDiscoveryServiceClient::new(channel)
}

fn read(any: &Any) -> Secret {
    assert_eq!(any.type_url, secret::TYPE_URL);
    Secret::decode(any.value.as_slice()).unwrap()
}

fn is_certificate(secret: &Secret) -> bool {
    matches!(secret.r#type, Some(Type::TlsCertificate(_)))
}

#[tokio::test]
async fn nobody_else_can_reach_the_socket_and_two_agents_do_not_share_it() {
    let ca = Ca::start().await;
    let agent = Agent::start(ca.config());
    let socket = serve(&ca, &agent);
    let mode = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    assert!(matches!(sds::bind(&socket), Err(sds::SdsError::Taken(_))));
    // What a dead agent left is no obstacle.
    let left = ca.path("run/left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    sds::bind(&left).unwrap();
}

#[tokio::test]
async fn state_of_the_world_gives_both_secrets_and_each_new_certificate() {
    let ca = Ca::start().await;
    // Two certificates: a third would make the number of the second response an old one.
    ca.change(|rules| {
        rules.lifetime = Duration::from_secs(3);
        rules.left = 2;
    });
    let agent = Agent::start(ca.config());
    let mut client = client(serve(&ca, &agent)).await;
    let (requests, outbound) = mpsc::channel(8);
    let mut request = DiscoveryRequest {
        type_url: secret::TYPE_URL.into(),
        resource_names: vec!["default".into()],
        ..Default::default()
    };
    requests.send(request.clone()).await.unwrap();
    let opened = client.stream_secrets(ReceiverStream::new(outbound)).await;
    let mut inbound = opened.unwrap().into_inner();
    let first = timeout(PATIENCE, inbound.message()).await.unwrap();
    let first = first.unwrap().unwrap();
    assert!(is_certificate(&read(&first.resources[0])));
    assert_eq!(first.resources.len(), 1);
    // ACK; nothing comes until there is something new.
    request.version_info = first.version_info.clone();
    request.response_nonce = first.nonce.clone();
    requests.send(request.clone()).await.unwrap();
    let second = timeout(PATIENCE, inbound.message()).await.unwrap();
    let second = second.unwrap().unwrap();
    assert!(is_certificate(&read(&second.resources[0])));
    assert_ne!(second.version_info, first.version_info);
    // A further name is answered on the same stream.
    request.resource_names.push("ROOTCA".into());
    request.response_nonce = second.nonce.clone();
    requests.send(request).await.unwrap();
    loop {
        let next = timeout(PATIENCE, inbound.message()).await.unwrap();
        let resources = next.unwrap().unwrap().resources;
        if resources.iter().any(|any| !is_certificate(&read(any))) {
            return;
        }
    }
}

#[tokio::test]
async fn delta_gives_what_is_not_held_yet() {
    let ca = Ca::start().await;
    let agent = Agent::start(ca.config());
    let mut client = client(serve(&ca, &agent)).await;
    let (requests, outbound) = mpsc::channel(8);
    let request = DeltaDiscoveryRequest {
        type_url: secret::TYPE_URL.into(),
        resource_names_subscribe: vec!["default".into()],
        ..Default::default()
    };
    requests.send(request).await.unwrap();
    let opened = client.delta_secrets(ReceiverStream::new(outbound)).await;
    let mut inbound = opened.unwrap().into_inner();
    let first = timeout(PATIENCE, inbound.message()).await.unwrap();
    let first = first.unwrap().unwrap();
    assert_eq!(first.resources[0].name, "default");
    // Another stream that holds it already gets only the roots.
    let (requests, outbound) = mpsc::channel(8);
    let held = ("default".to_owned(), first.resources[0].version.clone());
    let request = DeltaDiscoveryRequest {
        type_url: secret::TYPE_URL.into(),
        resource_names_subscribe: vec!["default".into(), "ROOTCA".into()],
        initial_resource_versions: [held].into(),
        ..Default::default()
    };
    requests.send(request).await.unwrap();
    let opened = client.delta_secrets(ReceiverStream::new(outbound)).await;
    let mut inbound = opened.unwrap().into_inner();
    let second = timeout(PATIENCE, inbound.message()).await.unwrap();
    let second = second.unwrap().unwrap();
    let names: Vec<_> = second.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["ROOTCA"]);
}

#[tokio::test]
async fn other_types_are_refused() {
    let ca = Ca::start().await;
    let agent = Agent::start(ca.config());
    let mut client = client(serve(&ca, &agent)).await;
    let request = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..Default::default()
    };
    let refused = client.fetch_secrets(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}
