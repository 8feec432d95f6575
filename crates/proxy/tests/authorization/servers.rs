//! Servers that are asked who may come in, over HTTP and over gRPC. They do as the header `x-want` of
//! the request in question says.

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter};
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf as wkt;
use envoy_types::pb::google::rpc::Status;
use pb::check_response::HttpResponse;
use prost::Message;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A port on which `serve` serves connections.
pub async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// An HTTP server that answers by the header `x-want` of the request it is asked about.
pub async fn by_http(mut stream: TcpStream) {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let length: usize = header("content-length").parse().unwrap_or(0);
        while read.len() < end + length {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = String::from_utf8_lossy(&read[end..end + length]).into_owned();
        read.drain(..end + length);
        let line = head.lines().next().unwrap_or_default().to_owned();
        let answer = |status: &str, headers: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
        };
        let answer = match header("x-want").as_str() {
            "allow" | "second" => answer(
                "200 OK",
                "x-user: alice\r\nx-add: b\r\nx-other: no\r\nx-back: yes\r\n",
                "",
            ),
            "no content" => answer("204 No Content", "", ""),
            "deny" => answer(
                "401 Unauthorized",
                "www-authenticate: Basic\r\nx-why: because\r\nx-secret: s\r\ncontent-type: text/html\r\n",
                "<p>no</p>",
            ),
            "error" => answer("500 Internal Server Error", "", ""),
            "redirect" => answer("302 Found", "location: http://login.test/\r\n", ""),
            "broken" => "HTP/1.1 200 OK\r\n\r\n".to_owned(),
            "close" => return,
            "huge" => answer("403 Forbidden", "", &"x".repeat(3 << 20)),
            "slow" => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return;
            }
            "added" => {
                let added = ["x-share", "x-protocol"].map(header).join("|");
                answer("403 Forbidden", "", &added)
            }
            "tell" => {
                let said = format!(
                    "{line}|{}|{}|{}|{}|{body}",
                    header("host"),
                    header("authorization"),
                    header("x-hidden"),
                    header("x-envoy-auth-partial-body"),
                );
                answer("403 Forbidden", "", &said)
            }
            _ => answer("403 Forbidden", "", ""),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The same over gRPC.
pub async fn by_grpc(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut bytes = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                bytes.extend_from_slice(&data);
                let _ = body.flow_control().release_capacity(data.len());
            }
            let request = pb::CheckRequest::decode(bytes.get(5..).unwrap_or_default()).unwrap();
            let attributes = request.attributes.unwrap_or_default();
            let http = attributes
                .request
                .clone()
                .and_then(|r| r.http)
                .unwrap_or_default();
            let want = http.headers.get("x-want").cloned().unwrap_or_default();
            let mut response = check_response(&want, &attributes, head.uri.path());
            let mut status = "0";
            match want.as_str() {
                "slow" => tokio::time::sleep(Duration::from_secs(60)).await,
                "close" => return,
                "error" => status = "14",
                "huge" => {
                    response = check_response("deny", &attributes, "");
                    if let Some(HttpResponse::DeniedResponse(denied)) = &mut response.http_response
                    {
                        denied.body = "x".repeat(3 << 20);
                    }
                }
                _ => {}
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            let Ok(mut send) = respond.send_response(head.body(()).unwrap(), false) else {
                return;
            };
            let message = response.encode_to_vec();
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(&message);
            if want == "broken" {
                framed.truncate(4);
            }
            let _ = send.send_data(framed.into(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            let _ = send.send_trailers(trailers);
        });
    }
}

fn option(name: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..HeaderValue::default()
        }),
        #[allow(deprecated, reason = "authorizers still say it")]
        append: append.map(|value| wkt::BoolValue { value }),
        ..HeaderValueOption::default()
    }
}

fn check_response(want: &str, attributes: &pb::AttributeContext, path: &str) -> pb::CheckResponse {
    let http = attributes
        .request
        .clone()
        .and_then(|r| r.http)
        .unwrap_or_default();
    let denied = |code, headers, body: &str| {
        HttpResponse::DeniedResponse(pb::DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers,
            body: body.to_owned(),
        })
    };
    let (code, response) = match want {
        "allow" => (
            0,
            Some(HttpResponse::OkResponse(pb::OkHttpResponse {
                headers: vec![
                    option("x-user", "alice", None),
                    option("x-add", "b", Some(true)),
                    option("x-both", "1", None),
                ],
                headers_to_remove: vec!["x-hidden".to_owned(), "x-both".to_owned()],
                response_headers_to_add: vec![option("x-back", "yes", None)],
                ..pb::OkHttpResponse::default()
            })),
        ),
        "plain" => (0, None),
        "query" | "elsewhere" | "line break" | "unknown action" => (0, Some(allowing(want))),
        "deny" => {
            let headers = vec![
                option("x-why", "because", None),
                option("content-type", "text/html", None),
            ];
            (7, Some(denied(401, headers, "<p>no</p>")))
        }
        "redirect" => {
            let headers = vec![option("location", "http://login.test/", None)];
            (7, Some(denied(302, headers, "")))
        }
        "tell" | "second" => {
            let context = attributes.context_extensions.get("from").cloned();
            let source = attributes.source.clone().unwrap_or_default();
            let shown = format!(
                "{path}|{} {}|{}|{}|{}|{}|{}",
                http.method,
                http.path,
                http.host,
                http.headers.get(":path").cloned().unwrap_or_default(),
                http.headers
                    .get("x-envoy-auth-partial-body")
                    .cloned()
                    .unwrap_or_default(),
                context.unwrap_or_default(),
                http.body,
            );
            let local = format!("{:?}", source.address).contains("127.0.0.1");
            (
                7,
                Some(denied(
                    403,
                    Vec::new(),
                    if local { &shown } else { "no address" },
                )),
            )
        }
        _ => (7, None),
    };
    let metadata = wkt::Struct {
        fields: [(
            "decided".to_owned(),
            wkt::Value {
                kind: Some(wkt::value::Kind::StringValue(want.to_owned())),
            },
        )]
        .into(),
    };
    pb::CheckResponse {
        status: Some(Status {
            code,
            ..Status::default()
        }),
        dynamic_metadata: Some(metadata),
        http_response: response,
    }
}

/// Answers that allow and change more than headers, or cannot be done.
fn allowing(want: &str) -> HttpResponse {
    let mut ok = pb::OkHttpResponse::default();
    match want {
        "query" => {
            ok.query_parameters_to_set = vec![QueryParameter {
                key: "b".to_owned(),
                value: "3".to_owned(),
            }];
            ok.query_parameters_to_remove = vec!["gone".to_owned()];
        }
        "elsewhere" => {
            ok.headers = vec![
                option(":path", "/elsewhere?x=1", None),
                option(":authority", "other.test", None),
                option(":method", "PUT", None),
            ];
        }
        "line break" => ok.headers = vec![option("x-user", "mallory\n", None)],
        _ => {
            let mut unknown = option("x-user", "mallory", None);
            unknown.append_action = 77;
            ok.headers = vec![unknown];
        }
    }
    HttpResponse::OkResponse(ok)
}
