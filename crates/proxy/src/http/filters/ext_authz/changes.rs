//! What an answer changes about a request or a response.
//!
//! Invariant: an answer that allows is applied as a whole or not at all. A header that could not be set
//! would leave the client's own of that name to the upstream.

use crate::http::head::{Method, RequestHead};
use crate::http::headers::{HeaderBlock, Known, is_value};
use lateen_proxy_config::Metadata;
use std::collections::BTreeMap;

/// What an answer that allows wants changed. Names are in lower case.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub request: Vec<Change>,
    pub remove: Vec<String>,
    /// Of the query, by name.
    pub set_parameters: Vec<(String, String)>,
    pub remove_parameters: Vec<String>,
    pub response: Vec<Change>,
    pub metadata: Option<Metadata>,
}

/// The answer asks for something that no request can have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl Changes {
    /// Whether the request is another one after them.
    pub(super) fn touch_request(&self) -> bool {
        !(self.request.is_empty()
            && self.remove.is_empty()
            && self.set_parameters.is_empty()
            && self.remove_parameters.is_empty())
    }

    /// In Envoy's order: headers, what goes, then the query.
    pub(super) fn apply(&self, request: &mut RequestHead) {
        for change in &self.request {
            change.apply_to_request(request);
        }
        // After them: what the server wants gone is gone.
        for name in &self.remove {
            request.headers.remove_name(name.as_bytes());
        }
        if !(self.set_parameters.is_empty() && self.remove_parameters.is_empty()) {
            let path = self.with_parameters(request.path_bytes());
            request.set_path(&path);
        }
    }

    /// Parameters come out ordered by name, and each with a `=`, as from Envoy
    /// (`Http::Utility::QueryParamsMulti`).
    fn with_parameters(&self, path: &[u8]) -> Vec<u8> {
        let mut parts = path.splitn(2, |b| *b == b'?');
        let mut path = parts.next().unwrap_or_default().to_vec();
        let mut all: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        let query = parts.next().filter(|query| !query.is_empty());
        for parameter in query.into_iter().flat_map(|q| q.split(|b| *b == b'&')) {
            let mut sides = parameter.splitn(2, |b| *b == b'=');
            let name = sides.next().unwrap_or_default();
            all.entry(name)
                .or_default()
                .push(sides.next().unwrap_or_default());
        }
        for (name, value) in &self.set_parameters {
            all.insert(name.as_bytes(), vec![value.as_bytes()]);
        }
        for name in &self.remove_parameters {
            all.remove(name.as_bytes());
        }
        let mut delimiter = b'?';
        for (name, values) in all {
            for value in values {
                path.push(delimiter);
                path.extend_from_slice(name);
                path.push(b'=');
                path.extend_from_slice(value);
                delimiter = b'&';
            }
        }
        path
    }
}

/// A query parameter that ends nowhere else than where it is said to end.
pub(super) fn parameter(name: String, value: String) -> Result<(String, String), Invalid> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'&' && b != b'#';
    let fits = name.bytes().all(|b| plain(b) && b != b'=') && value.bytes().all(plain);
    match fits {
        true => Ok((name, value)),
        false => Err(Invalid),
    }
}

/// One header.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) struct Change {
    pub(super) name: String,
    value: Vec<u8>,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Set,
    Add,
    AddIfAbsent,
    AddIfPresent,
    SetIfPresent,
}

impl Change {
    /// [`None`]: the header is not for the server to say, since it is how a message is framed.
    pub(super) fn new(name: &str, value: &[u8], how: How) -> Result<Option<Change>, Invalid> {
        let name = match name.to_ascii_lowercase() {
            // One thing under two names.
            name if name == ":authority" => "host".to_owned(),
            name => name,
        };
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let plain = !value.is_empty() && value.iter().all(u8::is_ascii_graphic);
        let sets = matches!(how, How::Set | How::SetIfPresent);
        let fits = match name.as_str() {
            "host" => plain && sets,
            ":path" => plain && sets && value.starts_with(b"/"),
            ":method" => sets && Method::usual(value).is_some_and(|m| m != Method::Connect),
            name => !name.is_empty() && name.bytes().all(token) && is_value(value),
        };
        let framing = matches!(
            name.as_str(),
            "content-length"
                | "transfer-encoding"
                | "connection"
                | "keep-alive"
                | "upgrade"
                | "te"
                | "trailer"
                | "proxy-connection"
        );
        match (fits, framing) {
            (false, _) => Err(Invalid),
            (true, true) => Ok(None),
            (true, false) => Ok(Some(Change {
                name,
                value: value.to_vec(),
                how,
            })),
        }
    }

    fn apply_to_request(&self, request: &mut RequestHead) {
        match self.name.as_str() {
            "host" => request.headers.set(Known::Host, &self.value),
            ":path" => request.set_path(&self.value),
            ":method" if request.is_tunnel() => {}
            ":method" => request.method = Method::usual(&self.value).unwrap_or(request.method),
            _ => self.apply(&mut request.headers),
        }
    }

    /// To the headers of a response: those of the head itself are not among them.
    pub(in crate::http::filters) fn apply(&self, headers: &mut HeaderBlock) {
        let name = self.name.as_bytes();
        if name == b"host" || name.starts_with(b":") {
            return;
        }
        let there = headers.get_name(name).is_some();
        match (self.how, there) {
            (How::Set, _) | (How::SetIfPresent, true) => {
                headers.set_name(name, &self.value);
            }
            (How::Add, _) | (How::AddIfAbsent, false) | (How::AddIfPresent, true) => {
                headers.push_name(name, &self.value);
            }
            (How::SetIfPresent | How::AddIfPresent, false) | (How::AddIfAbsent, true) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_frame_a_message_are_not_taken_and_such_as_cannot_be_are_told() {
        for (name, value, fits) in [
            ("X-User", "a", Ok(true)),
            ("x-user", "", Ok(true)),
            ("x-user", "a\r\nb: c", Err(Invalid)),
            ("x-user", "a\n", Err(Invalid)),
            ("x user", "a", Err(Invalid)),
            ("", "a", Err(Invalid)),
            (":path", "/", Ok(true)),
            (":path", "/a b", Err(Invalid)),
            (":path", "a", Err(Invalid)),
            (":method", "PUT", Ok(true)),
            (":method", "CONNECT", Err(Invalid)),
            (":scheme", "https", Err(Invalid)),
            ("Host", "h", Ok(true)),
            ("host", "", Err(Invalid)),
            ("Transfer-Encoding", "chunked", Ok(false)),
            ("content-length", "1", Ok(false)),
        ] {
            let change = Change::new(name, value.as_bytes(), How::Set);
            assert_eq!(
                change.map(|change| change.is_some()),
                fits,
                "{name}: {value}"
            );
        }
        let added = Change::new(":path", b"/", How::Add);
        assert_eq!(added.map(|change| change.is_some()), Err(Invalid));
    }

    #[test]
    fn parameters_are_set_and_removed_as_in_envoy() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let owned = pairs
                .iter()
                .map(|(n, v)| parameter((*n).to_owned(), (*v).to_owned()));
            owned.collect::<Result<_, _>>().unwrap()
        };
        let check = |path: &str, set: &[(&str, &str)], remove: &[&str], expect: &str| {
            let changes = Changes {
                set_parameters: pairs(set),
                remove_parameters: remove.iter().map(|name| (*name).to_owned()).collect(),
                ..Changes::default()
            };
            let found = changes.with_parameters(path.as_bytes());
            assert_eq!(String::from_utf8_lossy(&found), expect, "{path}");
        };
        check("/a", &[("b", "1")], &[], "/a?b=1");
        check("/a?b=2&b=3&a=1", &[("b", "1")], &[], "/a?a=1&b=1");
        check("/a?b=2&c", &[], &["b"], "/a?c=");
        check("/a?b=2", &[], &["b"], "/a");
        check("/a?b=2", &[("b", "1")], &["b"], "/a");
        check("/a?b=x=y", &[("c", "")], &[], "/a?b=x=y&c=");
        for (name, value) in [("a&b", "1"), ("a", "1&b=2"), ("a=b", "1"), ("a", "1 2")] {
            let found = parameter(name.to_owned(), value.to_owned());
            assert_eq!(found, Err(Invalid), "{name} {value}");
        }
    }
}
