//! Where a request has its tokens, and how an accepted one is taken out again
//! (Envoy, `jwt_authn/extractor.cc`).

use crate::http::head::RequestHead;
use crate::http::headers::Known;
use lateen_proxy_config::jwt::JwtLocation;
use std::borrow::Cow;

/// A token, still encoded, and where it stood.
pub(super) struct Found<'f> {
    pub token: Box<[u8]>,
    pub place: &'f JwtLocation,
}

/// The tokens of a request that stand in a place. They are copied: what an accepted token changes in
/// the request would move them.
pub(super) fn tokens<'f>(request: &RequestHead, place: &'f JwtLocation) -> Vec<Found<'f>> {
    let found = |token: &[u8]| Found {
        token: token.into(),
        place,
    };
    match place {
        JwtLocation::Header { name, prefix } => {
            let values = request.headers.iter();
            values
                .filter(|(_, own, _)| own.eq_ignore_ascii_case(name.as_bytes()))
                .filter_map(|(_, _, value)| after_prefix(value, prefix.as_bytes()))
                .map(found)
                .collect()
        }
        JwtLocation::Param(name) => param(request.path_bytes(), name.as_bytes())
            .map(|token| found(&token))
            .into_iter()
            .collect(),
        JwtLocation::Cookie(name) => cookie(request, name.as_bytes())
            .map(found)
            .into_iter()
            .collect(),
    }
}

/// Takes the tokens of a place out of a request. Cookies stay, as in Envoy.
pub(super) fn remove(request: &mut RequestHead, place: &JwtLocation) {
    match place {
        JwtLocation::Header { name, .. } => {
            request.headers.remove_name(name.as_bytes());
        }
        JwtLocation::Param(name) => {
            if let Some(path) = without_param(request.path_bytes(), name.as_bytes()) {
                request.set_path(&path);
            }
        }
        JwtLocation::Cookie(_) => {}
    }
}

/// What follows the prefix, wherever that stands, from the first character a token may have.
fn after_prefix<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|w| w == prefix)?;
    let rest = &value[at + prefix.len()..];
    let legal = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    match rest.iter().position(legal) {
        Some(start) => Some(&rest[start..]),
        None => Some(value),
    }
}

/// Path without query, and the pairs of the query.
fn split(path: &[u8]) -> Option<(&[u8], impl Iterator<Item = &[u8]>)> {
    let question = path.iter().position(|b| *b == b'?')?;
    let pairs = path[question + 1..].split(|b| *b == b'&');
    Some((&path[..question], pairs))
}

fn name_and_value(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|b| *b == b'=') {
        Some(equals) => (&pair[..equals], &pair[equals + 1..]),
        None => (pair, b""),
    }
}

/// The first value of a query parameter.
fn param<'p>(path: &'p [u8], name: &[u8]) -> Option<Cow<'p, [u8]>> {
    let (_, mut pairs) = split(path)?;
    pairs.find_map(|pair| {
        let (own, value) = name_and_value(pair);
        (*decoded(own) == *name).then(|| decoded(value))
    })
}

/// The path without a query parameter, if it has it. The others stay as they are.
fn without_param(path: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let (bare, pairs) = split(path)?;
    let mut out = bare.to_vec();
    let mut separator = b'?';
    let mut removed = false;
    for pair in pairs {
        if *decoded(name_and_value(pair).0) == *name {
            removed = true;
            continue;
        }
        out.push(separator);
        out.extend_from_slice(pair);
        separator = b'&';
    }
    removed.then_some(out)
}

/// Percent-decoded; what is not encoded right stays as it is.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let byte = match rest {
            [b'%', high, low, ..] => digit(high).zip(digit(low)),
            _ => None,
        };
        match byte.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(out)
}

/// The first cookie of a name, without the quotes around its value.
fn cookie<'r>(request: &'r RequestHead, name: &[u8]) -> Option<&'r [u8]> {
    let mut pairs = request
        .headers
        .all(Known::Cookie)
        .flat_map(|value| value.split(|b| *b == b';'));
    pairs.find_map(|pair| {
        let (own, value) = name_and_value(pair.trim_ascii());
        let quoted = value
            .strip_prefix(b"\"")
            .and_then(|v| v.strip_suffix(b"\""));
        (own == name && pair.contains(&b'=')).then(|| quoted.unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers::HeaderBlock;

    fn request(path: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut block = HeaderBlock::default();
        for (name, value) in headers {
            block.push_name(name.as_bytes(), value.as_bytes());
        }
        let mut request = RequestHead::new(block);
        request.set_path(path.as_bytes());
        request
    }

    fn check(request: &RequestHead, place: &JwtLocation, expect: &[&str]) {
        let found = tokens(request, place);
        let found: Vec<_> = found
            .iter()
            .map(|f| String::from_utf8_lossy(&f.token).into_owned())
            .collect();
        assert_eq!(found, expect, "{place:?}");
    }

    #[test]
    fn tokens_are_found_in_headers_by_prefix_in_parameters_and_in_cookies() {
        let header = |name: &str, prefix: &str| JwtLocation::Header {
            name: name.into(),
            prefix: prefix.into(),
        };
        let one = request(
            "/a?x=1&access_token=q.u.e&access_token=second&enc=a%2Eb",
            &[
                ("Authorization", "Bearer a.b.c"),
                ("authorization", "Basic abc"),
                ("authorization", "x, Bearer  d.e.f"),
                ("authorization", "Bearer ***"),
                ("x-plain", "whole value"),
                ("cookie", "a=b; jwt=c.o.o; jwt=other"),
                ("cookie", "quoted=\"q.q.q\"; flag"),
            ],
        );
        check(
            &one,
            &header("authorization", "Bearer "),
            &["a.b.c", "d.e.f", "Bearer ***"],
        );
        check(&one, &header("x-plain", ""), &["whole value"]);
        check(&one, &header("x-other", ""), &[]);
        check(&one, &JwtLocation::Param("access_token".into()), &["q.u.e"]);
        check(&one, &JwtLocation::Param("enc".into()), &["a.b"]);
        check(&one, &JwtLocation::Param("none".into()), &[]);
        check(&one, &JwtLocation::Cookie("jwt".into()), &["c.o.o"]);
        check(&one, &JwtLocation::Cookie("quoted".into()), &["q.q.q"]);
        check(&one, &JwtLocation::Cookie("flag".into()), &[]);
    }

    #[test]
    fn a_token_is_taken_out_and_the_rest_stays() {
        let check = |path: &str, expect: &str| {
            let mut request = request(path, &[]);
            remove(&mut request, &JwtLocation::Param("t".into()));
            assert_eq!(
                String::from_utf8_lossy(request.path_bytes()),
                expect,
                "{path}"
            );
        };
        check("/a?t=x", "/a");
        check("/a?t=x&b=%20&t=y&c", "/a?b=%20&c");
        check("/a?b=1&t=x", "/a?b=1");
        check("/a?tt=x", "/a?tt=x");
        check("/a", "/a");
        let mut both = request(
            "/",
            &[("authorization", "Bearer x"), ("Authorization", "y")],
        );
        let name = "authorization".into();
        let prefix = "Bearer ".into();
        remove(&mut both, &JwtLocation::Header { name, prefix });
        assert_eq!(both.headers.len(), 0);
    }
}
