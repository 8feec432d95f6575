//! From tokens and a source to text.

use super::parse::{GrpcStatusStyle, Part, Token, What};
use super::time::TimeFormat;
use super::{Field, Headers, Missing, Source, Value};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

pub(super) fn text(tokens: &[Token], source: &impl Source, missing: Missing, out: &mut Vec<u8>) {
    for token in tokens {
        match token {
            Token::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Token::Value { what, max_length } => {
                if value(what, *max_length, source, out) == Rendered::Absent
                    && missing == Missing::Dash
                {
                    out.push(b'-');
                }
            }
        }
    }
}

/// What a value turned out to be; JSON quotes text only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rendered {
    Absent,
    Text,
    /// Text with nothing in it that JSON would escape.
    Plain,
    Number,
    /// JSON already.
    Json,
}

/// Appends one value; nothing when it is absent.
pub(super) fn value(
    what: &What,
    max_length: Option<usize>,
    source: &impl Source,
    out: &mut Vec<u8>,
) -> Rendered {
    let start = out.len();
    let rendered = untruncated(what, source, out);
    if let Some(max) = max_length {
        out.truncate(start.saturating_add(max).max(start));
    }
    rendered
}

fn untruncated(what: &What, source: &impl Source, out: &mut Vec<u8>) -> Rendered {
    match what {
        What::Header {
            of,
            name,
            alternative,
            without_query,
        } => {
            let found = source.header(*of, name).or_else(|| {
                alternative
                    .as_ref()
                    .and_then(|name| source.header(*of, name))
            });
            bytes(
                found.map(|v| if *without_query { before_query(v) } else { v }),
                out,
            )
        }
        What::Field { field, part } => field_value(source.value(*field), *part, out),
        What::StartTime(format) => match source.value(Field::StartTime) {
            Value::Time(time) => {
                format.render(time, out);
                if *format == TimeFormat::Usual {
                    return Rendered::Plain;
                }
                Rendered::Text
            }
            other => field_value(other, Part::Whole, out),
        },
        What::EmitTime(format) => {
            format.render(SystemTime::now(), out);
            Rendered::Text
        }
        What::GrpcStatus(style) => grpc_status(source.value(Field::GrpcStatus), *style, out),
        What::QueryParameter(name) => {
            let path = source.header(Headers::Request, ":path");
            bytes(path.and_then(|path| query_parameter(path, name)), out)
        }
        What::DynamicMetadata { namespace, path } => json(source.metadata(namespace, path), out),
        What::Nothing => Rendered::Absent,
    }
}

/// A string as it stands, anything else as JSON.
fn json(value: Option<&serde_json::Value>, out: &mut Vec<u8>) -> Rendered {
    use serde_json::Value;
    match value {
        None | Some(Value::Null) => return Rendered::Absent,
        Some(Value::String(text)) => {
            out.extend_from_slice(text.as_bytes());
            return Rendered::Text;
        }
        // Writing to a vector cannot fail.
        Some(value) => {
            let _ = serde_json::to_writer(&mut *out, value);
        }
    }
    Rendered::Json
}

fn bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> Rendered {
    match value {
        Some(text) => {
            out.extend_from_slice(text);
            Rendered::Text
        }
        None => Rendered::Absent,
    }
}

/// Without the machinery of `fmt`, which costs more than the digits.
fn number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(v4) => {
            let mut text = [0; 16];
            let mut at = 0;
            for octet in v4.octets() {
                for (unit, wanted) in [(100, octet >= 100), (10, octet >= 10), (1, true)] {
                    text[at] = b'0' + octet / unit % 10;
                    at += usize::from(wanted);
                }
                text[at] = b'.';
                at += 1;
            }
            out.extend_from_slice(&text[..at - 1]);
        }
        // Writing to a vector cannot fail.
        IpAddr::V6(v6) => {
            let _ = write!(out, "{v6}");
        }
    }
}

fn socket_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address {
        SocketAddr::V4(v4) => {
            ip(IpAddr::V4(*v4.ip()), out);
            out.push(b':');
            number(v4.port().into(), out);
        }
        SocketAddr::V6(v6) => {
            let _ = write!(out, "{v6}");
        }
    }
}

fn field_value(value: Value<'_>, part: Part, out: &mut Vec<u8>) -> Rendered {
    match value {
        Value::Absent => return Rendered::Absent,
        Value::Text(text) => out.extend_from_slice(text),
        Value::Number(it) => {
            number(it, out);
            return Rendered::Number;
        }
        Value::Address(address) => match part {
            Part::Whole => {
                socket_address(address, out);
                return Rendered::Plain;
            }
            Part::Ip => {
                ip(address.ip(), out);
                return Rendered::Plain;
            }
            Part::Port => {
                number(address.port().into(), out);
                return Rendered::Number;
            }
        },
        Value::Time(time) => TimeFormat::Usual.render(time, out),
        Value::List([]) => out.push(b'-'),
        Value::List(words) => {
            for (i, word) in words.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(word.as_bytes());
            }
        }
    }
    Rendered::Text
}

fn before_query(path: &[u8]) -> &[u8] {
    path.iter()
        .position(|b| *b == b'?')
        .map_or(path, |end| &path[..end])
}

fn query_parameter<'p>(path: &'p [u8], name: &str) -> Option<&'p [u8]> {
    let query = &path[path.iter().position(|b| *b == b'?')? + 1..];
    query.split(|b| *b == b'&').find_map(|pair| {
        let rest = pair.strip_prefix(name.as_bytes())?;
        match rest.split_first() {
            None => Some(rest),
            Some((b'=', value)) => Some(value),
            Some(_) => None,
        }
    })
}

/// Names of gRPC status codes, by number (grpc/status.h): camel case, snake case.
const GRPC_STATUS: &[(&str, &str)] = &[
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc_status(value: Value<'_>, style: GrpcStatusStyle, out: &mut Vec<u8>) -> Rendered {
    let Value::Number(number) = value else {
        return Rendered::Absent;
    };
    let names = usize::try_from(number)
        .ok()
        .and_then(|n| GRPC_STATUS.get(n));
    match (style, names) {
        (GrpcStatusStyle::Camel, Some((camel, _))) => bytes(Some(camel.as_bytes()), out),
        (GrpcStatusStyle::Snake, Some((_, snake))) => bytes(Some(snake.as_bytes()), out),
        _ => field_value(value, Part::Whole, out),
    }
}
