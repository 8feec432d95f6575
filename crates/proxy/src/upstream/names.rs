//! Names in place of addresses: looking them up, which addresses count, and those that the requests
//! of one worker asked for.
//!
//! The names of DNS clusters are looked up by the main thread, again and again. A name that a
//! request brings is looked up when it is wanted, on the worker's own runtime: the system's
//! resolver runs on a thread of its own, and only that request waits for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use lateen_proxy_config::DnsFamily;

/// Names that are remembered per cluster.
const MOST: usize = 1024;

/// An address in place of a name needs nobody to ask, and neither do the names of this machine
/// (RFC 6761, section 6.3).
pub(crate) async fn lookup(name: &str) -> std::io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    if name.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    let found = tokio::net::lookup_host((name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// The addresses of the wanted families, in a stable order, each once.
pub(crate) fn choose(mut found: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    found.sort_unstable();
    found.dedup();
    let (four, six): (Vec<_>, Vec<_>) = found.iter().copied().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => four,
        DnsFamily::V6Only => six,
        DnsFamily::V4Preferred if four.is_empty() => six,
        DnsFamily::V4Preferred => four,
        DnsFamily::Auto if six.is_empty() => four,
        DnsFamily::Auto => six,
        DnsFamily::All => found,
    }
}

/// Addresses of names that requests brought, while they are fresh.
#[derive(Default)]
pub(super) struct KnownNames(RefCell<HashMap<Box<str>, (IpAddr, Instant)>>);

impl KnownNames {
    pub(super) fn get(&self, name: &str, fresh: Duration) -> Option<IpAddr> {
        let known = self.0.borrow();
        let (address, since) = known.get(name)?;
        (since.elapsed() < fresh).then_some(*address)
    }

    /// Looks a name up and remembers the answer. `None`: it leads nowhere. Where the resolver
    /// fails, an address that was good before is used.
    pub(super) async fn look_up(&self, name: &str, family: DnsFamily) -> Option<IpAddr> {
        let found = match lookup(name).await {
            Ok(found) => choose(found, family).first().copied(),
            Err(error) => {
                tracing::debug!(name, %error, "cannot resolve the host of a request");
                self.0.borrow().get(name).map(|(address, _)| *address)
            }
        }?;
        let mut known = self.0.borrow_mut();
        if known.len() >= MOST && !known.contains_key(name) {
            // Whoever floods a proxy with names makes it ask more often, and no more than that.
            known.clear();
        }
        known.insert(name.into(), (found, Instant::now()));
        Some(found)
    }
}

/// Name and port of an authority; IPv6 addresses stand in brackets.
pub(super) fn split(authority: &[u8], default_port: u16) -> Option<(&str, u16)> {
    let authority = std::str::from_utf8(authority).ok()?;
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default_port,
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => return None,
    };
    (!name.is_empty()).then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_decides_which_addresses_count() {
        let found = ["::1", "127.0.0.2", "127.0.0.1", "127.0.0.1"];
        let check = |family, found: &[&str], expect: &[&str]| {
            let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
            assert_eq!(choose(parse(found), family), parse(expect), "{family:?}");
        };
        check(DnsFamily::V4Only, &found, &["127.0.0.1", "127.0.0.2"]);
        check(DnsFamily::V6Only, &found, &["::1"]);
        check(DnsFamily::V4Preferred, &found, &["127.0.0.1", "127.0.0.2"]);
        check(DnsFamily::V4Preferred, &["::1"], &["::1"]);
        check(DnsFamily::Auto, &found, &["::1"]);
        check(DnsFamily::Auto, &["127.0.0.1"], &["127.0.0.1"]);
        check(DnsFamily::All, &found, &["127.0.0.1", "127.0.0.2", "::1"]);
    }

    #[test]
    fn authorities_are_a_name_and_a_port() {
        let check = |authority: &str, expect: Option<(&str, u16)>| {
            assert_eq!(split(authority.as_bytes(), 80), expect, "{authority}");
        };
        check("a.example.com", Some(("a.example.com", 80)));
        check("a.example.com:8080", Some(("a.example.com", 8080)));
        check("[::1]:8080", Some(("::1", 8080)));
        check("[::1]", Some(("::1", 80)));
        for wrong in ["", ":80", "a:0", "a:b", "a:99999", "[::1", "[::1]x"] {
            check(wrong, None);
        }
    }
}
