//! The server as a gRPC service: `envoy.service.auth.v3.Authorization/Check`.

use super::changes::{Change, Changes, How, parameter};
use super::http::{named, once_set};
use super::{Decision, Denied, Held, Invalid};
use crate::http::exchange::Exchange;
use crate::http::filters::call::{Question, Reply};
use crate::http::head::{BodyLength, Method, RequestHead, Version};
use crate::http::headers::Known;
use crate::http::metadata::DynamicMetadata;
use crate::http1::encode;
use crate::listener::ConnInfo;
use crate::tls::peer::Peer;
use crate::worker::state::Worker;
use bytes::{BufMut, BytesMut};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;
use lateen_proxy_config::{ExtAuthz, ExtAuthzRoute, Metadata, NetworkAuthz};
use pb::attribute_context::{HttpRequest, Peer as Side, Request, TlsSession};
use prost::Message;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATH: &[u8] = b"/envoy.service.auth.v3.Authorization/Check";
/// Flag and length in front of a message.
const PREFIX: usize = 5;

type Pairs = [(Box<str>, Box<str>)];

pub(super) fn question(
    x: &Exchange,
    filter: &ExtAuthz,
    route: Option<&ExtAuthzRoute>,
    held: &Held,
    (authority, metadata): (&str, &Pairs),
) -> Question {
    let message = check_request(x, filter, route, held);
    asked(&x.worker, &message, authority, metadata, filter.timeout)
}

/// The question about a connection.
pub(super) fn connection_question(
    worker: &Worker,
    conn: &ConnInfo,
    authz: &NetworkAuthz,
    notes: &DynamicMetadata,
) -> Question {
    let parties = parties(conn, authz.peer_certificate, authz.tls_session);
    let message = pb::CheckRequest {
        attributes: Some(pb::AttributeContext {
            metadata_context: Some(context(&authz.metadata_namespaces, notes)),
            ..parties
        }),
    };
    let (authority, headers) = (&authz.authority, &authz.call_headers);
    asked(worker, &message, authority, headers, authz.timeout)
}

fn asked(
    worker: &Worker,
    message: &pb::CheckRequest,
    authority: &str,
    metadata: &Pairs,
    timeout: Option<Duration>,
) -> Question {
    let mut body = BytesMut::with_capacity(PREFIX + message.encoded_len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    // There is room for all of it.
    let _ = message.encode(&mut body);
    let mut headers = worker.block();
    headers.set(Known::Host, authority.as_bytes());
    headers.set(Known::ContentType, b"application/grpc");
    headers.set(Known::Te, b"trailers");
    if let Some(timeout) = timeout {
        let limit = format!("{}m", timeout.as_millis().min(99_999_999));
        headers.set_name(b"grpc-timeout", limit.as_bytes());
    }
    for (name, value) in metadata {
        headers.set_name(name.as_bytes(), value.as_bytes());
    }
    encode::set_length(&mut headers, body.len() as u64);
    let mut head = RequestHead::new(headers);
    head.method = Method::Post;
    head.set_path(PATH);
    head.version = Version::Http2;
    head.body = BodyLength::Exactly(body.len() as u64);
    Question {
        head,
        body: body.freeze(),
    }
}

fn check_request(
    x: &Exchange,
    filter: &ExtAuthz,
    route: Option<&ExtAuthzRoute>,
    held: &Held,
) -> pb::CheckRequest {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let extensions = route.map_or(&[][..], |route| &route.context[..]);
    let parties = parties(&x.conn, filter.peer_certificate, filter.tls_session);
    let source = parties.source.map(|side| Side {
        address: match x.remote {
            Some(ip) => Some(address(SocketAddr::new(ip, 0))),
            None => side.address,
        },
        ..side
    });
    pb::CheckRequest {
        attributes: Some(pb::AttributeContext {
            source,
            request: Some(Request {
                time: Some(wkt::Timestamp {
                    seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                    nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
                }),
                http: Some(http_request(x, filter, held)),
            }),
            context_extensions: extensions
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            metadata_context: Some(context(&filter.metadata_namespaces, &x.metadata)),
            ..parties
        }),
    }
}

/// Who the ends of a connection are.
fn parties(conn: &ConnInfo, peer_certificate: bool, tls_session: bool) -> pb::AttributeContext {
    let tls = conn.tls();
    let certificate = tls.and_then(|tls| tls.certificate.as_deref());
    pb::AttributeContext {
        source: Some(Side {
            address: Some(address(conn.peer)),
            principal: principal(tls),
            certificate: match certificate {
                Some(shown) if peer_certificate => shown.url_encoded_pem(false),
                _ => String::new(),
            },
            ..Side::default()
        }),
        destination: Some(Side {
            address: Some(address(conn.local)),
            principal: tls
                .and_then(|tls| tls.local.as_deref())
                .and_then(|local| local.uris.first().or(local.dns.first()))
                .cloned()
                .unwrap_or_default(),
            ..Side::default()
        }),
        tls_session: tls.filter(|_| tls_session).map(|_| TlsSession {
            sni: conn.server_name().to_owned(),
        }),
        ..pb::AttributeContext::default()
    }
}

/// The namespaces of dynamic metadata that the server is to see.
fn context(namespaces: &[Box<str>], metadata: &DynamicMetadata) -> core::Metadata {
    let found =
        namespaces
            .iter()
            .filter_map(|namespace| match metadata.all()?.get(&**namespace)? {
                Value::Object(values) => Some((namespace.to_string(), to_struct(values))),
                _ => None,
            });
    core::Metadata {
        filter_metadata: found.collect(),
        ..core::Metadata::default()
    }
}

/// The first name of the client's certificate.
fn principal(tls: Option<&Peer>) -> String {
    let certificate = tls.and_then(|tls| tls.certificate.as_deref());
    certificate.map_or_else(String::new, |certificate| {
        let about = &certificate.about;
        let name = about.uris.first().or(about.dns.first());
        name.unwrap_or(&about.subject).clone()
    })
}

fn http_request(x: &Exchange, filter: &ExtAuthz, held: &Held) -> HttpRequest {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let request = &x.request;
    let (method, path) = (text(request.method_bytes()), text(request.path_bytes()));
    let host = text(request.authority_bytes());
    let scheme = if request.https { "https" } else { "http" }.to_owned();
    let mut headers = std::collections::HashMap::new();
    for (name, value) in [
        (":method", &method),
        (":path", &path),
        (":authority", &host),
        (":scheme", &scheme),
    ] {
        headers.insert(name.to_owned(), value.clone());
    }
    for (_, name, value) in request.headers.iter() {
        let name = name.to_ascii_lowercase();
        let allowed = filter.allowed_headers.as_ref();
        let shown = allowed.is_none_or(|allowed| named(allowed, &name));
        if name == b"host" || !shown || named(&filter.disallowed_headers, &name) {
            continue;
        }
        let slot: &mut String = headers.entry(text(&name)).or_default();
        if !slot.is_empty() {
            slot.push(',');
        }
        slot.push_str(&text(value));
    }
    if held.asked_for {
        let part = held.is_part().to_string();
        headers.insert("x-envoy-auth-partial-body".to_owned(), part);
    }
    let size = match request.body {
        BodyLength::None => 0,
        BodyLength::Exactly(length) => i64::try_from(length).unwrap_or(i64::MAX),
        BodyLength::Unknown | BodyLength::UntilClose => -1,
    };
    let (body, raw_body) = match held.as_bytes {
        true => (String::new(), held.shown().to_vec()),
        false => (text(held.shown()), Vec::new()),
    };
    HttpRequest {
        id: text(request.headers.get(Known::XRequestId).unwrap_or_default()),
        method,
        headers,
        path,
        host,
        scheme,
        size,
        protocol: request.version.name().to_owned(),
        body,
        raw_body,
        ..HttpRequest::default()
    }
}

fn address(of: SocketAddr) -> core::Address {
    use core::address::Address;
    use core::socket_address::PortSpecifier;
    core::Address {
        address: Some(Address::SocketAddress(core::SocketAddress {
            address: of.ip().to_canonical().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(of.port().into())),
            ..core::SocketAddress::default()
        })),
    }
}

pub(super) fn answer(reply: Reply) -> Decision {
    let trailers = reply.trailers.as_deref().unwrap_or(&reply.head.headers);
    if reply.head.status != 200 || trailers.get(Known::GrpcStatus) != Some(b"0") {
        return Decision::Failed;
    }
    // One message, not compressed.
    let message = match reply.body.split_first_chunk::<PREFIX>() {
        Some(([0, length @ ..], message))
            if u32::from_be_bytes(*length) as usize == message.len() =>
        {
            message
        }
        _ => return Decision::Failed,
    };
    match pb::CheckResponse::decode(message) {
        Ok(response) => decision(response),
        Err(_) => Decision::Failed,
    }
}

fn decision(response: pb::CheckResponse) -> Decision {
    use pb::check_response::HttpResponse;
    let pb::CheckResponse {
        status,
        dynamic_metadata,
        http_response,
    } = response;
    let metadata = dynamic_metadata.map(from_struct);
    // No status is OK, as everywhere in gRPC.
    let allowed = status.is_none_or(|status| status.code == 0);
    match (allowed, http_response) {
        (_, Some(HttpResponse::ErrorResponse(_))) => Decision::Failed,
        (true, Some(HttpResponse::OkResponse(ok))) => match allowing(ok, metadata) {
            Ok(changes) => Decision::Allowed(changes),
            Err(Invalid) => Decision::Invalid,
        },
        (true, _) => Decision::Allowed(Changes {
            metadata,
            ..Changes::default()
        }),
        (false, Some(HttpResponse::DeniedResponse(denied))) => {
            let status = denied.status.map(|status| status.code);
            let status = status.and_then(|code| u16::try_from(code).ok());
            Decision::Denied(Denied {
                status: status.filter(|s| (200..600).contains(s)).unwrap_or(403),
                // A refusal stays one, whatever of it cannot be shown.
                headers: once_set(
                    changes(denied.headers, false)
                        .filter_map(Result::ok)
                        .collect(),
                ),
                body: denied.body.into_bytes(),
                metadata,
            })
        }
        (false, _) => Decision::Denied(Denied {
            status: 403,
            headers: Vec::new(),
            body: Vec::new(),
            metadata,
        }),
    }
}

#[allow(
    deprecated,
    reason = "servers still say it, and it wins over the newer field"
)]
fn allowing(ok: pb::OkHttpResponse, metadata: Option<Metadata>) -> Result<Changes, Invalid> {
    let pb::OkHttpResponse {
        headers,
        headers_to_remove,
        dynamic_metadata,
        response_headers_to_add,
        query_parameters_to_set,
        query_parameters_to_remove,
    } = ok;
    let set = query_parameters_to_set.into_iter();
    Ok(Changes {
        request: changes(headers, true).collect::<Result<_, _>>()?,
        remove: headers_to_remove
            .into_iter()
            .filter(|name| !name.starts_with(':') && !name.eq_ignore_ascii_case("host"))
            .map(|name| name.to_ascii_lowercase())
            .collect(),
        set_parameters: set
            .map(|one| parameter(one.key, one.value))
            .collect::<Result<_, _>>()?,
        remove_parameters: query_parameters_to_remove,
        response: changes(response_headers_to_add, false).collect::<Result<_, _>>()?,
        metadata: dynamic_metadata.map(from_struct).or(metadata),
    })
}

/// Headers of requests are set unless `append` is said; those of responses are added.
#[allow(deprecated, reason = "servers still say it")]
fn changes(
    options: Vec<core::HeaderValueOption>,
    of_request: bool,
) -> impl Iterator<Item = Result<Change, Invalid>> {
    use core::header_value_option::HeaderAppendAction as Action;
    options.into_iter().filter_map(move |option| {
        let header = option.header?;
        let how = match (of_request, option.append.map(|append| append.value)) {
            (true, Some(true)) => How::AddIfPresent,
            (_, Some(false)) => How::Set,
            (false, Some(true)) => How::Add,
            (_, None) => match Action::try_from(option.append_action) {
                Ok(Action::AppendIfExistsOrAdd) if of_request => How::Set,
                Ok(Action::AppendIfExistsOrAdd) => How::Add,
                Ok(Action::AddIfAbsent) => How::AddIfAbsent,
                Ok(Action::OverwriteIfExistsOrAdd) => How::Set,
                Ok(Action::OverwriteIfExists) => How::SetIfPresent,
                Err(_) => return Some(Err(Invalid)),
            },
        };
        let value = match header.raw_value.is_empty() {
            true => header.value.into_bytes(),
            false => header.raw_value,
        };
        Change::new(&header.key, &value, how).transpose()
    })
}

fn to_struct(values: &Metadata) -> wkt::Struct {
    let fields = values.iter();
    wkt::Struct {
        fields: fields.map(|(k, v)| (k.clone(), to_value(v))).collect(),
    }
}

fn to_value(value: &Value) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(0.0)),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(values) => Kind::ListValue(wkt::ListValue {
            values: values.iter().map(to_value).collect(),
        }),
        Value::Object(values) => Kind::StructValue(to_struct(values)),
    };
    wkt::Value { kind: Some(kind) }
}

fn from_struct(values: wkt::Struct) -> Metadata {
    let fields = values.fields.into_iter();
    fields
        .map(|(key, value)| (key, from_value(value)))
        .collect()
}

fn from_value(value: wkt::Value) -> Value {
    use wkt::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => Value::from(n as i64),
        Some(Kind::NumberValue(n)) => Value::from(n),
        Some(Kind::StringValue(s)) => Value::String(s),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_value).collect(),
        Some(Kind::StructValue(values)) => Value::Object(from_struct(values)),
    }
}
