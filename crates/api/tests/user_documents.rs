//! The user's own documents: each must get its verdict, at its line.
//!
//! `[]` means accepted and fully effective; a warning is about a field without effect so far, a
//! deprecation or a rule that can have no effect; an error refuses the document.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests may stop a test, too"
)]

use std::path::Path;

use lateen_api::{Mode, parse};

const PENDING: &str = "accepted and kept, but has no effect yet in this version";

/// (file, objects, diagnostics without the file name).
fn verdicts() -> Vec<(&'static str, usize, Vec<String>)> {
    let pending = |at: &str, path: &str| format!("{at}: warning: {path}: {PENDING}");
    vec![
        ("01-virtualservice-product-service.yaml", 1, vec![]),
        ("02-virtualservice-review-service.yaml", 1, vec![]),
        ("03-destinationrule-payment-dr.yaml", 1, vec![]),
        ("04-namespace-production.yaml", 1, vec![]),
        ("05-namespace-no-injection.yaml", 1, vec![]),
        ("06-virtualservice-reviews.yaml", 1, vec![]),
        (
            "07-destinationrule-reviews.yaml",
            1,
            vec![
                "16:15: warning: spec.trafficPolicy.loadBalancer.simple: LEAST_CONN is deprecated; use LEAST_REQUEST, which is what it means".into(),
            ],
        ),
        (
            "08-gateway-myapp-gateway.yaml",
            1,
            vec![],
        ),
        ("09-virtualservice-myapp.yaml", 1, vec![]),
        ("10-virtualservice-myapp-canary.yaml", 1, vec![]),
        ("11-virtualservice-myapp-ab.yaml", 1, vec![]),
        ("12-virtualservice-ratings.yaml", 1, vec![]),
        ("13-destinationrule-ratings.yaml", 1, vec![]),
        ("14-peerauthentication-default.yaml", 1, vec![]),
        ("15-peerauthentication-default.yaml", 1, vec![]),
        ("16-peerauthentication-default.yaml", 1, vec![]),
        ("17-authorizationpolicy-productpage-authz.yaml", 1, vec![]),
        ("18-authorizationpolicy-httpbin-policy.yaml", 1, vec![]),
        (
            "19-requestauthentication-jwt-auth.yaml",
            0,
            vec!["14:5: error: spec.jwtRules[0].triggerRules: unknown field \"triggerRules\"; remove it: a request without a token passes everywhere; which paths need one says an AuthorizationPolicy with notPaths".into()],
        ),
        (
            "20-istiooperator-istio-config.yaml",
            1,
            vec![
                pending("7:5", "spec.meshConfig.defaultProviders"),
                pending("10:5", "spec.meshConfig.enableTracing"),
                pending("12:7", "spec.meshConfig.defaultConfig.tracing"),
            ],
        ),
        (
            "21-istiooperator-logging-config.yaml",
            0,
            [
                "'%Y-%m-%dT%H:%M:%S.%fZ' is the format of a time; write %START_TIME(%Y-%m-%dT%H:%M:%S.%fZ)%",
                "unknown operator %RBAC_IDENTITY%; did you mean %DOWNSTREAM_PEER_URI_SAN%?",
                "unknown operator %BYTES_RECV%; did you mean %BYTES_RECEIVED%?",
                "unknown operator %UPSTREAM_TRANSPORTFailureReason%; did you mean %UPSTREAM_TRANSPORT_FAILURE_REASON%?",
                "unknown operator %RESP_CODE%; did you mean %RESPONSE_CODE%?",
                "unknown operator %RESP_FLAGS%; did you mean %RESPONSE_FLAGS%?",
            ]
            .map(|text| format!("9:7: error: spec.meshConfig.accessLogFormat: {text}"))
            .to_vec(),
        ),
        ("22-istiooperator-no-access-log.yaml", 1, vec![]),
        ("23-virtualservice-ratings-fault.yaml", 1, vec![]),
        ("24-virtualservice-ratings-error.yaml", 1, vec![]),
        (
            "25-destinationrule-reviews.yaml",
            0,
            vec!["13:5: error: spec.trafficPolicy.localityLbSetting: unknown field \"localityLbSetting\"; did you mean \"loadBalancer.localityLbSetting\"?".into()],
        ),
        (
            "26-istiooperator-resource-limits.yaml",
            0,
            vec![
                pending("6:3", "spec.components"),
                pending("19:3", "spec.values"),
                "21:7: error: spec.values.sidecarInjectorWebhook.resources: unknown field \"resources\"; the resources of sidecars are values.global.proxy.resources".into(),
            ],
        ),
        (
            "27-destinationrule-api.yaml",
            0,
            vec!["16:7: error: spec.trafficPolicy.loadBalancer.warmupDuration: unknown field \"warmupDuration\"; did you mean \"warmup.duration\" (or the deprecated \"warmupDurationSecs\")?".into()],
        ),
        ("28-virtualservice-product-service.yaml", 1, vec![]),
        ("29-virtualservice-product-service.yaml", 1, vec![]),
        ("30-virtualservice-product-service.yaml", 1, vec![]),
        ("31-virtualservice-api-gateway.yaml", 1, vec![]),
        (
            "32-virtualservice-order-service.yaml",
            1,
            vec![
                "15:18: warning: spec.http[0].retries.retryOn: retriable-status-codes without a status code matches nothing; add codes, such as 503, to the list".into(),
            ],
        ),
        ("33-virtualservice-checkout-service.yaml", 1, vec![]),
        (
            "34-virtualservice-product-service.yaml",
            1,
            vec![
                "18:7: warning[IST0130]: spec.http[1]: this rule is never used: http[0] before it takes every request; give http[0] a match, or move it to the end".into(),
            ],
        ),
        ("35-destinationrule-product-service.yaml", 1, vec![]),
        (
            "36-destinationrule-product-service.yaml",
            1,
            vec!["10:3: warning: spec.subsets: with loadBalancer.simple PASSTHROUGH a request goes to the address its caller asked for: subsets choose nothing".into()],
        ),
        ("37-destinationrule-backend-service.yaml", 1, vec![]),
        ("38-destinationrule-backend-service.yaml", 1, vec![]),
        (
            "39-destinationrule-product-service.yaml",
            1,
            vec![],
        ),
        ("40-serviceentry-external-weather-api.yaml", 1, vec![]),
        (
            "41-serviceentry-external-payment-api.yaml",
            0,
            vec!["14:3: error: spec.tls: unknown field \"tls\"; remove it: an HTTPS or TLS port is passed through by SNI without it; TLS origination is trafficPolicy.tls of a DestinationRule".into()],
        ),
        ("42-serviceentry-external-grpc-service.yaml", 1, vec![]),
        (
            "43-gateway-public-gateway.yaml",
            1,
            vec![],
        ),
        ("44-virtualservice-api-virtualservice.yaml", 1, vec![]),
        (
            "45-virtualservice-order-service.yaml",
            1,
            vec![
                "21:7: warning: spec.http[0].mirrorPercent: mirrorPercent is deprecated; use mirrorPercentage".into(),
            ],
        ),
        ("46-virtualservice-recommendation-service.yaml", 1, vec![]),
        ("47-virtualservice-recommendation-service.yaml", 1, vec![]),
        ("48-virtualservice-recommendation-service.yaml", 1, vec![]),
    ]
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/user-documents")
        .join(file);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_document_gets_its_verdict_at_its_line() {
    let verdicts = verdicts();
    assert_eq!(verdicts.len(), 48);
    for (file, objects, expected) in verdicts {
        let parsed = parse(file, &read(file), Mode::Strict);
        let found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
        let expected: Vec<String> = expected
            .iter()
            .map(|text| format!("{file}:{text}"))
            .collect();
        assert_eq!(found, expected, "{file}");
        assert_eq!(parsed.objects.len(), objects, "{file}");
    }
}

#[test]
fn unknown_fields_can_be_ignored_with_a_warning() {
    for file in [
        "25-destinationrule-reviews.yaml",
        "27-destinationrule-api.yaml",
        "41-serviceentry-external-payment-api.yaml",
    ] {
        let parsed = parse(file, &read(file), Mode::AllowUnknown);
        assert_eq!(parsed.objects.len(), 1, "{file}");
        assert!(!parsed.has_errors(), "{file}");
        assert!(
            parsed
                .diagnostics
                .iter()
                .any(|found| found.message.ends_with("is ignored")),
            "{file}"
        );
    }
}

#[test]
fn all_documents_in_one_file_with_separators_are_the_same_as_one_by_one() {
    let files: Vec<&str> = verdicts().into_iter().map(|(file, ..)| file).collect();
    let text = files
        .iter()
        .map(|file| read(file))
        .collect::<Vec<_>>()
        .join("\n---\n");
    let parsed = parse("all.yaml", &text, Mode::Strict);
    let one_by_one: Vec<_> = files
        .iter()
        .map(|file| parse(file, &read(file), Mode::Strict))
        .collect();
    let objects: Vec<_> = one_by_one
        .iter()
        .flat_map(|parsed| &parsed.objects)
        .collect();
    assert_eq!(parsed.objects.len(), objects.len());
    for (together, alone) in parsed.objects.iter().zip(objects) {
        assert_eq!(together.object, alone.object);
    }
    let diagnostics: usize = one_by_one
        .iter()
        .map(|parsed| parsed.diagnostics.len())
        .sum();
    assert_eq!(parsed.diagnostics.len(), diagnostics);
}

#[test]
fn documents_pasted_without_separator_name_both_lines() {
    for (first, second) in [
        (
            "12-virtualservice-ratings.yaml",
            "13-destinationrule-ratings.yaml",
        ),
        (
            "17-authorizationpolicy-productpage-authz.yaml",
            "18-authorizationpolicy-httpbin-policy.yaml",
        ),
        (
            "21-istiooperator-logging-config.yaml",
            "22-istiooperator-no-access-log.yaml",
        ),
    ] {
        let (first, second) = (read(first), read(second));
        let parsed = parse("pasted.yaml", &format!("{first}{second}"), Mode::Strict);
        let line = first.lines().count() + 1;
        let expected = format!(
            "pasted.yaml:{line}:1: error: apiVersion: duplicate key \"apiVersion\": first at line 1, again at line {line}; a \"---\" line is probably missing before line {line}"
        );
        assert!(
            parsed
                .diagnostics
                .iter()
                .any(|found| found.to_string() == expected),
            "{:#?}",
            parsed.diagnostics
        );
        assert!(parsed.objects.is_empty());
    }
}

#[test]
fn accepted_documents_survive_json_and_yaml() {
    for (file, objects, _) in verdicts() {
        let parsed = parse(file, &read(file), Mode::Strict);
        assert_eq!(parsed.objects.len(), objects);
        for parsed in parsed.objects {
            let object = parsed.object;
            assert_eq!(
                lateen_api::Object::from_json(&object.to_json()),
                Ok(object.clone()),
                "{file}"
            );
            let again = parse("again.yaml", &object.to_yaml(), Mode::Strict);
            assert_eq!(
                again.objects[0].object,
                object,
                "{file}\n{}",
                object.to_yaml()
            );
        }
    }
}
