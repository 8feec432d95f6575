//! The server as an HTTP service: it gets a request with method, path and some headers of the one in
//! question. Status 200 allows it, 5xx says nothing, anything else is the client's answer.

use super::changes::{Change, Changes, How};
use super::{Decision, Denied, Held};
use crate::http::exchange::Exchange;
use crate::http::filters::call::{Question, Reply};
use crate::http::head::{BodyLength, RequestHead};
use crate::http::headers::Known;
use crate::http::request::Routed;
use crate::http1::encode::{self, Decimal};
use bytes::Bytes;
use lateen_proxy_config::route::StringMatcher;
use lateen_proxy_config::{ExtAuthz, HeaderTemplate, HttpAuthz};
use lateen_telemetry::format::Missing;

const PARTIAL: &[u8] = b"x-envoy-auth-partial-body";
/// Headers that the server gets in any case, besides those that make the request.
const ALWAYS: &[u8] = b"authorization";
/// Headers of a refusal that the client gets in any case.
const ALWAYS_BACK: [&str; 2] = ["www-authenticate", "location"];

/// Whether a header of this name is meant.
pub(super) fn named(matchers: &[StringMatcher], name: &[u8]) -> bool {
    matchers.iter().any(|matcher| matcher.matches(name))
}

pub(super) fn question(
    x: &Exchange,
    routed: Option<Routed<'_>>,
    filter: &ExtAuthz,
    service: &HttpAuthz,
    held: &Held,
) -> Question {
    let request = &x.request;
    let body = Bytes::copy_from_slice(held.shown());
    let mut headers = x.worker.block();
    headers.set(Known::Host, request.authority_bytes());
    for (_, name, value) in request.headers.iter() {
        let lower = name.to_ascii_lowercase();
        let asked = lower == ALWAYS
            || filter
                .allowed_headers
                .as_ref()
                .is_some_and(|allowed| named(allowed, &lower));
        let framing = matches!(
            &lower[..],
            b"host" | b"content-length" | b"transfer-encoding"
        );
        if asked && !framing && !named(&filter.disallowed_headers, &lower) {
            headers.push_name(&lower, value);
        }
    }
    for (name, value) in &service.headers_to_add {
        let mut rendered = Vec::new();
        let value = match value {
            HeaderTemplate::Literal(value) => &value[..],
            HeaderTemplate::Format(format) => {
                format.render(&x.facts(routed), Missing::Empty, &mut rendered);
                &rendered
            }
        };
        if !value.is_empty() {
            headers.set_name(name.as_bytes(), value);
        }
    }
    // What Envoy's internal client tells a server.
    headers.set(Known::EnvoyInternal, b"true");
    if let Some(timeout) = filter.timeout {
        let milliseconds = Decimal::new(timeout.as_millis() as u64);
        headers.set(Known::EnvoyExpectedTimeout, milliseconds.as_bytes());
    }
    if held.asked_for {
        let part: &[u8] = if held.is_part() { b"true" } else { b"false" };
        headers.set_name(PARTIAL, part);
    }
    encode::set_length(&mut headers, body.len() as u64);
    let mut head = RequestHead::new(headers);
    head.method = request.method;
    if let crate::http::head::Method::Other(_) = request.method {
        let method = head.headers.store(request.method_bytes());
        head.method = crate::http::head::Method::Other(method);
    }
    let path = match service.path_override.is_empty() {
        true => [service.path_prefix.as_bytes(), request.path_bytes()].concat(),
        false => service.path_override.as_bytes().to_vec(),
    };
    head.set_path(&path);
    head.https = request.https;
    head.version = request.version;
    head.body = match body.len() {
        0 => BodyLength::None,
        length => BodyLength::Exactly(length as u64),
    };
    Question { head, body }
}

pub(super) fn answer(service: &HttpAuthz, reply: Reply) -> Decision {
    let headers = reply.head.headers.iter();
    let headers: Vec<(Vec<u8>, &[u8])> = headers
        .map(|(_, name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let pick = |wanted: &dyn Fn(&[u8]) -> bool, how: How| {
        let found = headers.iter().filter(|(name, _)| wanted(name));
        // Names and values are those of a message that has been read; what a request cannot have has
        // been refused there. Where a request goes is not for this kind of server to say.
        let changes = found.filter_map(|(name, value)| {
            Change::new(&String::from_utf8_lossy(name), value, how)
                .ok()
                .flatten()
        });
        changes.collect::<Vec<Change>>()
    };
    match reply.head.status {
        200 => {
            let mut request = pick(&|name| named(&service.to_upstream, name), How::Set);
            let more = pick(
                &|n| named(&service.to_upstream_appended, n),
                How::AddIfPresent,
            );
            request.extend(more);
            Decision::Allowed(Changes {
                request,
                response: pick(&|name| named(&service.to_client, name), How::Add),
                ..Changes::default()
            })
        }
        500.. => Decision::Failed,
        status => {
            let all = service.to_client_denied.is_empty();
            let always = |name: &[u8]| ALWAYS_BACK.iter().any(|back| back.as_bytes() == name);
            let wanted =
                |name: &[u8]| all || always(name) || named(&service.to_client_denied, name);
            Decision::Denied(Denied {
                status,
                headers: once_set(pick(&wanted, How::Add)),
                body: reply.body,
                metadata: None,
            })
        }
    }
}

/// The first of each name replaces what is there, the others are added.
pub(super) fn once_set(mut changes: Vec<Change>) -> Vec<Change> {
    for i in 0..changes.len() {
        let (before, rest) = changes.split_at_mut(i);
        if let Some(change) = rest.first_mut()
            && !before.iter().any(|other| other.name == change.name)
        {
            change.how = How::Set;
        }
    }
    changes
}
