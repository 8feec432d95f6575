//! Which resources a rejection names. Our client writes them as `google.rpc.BadRequest` details
//! beside a text in Envoy's form; from the free text of other clients they are found by looking
//! for the names that the rejected response carried. A guess from text is never more than that:
//! the whole text is kept as well.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use prost::Message;

use crate::type_url;

/// Longer texts are cut before they are searched or kept.
const MOST_TEXT: usize = 16 << 10;

const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// One refused resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub name: String,
    /// What is wrong, with the field path where known.
    pub reason: String,
}

/// `google.rpc.BadRequest` (googleapis `error_details.proto`), which the Envoy types leave out.
#[derive(Clone, PartialEq, Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

/// The `error_detail` of a NACK.
pub(crate) fn write(type_url: &str, rejections: &[Rejection]) -> rpc::Status {
    let what = match type_url {
        type_url::CLUSTER => "cluster(s)",
        type_url::LISTENER => "listener(s)",
        type_url::ROUTE => "route configuration(s)",
        type_url::ENDPOINT => "cluster load assignment(s)",
        _ => "resource(s)",
    };
    let list: Vec<_> = rejections
        .iter()
        .map(|r| format!("{}: {}", r.name, r.reason))
        .collect();
    let detail = BadRequest {
        field_violations: rejections
            .iter()
            .map(|r| FieldViolation {
                field: r.name.clone(),
                description: r.reason.clone(),
            })
            .collect(),
    };
    rpc::Status {
        code: rpc::Code::InvalidArgument as i32,
        message: format!("Error adding/updating {what} {}", list.join(", ")),
        details: vec![Any {
            type_url: BAD_REQUEST.to_owned(),
            value: detail.encode_to_vec(),
        }],
    }
}

/// Cuts a client's text to what is kept.
pub(crate) fn text(status: &rpc::Status) -> String {
    let mut end = status.message.len().min(MOST_TEXT);
    while !status.message.is_char_boundary(end) {
        end -= 1;
    }
    status.message[..end].to_owned()
}

/// Reason by name, for those of `names` that the rejection speaks of (none: it names none), and
/// whether that is what the client said rather than what was found in its text.
pub(crate) fn read<'a>(
    status: &rpc::Status,
    names: impl Iterator<Item = &'a str>,
) -> (BTreeMap<&'a str, String>, bool) {
    let detail = status
        .details
        .iter()
        .find(|any| any.type_url == BAD_REQUEST)
        .and_then(|any| BadRequest::decode(any.value.as_slice()).ok());
    if let Some(detail) = detail {
        let reasons: BTreeMap<_, _> = detail
            .field_violations
            .iter()
            .map(|v| (v.field.as_str(), &v.description))
            .collect();
        let named = names.filter_map(|name| Some((name, (*reasons.get(name)?).clone())));
        return (named.collect(), true);
    }
    (from_text(&text(status), names), false)
}

fn from_text<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, String> {
    let mut found: Vec<(usize, &str)> = names
        .filter_map(|name| Some((position(text, name)?, name)))
        .collect();
    found.sort_unstable();
    let ends = found.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    found
        .iter()
        .zip(ends)
        .map(|((at, name), end)| {
            let reason = text[at + name.len()..end].trim_start_matches([':', ' ']);
            let reason = reason.trim_end_matches([',', ' ', '\n']);
            (
                *name,
                if reason.is_empty() { text } else { reason }.to_owned(),
            )
        })
        .collect()
}

/// Where `name` stands in `text` as a whole word.
fn position(text: &str, name: &str) -> Option<usize> {
    if name.is_empty() {
        return None;
    }
    text.match_indices(name).map(|(at, _)| at).find(|at| {
        let before = text[..*at].chars().next_back();
        let mut after = text[at + name.len()..].chars();
        let next = match after.next() {
            // The end of a sentence, not of a host name.
            Some('.') => after.next().filter(|c| c.is_alphanumeric()),
            other => other,
        };
        !before.is_some_and(is_name_char) && !next.is_some_and(is_name_char)
    })
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '|' | '.' | '/' | '~' | '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_free_text_as_whole_words() {
        let check = |text: &str, names: &[&str], expect: &[(&str, &str)]| {
            let status = rpc::Status {
                message: text.into(),
                ..Default::default()
            };
            let (got, _) = read(&status, names.iter().copied());
            let got: Vec<_> = got
                .iter()
                .map(|(name, why)| (*name, why.as_str()))
                .collect();
            assert_eq!(got, expect, "{text}");
        };
        check(
            "Error adding/updating cluster(s) outbound|80||b.x: no endpoints, outbound|80||a: bad lb",
            &[
                "outbound|80||a",
                "outbound|80||a.x",
                "outbound|80||b",
                "outbound|80||b.x",
            ],
            &[
                ("outbound|80||a", "bad lb"),
                ("outbound|80||b.x", "no endpoints"),
            ],
        );
        check(
            "Error adding/updating listener(s) 0.0.0.0_80: cannot bind '0.0.0.0:80': \
             Permission denied\n",
            &["0.0.0.0_80", "0.0.0.0_8080"],
            &[("0.0.0.0_80", "cannot bind '0.0.0.0:80': Permission denied")],
        );
        check(
            "unknown cluster in http.8080.",
            &["http.8080", "http.80"],
            &[("http.8080", ".")],
        );
        check("Proto constraint validation failed", &["a", "b"], &[]);
        check("", &["a", ""], &[]);
    }

    #[test]
    fn our_own_rejections_come_back_exactly() {
        let rejections = [
            Rejection {
                name: "a".into(),
                reason: "filter_chains[0]: b is unknown".into(),
            },
            Rejection {
                name: "b".into(),
                reason: "address in use".into(),
            },
        ];
        let status = write(type_url::LISTENER, &rejections);
        assert_eq!(
            status.message,
            "Error adding/updating listener(s) a: filter_chains[0]: b is unknown, \
             b: address in use"
        );
        let (got, exact) = read(&status, ["a", "b", "c"].into_iter());
        assert!(exact);
        assert_eq!(got["a"], "filter_chains[0]: b is unknown");
        assert_eq!(got["b"], "address in use");
        assert_eq!(got.len(), 2);
    }
}
