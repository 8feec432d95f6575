//! Envoy's substitution format (`%REQ(:METHOD)% %RESPONSE_CODE%`), as a compiled program.
//!
//! A [`Format`] is made once, when configuration arrives; an operator it does not know is an error
//! then, never an empty field later. Rendering appends to the caller's buffer from a [`Source`].
//! Used for access-log lines (text and JSON), header values and bodies of local replies.
//! Reference: <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage>
//!
//! Invariant: rendering allocates nothing besides what the buffer needs to grow (and a copy of a text
//! that has to be escaped for JSON).

mod field;
mod json;
mod operators;
mod parse;
mod render;
mod time;

pub use field::Field;

use json::Json;
use parse::Token;
use std::net::SocketAddr;
use std::time::SystemTime;

/// Envoy's own default, used when a log gives no format.
pub const ENVOY_DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);

/// The text format Istio configures when none is asked for (pilot/pkg/model/telemetry_logging.go).
pub const ISTIO_DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// Which header block an operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Headers {
    /// `%REQ(..)%`; pseudo headers (`:method`, `:path`, `:authority`, `:scheme`) included.
    Request,
    /// `%RESP(..)%`.
    Response,
    /// `%TRAILER(..)%`: the trailers of the response.
    ResponseTrailers,
}

/// What a [`Source`] answers for one field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Not known or not applicable: `-` in text, `null` in JSON.
    Absent,
    /// Text as it stands.
    Text(&'a [u8]),
    /// A number, unquoted in JSON.
    Number(u64),
    /// `ip:port`; the operator may ask for one part only.
    Address(SocketAddr),
    /// A point in time, rendered in the operator's own time format.
    Time(SystemTime),
    /// Several words, joined with commas (response flags); `-` when there is none.
    List(&'a [&'static str]),
}

impl<'a> Value<'a> {
    /// Text, or [`Value::Absent`] when there is none.
    pub fn text(text: Option<&'a str>) -> Self {
        text.map_or(Value::Absent, |t| Value::Text(t.as_bytes()))
    }
}

/// The facts about one request or connection that a format can show.
pub trait Source {
    /// The value of a header, by its lower-case name. Several values: the first one.
    fn header(&self, of: Headers, name: &str) -> Option<&[u8]>;

    /// Any other fact. A source answers [`Value::Absent`] for what it does not track.
    fn value(&self, field: Field) -> Value<'_>;

    /// What a filter has set under a namespace (`%DYNAMIC_METADATA(..)%`); an empty path stands for
    /// the whole namespace.
    fn metadata(&self, _namespace: &str, _path: &[Box<str>]) -> Option<&serde_json::Value> {
        None
    }
}

/// What stands where a value is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// `-` in text, `null` in JSON, as in access logs.
    Dash,
    /// Nothing, as in header values and with `omit_empty_values`; JSON leaves the key out.
    Empty,
}

/// Everything wrong with a text format; empty when [`Format::text`] compiles it.
pub fn problems(format: &str) -> Vec<FormatError> {
    parse::problems(format)
}

/// A point in time as `2026-01-31T23:59:59.123Z`.
pub fn timestamp(time: SystemTime) -> String {
    let mut out = Vec::with_capacity(24);
    time::TimeFormat::Usual.render(time, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// A compiled format.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    program: Program,
    without_effect: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Program {
    Text(Vec<Token>),
    Json(Json),
}

/// A format that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct FormatError {
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl Format {
    /// Compiles a text format. `%%` is one `%`.
    pub fn text(format: &str) -> Result<Self, FormatError> {
        let mut without_effect = Vec::new();
        let tokens = parse::tokens(format, &mut without_effect)?;
        Ok(Self {
            program: Program::Text(tokens),
            without_effect,
        })
    }

    /// Compiles a JSON format: an object whose strings are formats. A string that is one operator
    /// and nothing else keeps the type of its value.
    pub fn json(format: &serde_json::Map<String, serde_json::Value>) -> Result<Self, FormatError> {
        let mut without_effect = Vec::new();
        let program = Program::Json(json::object(format, &mut without_effect)?);
        Ok(Self {
            program,
            without_effect,
        })
    }

    /// The text, when there is no operator in it.
    pub fn literal(&self) -> Option<&str> {
        match &self.program {
            Program::Text(tokens) => match tokens.as_slice() {
                [] => Some(""),
                [Token::Literal(text)] => Some(text),
                _ => None,
            },
            Program::Json(_) => None,
        }
    }

    /// Operators in it that never have a value here, each with a sentence for people.
    pub fn without_effect(&self) -> &[String] {
        &self.without_effect
    }

    /// Appends one rendering to `out`. JSON ends with a line feed; text ends as its format says.
    pub fn render(&self, source: &impl Source, missing: Missing, out: &mut Vec<u8>) {
        match &self.program {
            Program::Text(tokens) => render::text(tokens, source, missing, out),
            Program::Json(json) => {
                json.render(source, missing, out);
                out.push(b'\n');
            }
        }
    }
}

#[cfg(test)]
mod tests;
