//! The located tree: YAML or JSON as read, every key and value with the place it came from.
//!
//! It is not a value type to compute with: the types of the kinds are filled from it and it is kept
//! only so that later findings can name a line.

use crate::path::{Path, Segment};

/// A place in the source, both numbers counted from 1; `0` where there is no source (JSON from an API).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u32,
    /// In characters, not bytes.
    pub column: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    /// With the text as written: `yes` is one, too.
    Bool(bool, String),
    /// The text as written; it fits `i128` (anything larger is a `Float`).
    Int(i128, String),
    Float(f64, String),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Node,
}

impl Node {
    pub fn null() -> Node {
        Node {
            at: Position::default(),
            value: Value::Null,
        }
    }

    /// The value under `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where `path` stands. A path that leads beyond what was written (a missing field) gives the
    /// key of the nearest parent that was.
    pub fn locate(&self, path: &Path) -> Position {
        let mut node = self;
        let mut nearest = self.at;
        for segment in path.segments() {
            let next = match (segment, &node.value) {
                (Segment::Key(key), Value::Mapping(_)) => {
                    let Some(entry) = node.entry(key) else {
                        return nearest;
                    };
                    nearest = entry.key_at;
                    &entry.value
                }
                (Segment::Index(index), Value::Sequence(items)) => {
                    let Some(item) = items.get(*index) else {
                        return nearest;
                    };
                    nearest = item.at;
                    item
                }
                _ => return nearest,
            };
            node = next;
        }
        match node.value {
            // For a block the key says more than the first thing inside it.
            Value::Mapping(_) | Value::Sequence(_) => nearest,
            _ => node.at,
        }
    }

    /// What a message calls this value: "a mapping", "the number 5".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(_, text) => format!("the boolean {text}"),
            Value::Int(_, text) | Value::Float(_, text) => format!("the number {text}"),
            Value::String(text) => format!("the string {text:?}"),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }

    /// The tree as JSON, for fields whose content has no fixed form.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value, _) => Json::Bool(*value),
            Value::Int(value, text) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => Json::from(value),
                (_, Ok(value)) => Json::from(value),
                _ => Json::String(text.clone()),
            },
            Value::Float(value, text) => serde_json::Number::from_f64(*value)
                .map_or_else(|| Json::String(text.clone()), Json::Number),
            Value::String(text) => Json::String(text.clone()),
            Value::Sequence(items) => items.iter().map(Node::to_json).collect(),
            Value::Mapping(entries) => Json::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect(),
            ),
        }
    }

    /// A tree without places, for JSON that came over an API.
    pub fn from_json(json: &serde_json::Value) -> Node {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value, value.to_string()),
            Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => Value::Int(value.into(), number.to_string()),
                (_, Some(value), _) => Value::Int(value.into(), number.to_string()),
                (_, _, value) => Value::Float(value.unwrap_or(f64::NAN), number.to_string()),
            },
            Json::String(text) => Value::String(text.clone()),
            Json::Array(items) => Value::Sequence(items.iter().map(Node::from_json).collect()),
            Json::Object(map) => Value::Mapping(
                map.iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        key_at: Position::default(),
                        value: Node::from_json(value),
                    })
                    .collect(),
            ),
        };
        Node {
            at: Position::default(),
            value,
        }
    }
}
