//! Normalisation of request paths, as Envoy's connection manager does it before anything reads them.
//!
//! Order: reject a fragment, treat escaped slashes, resolve dot segments, merge slashes
//! (Envoy, `ConnectionManagerUtility::maybeNormalizePath`). Security rules read the result, so a path
//! that cannot be normalised is refused, never passed on as it is.

use crate::{EscapedSlashes, HttpConnectionManager};

/// What to do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathOptions {
    /// Resolve `.` and `..`, decode unreserved characters, turn `\` into `/`.
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Normalized {
    /// The path stays as it is.
    Unchanged,
    /// Route and forward this path instead.
    Changed(Vec<u8>),
    /// Answer 307 with this path as `location`.
    Redirect(Vec<u8>),
    /// Answer 400 (`path_normalization_failed`).
    Reject,
}

impl HttpConnectionManager {
    /// Normalises `:path` the way this connection manager is configured.
    pub fn normalize(&self, path: &[u8]) -> Normalized {
        normalize(
            path,
            PathOptions {
                normalize: self.normalize_path,
                merge_slashes: self.merge_slashes,
                escaped_slashes: self.escaped_slashes,
            },
        )
    }
}

/// Normalises a path with its query. An empty path (CONNECT) stays.
pub fn normalize(path: &[u8], options: PathOptions) -> Normalized {
    let query = path.iter().position(|b| *b == b'?').unwrap_or(path.len());
    let (path, query) = path.split_at(query);
    if path.contains(&b'#') || query.contains(&b'#') {
        return Normalized::Reject;
    }
    // `*` is the server as a whole (RFC 9112 section 3.2.4), not a path.
    if path.is_empty() || path == b"*" || is_plain(path, options) {
        return Normalized::Unchanged;
    }
    let mut out = path.to_vec();
    let mut redirect = false;
    if options.escaped_slashes != EscapedSlashes::KeepUnchanged && unescape_slashes(&mut out) {
        match options.escaped_slashes {
            EscapedSlashes::Reject => return Normalized::Reject,
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            EscapedSlashes::UnescapeAndForward | EscapedSlashes::KeepUnchanged => {}
        }
    }
    if options.normalize {
        match canonical(&out) {
            Some(canonical) => out = canonical,
            None => return Normalized::Reject,
        }
    }
    if options.merge_slashes {
        merge_slashes(&mut out);
    }
    if out == path {
        return Normalized::Unchanged;
    }
    out.extend_from_slice(query);
    if redirect {
        Normalized::Redirect(out)
    } else {
        Normalized::Changed(out)
    }
}

/// Whether nothing can change: the common case, decided in one pass.
fn is_plain(path: &[u8], options: PathOptions) -> bool {
    let mut previous = 0;
    path.starts_with(b"/")
        && path.iter().all(|&b| {
            let after_slash = previous == b'/';
            previous = b;
            match b {
                b'/' => !(after_slash && options.merge_slashes),
                b'.' => !(after_slash && options.normalize),
                b'%' => false,
                _ => !options.normalize || matches!(class(b), Class::Pass | Class::Unreserved),
            }
        })
}

/// `%2F` to `/`, `%5C` to `\`; whether there was any.
fn unescape_slashes(path: &mut Vec<u8>) -> bool {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_slice();
    while let Some((&b, after)) = rest.split_first() {
        match rest.get(..3) {
            Some([b'%', b'2', b'f' | b'F']) => out.push(b'/'),
            Some([b'%', b'5', b'c' | b'C']) => out.push(b'\\'),
            _ => {
                out.push(b);
                rest = after;
                continue;
            }
        }
        rest = &rest[3..];
    }
    let found = out.len() != path.len();
    *path = out;
    found
}

fn merge_slashes(path: &mut Vec<u8>) {
    path.dedup_by(|b, a| *a == b'/' && *b == b'/');
}

/// What canonicalisation does with a character (the WHATWG path percent-encode set, as in Chromium's
/// `url_canon_path`, which Envoy uses).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stays; stays escaped when it was.
    Pass,
    /// Stays; is unescaped when it was escaped (RFC 3986 section 2.3).
    Unreserved,
    /// Is escaped.
    Escape,
    /// `\`, which is taken for `/`.
    Backslash,
    /// NUL: not allowed, escaped or not.
    Invalid,
}

fn class(b: u8) -> Class {
    match b {
        0 => Class::Invalid,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Class::Unreserved,
        b'\\' => Class::Backslash,
        b' ' | b'"' | b'#' | b'<' | b'>' | b'?' | b'^' | b'`' | b'{' | b'|' | b'}' => Class::Escape,
        0x01..=0x1f | 0x7f..=0xff => Class::Escape,
        _ => Class::Pass,
    }
}

/// The canonical form of a path without query; [`None`] when there is none.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    // Bytes above 0x7f are escaped as UTF-8; other bytes are no path.
    std::str::from_utf8(path).ok()?;
    let mut out = Vec::with_capacity(path.len() + 1);
    let mut rest = path;
    if !matches!(rest.first(), Some(b'/' | b'\\')) {
        out.push(b'/');
    }
    while !rest.is_empty() {
        if matches!(out.last(), Some(b'/'))
            && let Some((segments_up, after)) = dot_segment(rest)
        {
            if segments_up {
                back_up(&mut out);
            }
            rest = after;
            continue;
        }
        rest = character(rest, &mut out)?;
    }
    Some(out)
}

/// One character of `rest` onto `out`; what is left.
fn character<'a>(rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (&b, after) = rest.split_first()?;
    if b == b'%' {
        let Some(decoded) = escaped(rest) else {
            // Not an escape sequence: stays as it is.
            out.push(b);
            return Some(after);
        };
        match class(decoded) {
            Class::Invalid => return None,
            Class::Unreserved => out.push(decoded),
            _ => out.extend_from_slice(&rest[..3]),
        }
        return Some(&rest[3..]);
    }
    match class(b) {
        Class::Invalid => return None,
        Class::Backslash => out.push(b'/'),
        Class::Escape => out.extend_from_slice(format!("%{b:02X}").as_bytes()),
        Class::Pass | Class::Unreserved => out.push(b),
    }
    Some(after)
}

fn escaped(rest: &[u8]) -> Option<u8> {
    let digits = rest.get(1..3)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// At the start of a segment: whether it is `..` (true) or `.` (false), dots escaped or not, and what
/// follows its slash.
fn dot_segment(rest: &[u8]) -> Option<(bool, &[u8])> {
    if let Some(found) = dots_with_parameters(rest) {
        return Some(found);
    }
    let after_one = dot(rest)?;
    if let Some(end) = segment_end(after_one) {
        return Some((false, end));
    }
    let after_two = dot(after_one)?;
    segment_end(after_two).map(|end| (true, end))
}

/// The same for `..;x` and `.;x`, which servers that know path parameters take for the dots alone.
/// As in Envoy (1.40), the dots must not be escaped.
fn dots_with_parameters(rest: &[u8]) -> Option<(bool, &[u8])> {
    let (segments_up, parameters) = match rest {
        [b'.', b'.', b';', after @ ..] => (true, after),
        [b'.', b';', after @ ..] => (false, after),
        _ => return None,
    };
    let slash = parameters.iter().position(|b| matches!(b, b'/' | b'\\'));
    let end = slash.map_or(&[][..], |slash| &parameters[slash + 1..]);
    Some((segments_up, end))
}

fn dot(rest: &[u8]) -> Option<&[u8]> {
    match rest {
        [b'.', after @ ..] => Some(after),
        [b'%', b'2', b'e' | b'E', after @ ..] => Some(after),
        _ => None,
    }
}

fn segment_end(rest: &[u8]) -> Option<&[u8]> {
    match rest {
        [] => Some(rest),
        [b'/' | b'\\', after @ ..] => Some(after),
        _ => None,
    }
}

/// Removes the last segment of `out`, which ends in a slash; the root stays.
fn back_up(out: &mut Vec<u8>) {
    if out.len() > 1 {
        out.pop();
        while out.last().is_some_and(|b| *b != b'/') {
            out.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NORMALIZE: PathOptions = PathOptions {
        normalize: true,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::KeepUnchanged,
    };

    fn show(outcome: Normalized, path: &str) -> String {
        match outcome {
            Normalized::Unchanged => path.to_owned(),
            Normalized::Changed(p) => String::from_utf8(p).unwrap(),
            Normalized::Redirect(p) => format!("307 {}", String::from_utf8(p).unwrap()),
            Normalized::Reject => "400".to_owned(),
        }
    }

    fn check(path: &str, expect: &str) {
        assert_eq!(
            show(normalize(path.as_bytes(), NORMALIZE), path),
            expect,
            "{path}"
        );
    }

    #[test]
    fn dot_segments_are_resolved() {
        check("/", "/");
        check("/a/b", "/a/b");
        check("/a/./b", "/a/b");
        check("/a/../b", "/b");
        check("/a/b/..", "/a/");
        check("/a/.", "/a/");
        check("/../../a", "/a");
        check("/a/%2e%2E/b", "/b");
        check("/a/.%2e/b", "/b");
        check("/a/...", "/a/...");
        check("/.a", "/.a");
        check("/a/..b", "/a/..b");
        // As stock Envoy forwards them.
        check("/a/..;/b", "/b");
        check("/a/..;x=1/b", "/b");
        check("/a/.;x/b", "/a/b");
        check("/a;x/../b", "/b");
        check("/a/%2e%2e;/b", "/a/..;/b");
        check("/a/;/b", "/a/;/b");
        check("/a/..;", "/");
        check("/a/...;/b", "/a/...;/b");
        check("/a/..%3b/b", "/a/..%3b/b");
        check("/a/..;/..;/b", "/b");
        check(r"/a\..\b", "/b");
        check("/a//../b", "/a/b");
        check("/a/../b?x=/../y", "/b?x=/../y");
    }

    #[test]
    fn unreserved_characters_are_decoded_and_others_keep_their_escape() {
        check("/%61%2Db", "/a-b");
        check("/a%2fb", "/a%2fb");
        check("/a%2Fb", "/a%2Fb");
        check("/%zz", "/%zz");
        check("/a b", "/a%20b");
        check("/é", "/%C3%A9");
        check("/a%00", "400");
        check("//a", "//a");
        check("/[x]:@!$&'()*+,;=", "/[x]:@!$&'()*+,;=");
    }

    #[test]
    fn fragments_are_refused() {
        check("/a#b", "400");
        check("/a?b#c", "400");
    }

    #[test]
    fn slashes_are_merged_in_the_path_only() {
        let options = PathOptions {
            merge_slashes: true,
            ..NORMALIZE
        };
        for (path, expect) in [
            ("//a///b//", "/a/b/"),
            ("/a//b?x=//", "/a/b?x=//"),
            ("/a/..//b", "/b"),
        ] {
            assert_eq!(show(normalize(path.as_bytes(), options), path), expect);
        }
    }

    #[test]
    fn escaped_slashes_are_kept_refused_redirected_or_forwarded() {
        use EscapedSlashes::*;
        for (action, path, expect) in [
            (Reject, "/a%2fb", "400"),
            (Reject, "/a%5Cb", "400"),
            (Reject, "/a/b", "/a/b"),
            (UnescapeAndRedirect, "/a%2Fb?q", "307 /a/b?q"),
            (UnescapeAndRedirect, "/a/./b", "/a/b"),
            (UnescapeAndForward, "/a%2f..%2fb", "/b"),
            (UnescapeAndForward, "/a%5cb", "/a/b"),
        ] {
            let options = PathOptions {
                escaped_slashes: action,
                ..NORMALIZE
            };
            assert_eq!(
                show(normalize(path.as_bytes(), options), path),
                expect,
                "{path}"
            );
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing_more_and_leaves_no_dot_segment(
            path in "/([a/.%\\\\]|%2e|%2f|%61|%25|\\.\\./){0,12}", merge: bool,
        ) {
            let options = PathOptions { merge_slashes: merge, ..NORMALIZE };
            if let Normalized::Changed(once) = normalize(path.as_bytes(), options) {
                let text = String::from_utf8(once.clone()).unwrap();
                prop_assert!(!text.split('/').any(|s| s == "." || s == ".."), "{text}");
                prop_assert!(text.starts_with('/'));
                prop_assert!(!text.contains('\\'));
            }
        }

        #[test]
        fn any_bytes_are_survived(path: Vec<u8>) {
            let _ = normalize(&path, NORMALIZE);
        }
    }
}
