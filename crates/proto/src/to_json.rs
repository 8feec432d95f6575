//! From messages to proto3 JSON (<https://protobuf.dev/programming-guides/json/>), with the names of
//! the .proto file and with unknown `Any`s kept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage,
    SerializeOptions, Value as Proto,
};
use serde_json::{Map, Value as Json, json};

/// A packed message with its `@type`.
pub(crate) fn any(pool: &DescriptorPool, type_url: &str, bytes: &[u8]) -> Json {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let decoded = pool
        .get_message_by_name(name)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok());
    let mut object = Map::new();
    object.insert("@type".to_owned(), Json::from(type_url));
    match decoded.map(|m| (message(pool, &m), m)) {
        Some((Json::Object(fields), decoded)) if !is_well_known(&decoded) => object.extend(fields),
        // Messages whose JSON is no object of fields (durations, structs) go under `value`.
        Some((value, _)) => {
            object.insert("value".to_owned(), value);
        }
        None => {
            object.insert("value".to_owned(), Json::from(STANDARD.encode(bytes)));
        }
    }
    Json::Object(object)
}

/// A message without `@type`. Fields that were not given are left out.
pub(crate) fn message(pool: &DescriptorPool, message: &DynamicMessage) -> Json {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        return nested_any(pool, message);
    }
    if is_well_known(message) {
        return well_known(message);
    }
    // In the order of the .proto file, which is the order people know.
    let fields = descriptor
        .fields()
        .filter(|f| message.has_field(f))
        .map(|f| {
            let json = field(pool, &f, &message.get_field(&f));
            (f.name().to_owned(), json)
        });
    Json::Object(fields.collect())
}

fn is_well_known(message: &DynamicMessage) -> bool {
    message
        .descriptor()
        .full_name()
        .starts_with("google.protobuf.")
}

fn nested_any(pool: &DescriptorPool, message: &DynamicMessage) -> Json {
    let type_url = message.get_field_by_name("type_url");
    let value = message.get_field_by_name("value");
    match (type_url.as_deref(), value.as_deref()) {
        (Some(Proto::String(type_url)), Some(Proto::Bytes(bytes))) => any(pool, type_url, bytes),
        _ => json!({}),
    }
}

/// Durations, timestamps, wrappers, structs: the library knows their JSON.
fn well_known(message: &DynamicMessage) -> Json {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map(whole_numbers)
        // Out of range (a year beyond 9999): there is no JSON for it.
        .unwrap_or_else(|e| Json::from(format!("<{e}>")))
}

/// The numbers of a `Struct` are all doubles; `9080` is not to be shown as `9080.0`.
fn whole_numbers(json: Json) -> Json {
    match json {
        Json::Number(n) if n.is_f64() => n.as_f64().map_or(Json::Null, float),
        Json::Array(values) => values.into_iter().map(whole_numbers).collect(),
        Json::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (key, whole_numbers(value)))
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}

fn field(pool: &DescriptorPool, field: &FieldDescriptor, value: &Proto) -> Json {
    match value {
        Proto::List(values) => values
            .iter()
            .map(|v| single(pool, &field.kind(), v))
            .collect::<Vec<_>>()
            .into(),
        Proto::Map(entries) => map(pool, field, entries),
        value => single(pool, &field.kind(), value),
    }
}

fn map(
    pool: &DescriptorPool,
    field: &FieldDescriptor,
    entries: &std::collections::HashMap<MapKey, Proto>,
) -> Json {
    let kind = match field.kind() {
        Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
        other => other,
    };
    let mut sorted: Vec<(String, &Proto)> = entries
        .iter()
        .map(|(key, value)| (key_text(key), value))
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted
        .into_iter()
        .map(|(key, value)| (key, single(pool, &kind, value)))
        .collect::<Map<_, _>>()
        .into()
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(s) => s.clone(),
    }
}

fn single(pool: &DescriptorPool, kind: &Kind, value: &Proto) -> Json {
    match value {
        Proto::Message(inner) => message(pool, inner),
        Proto::EnumNumber(number) => match kind {
            Kind::Enum(descriptor) => enum_name(descriptor, *number),
            _ => Json::from(*number),
        },
        Proto::Bool(b) => Json::from(*b),
        Proto::I32(n) => Json::from(*n),
        Proto::U32(n) => Json::from(*n),
        // 64-bit numbers are strings in proto3 JSON.
        Proto::I64(n) => Json::from(n.to_string()),
        Proto::U64(n) => Json::from(n.to_string()),
        Proto::F32(n) => float(f64::from(*n)),
        Proto::F64(n) => float(*n),
        Proto::String(s) => Json::from(s.as_str()),
        Proto::Bytes(bytes) => Json::from(STANDARD.encode(bytes)),
        Proto::List(_) | Proto::Map(_) => Json::Null,
    }
}

fn float(number: f64) -> Json {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        return Json::from(number as i64);
    }
    match serde_json::Number::from_f64(number) {
        Some(number) => Json::Number(number),
        None if number.is_nan() => Json::from("NaN"),
        None => Json::from(if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }),
    }
}

fn enum_name(descriptor: &EnumDescriptor, number: i32) -> Json {
    descriptor
        .get_value(number)
        .map_or(Json::from(number), |v| Json::from(v.name()))
}
