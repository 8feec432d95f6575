//! The configuration API over a real socket, as Kubernetes' conventions have it.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::time::Duration;

use lateen_testkit::PATIENCE;
use serde_json::{Value, json};
use support::{Answer, bench, bench_in, open};
use tokio::io::{AsyncBufReadExt, BufReader};

const RULES: &str = "/apis/networking.istio.io/v1/namespaces/default/destinationrules";
const RULE: &str = "/apis/networking.istio.io/v1/namespaces/default/destinationrules/reviews";

fn rule(host: &str) -> String {
    named_rule("reviews", host)
}

fn named_rule(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\n\
         spec: {{host: {host}}}\n"
    )
}

fn reason(answer: &Answer) -> (u16, String) {
    let status = answer.json();
    assert_eq!(status["kind"], "Status", "{}", answer.body);
    assert_eq!(status["code"], answer.code);
    (answer.code, status["reason"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_object_goes_through_its_life() {
    let bench = bench().await;
    let created = bench.post(RULES, &rule("one")).await;
    assert_eq!(created.code, 201);
    assert_eq!(created.json()["metadata"]["namespace"], "default");
    assert_eq!(bench.get(RULE).await.json()["spec"]["host"], "one");

    let mut document = created.json();
    document["spec"]["host"] = json!("two");
    let replaced = bench.put(RULE, &document.to_string()).await;
    assert_eq!(
        (replaced.code, &replaced.json()["metadata"]["generation"]),
        (200, &json!(2))
    );
    // The document still names the resourceVersion it was read at.
    let stale = bench.put(RULE, &document.to_string()).await;
    assert_eq!(reason(&stale), (409, "Conflict".into()));

    let verdict = |answer: &Answer| {
        let line = answer
            .headers
            .lines()
            .find(|l| l.starts_with("x-lateen-verdict: "));
        line.unwrap().split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(verdict(&bench.apply(RULE, &rule("two")).await), "unchanged");
    assert_eq!(
        verdict(&bench.apply(RULE, &rule("three")).await),
        "configured"
    );

    let deleted = bench.send("DELETE", RULE, &[], "").await;
    assert_eq!(
        (deleted.code, &deleted.json()["status"]),
        (200, &json!("Success"))
    );
    assert_eq!(reason(&bench.get(RULE).await), (404, "NotFound".into()));
    let message = bench.get(RULE).await.json()["message"].clone();
    assert_eq!(
        message,
        "destinationrules.networking.istio.io \"reviews\" not found"
    );
}

#[tokio::test]
async fn every_served_version_is_the_same_object() {
    let bench = bench().await;
    bench.apply(RULE, &rule("one")).await;
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let path = RULE.replace("/v1/", &format!("/{version}/"));
        let api_version = format!("networking.istio.io/{version}");
        assert_eq!(
            bench.get(&path).await.json()["apiVersion"],
            json!(api_version)
        );
    }
}

#[tokio::test]
async fn lists_select_and_page() {
    let bench = bench().await;
    for name in ["a", "b", "c"] {
        let labelled = named_rule(name, "x").replace("}\nspec", ", labels: {n: LABEL}}\nspec");
        let labelled = labelled.replace("LABEL", name);
        assert_eq!(bench.post(RULES, &labelled).await.code, 201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = "/apis/networking.istio.io/v1/destinationrules";
    let list = bench.get(all).await.json();
    assert_eq!(
        (list["kind"].clone(), names(&list).len()),
        (json!("DestinationRuleList"), 3)
    );
    assert_eq!(list["metadata"]["resourceVersion"], "3");
    let check = async |query: &str, expect: &[&str]| {
        assert_eq!(
            names(&bench.get(&format!("{all}?{query}")).await.json()),
            expect,
            "{query}"
        );
    };
    check("labelSelector=n%3Da", &["a"]).await;
    check("labelSelector=n+in+(a,c)", &["a", "c"]).await;
    check("fieldSelector=metadata.name%3Db", &["b"]).await;
    let page = bench.get(&format!("{all}?limit=2")).await.json();
    assert_eq!(names(&page), ["a", "b"]);
    let token = page["metadata"]["continue"].as_str().unwrap();
    check(&format!("limit=2&continue={token}"), &["c"]).await;
    let elsewhere = RULES.replace("default", "elsewhere");
    assert!(names(&bench.get(&elsewhere).await.json()).is_empty());
    let wrong = bench.get(&format!("{all}?labelSelector=a+b")).await;
    assert_eq!(reason(&wrong), (400, "BadRequest".into()));
}

#[tokio::test]
async fn tables_have_istios_columns() {
    let bench = bench().await;
    let path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices";
    let body = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n\
                spec: {hosts: [a, b], gateways: [g], http: [{route: [{destination: {host: a}}]}]}";
    assert_eq!(bench.post(path, body).await.code, 201);
    let accept = [(
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )];
    let table = bench.send("GET", path, &accept, "").await.json();
    let columns = table["columnDefinitions"].as_array().unwrap();
    let columns: Vec<_> = columns
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["Name", "Gateways", "Hosts", "Age"]);
    let cells = &table["rows"][0]["cells"];
    assert_eq!(cells[0], "web");
    assert_eq!(
        (&cells[1], &cells[2]),
        (&json!("[\"g\"]"), &json!("[\"a\",\"b\"]"))
    );
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "web");
}

#[tokio::test]
async fn a_wrong_document_names_every_error_with_its_field() {
    let bench = bench().await;
    let wrong = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                 metadata: {name: reviews}\nspec:\n  hots: a\n  trafficPolicy: {loadBalncer: {}}\n";
    let answer = bench.apply(RULE, wrong).await;
    assert_eq!(reason(&answer), (422, "Invalid".into()));
    let causes = answer.json()["details"]["causes"].clone();
    let fields: Vec<_> = causes
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["field"].as_str().unwrap())
        .collect();
    assert!(fields.contains(&"spec.hots"), "{fields:?}");
    assert!(
        fields.contains(&"spec.trafficPolicy.loadBalncer"),
        "{fields:?}"
    );
    assert_eq!(causes[0]["line"], 5);
    assert_eq!(bench.get(RULE).await.code, 404, "nothing was written");

    // The same as JSON, and leniently.
    let json = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "reviews"}, "spec": {"host": "a", "hots": "b"},
    });
    assert_eq!(bench.put(RULE, &json.to_string()).await.code, 422);
    let headers = [("content-type", "application/json")];
    let lenient = format!("{RULES}?fieldValidation=Warn");
    let answer = bench
        .send("POST", &lenient, &headers, &json.to_string())
        .await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let warnings = answer.warnings().join("\n");
    assert!(
        warnings.starts_with("299 - \"spec.hots: unknown field"),
        "{warnings}"
    );
    assert_eq!(bench.get(RULE).await.json()["spec"], json!({"host": "a"}));
}

#[tokio::test]
async fn what_does_not_fit_the_url_is_refused() {
    let bench = bench().await;
    let check = async |path: &str, body: &str, expect: &str| {
        let answer = bench.apply(path, body).await;
        let (code, _) = reason(&answer);
        assert_eq!(code, 400, "{}", answer.body);
        let message = answer.json()["message"].clone();
        assert!(message.as_str().unwrap().contains(expect), "{message}");
    };
    check(
        &RULE.replace("reviews", "other"),
        &rule("a"),
        "name on the URL (other)",
    )
    .await;
    let elsewhere = rule("a").replace("name: reviews", "name: reviews, namespace: elsewhere");
    check(RULE, &elsewhere, "does not match the namespace").await;
    check(
        &RULE.replace("destinationrules", "gateways"),
        &rule("a"),
        "DestinationRule",
    )
    .await;
    check(
        RULE,
        &format!("{}---\n{}", rule("a"), rule("b")),
        "2 objects",
    )
    .await;
    let bad_json = bench.put(RULE, "{").await;
    assert_eq!(reason(&bad_json), (400, "BadRequest".into()));
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_does_nothing() {
    let bench = bench().await;
    let answer = bench.apply(&format!("{RULE}?dryRun=All"), &rule("a")).await;
    assert_eq!(answer.code, 201);
    assert_eq!(bench.get(RULE).await.code, 404);
    bench.apply(RULE, &rule("a")).await;
    let answer = bench
        .send("DELETE", &format!("{RULE}?dryRun=All"), &[], "")
        .await;
    assert_eq!(answer.code, 200);
    assert_eq!(bench.get(RULE).await.code, 200);
}

#[tokio::test]
async fn many_objects_are_one_revision_and_all_of_them_or_none() {
    let bench = bench().await;
    let document = |index: usize, host: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1beta1", "kind": "DestinationRule",
            "metadata": {"name": format!("rule{index}"), "namespace": "many"},
            "spec": {"host": host},
        })
    };
    let bulk = async |items: Vec<Value>, query: &str| {
        let path = format!("/lateen/v1/apply{query}");
        bench
            .post(&path, &json!({"items": items}).to_string())
            .await
    };
    let revision = async || bench.get("/debug/pushz").await.json()["revision"].clone();
    let count = async || {
        let all = bench
            .get("/apis/networking.istio.io/v1/destinationrules")
            .await;
        all.json()["items"].as_array().unwrap().len()
    };
    let before = revision().await.as_u64().unwrap();
    let many: Vec<Value> = (0..3_000).map(|index| document(index, "a")).collect();

    let dry = bulk(many.clone(), "?dryRun=All").await;
    assert_eq!(
        (dry.code, &dry.json()["items"][7]["verdict"]),
        (200, &json!("created"))
    );
    assert_eq!(count().await, 0);

    let answer = bulk(many.clone(), "").await;
    let items = answer.json()["items"].clone();
    assert_eq!((answer.code, items.as_array().unwrap().len()), (200, 3_000));
    assert_eq!(items[2_999]["object"]["metadata"]["name"], "rule2999");
    assert_eq!(
        items[2_999]["object"]["apiVersion"],
        "networking.istio.io/v1beta1"
    );
    assert_eq!(
        (count().await, revision().await),
        (3_000, json!(before + 1))
    );

    // One wrong among many: told by its place, and the others are not written either.
    let mut wrong = vec![document(0, "b"), document(1, ""), document(2, "b")];
    wrong[2]["metadata"]["resourceVersion"] = json!("1234567");
    for query in ["", "?dryRun=All"] {
        let answer = bulk(wrong.clone(), query).await;
        let items = answer.json()["items"].clone();
        assert_eq!(answer.code, 422, "{}", answer.body);
        assert_eq!(items[0], json!({}));
        assert_eq!(items[1]["status"]["reason"], "Invalid");
        // What the store would refuse is looked at in a dry run, which tells everything at once.
        let stale = &items[2]["status"]["reason"];
        assert_eq!(*stale == "Conflict", query == "?dryRun=All");
    }
    let stale = bulk(vec![document(0, "b"), wrong[2].clone()], "").await;
    assert_eq!(reason(&stale), (409, "Conflict".into()));
    assert_eq!(revision().await, json!(before + 1));
    let first = "/apis/networking.istio.io/v1/namespaces/many/destinationrules/rule0";
    assert_eq!(bench.get(first).await.json()["spec"]["host"], "a");
    assert_eq!(bench.post("/lateen/v1/apply", "[]").await.code, 400);
    assert_eq!(bench.get("/lateen/v1/apply").await.code, 405);
}

#[tokio::test]
async fn merge_patches_change_one_field() {
    let bench = bench().await;
    bench.apply(RULE, &rule("a")).await;
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = r#"{"metadata":{"labels":{"team":"x"}},"spec":{"host":"b"}}"#;
    let answer = bench.send("PATCH", RULE, &merge, patch).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(answer.json()["spec"]["host"], "b");
    let stale = r#"{"metadata":{"resourceVersion":"1"},"spec":{"host":"c"}}"#;
    assert_eq!(
        reason(&bench.send("PATCH", RULE, &merge, stale).await).0,
        409
    );
    let invalid = r#"{"spec":{"hots":"c"}}"#;
    assert_eq!(
        reason(&bench.send("PATCH", RULE, &merge, invalid).await).0,
        422
    );
    let unknown = [("content-type", "application/json-patch+json")];
    assert_eq!(
        reason(&bench.send("PATCH", RULE, &unknown, "[]").await).0,
        415
    );
}

#[tokio::test]
async fn a_watch_streams_what_happens() {
    let bench = bench().await;
    bench.apply(RULE, &rule("a")).await;
    let path =
        format!("{RULES}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3Dreviews");
    let stream = open(bench.api, "GET", &path, &[], "").await;
    let mut lines = BufReader::new(stream).lines();
    let mut event = async || loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line = line.unwrap().unwrap().unwrap();
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && event.is_object()
        {
            let host = event["object"]["spec"]["host"].as_str().unwrap().to_owned();
            return (event["type"].as_str().unwrap().to_owned(), host);
        }
    };
    assert_eq!(event().await, ("ADDED".into(), "a".into()));
    bench.apply(RULE, &rule("b")).await;
    bench.post(RULES, &named_rule("other", "x")).await;
    assert_eq!(event().await, ("MODIFIED".into(), "b".into()));
    bench.send("DELETE", RULE, &[], "").await;
    assert_eq!(event().await, ("DELETED".into(), "b".into()));
}

#[tokio::test]
async fn an_open_watch_does_not_keep_the_control_plane_from_stopping() {
    let bench = bench().await;
    let stream = open(bench.api, "GET", &format!("{RULES}?watch=true"), &[], "").await;
    let mut lines = BufReader::new(stream).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "HTTP/1.1 200 OK");
    let started = std::time::Instant::now();
    bench.control.stop().await;
    // After three seconds it would have been cut.
    let took = started.elapsed();
    assert!(took < Duration::from_millis(2_900), "{took:?}");
    while let Ok(Some(_)) = lines.next_line().await {}
}

#[tokio::test]
async fn the_wrong_method_path_or_size_is_said_so() {
    let bench = bench().await;
    assert_eq!(
        reason(&bench.get("/apis/networking.istio.io/v1/nothings").await).0,
        404
    );
    assert_eq!(reason(&bench.get("/").await).0, 404);
    assert_eq!(reason(&bench.send("DELETE", RULES, &[], "").await).0, 405);
    assert_eq!(reason(&bench.send("POST", RULE, &[], "").await).0, 405);
    let label = "x".repeat(60);
    let subsets = (0..20_000).map(|n| format!("{{name: s{n}, labels: {{v: {label}}}}}"));
    let subsets = subsets.collect::<Vec<_>>().join(", ");
    let large = rule("a").replace("host: a", &format!("host: a, subsets: [{subsets}]"));
    assert_eq!(
        reason(&bench.apply(RULE, &large).await),
        (413, "RequestEntityTooLarge".into())
    );
    let too_large = "x".repeat(4 << 20);
    let answer = bench.apply(RULE, &too_large).await;
    // The connection may be cut while the rest of the body is still on its way.
    assert!(answer.code == 413 || answer.code == 0, "{answer:?}");
}

#[tokio::test]
async fn web_pages_are_refused() {
    let bench = bench().await;
    let rebound = bench
        .send("GET", RULES, &[("host", "attacker.example")], "")
        .await;
    assert_eq!(reason(&rebound), (403, "Forbidden".into()));
    let origin = [("origin", "http://attacker.example")];
    assert_eq!(
        reason(&bench.send("GET", "/debug/configz", &origin, "").await).0,
        403
    );
    assert_eq!(
        reason(&bench.send("POST", RULES, &origin, &rule("a")).await).0,
        403
    );
}

#[tokio::test]
async fn objects_of_a_directory_are_refused_through_the_api() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("rule.yaml"), rule("file")).unwrap();
    let bench = bench_in(directory, Some(config)).await;
    assert_eq!(bench.get(RULE).await.json()["spec"]["host"], "file");
    let answer = bench.apply(RULE, &rule("api")).await;
    assert_eq!(reason(&answer), (403, "Forbidden".into()));
    assert!(answer.body.contains("rule.yaml"), "{}", answer.body);
    let files = bench.get("/debug/directoryz").await.json();
    assert_eq!(files["files"]["rule.yaml"]["objects"], 1);
}

#[tokio::test]
async fn configuration_survives_the_control_plane() {
    let first = bench().await;
    first.apply(RULE, &rule("a")).await;
    let directory = first.directory;
    first.control.stop().await;
    let second = bench_in(directory, None).await;
    assert_eq!(second.get(RULE).await.json()["spec"]["host"], "a");
    let push = second.get("/debug/pushz").await.json();
    assert_eq!(push["pushed"], 1, "it is in the first snapshot");
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_flag() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = lateen_control::Options {
        xds_port: 0,
        secure_port: 0,
        monitoring_port: 0,
        api_port: port,
        ..lateen_control::Options::new(directory.path())
    };
    let error = lateen_control::Control::start(options)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(&port.to_string()) && error.contains("--api-port"),
        "{error}"
    );
}

#[tokio::test]
async fn a_write_is_answered_with_what_does_not_fit_unless_asked_later() {
    let bench = bench().await;
    let path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices/web";
    let body = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n\
                spec: {hosts: [a], http: [{route: [{destination: {host: nowhere}}]}]}";
    let answer = bench.apply(path, body).await;
    let warnings = answer.warnings().join("\n");
    assert!(
        warnings.contains("[IST0101]") && warnings.contains("nowhere"),
        "{warnings}"
    );
    let headers = [
        ("content-type", "application/apply-patch+yaml"),
        ("x-lateen-advice", "later"),
    ];
    let changed = body.replace("[a]", "[a, b]");
    let answer = bench.send("PATCH", path, &headers, &changed).await;
    assert_eq!((answer.code, answer.warnings().len()), (200, 0));
    let found = bench.get("/debug/findings").await.json();
    assert_eq!(found[0]["subject"]["name"], "web");
    assert_eq!(found[0]["code"], "IST0101");
}

#[tokio::test]
async fn monitoring_and_debug_pages_answer() {
    let bench = bench().await;
    bench.apply(RULE, &rule("a")).await;
    let monitoring = bench.control.addresses().monitoring;
    let get = async |path: &str| support::send(monitoring, "GET", path, &[], "").await;
    assert_eq!(get("/ready").await.code, 200);
    assert_eq!(get("/version").await.json()["component"], "lateen");
    let metrics = get("/metrics").await.body;
    for name in ["pilot_info{", "pilot_services 0", "pilot_xds"] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    for path in [
        "syncz",
        "connections",
        "configz",
        "registryz",
        "endpointz",
        "pushz",
    ] {
        let answer = get(&format!("/debug/{path}")).await;
        assert_eq!(answer.code, 200, "{path}");
        answer.json();
    }
    assert_eq!(get("/debug/config_dump").await.code, 400);
    assert_eq!(get("/debug/config_dump?proxyID=a.b").await.code, 404);
}

#[tokio::test]
async fn hosts_without_addresses_show_the_ones_the_mesh_gave_them_and_the_same_after_a_restart() {
    const ENTRIES: &str = "/apis/networking.istio.io/v1/namespaces/default/serviceentries";
    let entry = |name: &str, rest: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
             spec: {{hosts: [{name}.test], resolution: DNS, {rest}\
             ports: [{{number: 80, name: tcp, protocol: TCP}}]}}\n"
        )
    };
    let first = bench().await;
    let created = first.post(ENTRIES, &entry("auto", "")).await.json();
    let addresses = created["status"]["addresses"].clone();
    let value = addresses[0]["value"].as_str().unwrap();
    assert!(value.starts_with("240.240."), "{created}");
    assert_eq!(addresses[0]["host"], "auto.test");
    assert!(
        addresses[1]["value"]
            .as_str()
            .unwrap()
            .starts_with("2001:2::")
    );
    // A patch of another field does not store what is only computed.
    let path = format!("{ENTRIES}/auto");
    let kind = [("content-type", "application/merge-patch+json")];
    let patch = r#"{"spec": {"addresses": ["10.0.0.1"]}}"#;
    let patched = first.send("PATCH", &path, &kind, patch).await.json();
    assert_eq!(patched["status"]["addresses"], json!(null), "{patched}");
    let patch = r#"{"spec": {"addresses": null}}"#;
    let patched = first.send("PATCH", &path, &kind, patch).await.json();
    assert_eq!(patched["status"]["addresses"], addresses);
    let other = entry("other", &format!("addresses: [{value}], "));
    first.post(ENTRIES, &other).await;
    let moved = first.get(ENTRIES).await.json()["items"][0]["status"]["addresses"].clone();
    assert!(moved.is_array() && moved != addresses, "{moved}");

    let directory = first.directory;
    first.control.stop().await;
    let second = bench_in(directory, None).await;
    assert_eq!(second.get(&path).await.json()["status"]["addresses"], moved);
}

#[tokio::test]
async fn who_connects_and_does_not_finish_a_request_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let options = lateen_control::Options {
        xds_port: 0,
        secure_port: 0,
        api_port: 0,
        monitoring_port: 0,
        patience: Duration::from_millis(1_500),
        ..lateen_control::Options::new(directory.path().join("data"))
    };
    let control = lateen_control::Control::start(options).await.unwrap();
    let at = control.addresses();
    // Half a request, HTTP/2 without one, and the beginning of a TLS handshake.
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut all = tokio::task::JoinSet::new();
    for (to, says) in [
        (at.api, &b""[..]),
        (at.api, b"GET /api HTTP/1.1\r\nhost: x\r\nx-slow: "),
        (at.monitoring, b"GET /metr"),
        (at.xds, b""),
        (at.xds, b"PRI * HT"),
        (at.xds, http2),
    ] {
        all.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, says)
                .await
                .unwrap();
            let mut said = Vec::new();
            let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut said);
            let read = tokio::time::timeout(PATIENCE, read).await;
            assert!(read.is_ok(), "{to} keeps {}", says.escape_ascii());
        });
    }
    // Behind a handshake, too.
    for says in [&b""[..], http2] {
        all.spawn(async move {
            let tls = lateen_testkit::tls_client::Dial::Tls(None, &["h2"]);
            let heard = lateen_testkit::tls_client::ask(at.secure, tls, says, |_| false).await;
            assert_ne!(heard, Err("silence".to_owned()), "{}", says.escape_ascii());
        });
    }
    all.join_all().await;
    // Who takes its time between requests, but asks, is served; and a watch is not silence.
    let answer = lateen_testkit::http::Call::get("127.0.0.1", "/api/v1/namespaces");
    assert_eq!(answer.send(at.api).await.unwrap().status, 200);
    let path = "/api/v1/namespaces?watch=true";
    let mut watch = tokio::net::TcpStream::connect(at.api).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut watch, head.as_bytes())
        .await
        .unwrap();
    let mut said = vec![0; 15];
    tokio::io::AsyncReadExt::read_exact(&mut watch, &mut said)
        .await
        .unwrap();
    assert_eq!(said, b"HTTP/1.1 200 OK");
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut watch, &mut rest);
    let read = tokio::time::timeout(Duration::from_secs(4), read).await;
    assert!(read.is_err(), "the watch ended: {}", rest.escape_ascii());
    control.stop().await;
}
