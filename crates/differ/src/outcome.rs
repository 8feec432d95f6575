//! What came of one case on one plane, in a shape that can be compared.
//!
//! The whole list of what is made equal before comparing; everything else has to be the same:
//!
//! | what | how |
//! |---|---|
//! | header names | in lower case, in the order of the alphabet (a case with `exact` keeps both) |
//! | `date` | `<date>` |
//! | `x-request-id` that the proxy made (a version 4 UUID) | `<id>` |
//! | `x-envoy-upstream-service-time` | `<milliseconds>` |
//! | the proxies' own addresses 127.0.0.1 and 127.0.0.2 | `<proxy>` |
//! | bodies over 300 bytes | their length and a checksum |
//! | chunk boundaries, HTTP/2 frames | not looked at |
//! | order of requests at different upstreams | by the upstreams' names |

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::wire;
use crate::world::Plane;

/// Bodies up to this are shown.
const SHOWN: usize = 300;

/// Header fields: name in lower case to all its values in order.
pub fn headers(fields: &[(String, String)]) -> Value {
    let mut sorted: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut map = Map::new();
    for (name, value) in sorted {
        let value = Value::from(plain(&name, value));
        match map.get_mut(&name) {
            Some(Value::Array(all)) => all.push(value),
            _ => drop(map.insert(name, Value::Array(vec![value]))),
        }
    }
    // One value is shown without brackets.
    for value in map.values_mut() {
        if let Value::Array(all) = value
            && all.len() == 1
        {
            *value = all.remove(0);
        }
    }
    Value::Object(map)
}

fn plain(name: &str, value: &str) -> String {
    match name {
        "date" => "<date>".to_owned(),
        "x-request-id" if is_uuid(value) => "<id>".to_owned(),
        "x-envoy-upstream-service-time" => "<milliseconds>".to_owned(),
        _ => value.to_owned(),
    }
}

fn is_uuid(value: &str) -> bool {
    let lengths: Vec<usize> = value.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && value.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

/// Names of the fields as they stand, in their order.
pub fn names(fields: &[(String, String)]) -> Value {
    fields.iter().map(|(name, _)| name.as_str()).collect()
}

/// A body, shown when it is short.
pub fn body(data: &[u8]) -> Value {
    match data.len() {
        0..=SHOWN => Value::from(wire::text(data)),
        length => {
            let mut hasher = DefaultHasher::new();
            data.hash(&mut hasher);
            json!({"bytes": length, "checksum": format!("{:016x}", hasher.finish())})
        }
    }
}

/// Makes a whole outcome comparable: the planes' own addresses, and names unless they count.
pub fn normalise(value: &mut Value, plane: Plane, exact: bool) {
    match value {
        Value::String(text) => {
            let own = plane.address().to_string();
            if text.contains(&own) {
                *text = text.replace(&own, "<proxy>");
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|one| normalise(one, plane, exact)),
        Value::Object(map) => {
            if !exact {
                map.remove("names");
            }
            map.values_mut()
                .for_each(|one| normalise(one, plane, exact));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_sorted_and_keep_all_their_values() {
        let fields = [("X-B", "2"), ("date", "now"), ("x-a", "1"), ("x-b", "1")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let expect = json!({"date": "<date>", "x-a": "1", "x-b": ["2", "1"]});
        assert_eq!(headers(&fields), expect);
    }

    #[test]
    fn only_an_id_that_a_proxy_made_is_made_equal() {
        for (value, expect) in [("7", "7"), ("2f5b1a7e-6a41-4b0e-9d63-3a8d2f5e8c11", "<id>")] {
            assert_eq!(plain("x-request-id", value), expect);
        }
    }
}
