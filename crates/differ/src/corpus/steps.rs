//! What an upstream does with a request, and what a client does on a raw connection.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::wire;
use crate::{Failure, Result, failed};

/// What an upstream does with one request.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// It acts as soon as it has the head.
    pub early: bool,
    pub steps: Vec<Step>,
}

/// One thing done on a connection.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    Respond(Respond),
    /// From here on, what comes is returned.
    Echo,
    /// Reads until nothing more comes for this long.
    Read(Duration),
    /// Closes the sending half.
    Shutdown,
    Close,
    Reset,
    /// HTTP/2: ends the stream with this error.
    ResetStream(u32),
    /// HTTP/2: says goodbye, then goes on.
    Goaway,
    /// Does nothing until the other side leaves.
    Hang,
}

/// A well-formed answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Respond {
    pub status: u16,
    /// In addition to `content-type` and `x-app`.
    pub headers: Value,
    pub body: Option<String>,
    /// A body of this many bytes instead.
    pub size: Option<usize>,
    pub trailers: Value,
    pub chunked: bool,
    /// Milliseconds before the head.
    pub wait: u64,
    /// Milliseconds between head and body.
    pub pause: u64,
    pub early: bool,
}

impl Default for Respond {
    fn default() -> Self {
        Respond {
            status: 200,
            headers: Value::Null,
            body: None,
            size: None,
            trailers: Value::Null,
            chunked: false,
            wait: 0,
            pause: 0,
            early: false,
        }
    }
}

/// What an upstream does with the first request of a case, the second and so on; the last is for
/// all that follow.
pub fn attempts(value: &Value) -> Result<Vec<Attempt>> {
    match value {
        Value::Array(all) => all.iter().map(attempt).collect(),
        one => Ok(vec![attempt(one)?]),
    }
}

fn attempt(value: &Value) -> Result<Attempt> {
    if let Some(inner) = value.get("early-steps") {
        return Ok(Attempt {
            early: true,
            steps: steps(inner)?,
        });
    }
    let steps = match value {
        Value::Object(map) if map.contains_key("steps") => steps(&value["steps"])?,
        other => steps(other)?,
    };
    let early = matches!(steps.first(), Some(Step::Respond(respond)) if respond.early);
    Ok(Attempt { early, steps })
}

/// One step or a list of them.
pub fn steps(value: &Value) -> Result<Vec<Step>> {
    match value {
        Value::Array(all) => all.iter().map(step).collect(),
        one => Ok(vec![step(one)?]),
    }
}

fn step(value: &Value) -> Result<Step> {
    let unknown = || Failure(format!("{value} is not a step"));
    match value {
        Value::Number(status) => Ok(Step::Respond(Respond {
            status: status.as_u64().unwrap_or_default() as u16,
            ..Respond::default()
        })),
        Value::String(word) => Ok(match word.as_str() {
            "close" => Step::Close,
            "reset" => Step::Reset,
            "hang" => Step::Hang,
            "echo" => Step::Echo,
            "shutdown" => Step::Shutdown,
            "goaway" => Step::Goaway,
            text => Step::Send(wire::bytes(text)),
        }),
        Value::Object(map) => match map.iter().next() {
            Some((key, inner)) if map.len() == 1 && key != "send" => {
                match (key.as_str(), inner.as_u64()) {
                    ("sleep", Some(millis)) => Ok(Step::Wait(Duration::from_millis(millis))),
                    ("read", Some(millis)) => Ok(Step::Read(Duration::from_millis(millis))),
                    ("reset-stream", Some(code)) => Ok(Step::ResetStream(code as u32)),
                    ("bytes", Some(count)) => Ok(Step::Send(vec![b'x'; count as usize])),
                    _ => respond(value),
                }
            }
            Some(_) if map.contains_key("send") => sent(value).ok_or_else(unknown),
            _ => respond(value),
        },
        _ => Err(unknown()),
    }
}

fn respond(value: &Value) -> Result<Step> {
    serde_json::from_value(value.clone())
        .map(Step::Respond)
        .map_err(failed(format!("{value} is not a step")))
}

/// `{send: TEXT, repeat: N}`, once without a number.
fn sent(value: &Value) -> Option<Step> {
    let text = value["send"].as_str()?;
    let times = usize::try_from(value["repeat"].as_u64().unwrap_or(1)).ok()?;
    Some(Step::Send(wire::bytes(&text.repeat(times))))
}
