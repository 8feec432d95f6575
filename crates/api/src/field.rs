//! What a field's Rust type must be able to do, and the scalar and container types that can.
//!
//! Messages and enums get this trait from `message!` and `choice!` (`schema.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::decode::Decoder;
use crate::duration::{format_duration, parse_duration};
use crate::node::{Node, Value};
use crate::schema::Schema;

pub trait Field: Sized {
    fn schema() -> Schema;

    /// The value, or `None` after an error was recorded with the decoder.
    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self>;

    fn encode(&self) -> Json;

    /// Absent fields are not written. An explicit `0` or `false` in an `Option` is.
    fn is_absent(&self) -> bool {
        false
    }
}

impl Field for String {
    fn schema() -> Schema {
        Schema::String
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        decoder.string(node).map(str::to_owned)
    }

    fn encode(&self) -> Json {
        Json::String(self.clone())
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}

impl Field for bool {
    fn schema() -> Schema {
        Schema::Bool
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        match &node.value {
            Value::Bool(value, _) => Some(*value),
            Value::String(text) if text == "true" || text == "false" => decoder.mistyped(
                node,
                "a boolean",
                Some(format!("remove the quotes: {text}")),
            ),
            _ => decoder.mistyped(node, "a boolean", Some("write true or false".to_owned())),
        }
    }

    fn encode(&self) -> Json {
        Json::Bool(*self)
    }

    fn is_absent(&self) -> bool {
        !*self
    }
}

macro_rules! integer {
    ($($ty:ty),*) => { $(
        impl Field for $ty {
            fn schema() -> Schema {
                Schema::Integer { min: <$ty>::MIN as i128, max: <$ty>::MAX as i128 }
            }

            fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
                let value = decoder.integer(node)?;
                <$ty>::try_from(value).ok().or_else(|| {
                    decoder.error(node, format!("{value} is out of range, {} to {} is allowed", <$ty>::MIN, <$ty>::MAX), None);
                    None
                })
            }

            fn encode(&self) -> Json {
                Json::from(*self)
            }

            fn is_absent(&self) -> bool {
                *self == 0
            }
        }
    )* };
}
integer!(u16, i32, u32, i64, u64);

impl Field for f64 {
    fn schema() -> Schema {
        Schema::Number
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        match &node.value {
            Value::Int(value, _) => Some(*value as f64),
            Value::Float(value, _) if value.is_finite() => Some(*value),
            _ => decoder.not_a_number(node),
        }
    }

    fn encode(&self) -> Json {
        // Whole numbers are written without a fraction, as people write them.
        if self.fract() == 0.0 && self.abs() < 1e15 {
            return Json::from(*self as i64);
        }
        serde_json::Number::from_f64(*self).map_or(Json::Null, Json::Number)
    }

    fn is_absent(&self) -> bool {
        *self == 0.0
    }
}

impl Field for Duration {
    fn schema() -> Schema {
        Schema::Duration
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        const EXAMPLE: &str = "write a number with a unit, such as 5s, 100ms or 1m30s";
        match &node.value {
            Value::String(text) => match parse_duration(text) {
                Ok(duration) => Some(duration),
                Err(reason) => {
                    decoder.error(node, reason, Some(EXAMPLE.to_owned()));
                    None
                }
            },
            Value::Int(_, text) | Value::Float(_, text) => {
                let suggestion = format!("write {text}s for seconds or {text}ms for milliseconds");
                decoder.error(
                    node,
                    format!("the duration {text} has no unit"),
                    Some(suggestion),
                );
                None
            }
            _ => decoder.mistyped(node, "a duration", Some(EXAMPLE.to_owned())),
        }
    }

    fn encode(&self) -> Json {
        Json::String(format_duration(*self))
    }
}

impl Field for OffsetDateTime {
    fn schema() -> Schema {
        Schema::Timestamp
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        let parsed = node
            .as_str()
            .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        parsed.or_else(|| {
            decoder.mistyped(
                node,
                "a time",
                Some("write it like 2026-01-31T12:00:00Z".to_owned()),
            )
        })
    }

    fn encode(&self) -> Json {
        self.format(&Rfc3339).map_or(Json::Null, Json::String)
    }
}

/// Content without a fixed form, kept as written.
impl Field for Json {
    fn schema() -> Schema {
        Schema::Any
    }

    fn decode(node: &Node, _: &mut Decoder) -> Option<Self> {
        Some(node.to_json())
    }

    fn encode(&self) -> Json {
        self.clone()
    }

    fn is_absent(&self) -> bool {
        self.is_null()
    }
}

impl<T: Field> Field for Option<T> {
    fn schema() -> Schema {
        T::schema()
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        T::decode(node, decoder).map(Some)
    }

    fn encode(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::encode)
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Field> Field for Arc<T> {
    fn schema() -> Schema {
        T::schema()
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        T::decode(node, decoder).map(Arc::new)
    }

    fn encode(&self) -> Json {
        T::encode(self)
    }
}

impl<T: Field + Default> Field for Vec<T> {
    fn schema() -> Schema {
        Schema::List(T::schema)
    }

    /// An element that does not decode leaves a default in its place, so that the indexes in later
    /// messages stay those of the document.
    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        let items = decoder.sequence(node)?;
        let decoded = items.iter().enumerate();
        Some(
            decoded
                .map(|(index, item)| decoder.element(index, item).unwrap_or_default())
                .collect(),
        )
    }

    fn encode(&self) -> Json {
        self.iter().map(T::encode).collect()
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn schema() -> Schema {
        Schema::Map(T::schema)
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        let entries = decoder.mapping(node)?;
        let decoded = entries.iter().filter_map(|entry| {
            let value = decoder.value(entry)?;
            Some((entry.key.clone(), value))
        });
        Some(decoded.collect())
    }

    fn encode(&self) -> Json {
        Json::Object(
            self.iter()
                .map(|(key, value)| (key.clone(), value.encode()))
                .collect(),
        )
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}

/// Kubernetes' number or name of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        IntOrString::Int(0)
    }
}

impl Field for IntOrString {
    fn schema() -> Schema {
        Schema::IntOrString
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        match &node.value {
            Value::Int(..) => i32::decode(node, decoder).map(IntOrString::Int),
            Value::String(text) => Some(IntOrString::String(text.clone())),
            _ => decoder.mistyped(node, "a number or a name", None),
        }
    }

    fn encode(&self) -> Json {
        match self {
            IntOrString::Int(value) => Json::from(*value),
            IntOrString::String(text) => Json::String(text.clone()),
        }
    }
}

impl serde::Serialize for IntOrString {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encode().serialize(serializer)
    }
}
