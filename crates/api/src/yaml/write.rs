//! JSON as block YAML, for people to read and to apply again.
//!
//! Invariant: what this writes, `read` gives back unchanged. A string is written plain only when the
//! reader would take the plain word for the same string.

use serde_json::Value as Json;

use super::scalar;
use crate::node::Value;

/// Longer keys need YAML's explicit form (an implicit key ends within 1024 characters).
const MAX_IMPLICIT_KEY: usize = 500;

/// One document, without separator, ending with a line break.
pub fn write(json: &Json) -> String {
    let mut text = String::new();
    match json {
        Json::Object(map) if !map.is_empty() => mapping(&mut text, map, 0, false),
        Json::Array(items) if !items.is_empty() => sequence(&mut text, items, 0, false),
        other => line(&mut text, &inline(other, 0)),
    }
    text
}

/// `continued`: the first line goes on after what is written already (`- `).
fn mapping(text: &mut String, map: &serde_json::Map<String, Json>, indent: usize, continued: bool) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !continued {
            pad(text, indent);
        }
        let key = if is_plain(key) && key != "<<" {
            key.clone()
        } else {
            quoted(key)
        };
        if key.len() > MAX_IMPLICIT_KEY {
            text.push_str(&format!("? {key}\n"));
            pad(text, indent);
            text.push(':');
        } else {
            text.push_str(&key);
            text.push(':');
        }
        match value {
            Json::Object(map) if !map.is_empty() => {
                text.push('\n');
                mapping(text, map, indent + 2, false);
            }
            // As kubectl writes it: the dash stands below the key.
            Json::Array(items) if !items.is_empty() => {
                text.push('\n');
                sequence(text, items, indent, false);
            }
            other => line(text, &format!(" {}", inline(other, indent + 2))),
        }
    }
}

fn sequence(text: &mut String, items: &[Json], indent: usize, continued: bool) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 || !continued {
            pad(text, indent);
        }
        text.push_str("- ");
        match item {
            Json::Object(map) if !map.is_empty() => mapping(text, map, indent + 2, true),
            Json::Array(items) if !items.is_empty() => sequence(text, items, indent + 2, true),
            other => line(text, &inline(other, indent + 2)),
        }
    }
}

fn pad(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

fn inline(json: &Json, indent: usize) -> String {
    match json {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::Array(_) => "[]".to_owned(),
        Json::Object(_) => "{}".to_owned(),
        Json::String(value) if is_plain(value) => value.clone(),
        Json::String(value) if is_block(value) => block(value, indent.max(2)),
        Json::String(value) => quoted(value),
    }
}

fn is_plain(text: &str) -> bool {
    let starts_well = |c: char| !c.is_whitespace() && !"-?:,[]{}#&*!|>'\"%@`=".contains(c);
    matches!(scalar::plain(text), Value::String(_))
        && text.starts_with(starts_well)
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.starts_with("...")
        && text.chars().all(is_printable)
}

/// What may stand in the text as it is; everything else is escaped.
fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// Texts of several lines that literal style keeps exactly.
fn is_block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && !text.ends_with("\n\n")
        && text.chars().all(|c| c == '\n' || is_printable(c))
        && text
            .split('\n')
            .all(|row| row.is_empty() || !row.ends_with(' '))
}

fn block(text: &str, indent: usize) -> String {
    let (mark, body) = match text.strip_suffix('\n') {
        Some(body) => ("|", body),
        None => ("|-", text),
    };
    let mut written = mark.to_owned();
    for row in body.split('\n') {
        written.push('\n');
        if !row.is_empty() {
            pad(&mut written, indent);
            written.push_str(row);
        }
    }
    written
}

fn quoted(text: &str) -> String {
    let mut written = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            '\r' => written.push_str("\\r"),
            c if is_printable(c) => written.push(c),
            c if u32::from(c) < 0x100 => written.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x10000 => written.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => written.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    written.push('"');
    written
}
