//! JSON formats: an object whose strings are formats.

use super::parse::{Token, What, tokens};
use super::render::{self, Rendered};
use super::{FormatError, Missing, Source};
use serde_json::{Map, Value};

/// A compiled JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    /// What stands before a value: a comma, the key as a JSON string, a colon.
    Object(Vec<(Box<str>, Json)>),
    List(Vec<Json>),
    /// Fixed JSON text.
    Constant(Box<str>),
    /// One operator and nothing else: keeps its type.
    Typed {
        what: What,
        max_length: Option<usize>,
    },
    /// Operators among text: always a string.
    Text(Vec<Token>),
}

pub(super) fn object(
    map: &Map<String, Value>,
    without_effect: &mut Vec<String>,
) -> Result<Json, FormatError> {
    map.iter()
        .map(|(key, value)| {
            let key = format!(",{}:", Value::String(key.clone()));
            Ok((key.into_boxed_str(), compile(value, without_effect)?))
        })
        .collect::<Result<_, _>>()
        .map(Json::Object)
}

fn compile(value: &Value, without_effect: &mut Vec<String>) -> Result<Json, FormatError> {
    Ok(match value {
        Value::Object(map) => object(map, without_effect)?,
        Value::Array(values) => Json::List(
            values
                .iter()
                .map(|v| compile(v, without_effect))
                .collect::<Result<_, _>>()?,
        ),
        Value::String(text) => {
            let mut tokens = tokens(text, without_effect)?;
            match (tokens.pop(), tokens.is_empty()) {
                (Some(Token::Value { what, max_length }), true) => Json::Typed { what, max_length },
                (Some(last), false) => {
                    tokens.push(last);
                    Json::Text(tokens)
                }
                (Some(Token::Literal(text)), true) => {
                    Json::Constant(Value::String(text.into()).to_string().into())
                }
                (None, _) => Json::Constant("\"\"".into()),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Json::Constant(value.to_string().into()),
    })
}

impl Json {
    /// Appends the value; whether there is one (an absent value is `null`).
    pub(super) fn render(&self, source: &impl Source, missing: Missing, out: &mut Vec<u8>) -> bool {
        match self {
            Json::Constant(text) => out.extend_from_slice(text.as_bytes()),
            Json::Typed { what, max_length } => return typed(what, *max_length, source, out),
            Json::Text(tokens) => {
                let start = out.len();
                out.push(b'"');
                render::text(tokens, source, missing, out);
                escape_from(start + 1, out);
                out.push(b'"');
            }
            Json::List(values) => {
                out.push(b'[');
                for (i, value) in values.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    value.render(source, missing, out);
                }
                out.push(b']');
            }
            Json::Object(entries) => render_object(entries, source, missing, out),
        }
        true
    }
}

fn render_object(
    entries: &[(Box<str>, Json)],
    source: &impl Source,
    missing: Missing,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    let mut first = true;
    for (key, value) in entries {
        let start = out.len();
        out.extend_from_slice(&key.as_bytes()[usize::from(first)..]);
        if !value.render(source, missing, out) && missing == Missing::Empty {
            out.truncate(start);
        } else {
            first = false;
        }
    }
    out.push(b'}');
}

fn typed(what: &What, max_length: Option<usize>, source: &impl Source, out: &mut Vec<u8>) -> bool {
    // Most values are text, so the quote is written first and taken out again for the others.
    let start = out.len();
    out.push(b'"');
    match render::value(what, max_length, source, out) {
        Rendered::Absent => {
            out.truncate(start);
            out.extend_from_slice(b"null");
            return false;
        }
        Rendered::Number => drop(out.remove(start)),
        Rendered::Json if max_length.is_none() => drop(out.remove(start)),
        Rendered::Plain => out.push(b'"'),
        // A part of JSON would be no JSON.
        Rendered::Json | Rendered::Text => {
            escape_from(start + 1, out);
            out.push(b'"');
        }
    }
    true
}

/// Escapes what was written from `start` on (RFC 8259 section 7); bytes that are no UTF-8 become
/// U+FFFD. Plain text, the common case, is left where it is.
fn escape_from(start: usize, out: &mut Vec<u8>) {
    let Some(first) = unplain(&out[start..]) else {
        return;
    };
    let rest = out.split_off(start + first);
    for chunk in rest.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                c if u32::from(c) < 0x20 => {
                    out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// Where the first byte stands that JSON does not take as it is. Eight at a time: a log line is
/// looked through byte for byte.
fn unplain(text: &[u8]) -> Option<usize> {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = EACH << 7;
    let plain = |b: u8| (0x20..0x80).contains(&b) && b != b'"' && b != b'\\';
    let (words, rest) = text.as_chunks::<8>();
    let unplain = |word: u64| {
        // A byte below `n` borrows and so sets its highest bit; those above 0x7f have it set.
        let below = |word: u64, n: u8| word.wrapping_sub(EACH * u64::from(n)) & !word;
        let is = |b: u8| below(word ^ (EACH * u64::from(b)), 1);
        (word | below(word, 0x20) | is(b'"') | is(b'\\')) & HIGH != 0
    };
    let words_end = text.len() - rest.len();
    let from = match words.iter().position(|w| unplain(u64::from_ne_bytes(*w))) {
        Some(word) => word * 8,
        None => words_end,
    };
    let found = text[from..].iter().position(|b| !plain(*b));
    found.map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::unplain;

    #[test]
    fn what_json_escapes_is_found_wherever_it_stands() {
        for byte in 0..=255u8 {
            let plain = matches!(byte, b' '..=b'~' | 0x7f) && !matches!(byte, b'"' | b'\\');
            for length in 1..=20 {
                for at in 0..length {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    assert_eq!(unplain(&text), (!plain).then_some(at), "{byte} {at}");
                }
            }
        }
        assert_eq!(unplain(b""), None);
        assert_eq!(unplain(b"aaaaaaa\x1f\x80"), Some(7));
    }
}
