//! Fills types from a located tree and records everything that does not fit.
//!
//! It knows the declared fields and their types, not the rules between them (`validate`). One
//! decoder serves one object; an error never ends the walk, so that all are found at once.

use crate::field::Field;
use crate::node::{Entry, Node, Position, Value};
use crate::path::Path;
use crate::schema::{Choice, FieldInfo, MessageInfo, Support};
use crate::suggest;

/// A finding before it knows its file.
#[derive(Clone, Debug)]
pub struct Problem {
    pub error: bool,
    pub code: Option<&'static str>,
    pub path: Path,
    pub at: Position,
    pub message: String,
    pub suggestion: Option<String>,
    pub what: What,
}

/// Tells follow-on findings from root causes: a misspelt `host` must not also be a missing `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    UnknownField,
    UnknownKind,
    Missing,
    Other,
}

#[derive(Debug, Default)]
pub struct Decoder {
    pub problems: Vec<Problem>,
    /// Unknown fields become warnings and are left out.
    pub allow_unknown: bool,
    path: Path,
    /// Inside a field without effect: its own fields need no second warning.
    pending_depth: usize,
}

impl Decoder {
    pub fn new(path: Path, allow_unknown: bool) -> Decoder {
        Decoder {
            path,
            allow_unknown,
            ..Decoder::default()
        }
    }

    pub fn error(&mut self, node: &Node, message: String, suggestion: Option<String>) {
        self.push(true, node.at, message, suggestion, What::Other);
    }

    pub fn warning(&mut self, node: &Node, message: String, suggestion: Option<String>) {
        self.push(false, node.at, message, suggestion, What::Other);
    }

    fn push(
        &mut self,
        error: bool,
        at: Position,
        message: String,
        suggestion: Option<String>,
        what: What,
    ) {
        let path = self.path.clone();
        self.problems.push(Problem {
            error,
            code: None,
            path,
            at,
            message,
            suggestion,
            what,
        });
    }

    /// One field of a message. `null` means that the field is not set.
    pub fn field<T: Field>(&mut self, entry: &Entry, info: &MessageInfo) -> Option<T> {
        if entry.value.value == Value::Null {
            return None;
        }
        self.path.push_key(&entry.key);
        let field = info.field(&entry.key);
        let pending = field.is_some_and(|field| field.support == Support::Pending);
        if let Some(field) = field {
            self.report_state(entry, field);
        }
        self.pending_depth += usize::from(pending);
        let value = T::decode(&entry.value, self);
        self.pending_depth -= usize::from(pending);
        self.path.pop();
        value
    }

    fn report_state(&mut self, entry: &Entry, field: &FieldInfo) {
        if field.support == Support::Pending && self.pending_depth == 0 {
            let message = "accepted and kept, but has no effect yet in this version".to_owned();
            self.push(false, entry.key_at, message, None, What::Other);
        }
        if let Some(instead) = field.deprecated {
            let message = format!("{} is deprecated", field.name);
            self.push(
                false,
                entry.key_at,
                message,
                Some(instead.to_owned()),
                What::Other,
            );
        }
    }

    /// One value of a map.
    pub fn value<T: Field>(&mut self, entry: &Entry) -> Option<T> {
        self.inside(entry, |decoder| T::decode(&entry.value, decoder))
    }

    pub fn inside<T>(&mut self, entry: &Entry, decode: impl FnOnce(&mut Decoder) -> T) -> T {
        self.path.push_key(&entry.key);
        let value = decode(self);
        self.path.pop();
        value
    }

    pub fn element<T: Field>(&mut self, index: usize, node: &Node) -> Option<T> {
        self.path.push_index(index);
        let value = T::decode(node, self);
        self.path.pop();
        value
    }

    pub fn unknown_field(&mut self, entry: &Entry, info: &MessageInfo) {
        self.unknown_part(entry, suggest::field(info, &entry.key));
    }

    /// An unknown key, with what to do about it.
    pub fn unknown_part(&mut self, entry: &Entry, suggestion: Option<String>) {
        let message = match self.allow_unknown {
            true => format!("unknown field {:?} is ignored", entry.key),
            false => format!("unknown field {:?}", entry.key),
        };
        self.path.push_key(&entry.key);
        self.push(
            !self.allow_unknown,
            entry.key_at,
            message,
            suggestion,
            What::UnknownField,
        );
        self.path.pop();
    }

    pub fn mapping<'a>(&mut self, node: &'a Node) -> Option<&'a [Entry]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            _ => self.mistyped(node, "a mapping", None),
        }
    }

    pub fn sequence<'a>(&mut self, node: &'a Node) -> Option<&'a [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            _ => self.mistyped(
                node,
                "a list",
                Some("start each element with \"- \"".to_owned()),
            ),
        }
    }

    /// A string as written. Numbers and booleans are refused as Kubernetes refuses them: `v: 1.10`
    /// would else become `1.1`.
    pub fn string<'a>(&mut self, node: &'a Node) -> Option<&'a str> {
        let suggestion = match &node.value {
            Value::String(text) => return Some(text),
            Value::Bool(_, text) | Value::Int(_, text) | Value::Float(_, text) => {
                Some(format!("quote it: {text:?}"))
            }
            _ => None,
        };
        self.mistyped(node, "a string", suggestion)
    }

    pub fn integer(&mut self, node: &Node) -> Option<i128> {
        match &node.value {
            Value::Int(value, _) => Some(*value),
            // 80.0 is what JSON of a program with one number type may hold.
            Value::Float(value, _) if value.fract() == 0.0 && value.abs() < 1e15 => {
                Some(*value as i128)
            }
            Value::Float(..) => self.mistyped(node, "a whole number", None),
            _ => self.not_a_number(node),
        }
    }

    pub fn not_a_number<T>(&mut self, node: &Node) -> Option<T> {
        let suggestion = match &node.value {
            Value::String(text) if text.parse::<f64>().is_ok() => {
                Some(format!("remove the quotes: {text}"))
            }
            _ => None,
        };
        self.mistyped(node, "a number", suggestion)
    }

    pub fn choice<T: Choice>(&mut self, node: &Node) -> Option<T> {
        let name = self.string(node)?;
        let Some(value) = T::from_name(name) else {
            let message = format!("unknown value {name:?}");
            let suggestion = suggest::value(name, T::VARIANTS);
            self.error(node, message, Some(suggestion));
            return None;
        };
        if let Some(variant) = T::VARIANTS.iter().find(|variant| variant.name == name) {
            if variant.support == Support::Pending && self.pending_depth == 0 {
                self.warning(
                    node,
                    format!("the value {name} has no effect yet in this version"),
                    None,
                );
            }
            if let Some(instead) = variant.deprecated {
                self.warning(
                    node,
                    format!("{name} is deprecated"),
                    Some(instead.to_owned()),
                );
            }
        }
        Some(value)
    }

    /// Always `None`, so that it can end a `decode`.
    pub fn mistyped<T>(
        &mut self,
        node: &Node,
        expected: &str,
        suggestion: Option<String>,
    ) -> Option<T> {
        self.error(
            node,
            format!("expected {expected}, found {}", node.describe()),
            suggestion,
        );
        None
    }
}
