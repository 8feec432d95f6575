//! VirtualServices that leave rules to others: the rules of the delegate take the place of the rule
//! that names it, each narrowed by it (`pilot/pkg/model/virtualservice.go`).
//!
//! Invariant: after [`merge`] no rule names a delegate, and no VirtualService is without hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::virtual_service::{
    Delegate, Destination, HttpMatchRequest, HttpRoute, StringMatch,
};

use crate::hostname;
use crate::rules::VirtualService;

/// Whether a rule leaves rules to others.
pub(crate) fn delegates(rule: &VirtualService) -> bool {
    rule.spec.http.iter().any(|http| http.delegate.is_some())
}

/// Whether a rule is there for others to leave rules to.
pub(crate) fn is_delegate(rule: &VirtualService) -> bool {
    rule.spec.hosts.is_empty()
}

/// Namespace and name of the delegates that a rule names.
pub(crate) fn named(root: &VirtualService) -> impl Iterator<Item = (String, String)> {
    let delegates = root
        .spec
        .http
        .iter()
        .filter_map(|http| http.delegate.as_ref());
    delegates.map(|to| key(to, &root.origin.namespace))
}

fn key(to: &Delegate, namespace: &str) -> (String, String) {
    let of = match to.namespace.as_str() {
        "" => namespace,
        named => named,
    };
    (of.to_owned(), to.name.clone())
}

/// Puts delegates into the rule that names them. An item whose delegate is missing, or not exported
/// to its namespace, vanishes.
pub(crate) fn merge<'a>(
    root: &VirtualService,
    find: impl Fn(&(String, String)) -> Option<&'a Arc<VirtualService>>,
    domain_suffix: &str,
) -> VirtualService {
    let namespace = &root.origin.namespace;
    let mut spec = (*root.spec).clone();
    let rules = std::mem::take(&mut spec.http).into_iter();
    spec.http = rules
        .flat_map(|rule| match &rule.delegate {
            None => vec![rule],
            Some(to) => match find(&key(to, namespace)) {
                Some(delegate) if delegate.visibility.reaches(namespace) => {
                    narrowed(&rule, delegate, domain_suffix)
                }
                _ => Vec::new(),
            },
        })
        .collect();
    VirtualService {
        spec: Arc::new(spec),
        ..root.clone()
    }
}

/// The delegate's rules as the root lets them through; one that conflicts with it is left out.
fn narrowed(root: &HttpRoute, delegate: &VirtualService, domain_suffix: &str) -> Vec<HttpRoute> {
    let rules = delegate.spec.http.iter();
    // A delegate does not delegate further.
    let rules = rules.filter(|rule| rule.delegate.is_none());
    let narrowed = rules.filter_map(|rule| {
        let mut made = rule.clone();
        made.matches = matches(&root.matches, &rule.matches)?;
        let namespace = &delegate.origin.namespace;
        // Short names are meant in the delegate's namespace.
        for to in destinations(&mut made) {
            to.host = hostname::resolve(&to.host, namespace, domain_suffix);
        }
        fill(&mut made, root);
        Some(made)
    });
    narrowed.collect()
}

fn destinations(rule: &mut HttpRoute) -> impl Iterator<Item = &mut Destination> {
    let routes = rule.route.iter_mut();
    let routes = routes.filter_map(|to| to.destination.as_mut());
    let mirrors = rule.mirrors.iter_mut();
    let mirrors = mirrors.filter_map(|to| to.destination.as_mut());
    routes.chain(rule.mirror.as_mut()).chain(mirrors)
}

/// What the delegate's rule leaves open, the root's says.
fn fill(made: &mut HttpRoute, root: &HttpRoute) {
    made.name = joined(&root.name, &made.name);
    macro_rules! fill {
        ($($field:ident),*) => { $(
            if made.$field.is_none() {
                made.$field = root.$field.clone();
            }
        )* };
    }
    fill!(
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirror_percent,
        mirror_percentage,
        cors_policy,
        headers
    );
    if made.mirrors.is_empty() {
        made.mirrors = root.mirrors.clone();
    }
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        (root, "") => root.to_owned(),
        ("", own) => own.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

/// Every pair of conditions that go together; [`None`] when one of the delegate's goes with none of
/// the root's.
fn matches(root: &[HttpMatchRequest], own: &[HttpMatchRequest]) -> Option<Vec<HttpMatchRequest>> {
    match (root, own) {
        ([], own) => return Some(own.to_vec()),
        (root, []) => return Some(root.to_vec()),
        _ => {}
    }
    let mut made = Vec::new();
    for own in own {
        let fitting = root.iter().filter(|root| !conflict(root, own));
        let before = made.len();
        made.extend(fitting.map(|root| both(root, own)));
        if made.len() == before {
            return None;
        }
    }
    Some(made)
}

fn both(root: &HttpMatchRequest, own: &HttpMatchRequest) -> HttpMatchRequest {
    let mut made = own.clone();
    made.name = joined(&root.name, &own.name);
    made.uri = made.uri.or_else(|| root.uri.clone());
    made.scheme = made.scheme.or_else(|| root.scheme.clone());
    made.method = made.method.or_else(|| root.method.clone());
    made.authority = made.authority.or_else(|| root.authority.clone());
    made.port = made.port.or(root.port);
    // Of two conditions on one name the delegate's is the narrower one.
    macro_rules! extend {
        ($($field:ident),*) => { $(
            for (name, value) in &root.$field {
                made.$field.entry(name.clone()).or_insert_with(|| value.clone());
            }
        )* };
    }
    extend!(headers, without_headers, query_params, source_labels);
    if made.source_namespace.is_empty() {
        made.source_namespace = root.source_namespace.clone();
    }
    if made.gateways.is_empty() {
        made.gateways = root.gateways.clone();
    }
    if made.stat_prefix.is_empty() {
        made.stat_prefix = root.stat_prefix.clone();
    }
    made
}

/// Whether a condition of the delegate asks for what the root's does not let through.
fn conflict(root: &HttpMatchRequest, own: &HttpMatchRequest) -> bool {
    let strings = [
        (&root.uri, &own.uri),
        (&root.scheme, &own.scheme),
        (&root.method, &own.method),
        (&root.authority, &own.authority),
    ];
    let wider = |root: &Option<StringMatch>, own: &Option<StringMatch>| match (root, own) {
        (Some(root), Some(own)) => !narrows(root, own),
        _ => false,
    };
    let named = |root: &BTreeMap<String, StringMatch>, own: &BTreeMap<String, StringMatch>| {
        own.iter()
            .any(|(name, own)| root.get(name).is_some_and(|root| !narrows(root, own)))
    };
    let differs = |root: &str, own: &str| !root.is_empty() && !own.is_empty() && root != own;
    strings.iter().any(|(root, own)| wider(root, own))
        || named(&root.headers, &own.headers)
        || named(&root.headers, &own.without_headers)
        || named(&root.query_params, &own.query_params)
        || root.ignore_uri_case.unwrap_or(false) != own.ignore_uri_case.unwrap_or(false)
        || matches!((root.port, own.port), (Some(root), Some(own)) if root != own)
        || differs(&root.source_namespace, &own.source_namespace)
        || (own.source_labels.iter()).any(|(label, own)| {
            root.source_labels
                .get(label)
                .is_some_and(|root| root != own)
        })
        || (!root.gateways.is_empty()
            && own.gateways.iter().any(|own| !root.gateways.contains(own)))
}

/// Whether everything that passes `own` passes `root`. Nobody can tell with a regex.
fn narrows(root: &StringMatch, own: &StringMatch) -> bool {
    match (root, own) {
        (StringMatch::Exact(root), StringMatch::Exact(own)) => root == own,
        (StringMatch::Prefix(root), StringMatch::Prefix(own) | StringMatch::Exact(own)) => {
            own.starts_with(root)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(yaml: &str) -> HttpMatchRequest {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\n\
             spec: {{hosts: [a.b], http: [{{match: [{yaml}], route: [{{destination: {{host: a.b}}}}]}}]}}\n"
        );
        let parsed = lateen_api::parse("test.yaml", &text, lateen_api::Mode::Strict);
        let object = parsed.objects.into_iter().next().unwrap().object;
        match object.spec {
            lateen_api::Spec::VirtualService(spec) => spec.http[0].matches[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_delegate_may_only_ask_for_less() {
        for (root, own, fits) in [
            ("{uri: {prefix: /a}}", "{uri: {prefix: /a/b}}", true),
            ("{uri: {prefix: /a}}", "{uri: {exact: /a}}", true),
            ("{uri: {prefix: /a/b}}", "{uri: {prefix: /a}}", false),
            ("{uri: {exact: /a}}", "{uri: {exact: /a}}", true),
            ("{uri: {exact: /a}}", "{uri: {prefix: /a}}", false),
            ("{uri: {prefix: /a}}", "{uri: {regex: '/a.*'}}", false),
            ("{uri: {prefix: /a}}", "{method: {exact: GET}}", true),
            ("{method: {exact: GET}}", "{method: {exact: PUT}}", false),
            (
                "{headers: {x: {exact: '1'}}}",
                "{headers: {y: {exact: '2'}}}",
                true,
            ),
            (
                "{headers: {x: {exact: '1'}}}",
                "{headers: {x: {exact: '2'}}}",
                false,
            ),
            (
                "{headers: {x: {exact: '1'}}}",
                "{withoutHeaders: {x: {exact: '2'}}}",
                false,
            ),
            (
                "{queryParams: {q: {exact: '1'}}}",
                "{queryParams: {q: {exact: '2'}}}",
                false,
            ),
            ("{port: 80}", "{port: 81}", false),
            ("{port: 80}", "{uri: {exact: /}}", true),
            (
                "{uri: {prefix: /a}, ignoreUriCase: true}",
                "{uri: {prefix: /a}}",
                false,
            ),
        ] {
            assert_eq!(!conflict(&item(root), &item(own)), fits, "{root} {own}");
        }
    }

    #[test]
    fn conditions_of_both_hold() {
        let root = item("{uri: {prefix: /a}, headers: {x: {exact: '1'}}, port: 80, name: r}");
        let own = item("{uri: {exact: /a/b}, headers: {y: {exact: '2'}}, name: d}");
        let made = both(&root, &own);
        assert_eq!(made.uri, Some(StringMatch::Exact("/a/b".into())));
        assert_eq!(made.headers.len(), 2);
        assert_eq!((made.port, made.name.as_str()), (Some(80), "r-d"));
    }
}
