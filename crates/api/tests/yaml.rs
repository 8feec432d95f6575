//! Documents as text: separators, duplicates, headers, lists, anchors, bounds, places, rendering.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use expect_test::{Expect, expect};
use lateen_api::{Kind, Mode, Parsed, Path, parse};

fn read(text: &str) -> Parsed {
    parse("f.yaml", text, Mode::Strict)
}

/// The diagnostics, one per line, and what was read.
fn check(text: &str, expected: Expect) {
    let parsed = read(text);
    let mut found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    found.extend(parsed.objects.iter().map(|parsed| {
        let object = &parsed.object;
        format!(
            "{} {} at line {}",
            object.kind, object.meta.name, parsed.location.line
        )
    }));
    expected.assert_eq(&found.join("\n"));
}

const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a}\n";

#[test]
fn documents_are_separated_by_lines_and_empty_ones_are_skipped() {
    let b = RULE.replace("name: a", "name: b");
    check(
        &format!("# comment\n---\n{RULE}---\n---  # empty\n\n{b}...\n---\n# end\n"),
        expect![[r#"
            DestinationRule a at line 3
            DestinationRule b at line 10"#]],
    );
    check(
        &format!("%YAML 1.2\n---\n{RULE}"),
        expect!["DestinationRule a at line 3"],
    );
    check(
        &format!("\u{feff}{RULE}"),
        expect!["DestinationRule a at line 1"],
    );
    check(
        &RULE.replace('\n', "\r\n"),
        expect!["DestinationRule a at line 1"],
    );
    check("", expect![""]);
    check("---\n---\n", expect![""]);
}

#[test]
fn a_broken_document_does_not_hide_the_others() {
    check(
        &format!("a: [1\n---\n{RULE}---\na: b: c\n---\nx:\n\ty: 1\n---\nhost: @x\n"),
        expect![[r#"
            f.yaml:1:6: error: not valid YAML: while parsing a flow sequence, expected ',' or ']'; check indentation, quotes and brackets here and on the line before
            f.yaml:8:5: error: not valid YAML: mapping values are not allowed in this context; quote the value, or check the indentation
            f.yaml:11:2: error: not valid YAML: tabs disallowed within this context (block indentation); indent with spaces; a tab is not allowed
            f.yaml:13:7: error: not valid YAML: unexpected character: `@'; quote the value
            DestinationRule a at line 3"#]],
    );
}

#[test]
fn duplicate_keys_name_both_lines() {
    check(
        &format!("{RULE}{RULE}"),
        expect![[
            r#"f.yaml:5:1: error: apiVersion: duplicate key "apiVersion": first at line 1, again at line 5; a "---" line is probably missing before line 5"#
        ]],
    );
    check(
        "kind: Namespace\napiVersion: v1\nmetadata: {name: a}\nkind: Namespace\napiVersion: v1\nmetadata: {name: B}\n",
        expect![[r#"
        f.yaml:4:1: error: kind: duplicate key "kind": first at line 1, again at line 4; a "---" line is probably missing before line 4
        f.yaml:6:18: error: metadata.name: "B" is not a valid name: use at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit"#]],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: a\n  subsets:\n  - name: v1\n    labels: {a: b, a: c}\n    name: v2\n",
        expect![[r#"
        f.yaml:8:20: error: spec.subsets[0].labels.a: duplicate key "a": first at line 8, again at line 8; remove one of them
        f.yaml:9:5: error: spec.subsets[0].name: duplicate key "name": first at line 7, again at line 9; remove one of them"#]],
    );
}

#[test]
fn headers() {
    check(
        "kind: DestinationRule\nmetadata: {name: a}\n",
        expect![[
            r#"f.yaml:1:1: error: apiVersion: apiVersion is missing; add "apiVersion: networking.istio.io/v1""#
        ]],
    );
    check(
        "apiversion: v1\nkind: Namespace\n",
        expect![[
            r#"f.yaml:1:1: error: apiVersion: apiVersion is missing; did you mean this by "apiversion" at line 1?"#
        ]],
    );
    check(
        "apiVersion: v1\nkinds: Namespace\n",
        expect![[
            r#"f.yaml:1:1: error: kind: kind is missing; did you mean this by "kinds" at line 2?"#
        ]],
    );
    check(
        "apiVersion: 1\nkind:\n",
        expect![[r#"
            f.yaml:1:13: error: apiVersion: expected a string, found the number 1
            f.yaml:2:5: error: kind: kind is empty"#]],
    );
    check(
        "apiVersion: networking.istio.io/v2\nkind: Gateway\n",
        expect![[
            r#"f.yaml:1:13: error: apiVersion: Gateway has no version "networking.istio.io/v2"; use one of networking.istio.io/v1, networking.istio.io/v1beta1, networking.istio.io/v1alpha3"#
        ]],
    );
    check(
        "apiVersion: networking/v1\nkind: VirtualService\n",
        expect![[
            r#"f.yaml:1:13: error: apiVersion: there is no kind VirtualService in "networking/v1"; did you mean "networking.istio.io/v1"?"#
        ]],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: VirtualSevice\n",
        expect![[
            r#"f.yaml:2:7: error: kind: unknown kind "VirtualSevice" in "networking.istio.io/v1"; did you mean "VirtualService"?"#
        ]],
    );
    check(
        "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\n",
        expect![[
            r#"f.yaml:2:7: error: kind: unknown kind "AuthorisationPolicy" in "security.istio.io/v1"; did you mean "AuthorizationPolicy"?"#
        ]],
    );
    check(
        "apiVersion: x/v1\nkind: Whatever\n",
        expect![[r#"f.yaml:2:7: error: kind: unknown kind "Whatever" in "x/v1""#]],
    );
    check(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n",
        expect![
            "f.yaml:2:7: error: kind: Gateway (gateway.networking.k8s.io/v1) is not supported yet by this version of Lateen; take the document out of the source; the others are not affected"
        ],
    );
    check(
        "- a\n",
        expect![
            "f.yaml:1:1: error: expected an object with apiVersion, kind, metadata and spec, found a list"
        ],
    );
    check(
        "hello\n",
        expect![[
            r#"f.yaml:1:1: error: expected an object with apiVersion, kind, metadata and spec, found the string "hello""#
        ]],
    );
    check(
        &format!("{RULE}host: a\nspecs: {{}}\nother: 1\n"),
        expect![[r#"
        f.yaml:5:1: error: host: unknown field "host"; did you mean "spec.host"? (indent it below spec)
        f.yaml:6:1: error: specs: unknown field "specs"; did you mean "spec"?
        f.yaml:7:1: error: other: unknown field "other""#]],
    );
    check(
        &RULE.replace("{host: a}", "[]"),
        expect!["f.yaml:4:7: error: spec: expected a mapping, found a list"],
    );
}

#[test]
fn lists_are_flattened() {
    let items = "- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: A}}\n- 5\n";
    check(
        &format!(
            "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: \"\"}}\nitems:\n{items}extra: 1\n"
        ),
        expect![[r#"
        f.yaml:6:54: error: items[1].metadata.name: "A" is not a valid name: use at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit
        f.yaml:7:3: error: items[2]: expected an object with apiVersion, kind, metadata and spec, found the number 5
        f.yaml:8:1: error: extra: unknown field "extra"
        Namespace a at line 5"#]],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: GatewayList\nitems: {}\n",
        expect!["f.yaml:3:8: error: items: expected a list"],
    );
    check("apiVersion: v1\nkind: List\nitems:\n", expect![""]);
}

#[test]
fn json_is_yaml_and_tabs_do_not_matter_in_it() {
    check(
        "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"\\u0041\"}\n}\n",
        expect![[
            r#"f.yaml:4:23: error: metadata.name: "A" is not a valid name: use at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit"#
        ]],
    );
    let emoji = "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\", \"annotations\": {\"a\": \"\\ud83d\\ude00\"}}}";
    let parsed = read(emoji);
    assert_eq!(parsed.objects[0].object.meta.annotations["a"], "😀");
    check(
        "{\"apiVersion\": \"v1\",\n \"kind\" \"Namespace\"}\n",
        expect!["f.yaml:2:9: error: not valid JSON: expected `:`"],
    );
}

#[test]
fn anchors_aliases_and_merges_are_read() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: &h a\n  subsets:\n  - &one {name: v1, labels: &l {app: a}}\n  - {<<: *one, name: v2}\n  - {name: v3, labels: {<<: [*l], version: *h}}\n";
    let parsed = read(text);
    assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
    let json = parsed.objects[0].object.to_json();
    assert_eq!(
        json["spec"]["subsets"][1],
        serde_json::json!({"name": "v2", "labels": {"app": "a"}})
    );
    assert_eq!(
        json["spec"]["subsets"][2]["labels"],
        serde_json::json!({"app": "a", "version": "a"})
    );
    check(
        "a: *b\n",
        expect![
            "f.yaml:1:4: error: not valid YAML: while parsing node, found unknown anchor; quote the value"
        ],
    );
    check(
        "a: &a [*a]\n",
        expect!["f.yaml:1:8: error: an alias inside the thing it stands for"],
    );
    check(
        "a: {<<: 5}\n",
        expect![[
            r#"f.yaml:1:9: error: "<<" merges a mapping or a list of mappings, found the number 5"#
        ]],
    );
    check(
        "[a]: 1\n",
        expect!["f.yaml:1:1: error: a key must be a word, found a list"],
    );
    check(
        "a: !x 1\n",
        expect!["f.yaml:1:4: error: the tag !x means nothing here; remove it"],
    );
}

#[test]
fn hostile_documents_end_in_an_error() {
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in ["b", "c", "d", "e", "f", "g", "h", "i"]
        .into_iter()
        .zip(["a", "b", "c", "d", "e", "f", "g", "h"])
    {
        laughs.push_str(&format!(
            "{name}: &{name} [{}]\n",
            vec![format!("*{of}"); 9].join(", ")
        ));
    }
    check(
        &laughs,
        expect![
            "f.yaml:5:12: error: aliases make this document larger than 20000 nodes; write the values out"
        ],
    );
    check(
        &"[".repeat(10_000),
        expect![
            "f.yaml:1:256: error: not valid YAML: recursion limit exceeded; check indentation, quotes and brackets here and on the line before"
        ],
    );
    check(
        &"- ".repeat(10_000),
        expect!["f.yaml:1:129: error: nested deeper than 64 levels"],
    );
    check(
        &format!("{{{}", "\"a\": {".repeat(10_000)),
        expect!["f.yaml:1:763: error: not valid JSON: recursion limit exceeded"],
    );
    check(
        &"x".repeat(4 << 20),
        expect![[
            r#"f.yaml:1:1: error: the document has 4194304 bytes, at most 3145728 are allowed; split it with "---""#
        ]],
    );
    check(
        "a: b\nc: \0d\n",
        expect!["f.yaml:2:4: error: a control character is not allowed; is this a text file?"],
    );
}

#[test]
fn places_of_fields_can_be_asked_for() {
    let parsed = read(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    x.y/z: b\n",
    );
    let root = Path::root();
    let metadata = root.key("metadata");
    for (path, expected) in [
        (root.clone(), (2, 1)),
        (metadata.clone(), (4, 1)),
        (metadata.key("name"), (5, 9)),
        (metadata.key("labels").key("x.y/z"), (7, 12)),
        (metadata.key("annotations").key("q"), (4, 1)),
        (root.key("spec").key("x").index(3), (2, 1)),
    ] {
        let location = parsed.objects[0].locate(&path);
        assert_eq!((location.line, location.column), expected, "{path}");
    }
}

#[test]
fn the_text_range_of_a_document_is_its_own() {
    let text = format!(
        "---\n{RULE}--- # two\n{}",
        RULE.replace("name: a", "name: b")
    );
    let parsed = read(&text);
    assert_eq!(&text[parsed.objects[0].text.clone()], RULE);
    assert!(text[parsed.objects[1].text.clone()].starts_with("--- # two\napiVersion"));
}

#[test]
fn rendering_shows_the_line_and_marks_the_word() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a} # 名前\nspec: {hots: a, trafficPolicy: {loadBalancer: {simple: 最少}}}\n";
    let parsed = read(text);
    expect![[r#"
        f.yaml:4:8: error: spec.hots: unknown field "hots"; did you mean "host"?
          |
        4 | spec: {hots: a, trafficPolicy: {loadBalancer: {simple: 最少}}}
          |        ^^^^
        f.yaml:4:56: error: spec.trafficPolicy.loadBalancer.simple: unknown value "最少"; one of UNSPECIFIED, RANDOM, PASSTHROUGH, ROUND_ROBIN, LEAST_REQUEST
          |
        4 | spec: {hots: a, trafficPolicy: {loadBalancer: {simple: 最少}}}
          |                                                        ^^^^
    "#]]
    .assert_eq(&parsed.render(text, false));
    assert!(
        parsed.diagnostics[0]
            .render(text, true)
            .contains("\u{1b}[31m^^^^\u{1b}[0m")
    );
}

#[test]
fn kinds_are_found_by_what_people_type() {
    for (text, expected) in [
        ("VirtualService", Some(Kind::VirtualService)),
        ("virtualservices", Some(Kind::VirtualService)),
        ("vs", Some(Kind::VirtualService)),
        (
            "virtualservices.networking.istio.io",
            Some(Kind::VirtualService),
        ),
        (
            "virtualservices.v1beta1.networking.istio.io",
            Some(Kind::VirtualService),
        ),
        ("dr", Some(Kind::DestinationRule)),
        ("gw", Some(Kind::Gateway)),
        ("gateways.networking.istio.io", Some(Kind::Gateway)),
        ("gateways.gateway.networking.k8s.io", None),
        ("se", Some(Kind::ServiceEntry)),
        ("WE", Some(Kind::WorkloadEntry)),
        ("svc", Some(Kind::Service)),
        ("Services", Some(Kind::Service)),
        ("ns", Some(Kind::Namespace)),
        ("po", Some(Kind::Pod)),
        ("pods", Some(Kind::Pod)),
        ("deployments", None),
    ] {
        assert_eq!(text.parse::<Kind>().ok(), expected, "{text}");
    }
    let unknown = "virtualservce".parse::<Kind>().unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "unknown kind \"virtualservce\"; did you mean \"virtualservice\"?"
    );
    assert_eq!(
        Kind::from_resource("networking.istio.io", "gateways"),
        Some(Kind::Gateway)
    );
    assert_eq!(Kind::from_resource("", "gateways"), None);
}

#[test]
fn findings_without_end_are_cut_short() {
    let mut text = format!("{RULE}  # many\n");
    for index in 0..1500 {
        text.push_str(&format!("k{index}: {}\n", "x".repeat(9)));
    }
    let parsed = read(&text);
    assert_eq!(parsed.diagnostics.len(), 1001);
    let last = parsed.diagnostics.last().unwrap().to_string();
    assert_eq!(
        last,
        "f.yaml:1005:1: error: 500 more findings in this document are not shown"
    );

    let text = RULE.replace(
        "{host: a}",
        &format!(
            "{{subsets: [], {}: {{host: \"{}\"}}}}",
            "y".repeat(300),
            "z".repeat(5000)
        ),
    );
    let rendered = read(&text).render(&text, false);
    assert!(rendered.len() < 2500, "{rendered}");
    assert!(rendered.contains('…'), "{rendered}");
}

#[test]
fn a_target_that_cannot_be_is_told_at_its_line() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  \
                targetRefs:\n  - group: gateway.networking.k8s.io\n    kind: Gateway\n    name: edge\n    \
                namespace: web\n";
    let parsed = lateen_api::parse("a.yaml", text, lateen_api::Mode::Strict);
    let said: Vec<_> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("9:16: error: spec.targetRefs[0].namespace"),
        "{said:?}"
    );
}
