//! One case: what is sent, what the upstream does with it, how it is compared.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Area, Attempt, Group, Step, attempts, steps};
use crate::wire;
use crate::{Failure, Result, failed};

/// Which listener of a plane a case goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    #[default]
    Gateway,
    /// Out of a workload through its sidecar, which is an HTTP proxy for it.
    Sidecar,
    /// Into a workload through its sidecar.
    Inbound,
}

/// What is spoken to the proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    #[default]
    Http1,
    Http2,
}

/// How a client encrypts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientTls {
    /// Whose certificate it shows: `NAMESPACE/ACCOUNT` of the mesh; with `expired:`, `foreign:`
    /// (another trust domain) or `unknown:` (another authority) before it. Empty: none.
    pub identity: String,
    /// Server name; empty: none.
    pub sni: String,
    /// Protocols offered by ALPN, in order.
    pub alpn: Vec<String>,
}

/// What a group or case says about TLS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TlsChoice {
    /// `false`: none, also where the group has one.
    Whether(bool),
    With(ClientTls),
}

impl TlsChoice {
    fn on(self) -> Option<ClientTls> {
        match self {
            TlsChoice::Whether(true) => Some(ClientTls::default()),
            TlsChoice::Whether(false) => None,
            TlsChoice::With(tls) => Some(tls),
        }
    }
}

/// One case, complete.
#[derive(Clone, Debug)]
pub struct Case {
    /// `AREA/GROUP/CASE`.
    pub name: String,
    /// Its place in the corpus.
    pub number: usize,
    pub about: String,
    pub via: Via,
    /// A named port in place of the usual one.
    pub port: Option<String>,
    /// How the client encrypts, if it does.
    pub tls: Option<ClientTls>,
    pub alone: bool,
    pub apart: bool,
    pub quick: bool,
    pub content: Content,
    pub upstream: Vec<Attempt>,
    /// What Envoy answers, so that a case cannot rot into one that both refuse.
    pub expect: Vec<u16>,
    /// Names of headers are compared with their case, and their order counts.
    pub exact: bool,
    /// How long nothing may come before the client leaves.
    pub quiet: Duration,
    /// Sent so many times and compared by distribution.
    pub many: Option<usize>,
    /// Over so many connections.
    pub connections: usize,
    /// Milliseconds that the case takes, at least and at most.
    pub takes: Option<(u64, u64)>,
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Content {
    /// Well-formed requests, one after the other on one connection.
    Requests(Protocol, Vec<RequestSpec>),
    /// Bytes.
    Raw(Vec<Step>),
}

/// A well-formed request.
#[derive(Clone, Debug)]
pub struct RequestSpec {
    pub method: String,
    pub path: String,
    pub host: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<Vec<u8>>,
    pub chunked: bool,
    pub trailers: Vec<(String, String)>,
}

/// A case as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    about: String,
    send: Option<String>,
    requests: Vec<Value>,
    raw: Option<Value>,
    headers: Value,
    body: Value,
    chunked: bool,
    trailers: Value,
    host: Option<String>,
    protocol: Protocol,
    port: Option<String>,
    tls: Option<TlsChoice>,
    upstream: Value,
    expect: Value,
    exact: bool,
    quiet: Option<u64>,
    many: Option<usize>,
    connections: Option<usize>,
    takes: Option<(u64, u64)>,
}

/// A request as it stands in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenRequest {
    send: String,
    headers: Value,
    body: Value,
    chunked: bool,
    trailers: Value,
    host: Option<String>,
}

/// Envoy closes a second after the last word to a client it does not trust.
const QUIET: Duration = Duration::from_millis(1800);

pub fn read(area: &Area, group: &Group, name: &str, value: &Value) -> Result<Case> {
    let full = format!("{}/{}/{name}", area.name, group.name);
    let wrong = |error: Failure| Failure(format!("case {full}: {error}"));
    let written: Written = match value {
        Value::String(short) => Written {
            send: Some(short.clone()),
            ..Written::default()
        },
        other => serde_json::from_value(other.clone()).map_err(failed(format!("case {full}")))?,
    };
    let own_host = host(area, group, name);
    let mut expect = Vec::new();
    let content = content(&written, &own_host, &full, group.via, &mut expect).map_err(wrong)?;
    match &written.expect {
        Value::Null => {}
        Value::Array(all) => {
            expect = all
                .iter()
                .filter_map(Value::as_u64)
                .map(|n| n as u16)
                .collect();
        }
        one => expect = one.as_u64().map(|n| n as u16).into_iter().collect(),
    }
    let upstream = match &written.upstream {
        Value::Null => Vec::new(),
        other => attempts(other).map_err(wrong)?,
    };
    Ok(Case {
        name: full,
        number: 0,
        about: written.about,
        via: group.via,
        port: written.port,
        tls: match written.tls {
            Some(own) => own.on(),
            None => group.tls.clone().and_then(TlsChoice::on),
        },
        alone: group.alone,
        apart: group.apart,
        quick: group.quick,
        content,
        upstream,
        expect,
        exact: written.exact,
        quiet: written.quiet.map_or(QUIET, Duration::from_millis),
        many: written.many,
        connections: written.connections.unwrap_or(4),
        takes: written.takes,
    })
}

/// The host a case speaks of: of its own, so that an upstream knows which case a request is of.
fn host(area: &Area, group: &Group, name: &str) -> String {
    match group.hosts.first() {
        Some(host) if !host.starts_with('*') => host.clone(),
        Some(host) => host.replacen('*', name, 1),
        None => format!("{name}.{}.{}.test", group.name, area.name),
    }
}

fn content(
    written: &Written,
    host: &str,
    full: &str,
    via: Via,
    expect: &mut Vec<u16>,
) -> Result<Content> {
    let host = written.host.as_deref().unwrap_or(host);
    if let Some(raw) = &written.raw {
        let filled = fill(raw, host, full);
        return Ok(Content::Raw(steps(&filled)?));
    }
    let mut requests = Vec::new();
    if let Some(send) = &written.send {
        let request = WrittenRequest {
            send: send.clone(),
            headers: written.headers.clone(),
            body: written.body.clone(),
            chunked: written.chunked,
            trailers: written.trailers.clone(),
            host: None,
        };
        requests.push(request_of(request, host, full, via, expect)?);
    }
    for value in &written.requests {
        let request = match value {
            Value::String(send) => WrittenRequest {
                send: send.clone(),
                headers: written.headers.clone(),
                ..WrittenRequest::default()
            },
            other => serde_json::from_value(other.clone()).map_err(failed("a request"))?,
        };
        requests.push(request_of(request, host, full, via, expect)?);
    }
    match requests.is_empty() {
        true => Err(Failure(
            "it sends nothing: give send, requests or raw".to_owned(),
        )),
        false => Ok(Content::Requests(written.protocol, requests)),
    }
}

fn request_of(
    written: WrittenRequest,
    host: &str,
    full: &str,
    via: Via,
    expect: &mut Vec<u16>,
) -> Result<RequestSpec> {
    let (line, status) = match written.send.split_once(" => ") {
        Some((line, status)) => (line, Some(status)),
        None => (written.send.as_str(), None),
    };
    if let Some(status) = status {
        expect.push(status.trim().parse().map_err(failed(status))?);
    }
    let (method, path) = line
        .split_once(' ')
        .ok_or_else(|| Failure(format!("{line:?} is not METHOD PATH")))?;
    let host = written.host.unwrap_or_else(|| host.to_owned());
    let mut headers = fields(&written.headers)?;
    if !headers.iter().any(|(name, _)| name == "x-case") {
        headers.push(("x-case".to_owned(), full.to_owned()));
    }
    for (_, value) in &mut headers {
        *value = value.replace("{host}", &host);
    }
    let body = match &written.body {
        Value::Null => None,
        Value::String(text) => Some(wire::bytes(text)),
        other => Some(vec![
            b'x';
            other["size"].as_u64().unwrap_or_default() as usize
        ]),
    };
    let path = match via {
        Via::Sidecar if path.starts_with('/') => format!("http://{host}{path}"),
        _ => path.to_owned(),
    };
    Ok(RequestSpec {
        method: method.to_owned(),
        path,
        host,
        headers,
        body,
        chunked: written.chunked,
        trailers: fields(&written.trailers)?,
    })
}

/// Header fields: a map, or a list of `Name: value` where a name comes twice.
pub fn fields(value: &Value) -> Result<Vec<(String, String)>> {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => Ok(map.iter().map(|(k, v)| (k.clone(), plain(v))).collect()),
        Value::Array(all) => all
            .iter()
            .map(|item| {
                let text = item.as_str().unwrap_or_default();
                let (name, value) = text
                    .split_once(':')
                    .ok_or_else(|| Failure(format!("{item} is not NAME: VALUE")))?;
                Ok((name.to_owned(), value.trim_start().to_owned()))
            })
            .collect(),
        other => Err(Failure(format!("{other} are not header fields"))),
    }
}

/// `{host}` and `{case}` in every text.
fn fill(value: &Value, host: &str, case: &str) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace("{host}", host).replace("{case}", case)),
        Value::Array(all) => all.iter().map(|one| fill(one, host, case)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, one)| (key.clone(), fill(one, host, case)))
            .collect(),
        other => other.clone(),
    }
}
