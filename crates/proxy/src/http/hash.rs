//! The hash of a request, by which some clusters choose the endpoint. Equal to Envoy's
//! (`HashPolicyImpl`), so that either proxy sends a request to the same one.

use super::exchange::Exchange;
use super::head::RequestHead;
use super::headers::{Known, list};
use lateen_proxy_config::route::{Forward, HashCookie, HashMethod, query_value};
use std::borrow::Cow;
use std::net::IpAddr;
use xxhash_rust::xxh64::xxh64;

/// What a route's hash policies make of a request.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    pub hash: Option<u64>,
    /// Cookies for a client that has none.
    pub set_cookies: Vec<Vec<u8>>,
}

/// Applies the policies of the route.
pub(super) fn of(x: &Exchange, to: &Forward) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in &to.hash {
        let found = match &policy.method {
            HashMethod::Header { name, rewrite } => {
                let rewrite = |value| match rewrite {
                    Some(rewrite) => rewrite.apply(value),
                    None => Cow::Borrowed(value),
                };
                header(&x.request, name.as_bytes(), rewrite)
            }
            HashMethod::Cookie(cookie) => cookie_or_new(x, cookie, &mut hashed.set_cookies),
            HashMethod::SourceIp => Some(of_address(client(x))),
            HashMethod::QueryParameter(name) => {
                query_value(x.request.path_bytes(), name.as_bytes()).map(|value| xxh64(value, 0))
            }
        };
        if let Some(found) = found {
            // Turned, so that a policy that is there twice does not cancel itself out.
            hashed.hash = Some(hashed.hash.map_or(0, |hash| hash.rotate_left(1)) ^ found);
        }
        if policy.terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

/// The hash of a client's address.
pub(crate) fn of_address(address: IpAddr) -> u64 {
    xxh64(address.to_canonical().to_string().as_bytes(), 0)
}

/// The values one after the other, sorted: their order does not matter.
fn header<'v>(
    request: &'v RequestHead,
    name: &[u8],
    rewrite: impl Fn(&'v [u8]) -> Cow<'v, [u8]>,
) -> Option<u64> {
    let pseudo = match name {
        b":path" => Some(request.path_bytes()),
        b":method" => Some(request.method_bytes()),
        b":authority" | b"host" => Some(request.authority_bytes()),
        _ => None,
    };
    if let Some(value) = pseudo {
        return Some(xxh64(&rewrite(value), 0));
    }
    let named = request
        .headers
        .iter()
        .filter(|(_, found, _)| found.eq_ignore_ascii_case(name));
    let mut values: Vec<Cow<'_, [u8]>> = named.map(|(_, _, value)| rewrite(value)).collect();
    match values.as_slice() {
        [] => None,
        [value] => Some(xxh64(value, 0)),
        _ => {
            values.sort();
            // Each begins with the hash of those before it.
            let hash = values.iter().fold(0, |hash, value| xxh64(value, hash));
            Some(hash)
        }
    }
}

fn cookie_or_new(x: &Exchange, cookie: &HashCookie, set_cookies: &mut Vec<Vec<u8>>) -> Option<u64> {
    if let Some(value) = cookie_value(&x.request, cookie.name.as_bytes()) {
        return Some(xxh64(value, 0));
    }
    cookie.ttl?;
    // The same for all requests of a connection, which may be on their way at once.
    let ends = format!("{}{}", x.conn.peer, x.conn.local);
    let value = format!("{:016x}", xxh64(ends.as_bytes(), 0));
    let header = format!("{}=\"{value}\"{}", cookie.name, cookie.suffix);
    set_cookies.push(header.into_bytes());
    Some(xxh64(value.as_bytes(), 0))
}

/// The first value of a cookie, without quotes; none when it is empty.
fn cookie_value<'r>(request: &'r RequestHead, name: &[u8]) -> Option<&'r [u8]> {
    let headers = request.headers.iter();
    let cookies = headers.filter(|(_, found, _)| found.eq_ignore_ascii_case(b"cookie"));
    let value = cookies
        .flat_map(|(_, _, value)| value.split(|b| *b == b';'))
        .find_map(|pair| {
            let equals = pair.iter().position(|b| *b == b'=')?;
            let found = pair[..equals].trim_ascii() == name;
            found.then(|| pair[equals + 1..].trim_ascii())
        })?;
    let unquoted = value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    Some(unquoted.unwrap_or(value)).filter(|value| !value.is_empty())
}

/// The client as the proxies before this one tell, where they are believed.
fn client(x: &Exchange) -> IpAddr {
    let manager = &x.service.manager;
    if !manager.use_remote_address
        && let Some(last) = x.request.headers.all(Known::XForwardedFor).last()
        && let Some(last) = list(last).last()
        && let Ok(text) = std::str::from_utf8(last)
        && let Ok(address) = text.trim().parse()
    {
        return address;
    }
    x.conn.peer.ip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers::HeaderBlock;

    fn request(headers: &[(&str, &str)]) -> RequestHead {
        let mut block = HeaderBlock::default();
        for (name, value) in headers {
            block.push_name(name.as_bytes(), value.as_bytes());
        }
        RequestHead::new(block)
    }

    #[test]
    fn cookies_are_found_among_others() {
        for (headers, expect) in [
            (vec![("cookie", "a=1; user=x; b=2")], Some("x")),
            (vec![("Cookie", "user=\"x\"")], Some("x")),
            (vec![("cookie", "a=1"), ("cookie", "user=y")], Some("y")),
            (vec![("cookie", "xuser=1; user=")], None),
            (vec![("cookie", "user")], None),
            (vec![], None),
        ] {
            let request = request(&headers);
            let found = cookie_value(&request, b"user");
            assert_eq!(found, expect.map(str::as_bytes), "{headers:?}");
        }
    }

    #[test]
    fn the_order_of_header_values_does_not_matter() {
        let hash = |headers: &[(&str, &str)]| {
            let request = request(headers);
            header(&request, b"x-user", |value| Cow::Owned(value.to_vec()))
        };
        assert_eq!(hash(&[]), None);
        assert_eq!(hash(&[("X-User", "a")]), Some(xxh64(b"a", 0)));
        assert_eq!(
            hash(&[("x-user", "b"), ("x-user", "a")]),
            Some(xxh64(b"b", xxh64(b"a", 0)))
        );
    }
}
