//! Host names as rules write them: short names, fully qualified names, wildcards, addresses.
//!
//! Invariant: a name resolved here is lower case and, unless it is an address or a wildcard,
//! fully qualified; every index of the snapshot is keyed by such names.

/// Resolves a host as written in a rule of `namespace`.
///
/// Istio's rule: a name without any dot is a service of the rule's own namespace; a name with a
/// dot is taken as it is, so `reviews.default` is *not* expanded (istio-behaviour fact 56).
pub fn resolve(host: &str, namespace: &str, domain_suffix: &str) -> String {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || host == "*" || host.contains('.') || host.contains(':') {
        return host;
    }
    format!("{host}.{namespace}.svc.{domain_suffix}")
}

/// Whether `pattern` (exact or `*` / `*.suffix`) covers `host` (which may itself be a wildcard).
pub fn matches(pattern: &str, host: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match (pattern.strip_prefix('*'), host.strip_prefix('*')) {
        (None, None) => pattern == host,
        (None, Some(_)) => false,
        (Some(suffix), None) => host.len() > suffix.len() && host.ends_with(suffix),
        (Some(suffix), Some(host_suffix)) => host_suffix.ends_with(suffix),
    }
}

/// The more specific of two overlapping hosts, or `None` when they do not overlap.
///
/// Used where a VirtualService host meets a Gateway server host (fact 20).
pub fn intersection<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    if matches(a, b) {
        Some(b)
    } else if matches(b, a) {
        Some(a)
    } else {
        None
    }
}

/// All wildcards that cover a host (which may itself be one, and is not among them), the most
/// specific first.
pub fn wildcards_over(host: &str) -> impl Iterator<Item = String> {
    let ends = (1..=host.len()).filter_map(move |at| host.get(at..));
    let is_own = move |wildcard: &String| wildcard != host;
    ends.map(|end| format!("*{end}")).filter(is_own)
}

/// Sort key that puts the most specific host first: exact names, then longer wildcards, then `*`.
pub fn specificity(host: &str) -> (u8, usize) {
    match host.strip_prefix('*') {
        None => (0, usize::MAX - host.len()),
        Some("") => (2, 0),
        Some(suffix) => (1, usize::MAX - suffix.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_resolve_in_the_rules_namespace_and_dotted_names_do_not() {
        let check = |host, expect| assert_eq!(resolve(host, "shop", "cluster.local"), expect);
        check("reviews", "reviews.shop.svc.cluster.local");
        check("Reviews", "reviews.shop.svc.cluster.local");
        check("reviews.default", "reviews.default");
        check("api.example.com.", "api.example.com");
        check("*", "*");
        check("*.example.com", "*.example.com");
        check("10.0.0.1", "10.0.0.1");
        check("::1", "::1");
    }

    #[test]
    fn wildcards_cover_what_they_end_with() {
        let check =
            |pattern, host, expect| assert_eq!(matches(pattern, host), expect, "{pattern} {host}");
        check("*", "a.b", true);
        check("*.example.com", "a.example.com", true);
        check("*.example.com", "a.b.example.com", true);
        check("*.example.com", "example.com", false);
        check("*.example.com", "*.api.example.com", true);
        check("*.api.example.com", "*.example.com", false);
        check("a.example.com", "*.example.com", false);
        check("a", "a", true);
    }

    #[test]
    fn the_intersection_is_the_more_specific_host() {
        assert_eq!(
            intersection("*.example.com", "a.example.com"),
            Some("a.example.com")
        );
        assert_eq!(intersection("a.example.com", "*"), Some("a.example.com"));
        assert_eq!(intersection("*.a.com", "*.b.com"), None);
    }

    #[test]
    fn specific_hosts_sort_first() {
        let mut hosts = vec!["*", "*.com", "a.example.com", "*.example.com"];
        hosts.sort_by_key(|h| specificity(h));
        assert_eq!(hosts, ["a.example.com", "*.example.com", "*.com", "*"]);
    }
}
