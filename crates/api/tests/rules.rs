//! What each kind's rules find: tables in `tests/rules/*.txt`.
//!
//! A table begins with the kind, a `spec` with `@` where the case goes, and the path that `$` stands
//! for. A case is a line that begins with `>`, then its findings (`ok` for none) without the place in
//! the file, which `tests/schema.rs` and `tests/yaml.rs` look at. Warnings about fields without effect
//! so far are left out.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests may stop a test, too"
)]

use std::path::Path;

use lateen_api::{Mode, parse};

fn findings(text: &str) -> Vec<String> {
    let parsed = parse("", text, Mode::Strict);
    let found = parsed.diagnostics.iter();
    let found = found.filter(|found| !found.message.contains("no effect yet in this version"));
    // Leave out `line:column: `.
    found
        .map(|found| found.to_string().split_once(' ').unwrap().1.to_owned())
        .collect()
}

/// Kinds whose content stands beside `metadata`, with their version.
const AT_ROOT: [(&str, &str); 6] = [
    ("Role", "rbac.authorization.k8s.io/v1"),
    ("RoleBinding", "rbac.authorization.k8s.io/v1"),
    ("ClusterRole", "rbac.authorization.k8s.io/v1"),
    ("ClusterRoleBinding", "rbac.authorization.k8s.io/v1"),
    ("EndpointSlice", "discovery.k8s.io/v1"),
    ("Endpoints", "v1"),
];

fn document(kind: &str, spec: &str) -> String {
    if let Some((_, version)) = AT_ROOT.iter().find(|(of, _)| *of == kind) {
        let separator = if spec.is_empty() { "" } else { ", " };
        let label = "kubernetes.io/service-name: x";
        return format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{name: x, labels: {{{label}}}}}\
             {separator}{spec}}}\n"
        );
    }
    let version = match kind {
        "Service" => "v1",
        "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication" => {
            "security.istio.io/v1"
        }
        _ => "networking.istio.io/v1",
    };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{{spec}}}\n")
}

/// Equal in any order: which of two fields in one line comes first says nothing.
#[track_caller]
fn same(mut found: Vec<String>, mut expected: Vec<String>, what: &str) {
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{what}");
}

/// Checks every case of a file and says how many there are.
fn check_file(name: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/rules")
        .join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let (mut kind, mut template, mut path) = ("", "", "");
    let mut cases = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(value) = line.strip_prefix("kind: ") {
            kind = value;
        } else if let Some(value) = line.strip_prefix("spec: ") {
            template = value;
        } else if let Some(value) = line.strip_prefix("path: ") {
            path = value;
        } else if let Some(case) = line.strip_prefix('>') {
            let mut expected = Vec::new();
            while let Some(finding) = lines.next_if(|line| !line.is_empty()) {
                expected.extend((finding != "ok").then(|| finding.replacen('$', path, 1)));
            }
            let spec = template.replace('@', case.trim());
            same(
                findings(&document(kind, &spec)),
                expected,
                &format!("{name}: {spec}"),
            );
            cases += 1;
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "{name}: {line}");
        }
    }
    cases
}

#[test]
fn every_rule_finds_what_it_should() {
    let files = [
        ("virtual_service.txt", 34),
        ("http_route.txt", 108),
        ("destination_rule.txt", 79),
        ("gateway.txt", 27),
        ("service_entry.txt", 36),
        ("service.txt", 20),
        ("sidecar.txt", 30),
        ("authorization_policy.txt", 40),
        ("peer_authentication.txt", 10),
        ("request_authentication.txt", 24),
        ("role.txt", 22),
        ("endpoints.txt", 11),
    ];
    for (name, at_least) in files {
        let cases = check_file(name);
        assert!(cases >= at_least, "{name} has only {cases} cases");
    }
}

#[test]
fn metadata() {
    let named = |meta: &str| {
        let head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n";
        format!("{head}metadata: {{{meta}}}\nspec: {{host: a}}\n")
    };
    let bad_name = "is not a valid name: use at most 253 lower case letters, digits, '-' and '.', beginning and ending with a letter or digit";
    let bad_label = "is not a valid name: use at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit";
    let namespace = |meta: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{{meta}}}\n");
    for (text, expected) in [
        (named("name: a.b-1, namespace: c"), vec![]),
        (named("namespace: c"), vec!["error: metadata.name: metadata.name is required".to_owned()]),
        (named("name: A"), vec![format!("error: metadata.name: \"A\" {bad_name}")]),
        (
            named("name: 1"),
            vec!["error: metadata.name: expected a string, found the number 1; quote it: \"1\"".to_owned()],
        ),
        (named("name: a, namespace: b.c"), vec![format!("error: metadata.namespace: \"b.c\" {bad_label}")]),
        (
            named("name: a, labels: {-x: z}"),
            vec!["error: metadata.labels.-x: invalid label or annotation key \"-x\"".to_owned()],
        ),
        (
            named("name: a, labels: {x: -z}"),
            vec!["error: metadata.labels.x: invalid label value \"-z\": use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit".to_owned()],
        ),
        (
            named("name: a, annotations: {'a b/c': z}"),
            vec!["error: metadata.annotations[\"a b/c\"]: invalid label or annotation key \"a b/c\"".to_owned()],
        ),
        (
            named("nmae: a"),
            vec!["error: metadata.nmae: unknown field \"nmae\"; did you mean \"name\"?".to_owned()],
        ),
        (
            named("name: a, creationTimestamp: today"),
            vec!["error: metadata.creationTimestamp: expected a time, found the string \"today\"; write it like 2026-01-31T12:00:00Z".to_owned()],
        ),
        (
            "apiVersion: v1\nkind: Namespace\n".to_owned(),
            vec!["error: metadata.name: metadata.name is required".to_owned()],
        ),
        (
            namespace("name: a, namespace: b"),
            vec!["warning: metadata.namespace: a Namespace belongs to no namespace; this is ignored".to_owned()],
        ),
        (namespace("name: a.b"), vec![format!("error: metadata.name: \"a.b\" {bad_label}")]),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: 1a}\nspec: {ports: [{port: 80}]}\n".to_owned(),
            vec!["error: metadata.name: \"1a\" is not a valid name for a Service: it must begin with a letter".to_owned()],
        ),
    ] {
        same(findings(&text), expected, &text);
    }
}

#[test]
fn a_misspelt_field_of_a_security_rule_is_an_error_for_lenient_readers_too() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                metadata: {name: x}\nspec: {mtls: {moed: STRICT}}\n";
    for mode in [Mode::Strict, Mode::AllowUnknown] {
        let parsed = parse("", text, mode);
        assert!(parsed.has_errors() && parsed.objects.is_empty(), "{mode:?}");
    }
    // Its twin of another kind is read without the field.
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                metadata: {name: x}\nspec: {host: a, tarfficPolicy: {}}\n";
    assert_eq!(parse("", text, Mode::AllowUnknown).objects.len(), 1);
}
