//! Principals in the mesh's trust domain are principals in each of its aliases, too
//! (`pilot/pkg/security/trustdomain/bundle.go`).

use lateen_model::MeshSettings;

/// What stands for the mesh's own trust domain in a policy, whatever it is called.
const LOCAL: &str = "cluster.local";

/// The mesh's trust domain and its aliases.
pub fn of(mesh: &MeshSettings) -> impl Iterator<Item = &str> {
    mesh.trust_domains()
}

/// A principal, once for each trust domain it may be of.
pub fn principals(principal: &str, domains: &[&str]) -> Vec<String> {
    let parts: Vec<&str> = principal.split('/').collect();
    // Anything else says nothing about a trust domain, and `*` is any.
    let ([own, rest @ ..], 5) = (parts.as_slice(), parts.len()) else {
        return vec![principal.to_string()];
    };
    let known = *own == LOCAL || domains.iter().any(|domain| matches(own, domain));
    if *own == "*" || !known {
        return vec![principal.to_string()];
    }
    let mut made: Vec<String> = Vec::new();
    for domain in domains {
        let one = match own.strip_prefix('*') {
            // The pattern covers the domain by itself.
            Some(suffix) if domain.ends_with(suffix) => principal.to_string(),
            _ => format!("{domain}/{}", rest.join("/")),
        };
        if !made.contains(&one) {
            made.push(one);
        }
    }
    made
}

/// Trust domains a policy names; one of the mesh's own is all of them.
pub fn expanded(named: &[String], domains: &[&str]) -> Vec<String> {
    let mut made: Vec<String> = Vec::new();
    for one in named {
        let own = domains.contains(&one.as_str());
        let all = domains.iter().map(|domain| (*domain).to_string());
        let all: Vec<String> = match own {
            true => all.collect(),
            false => vec![one.clone()],
        };
        made.extend(all);
    }
    let mut seen = std::collections::BTreeSet::new();
    made.retain(|one| seen.insert(one.clone()));
    made
}

fn matches(pattern: &str, domain: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => domain.ends_with(suffix),
        (None, Some(prefix)) => domain.starts_with(prefix),
        (None, None) => pattern == domain,
    }
}

#[cfg(test)]
mod tests {
    use super::{expanded, principals};

    #[test]
    fn principals_are_of_every_trust_domain_of_the_mesh() {
        let domains = ["new-td", "old-td"];
        let check = |principal: &str, expected: &[&str]| {
            assert_eq!(principals(principal, &domains), expected, "{principal}");
        };
        check(
            "old-td/ns/a/sa/b",
            &["new-td/ns/a/sa/b", "old-td/ns/a/sa/b"],
        );
        check(
            "cluster.local/ns/a/sa/b",
            &["new-td/ns/a/sa/b", "old-td/ns/a/sa/b"],
        );
        check("*-td/ns/a/sa/b", &["*-td/ns/a/sa/b"]);
        check("*w-td/ns/a/sa/b", &["*w-td/ns/a/sa/b", "old-td/ns/a/sa/b"]);
        check("other/ns/a/sa/b", &["other/ns/a/sa/b"]);
        check("*/ns/a/sa/b", &["*/ns/a/sa/b"]);
        check("*/sa/b", &["*/sa/b"]);
        check("*", &["*"]);
    }

    #[test]
    fn a_trust_domain_of_the_mesh_is_all_of_them() {
        let named = |all: &[&str]| all.iter().map(|one| (*one).to_string()).collect::<Vec<_>>();
        let found = expanded(&named(&["x", "a", "b", "x"]), &["a", "b"]);
        assert_eq!(found, ["x", "a", "b"]);
    }
}
