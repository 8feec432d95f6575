//! Discovery over TLS: a proxy gets the configuration of the identity it has proved, and no
//! other; certificates of gateways go to nobody else.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value as ProtoValue};
use lateen_testkit::certificates::Authority;
use lateen_testkit::tokens::{Issuer, now};
use serde_json::json;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::client::{Ads, Plane, create, node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_a_token_opened_ends_with_the_token() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let issuer = Issuer::new("https://tokens.test");
    let keys = directory.path().join("tokens.json");
    std::fs::write(&keys, issuer.jwks()).unwrap();
    let given = vec![("https://tokens.test".to_owned(), keys)];
    let plane = Plane::start_with(directory, |options| options.token_issuers = given).await;
    let open = async |seconds: u64| {
        let token = issuer.token(json!({
            "sub": "system:serviceaccount:default:reviews", "aud": "istio-ca",
            "exp": now() + seconds,
        }));
        let of = node("sidecar", "reviews-v1", "default", "reviews");
        let token = format!("Bearer {token}");
        let asked = Ads::ask(plane.channel(None).await, Some(&token), of, CLUSTER, &[]).await;
        asked.unwrap().0
    };
    let mut longer = open(3_600).await;
    let mut short = open(4).await;
    let end = async |ads: &mut Ads, limit: Duration| {
        tokio::time::timeout(limit, async {
            loop {
                if let Err(status) = ads.responses.message().await {
                    return status;
                }
            }
        })
        .await
    };
    let status = end(&mut short, Duration::from_secs(60)).await.unwrap();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("token has expired"), "{status}");
    let still = end(&mut longer, Duration::from_millis(100)).await;
    assert!(still.is_err(), "{still:?}");
}

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_gets_the_configuration_of_the_identity_it_has_proved() {
    let plane = Plane::start().await;
    let own = plane.certificate("default", "reviews").await;
    let token = format!(
        "Bearer {}",
        plane.token("default", "reviews", "istio-ca").await
    );
    let ask = async |certificate: bool, token: Option<&str>, node| {
        let with = certificate.then_some(&own);
        Ads::ask(plane.channel(with).await, token, node, CLUSTER, &[])
            .await
            .map(|(ads, _)| ads)
    };
    let reviews = || node("sidecar", "reviews-v1", "default", "reviews");
    let open = ask(true, None, reviews()).await.unwrap();
    assert!(open.is_open());
    ask(false, Some(token.as_str()), reviews()).await.unwrap();
    // An account that the node does not name is not compared, as in Istio.
    ask(true, None, node("sidecar", "reviews-v1", "default", ""))
        .await
        .unwrap();

    let connections = plane.get("/debug/connections").await;
    assert!(
        connections.contains("spiffe://cluster.local/ns/default/sa/reviews"),
        "{connections}"
    );

    let denied = async |what: &str, node| {
        let status = ask(true, None, node).await.err().expect(what);
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status}");
        assert!(
            status.message().contains("authorization failed"),
            "{what}: {status}"
        );
        assert!(
            status.message().contains("ns/default/sa/reviews"),
            "{what}: {status}"
        );
    };
    denied(
        "another account",
        node("sidecar", "ratings-v1", "default", "ratings"),
    )
    .await;
    denied(
        "another namespace",
        node("sidecar", "reviews-v1", "other", "reviews"),
    )
    .await;
    denied(
        "the gateway",
        node("router", "gateway", "istio-system", "gateway"),
    )
    .await;
    let mut split = reviews();
    split.id = "sidecar~127.0.0.1~reviews-v1.other~other.svc.cluster.local".into();
    denied("an id of another namespace", split).await;
    let mut split = reviews();
    let other = node("sidecar", "reviews-v1", "other", "reviews");
    split.metadata = other.metadata;
    denied("metadata of another namespace", split).await;

    let status = ask(false, None, reviews()).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let wrong = format!(
        "Bearer {}",
        plane.token("default", "reviews", "vault").await
    );
    let status = ask(false, Some(wrong.as_str()), reviews())
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

/// Waits for listeners in which all of these texts are.
async fn listeners_with(ads: &mut Ads, texts: &[&str]) {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), ads.responses.message());
        let next = next.await.expect("listeners in time").unwrap().unwrap();
        let all: Vec<u8> = next
            .resources
            .into_iter()
            .flat_map(|any| any.value)
            .collect();
        let has = |text: &&str| all.windows(text.len()).any(|part| part == text.as_bytes());
        if next.type_url == LISTENER && texts.iter().all(has) {
            return;
        }
    }
}

/// Workloads that share a service account can say that they are each other; what one says of its
/// labels is not taken for what the other one said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_of_the_same_node_takes_no_policy_from_the_first() {
    let plane = Plane::start().await;
    let own = plane.certificate("default", "reviews").await;
    let stranger = node("sidecar", "reviews-v1", "default", "reviews");
    let mut reviews = stranger.clone();
    let app = ProtoValue {
        kind: Some(Kind::StringValue("reviews".to_owned())),
    };
    let labels = ProtoValue {
        kind: Some(Kind::StructValue(Struct {
            fields: [("app".to_owned(), app)].into(),
        })),
    };
    let metadata = reviews.metadata.as_mut().unwrap();
    metadata.fields.insert("LABELS".to_owned(), labels);
    let deny = async |name: &str| {
        let path =
            format!("/apis/security.istio.io/v1/namespaces/default/authorizationpolicies/{name}");
        let document = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: default}}\n\
             spec: {{selector: {{matchLabels: {{app: reviews}}}}, action: DENY, \
             rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]}}\n"
        );
        plane.apply(&path, &document).await;
    };
    deny("first-policy").await;
    let ask = async |node| {
        let channel = plane.channel(Some(&own)).await;
        Ads::ask(channel, None, node, LISTENER, &[])
            .await
            .unwrap()
            .0
    };
    let mut victim = ask(reviews).await;
    let _other = ask(stranger).await;
    deny("second-policy").await;
    listeners_with(&mut victim, &["first-policy", "second-policy"]).await;
}

async fn plaintext(plane: &Plane) -> Channel {
    let address = plane.control.addresses().xds;
    Endpoint::try_from(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// A Secret with a certificate, in a namespace.
async fn credential(plane: &Plane, namespace: &str, name: &str) {
    let pair = Authority::new("authority").issue(name, &[name]);
    let block = |text: &str| text.trim_end().replace('\n', "\n    ");
    let document = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        block(&pair.chain),
        block(&pair.key)
    );
    plane
        .apply(
            &format!("/api/v1/namespaces/{namespace}/secrets/{name}"),
            &document,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_gateways_go_to_gateways_that_have_proved_their_namespace() {
    let plane = Plane::start().await;
    credential(&plane, "gateways", "web").await;
    credential(&plane, "other", "web").await;
    let own = plane.certificate("gateways", "gateway").await;
    let gateway = || node("router", "gateway", "gateways", "gateway");
    let names = [
        "kubernetes://web",
        "kubernetes://other/web",
        "kubernetes://gateways/web",
        "kubernetes-gateway://other/web",
    ];
    let both = ["kubernetes://gateways/web", "kubernetes://web"];
    let nothing: [&str; 0] = [];
    // The snapshot with the Secrets is there when the first one is.
    lateen_testkit::eventually("the gateway has its certificate", async || {
        let channel = plane.channel(Some(&own)).await;
        match Ads::secrets(channel, None, gateway(), &names).await {
            found if found == both => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;

    // Another namespace, a sidecar, and who has proved nothing: even while the gateway itself is
    // connected with the same node.
    let channel = plane.channel(Some(&own)).await;
    let (open, _) = Ads::ask(channel, None, gateway(), SECRET, &names)
        .await
        .unwrap();
    let thief = plane.certificate("thieves", "gateway").await;
    let thieves = node("router", "gateway", "thieves", "gateway");
    let found = Ads::secrets(plane.channel(Some(&thief)).await, None, thieves, &names).await;
    assert_eq!(found, nothing, "another namespace");
    let sidecar = node("sidecar", "gateway", "gateways", "gateway");
    let found = Ads::secrets(plane.channel(Some(&own)).await, None, sidecar, &names).await;
    assert_eq!(found, nothing, "a sidecar");
    let found = Ads::secrets(plaintext(&plane).await, None, gateway(), &names).await;
    assert_eq!(found, nothing, "who has proved nothing");
    let token = plane.token("gateways", "gateway", "istio-ca").await;
    let token = format!("Bearer {token}");
    let found = Ads::secrets(plaintext(&plane).await, Some(&token), gateway(), &names).await;
    assert_eq!(found, nothing, "a token does not make plaintext secure");
    let found = Ads::secrets(plane.channel(None).await, Some(&token), gateway(), &names).await;
    assert_eq!(found, both, "a token over TLS");
    assert!(open.is_open());

    // The switch for those who still have to do without.
    let plane = plane
        .restart(|options| options.plaintext_credentials = true)
        .await;
    let found = Ads::secrets(plaintext(&plane).await, None, gateway(), &names).await;
    assert_eq!(found, both);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_is_said() {
    let plane = Plane::start().await;
    let channel = plane.channel(None).await;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/istio.v1.auth.Other/CreateCertificate");
    let codec = Codec::default();
    let status = client
        .unary(tonic::Request::new(()), path, codec)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(create(channel, None, 0).await.is_err());
}

/// Empty messages.
type Codec = tonic_prost::ProstCodec<(), ()>;
