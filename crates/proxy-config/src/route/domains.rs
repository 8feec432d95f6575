//! The search for a virtual host by domain.
//!
//! Order (Envoy, `Domain search order` in route_components.proto): the exact name, then the longest
//! `*suffix`, then the longest `prefix*`, then `*`. A wildcard stands for at least one character.

use smallvec::SmallVec;
use std::collections::HashMap;

/// Domains of one table, in lower case, each with the index of its virtual host.
#[derive(Clone, Debug, Default)]
pub(crate) struct DomainIndex {
    exact: HashMap<Box<[u8]>, usize>,
    suffixes: ByLength,
    prefixes: ByLength,
    any: Option<usize>,
}

/// Wildcards by the length of their literal part, longest first.
type ByLength = Vec<(usize, HashMap<Box<[u8]>, usize>)>;

/// Why a domain cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DomainError {
    /// Another virtual host (or the same) has it.
    Duplicate,
    /// The wildcard is neither at the start nor at the end, or the domain is empty.
    BadWildcard,
}

impl DomainIndex {
    /// Adds one domain of a virtual host.
    pub(crate) fn insert(&mut self, domain: &str, host: usize) -> Result<(), DomainError> {
        let domain = domain.to_ascii_lowercase();
        if domain == "*" {
            return match self.any.replace(host) {
                None => Ok(()),
                Some(_) => Err(DomainError::Duplicate),
            };
        }
        let (map, literal) = if let Some(suffix) = domain.strip_prefix('*') {
            (by_length(&mut self.suffixes, suffix.len()), suffix)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            (by_length(&mut self.prefixes, prefix.len()), prefix)
        } else {
            (&mut self.exact, domain.as_str())
        };
        if literal.is_empty() || literal.contains('*') {
            return Err(DomainError::BadWildcard);
        }
        match map.insert(literal.as_bytes().into(), host) {
            None => Ok(()),
            Some(_) => Err(DomainError::Duplicate),
        }
    }

    /// The virtual host for an authority.
    pub(crate) fn find(&self, authority: &[u8], ignore_port: bool) -> Option<usize> {
        let authority = if ignore_port {
            without_port(authority)
        } else {
            authority
        };
        // Host names are at most 255 bytes; a longer one goes to the heap and matches nothing but `*`.
        let mut host: SmallVec<[u8; 256]> = SmallVec::from_slice(authority);
        host.make_ascii_lowercase();
        if host.is_empty() {
            return self.any;
        }
        self.exact
            .get(host.as_slice())
            .or_else(|| longest(&self.suffixes, host.len(), |n| &host[host.len() - n..]))
            .or_else(|| longest(&self.prefixes, host.len(), |n| &host[..n]))
            .copied()
            .or(self.any)
    }
}

fn by_length(lists: &mut ByLength, length: usize) -> &mut HashMap<Box<[u8]>, usize> {
    let at = lists.partition_point(|(l, _)| *l > length);
    if lists.get(at).is_none_or(|(l, _)| *l != length) {
        lists.insert(at, (length, HashMap::new()));
    }
    &mut lists[at].1
}

fn longest<'a, 'h>(
    lists: &'a ByLength,
    host_length: usize,
    part: impl Fn(usize) -> &'h [u8],
) -> Option<&'a usize> {
    lists
        .iter()
        .filter(|(n, _)| *n < host_length)
        .find_map(|(n, map)| map.get(part(*n)))
}

/// The authority without `:port`; the colons of an IPv6 address in brackets stay.
pub(crate) fn without_port(authority: &[u8]) -> &[u8] {
    let Some(colon) = authority.iter().rposition(|b| *b == b':') else {
        return authority;
    };
    let bracket = authority.iter().rposition(|b| *b == b']');
    if bracket.is_some_and(|b| b > colon) {
        authority
    } else {
        &authority[..colon]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAINS: &[&str] = &[
        "reviews",
        "Reviews:9080",
        "*.example.com",
        "*-eu.example.com",
        "www.example.com",
        "api.*",
        "api.v*",
        "*",
    ];

    fn check(host: &str, expect: &str) {
        let mut index = DomainIndex::default();
        for (i, domain) in DOMAINS.iter().enumerate() {
            index.insert(domain, i).unwrap();
        }
        let found = index.find(host.as_bytes(), false).map(|i| DOMAINS[i]);
        assert_eq!(found, Some(expect), "{host}");
    }

    #[test]
    fn exact_beats_suffix_beats_prefix_beats_any() {
        check("www.example.com", "www.example.com");
        check("api.example.com", "*.example.com");
        check("shop-eu.example.com", "*-eu.example.com");
        check("api.other.org", "api.*");
        check("api.v2", "api.v*");
        check("elsewhere", "*");
        check("", "*");
    }

    #[test]
    fn case_does_not_matter_and_ports_do() {
        check("REVIEWS", "reviews");
        check("reviews:9080", "Reviews:9080");
        check("reviews:80", "*");
    }

    #[test]
    fn a_wildcard_stands_for_at_least_one_character() {
        check(".example.com", "*");
        check("api.", "*");
    }

    #[test]
    fn duplicates_and_inner_wildcards_are_refused() {
        let mut index = DomainIndex::default();
        index.insert("a", 0).unwrap();
        assert_eq!(index.insert("A", 1), Err(DomainError::Duplicate));
        assert_eq!(index.insert("a*b*", 1), Err(DomainError::BadWildcard));
        assert_eq!(index.insert("", 1), Err(DomainError::BadWildcard));
    }

    #[test]
    fn ports_are_cut_off_but_not_the_colons_of_ipv6() {
        for (host, expect) in [
            ("a:1", "a"),
            ("a", "a"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("a:", "a"),
        ] {
            assert_eq!(without_port(host.as_bytes()), expect.as_bytes());
        }
    }
}
