//! Action CUSTOM with authorizers that run: one over HTTP, one over gRPC (Envoy's
//! `envoy.service.auth.v3.Authorization`).
//!
//! An authorizer does what the header `x-decide` of the request says, and remembers what it was
//! asked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3 as auth;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use envoy_types::pb::google::rpc::Status as RpcStatus;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{ports, settles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::authorization::{Guarded, policy};
use crate::mesh::{loopback, service, workload};
use crate::sidecar::SIDECAR;

/// What an authorizer was asked, as text.
type Asked = Arc<Mutex<Vec<String>>>;

/// Listens over HTTP; `x-decide: allow` is answered with 200, anything else with 401.
async fn http_authorizer() -> (SocketAddr, Asked) {
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, seen.clone()));
        }
    });
    (address, asked)
}

async fn answer(mut stream: TcpStream, asked: Asked) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        // A whole request: its head and as many bytes as it says.
        while !is_whole(&text) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => text += &String::from_utf8_lossy(&buffer[..read]),
            }
        }
        let request = std::mem::take(&mut text).to_lowercase();
        let reply = match request.contains("x-decide: allow") {
            true => {
                "HTTP/1.1 200 OK\r\nx-user: jane\r\nx-internal: yes\r\nx-told: allowed\r\n\
                 content-length: 0\r\n\r\n"
            }
            false => {
                "HTTP/1.1 401 Unauthorized\r\nx-reason: nobody\r\nx-internal: yes\r\n\
                 content-length: 7\r\n\r\ngo away"
            }
        };
        asked.lock().unwrap().push(request);
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.and_then(|length| length.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// The same over gRPC. Connections, which have no headers, are allowed while `connections` is set.
#[derive(Clone, Default)]
pub struct GrpcAuthorizer {
    asked: Asked,
    pub connections: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl auth::authorization_server::Authorization for GrpcAuthorizer {
    async fn check(
        &self,
        request: tonic::Request<auth::CheckRequest>,
    ) -> Result<tonic::Response<auth::CheckResponse>, tonic::Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let http = attributes.request.and_then(|request| request.http);
        let allowed = match &http {
            None => self.connections.load(Ordering::SeqCst),
            Some(http) => http.headers.get("x-decide").is_some_and(|d| d == "allow"),
        };
        let team = http.as_ref().and_then(|http| http.headers.get("x-team"));
        let dynamic_metadata = Some(about(team.map_or("net", String::as_str)));
        let shown = http.map(|http| format!("{} {} {}", http.method, http.path, http.body));
        self.asked
            .lock()
            .unwrap()
            .push(shown.unwrap_or_else(|| "connection".to_owned()));
        let header = |key: &str, value: &str| HeaderValueOption {
            header: Some(HeaderValue {
                key: key.to_owned(),
                value: value.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        use auth::check_response::HttpResponse;
        let (code, http_response) = match allowed {
            true => (
                0,
                HttpResponse::OkResponse(auth::OkHttpResponse {
                    headers: vec![header("x-user", "jane")],
                    headers_to_remove: vec!["x-secret".to_owned()],
                    ..Default::default()
                }),
            ),
            false => (
                7,
                HttpResponse::DeniedResponse(auth::DeniedHttpResponse {
                    status: Some(HttpStatus { code: 401 }),
                    headers: vec![header("x-reason", "nobody")],
                    body: "go away".to_owned(),
                }),
            ),
        };
        Ok(tonic::Response::new(auth::CheckResponse {
            status: Some(RpcStatus {
                code,
                ..Default::default()
            }),
            http_response: Some(http_response),
            dynamic_metadata,
        }))
    }
}

/// What the authorizer knows of who asks, as dynamic metadata.
fn about(team: &str) -> Struct {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let list = Value {
        kind: Some(Kind::ListValue(ListValue {
            values: vec![text("all"), text(team)],
        })),
    };
    Struct {
        fields: [("team".to_owned(), text(team)), ("teams".to_owned(), list)].into(),
    }
}

pub async fn grpc_authorizer() -> (SocketAddr, GrpcAuthorizer) {
    let authorizer = GrpcAuthorizer::default();
    let address = loopback(ports::reserve());
    let service = auth::authorization_server::AuthorizationServer::new(authorizer.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve(address));
    (address, authorizer)
}

/// The workload `front`, whose authorizer is the service `authorizer` with these settings.
pub async fn guarded_by(
    plane: Plane,
    test: &str,
    at: SocketAddr,
    settings: &str,
) -> Option<Guarded> {
    let guarded = Guarded::start(plane, test).await?;
    let name = match settings.contains("envoyExtAuthzGrpc") {
        true => "grpc",
        false => "http",
    };
    let objects =
        service("authorizer", name, 9000) + &workload("authorizer", "v1", name, at.port());
    guarded.mesh.create(&objects).await;
    set(&guarded, settings).await;
    guarded
        .apply(&policy(
            "custom",
            "action: CUSTOM, provider: {name: mine}, \
             rules: [{to: [{operation: {paths: [/guarded*], ports: ['80']}}]}]",
        ))
        .await;
    Some(guarded)
}

/// The mesh's settings, with a provider called `mine`.
async fn set(guarded: &Guarded, provider: &str) {
    let mesh = format!("extensionProviders: [{{name: mine, {provider}}}]");
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |-\n    {mesh}\n"
    );
    guarded.apply(&text).await;
}

pub const SERVICE: &str = "service: authorizer.default.svc.cluster.local, port: '9000'";

pub async fn get(guarded: &Guarded, path: &str, headers: &[(&str, &str)]) -> Answer {
    let call = Call::get("front", path);
    let add = |call: Call, (name, value): &(&str, &str)| call.header(name, value);
    let call = headers.iter().fold(call, add);
    call.send(guarded.sidecar.http).await.unwrap()
}

/// Whether bytes pass on a TCP connection, once all that was changed is with the proxy: what is in
/// force at its HTTP port need not be at another.
async fn connects(guarded: &Guarded) -> bool {
    guarded.mesh.distributed(1).await;
    guarded.connects().await
}

async fn an_authorizer_over_http_decides(plane: Plane) {
    let test = "an_authorizer_over_http_decides";
    let (address, asked) = http_authorizer().await;
    let settings = format!(
        "envoyExtAuthzHttp: {{{SERVICE}, pathPrefix: /check, \
         includeRequestHeadersInCheck: [x-decide, 'x-shown-*'], \
         includeAdditionalHeadersInCheck: {{x-added: 'yes'}}, \
         headersToUpstreamOnAllow: [x-user], headersToDownstreamOnAllow: [x-told], \
         headersToDownstreamOnDeny: [x-reason]}}"
    );
    let Some(guarded) = guarded_by(plane, test, address, &settings).await else {
        return;
    };
    let answer = get(&guarded, "/open", &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(asked.lock().unwrap().is_empty(), "not asked about others");

    let shown = [
        ("x-decide", "allow"),
        ("x-shown-a", "1"),
        ("x-private", "2"),
        ("x-user", "mallory"),
    ];
    let answer = get(&guarded, "/guarded/a?b=c", &shown).await;
    assert_eq!(
        (answer.status, answer.name().as_str()),
        (200, "front"),
        "{answer:?}"
    );
    assert_eq!(
        answer.got("x-user"),
        "jane",
        "what the client said is replaced"
    );
    assert_eq!(answer.got("x-internal"), "");
    assert_eq!(answer.header("x-told"), "allowed");
    let question = asked.lock().unwrap().pop().unwrap();
    assert!(
        question.starts_with("get /check/guarded/a?b=c http/1.1"),
        "{question}"
    );
    for (part, there) in [
        ("x-decide: allow", true),
        ("x-shown-a: 1", true),
        ("x-added: yes", true),
        ("x-private", false),
    ] {
        assert_eq!(question.contains(part), there, "{part}: {question}");
    }

    let hits = asked.lock().unwrap().len();
    let answer = get(&guarded, "/guarded", &[("x-decide", "deny")]).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (401, "go away"),
        "{answer:?}"
    );
    assert_eq!(answer.header("x-reason"), "nobody");
    assert_eq!(answer.header("x-internal"), "");
    assert_eq!(asked.lock().unwrap().len(), hits + 1);

    // Beside it the other policies count as ever.
    guarded
        .apply(&policy(
            "denied",
            "action: DENY, rules: [{to: [{operation: {paths: [/guarded/denied], ports: ['80']}}]}]",
        ))
        .await;
    let answer = get(&guarded, "/guarded/denied", &[("x-decide", "allow")]).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    let answer = get(&guarded, "/guarded/other", &[("x-decide", "allow")]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    guarded.mesh.synced(SIDECAR).await;
    assert_eq!(guarded.sidecar.envoy.rejected().await, Default::default());
}

async fn an_authorizer_sees_the_body(plane: Plane) {
    let test = "an_authorizer_sees_the_body";
    let (address, asked) = http_authorizer().await;
    let settings = |partial: bool| {
        format!(
            "envoyExtAuthzHttp: {{{SERVICE}, includeRequestHeadersInCheck: [x-decide], \
             includeRequestBodyInCheck: {{maxRequestBytes: 8, allowPartialMessage: {partial}}}}}"
        )
    };
    let Some(guarded) = guarded_by(plane, test, address, &settings(false)).await else {
        return;
    };
    let post = async |body: &str| {
        let call = Call::get("front", "/guarded").method("POST");
        let call = call.header("x-decide", "allow").body(body.to_owned());
        call.send(guarded.sidecar.http).await.unwrap()
    };
    assert_eq!(post("short").await.status, 200);
    let question = asked.lock().unwrap().pop().unwrap();
    assert!(question.ends_with("\r\n\r\nshort"), "{question}");
    assert_eq!(post("longer than that").await.status, 413);
    set(&guarded, &settings(true)).await;
    assert_eq!(post("longer than that").await.status, 200);
    let question = asked.lock().unwrap().pop().unwrap();
    assert!(question.ends_with("\r\n\r\nlonger t"), "{question}");
}

async fn an_authorizer_that_is_not_there_denies_unless_told_otherwise(plane: Plane) {
    let test = "an_authorizer_that_is_not_there_denies_unless_told_otherwise";
    let nowhere = loopback(ports::reserve());
    for kind in ["envoyExtAuthzHttp", "envoyExtAuthzGrpc"] {
        let settings = |more: &str| format!("{kind}: {{{SERVICE}, timeout: 2s{more}}}");
        let Some(guarded) = guarded_by(plane, test, nowhere, &settings("")).await else {
            return;
        };
        assert_eq!(get(&guarded, "/guarded", &[]).await.status, 403, "{kind}");
        assert_eq!(get(&guarded, "/open", &[]).await.status, 200, "{kind}");
        set(&guarded, &settings(", statusOnError: '503'")).await;
        assert_eq!(get(&guarded, "/guarded", &[]).await.status, 503, "{kind}");
        set(&guarded, &settings(", failOpen: true")).await;
        assert_eq!(get(&guarded, "/guarded", &[]).await.status, 200, "{kind}");
        // A provider that nobody knows denies what the policy matches.
        guarded
            .apply(&policy(
                "custom",
                "action: CUSTOM, provider: {name: nobody}, \
                 rules: [{to: [{operation: {paths: [/guarded*], ports: ['80']}}]}]",
            ))
            .await;
        let answer = get(&guarded, "/guarded", &[]).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (403, "RBAC: access denied"),
            "{kind}"
        );
        assert_eq!(get(&guarded, "/open", &[]).await.status, 200, "{kind}");
    }
}

async fn an_authorizer_over_grpc_decides(plane: Plane) {
    let test = "an_authorizer_over_grpc_decides";
    let (address, authorizer) = grpc_authorizer().await;
    let settings = format!(
        "envoyExtAuthzGrpc: {{{SERVICE}, includeRequestBodyInCheck: {{maxRequestBytes: 64}}}}"
    );
    let Some(guarded) = guarded_by(plane, test, address, &settings).await else {
        return;
    };
    assert_eq!(get(&guarded, "/open", &[]).await.status, 200);
    assert!(authorizer.asked.lock().unwrap().is_empty());
    let call = Call::get("front", "/guarded?a=b").method("POST");
    let call = call.header("x-decide", "allow").header("x-secret", "1");
    let answer = call.body("text").send(guarded.sidecar.http).await.unwrap();
    assert_eq!(
        (answer.status, answer.name().as_str()),
        (200, "front"),
        "{answer:?}"
    );
    assert_eq!(
        (answer.got("x-user"), answer.got("x-secret")),
        ("jane".into(), "".into())
    );
    let asked = authorizer.asked.lock().unwrap().pop();
    assert_eq!(asked.as_deref(), Some("POST /guarded?a=b text"));
    let answer = get(&guarded, "/guarded", &[("x-decide", "deny")]).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (401, "go away"),
        "{answer:?}"
    );
    assert_eq!(answer.header("x-reason"), "nobody");
    guarded.mesh.synced(SIDECAR).await;
    assert_eq!(guarded.sidecar.envoy.rejected().await, Default::default());
}

async fn an_authorizer_over_grpc_decides_about_connections(plane: Plane) {
    let test = "an_authorizer_over_grpc_decides_about_connections";
    let (address, authorizer) = grpc_authorizer().await;
    let settings = format!("envoyExtAuthzGrpc: {{{SERVICE}}}");
    let Some(guarded) = guarded_by(plane, test, address, &settings).await else {
        return;
    };
    assert!(connects(&guarded).await);
    assert!(authorizer.asked.lock().unwrap().is_empty());
    guarded
        .apply(&policy(
            "custom",
            "action: CUSTOM, provider: {name: mine}, rules: [{to: [{operation: {ports: ['7000']}}]}]",
        ))
        .await;
    assert!(!connects(&guarded).await);
    authorizer.connections.store(true, Ordering::SeqCst);
    assert!(connects(&guarded).await);
    assert_eq!(
        authorizer.asked.lock().unwrap().as_slice(),
        ["connection", "connection"]
    );
}

async fn an_authorizer_of_connections_that_is_not_there_denies_unless_told_otherwise(plane: Plane) {
    let test = "an_authorizer_of_connections_that_is_not_there_denies_unless_told_otherwise";
    let nowhere = loopback(ports::reserve());
    let settings = |more: &str| format!("envoyExtAuthzGrpc: {{{SERVICE}, timeout: 2s{more}}}");
    let Some(guarded) = guarded_by(plane, test, nowhere, &settings("")).await else {
        return;
    };
    let custom = |provider: &str, port: u16| {
        policy(
            "custom",
            &format!(
                "action: CUSTOM, provider: {{name: {provider}}}, \
                 rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]"
            ),
        )
    };
    guarded.apply(&custom("mine", 7000)).await;
    assert!(!connects(&guarded).await);
    set(&guarded, &settings(", failOpen: true")).await;
    assert!(connects(&guarded).await);
    // Of a provider that nobody knows there is no word to go by, and none to go without.
    guarded.apply(&custom("nobody", 7000)).await;
    assert!(!connects(&guarded).await);
    guarded.apply(&custom("nobody", 7001)).await;
    assert!(connects(&guarded).await);
    guarded.mesh.synced(SIDECAR).await;
    assert_eq!(guarded.sidecar.envoy.rejected().await, Default::default());
}

/// One that takes its time is not waited for longer than the provider's timeout.
async fn an_authorizer_of_connections_that_does_not_answer_is_not_there(plane: Plane) {
    let test = "an_authorizer_of_connections_that_does_not_answer_is_not_there";
    // Connections are taken, and nothing is ever said.
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let settings = |more: &str| format!("envoyExtAuthzGrpc: {{{SERVICE}, timeout: 0.2s{more}}}");
    let Some(guarded) = guarded_by(plane, test, address, &settings("")).await else {
        return;
    };
    let custom =
        "action: CUSTOM, provider: {name: mine}, rules: [{to: [{operation: {ports: ['7000']}}]}]";
    guarded.apply(&policy("custom", custom)).await;
    assert!(!connects(&guarded).await);
    set(&guarded, &settings(", failOpen: true")).await;
    assert!(connects(&guarded).await);
    silent.abort();
}

/// As in Istio, a Sidecar that does not import an authorizer's service leaves nobody to ask.
async fn an_authorizer_has_to_be_in_the_scope_of_the_sidecar(plane: Plane) {
    let test = "an_authorizer_has_to_be_in_the_scope_of_the_sidecar";
    let (address, asked) = http_authorizer().await;
    let settings =
        format!("envoyExtAuthzHttp: {{{SERVICE}, includeRequestHeadersInCheck: [x-decide]}}");
    let Some(guarded) = guarded_by(plane, test, address, &settings).await else {
        return;
    };
    let imports = |host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
             metadata: {{name: narrow, namespace: default}}\n\
             spec: {{egress: [{{hosts: ['./{host}']}}]}}\n"
        )
    };
    let allow = [("x-decide", "allow")];
    let said = async || {
        let found = guarded.mesh.page("/debug/findings").await;
        let found = found.as_array().unwrap().iter();
        let text = |one: &serde_json::Value| one["message"].as_str().unwrap().to_owned();
        found.map(text).find(|text| text.contains("egress hosts"))
    };
    assert_eq!(get(&guarded, "/guarded", &allow).await.status, 200);
    guarded
        .apply(&imports("front.default.svc.cluster.local"))
        .await;
    let answer = get(&guarded, "/guarded", &allow).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(get(&guarded, "/open", &[]).await.status, 200);
    let message = said().await.unwrap();
    assert!(message.contains("default/narrow"), "{message}");
    assert!(
        message.contains("authorizer.default.svc.cluster.local"),
        "{message}"
    );

    guarded
        .apply(&imports("authorizer.default.svc.cluster.local"))
        .await;
    settles("the authorizer can be asked", async || {
        match get(&guarded, "/guarded", &allow).await.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    assert_eq!(get(&guarded, "/guarded", &[]).await.status, 401);
    assert_eq!(said().await, None);
    assert!(!asked.lock().unwrap().is_empty());
    guarded.mesh.synced(SIDECAR).await;
    assert_eq!(guarded.sidecar.envoy.rejected().await, Default::default());
}

on_both!(
    an_authorizer_has_to_be_in_the_scope_of_the_sidecar,
    an_authorizer_over_http_decides,
    an_authorizer_sees_the_body,
    an_authorizer_that_is_not_there_denies_unless_told_otherwise,
    an_authorizer_over_grpc_decides,
    an_authorizer_over_grpc_decides_about_connections,
    an_authorizer_of_connections_that_is_not_there_denies_unless_told_otherwise,
    an_authorizer_of_connections_that_does_not_answer_is_not_there,
);
