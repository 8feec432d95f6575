//! Formats and what they render.

use super::*;
use std::time::Duration;

/// A request as Bookinfo's product page would log it.
struct Request;

impl Source for Request {
    fn header(&self, of: Headers, name: &str) -> Option<&[u8]> {
        Some(match (of, name) {
            (Headers::Request, ":method") => b"GET",
            (Headers::Request, ":path") => b"/reviews/0?a=1&b=two",
            (Headers::Request, ":authority") => b"reviews:9080",
            (Headers::Request, "user-agent") => b"curl \"8\"\\\n",
            (Headers::Response, "x-envoy-upstream-service-time") => b"7",
            (Headers::ResponseTrailers, "grpc-message") => b"no \xff",
            _ => return None,
        })
    }

    fn value(&self, field: Field) -> Value<'_> {
        match field {
            Field::StartTime => {
                Value::Time(SystemTime::UNIX_EPOCH + Duration::new(1_767_225_599, 123_456_789))
            }
            Field::Protocol => Value::Text(b"HTTP/1.1"),
            Field::ResponseCode => Value::Number(503),
            Field::ResponseFlags => Value::List(&["UF", "URX"]),
            Field::ResponseFlagsLong => Value::List(&[]),
            Field::Duration => Value::Number(12),
            Field::DownstreamRemoteAddress => Value::Address(([127, 0, 0, 1], 40_000).into()),
            Field::GrpcStatus => Value::Number(14),
            _ => Value::Absent,
        }
    }
}

fn render(format: &Format, missing: Missing) -> String {
    let mut out = Vec::new();
    format.render(&Request, missing, &mut out);
    String::from_utf8(out).unwrap()
}

fn check(format: &str, expect: &str) {
    let format = Format::text(format).unwrap_or_else(|e| panic!("{format}: {e}"));
    assert_eq!(render(&format, Missing::Dash), expect);
}

#[test]
fn headers_fields_and_alternatives() {
    check(
        "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "GET /reviews/0?a=1&b=two",
    );
    check("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% %RESP(X)%", "7 -");
    check(
        "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
        "503 UF,URX -",
    );
    check("%REQ(:PATH):8%|%RESPONSE_CODE:2%", "/reviews|50");
    check("100%% %ROUTE_NAME%", "100% -");
    check(
        "%REQ_WITHOUT_QUERY(:PATH)% %PATH(NQ)% %PATH(WQ:ORIG)%",
        "/reviews/0 /reviews/0 -",
    );
    check("%QUERY_PARAM(b)% %QUERY_PARAM(c)%", "two -");
}

#[test]
fn addresses_can_be_asked_for_in_parts() {
    check(
        "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%",
        "127.0.0.1:40000 127.0.0.1 40000",
    );
}

#[test]
fn times() {
    check("%START_TIME%", "2025-12-31T23:59:59.123Z");
    check(
        "%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%",
        "2025/12/31T23:59:59+0000 1767225599",
    );
    check(
        "%START_TIME(%s.%3f)% %START_TIME(%6f %9f %E0S)%",
        "1767225599.123 123456 123456789 59",
    );
    check("%START_TIME(%a %b %e %I %p %j)%", "Wed Dec 31 11 PM 365");
}

#[test]
fn grpc_status_by_name_and_number() {
    check(
        "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%",
        "Unavailable UNAVAILABLE 14",
    );
}

#[test]
fn the_default_formats_compile_and_show_dashes() {
    check(
        ISTIO_DEFAULT,
        "[2025-12-31T23:59:59.123Z] \"GET /reviews/0?a=1&b=two HTTP/1.1\" 503 UF,URX - - \"-\" - - 12 7 \
         \"-\" \"curl \"8\"\\\n\" \"-\" \"reviews:9080\" \"-\" - - - 127.0.0.1:40000 - -\n",
    );
    assert!(Format::text(ENVOY_DEFAULT).is_ok_and(|f| f.without_effect().is_empty()));
}

#[test]
fn header_values_leave_absent_values_out() {
    let format = Format::text("a%ROUTE_NAME%b").unwrap();
    assert_eq!(render(&format, Missing::Empty), "ab");
    assert_eq!(Format::text("5%% off").unwrap().literal(), Some("5% off"));
    assert_eq!(format.literal(), None);
}

#[test]
fn times_in_and_after_the_same_second_are_written_alike_however_they_follow() {
    use super::time::TimeFormat;
    let same = TimeFormat::parse("%Y-%m-%dT%H:%M:%E3SZ").unwrap();
    for millis in [0, 999, 1000, 1, 86_399_999, 86_400_000, 1_767_225_599_123] {
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis);
        let (mut usual, mut spelled) = (Vec::new(), Vec::new());
        TimeFormat::default().render(time, &mut usual);
        same.render(time, &mut spelled);
        assert_eq!(usual, spelled);
    }
}

#[test]
fn json_keeps_types_and_escapes_text() {
    let json = serde_json::json!({
        "code": "%RESPONSE_CODE%",
        "agent": "%REQ(USER-AGENT)%",
        "route": "%ROUTE_NAME%",
        "both": "%REQ(:METHOD)% %ROUTE_NAME%",
        "message": "%TRAILER(grpc-message)%",
        "fixed": {"a": [1, true, null, "x"]},
    });
    let format = Format::json(json.as_object().unwrap()).unwrap();
    let expect = r#"{"code":503,"agent":"curl \"8\"\\\n","route":null,"both":"GET -","message":"no �","fixed":{"a":[1,true,null,"x"]}}"#;
    assert_eq!(render(&format, Missing::Dash), format!("{expect}\n"));
    let without_route = expect
        .replace(r#""route":null,"#, "")
        .replace("GET -", "GET ");
    assert_eq!(
        render(&format, Missing::Empty),
        format!("{without_route}\n")
    );
}

#[test]
fn errors_say_what_to_write() {
    for (format, expect) in [
        (
            "%RESPONSE_COD%",
            "unknown operator %RESPONSE_COD%; did you mean %RESPONSE_CODE%?",
        ),
        (
            "%response_code%",
            "unknown operator %response_code%; did you mean %RESPONSE_CODE%?",
        ),
        ("%XYZ%", "unknown operator %XYZ%"),
        ("%REQ%", "%REQ% needs an argument, as in %REQ(x)%"),
        ("%REQ(a", "'%REQ(' has no closing ')'"),
        ("50% off", "'% off' has no closing"),
        ("%PROTOCOL(x)%", "%PROTOCOL% takes no arguments"),
        (
            "%START_TIME(%Q)%",
            "'%Q' in the time format '%Q' is not supported",
        ),
        ("%PROTOCOL", "'%PROTOCOL' has no closing '%'"),
    ] {
        let error = Format::text(format).expect_err(format).to_string();
        assert!(error.contains(expect), "{format}: {error}");
    }
}

#[test]
fn operators_without_a_value_here_are_named() {
    let format = Format::text("%FILTER_STATE(a:b)%").unwrap();
    assert_eq!(render(&format, Missing::Dash), "-");
    assert_eq!(format.without_effect(), ["%FILTER_STATE% shows no value"]);
}

/// A request on which filters have set something.
struct Noted(serde_json::Value);

impl Source for Noted {
    fn header(&self, _of: Headers, _name: &str) -> Option<&[u8]> {
        None
    }
    fn value(&self, _field: Field) -> Value<'_> {
        Value::Absent
    }
    fn metadata(&self, namespace: &str, path: &[Box<str>]) -> Option<&serde_json::Value> {
        path.iter()
            .try_fold(self.0.get(namespace)?, |value, key| value.get(&**key))
    }
}

#[test]
fn dynamic_metadata_is_text_or_json() {
    let source = Noted(serde_json::json!({"a.b": {"s": "x\"y", "n": 7, "o": {"l": [1, "z"]}}}));
    for (format, text, json) in [
        ("%DYNAMIC_METADATA(a.b:s)%", "x\"y", r#""x\"y""#),
        ("%METADATA(DYNAMIC:a.b:n)%", "7", "7"),
        ("%DYNAMIC_METADATA(a.b:n)%", "7", "7"),
        ("%DYNAMIC_METADATA(a.b:o:l)%", r#"[1,"z"]"#, r#"[1,"z"]"#),
        ("%DYNAMIC_METADATA(a.b:o):4%", r#"{"l""#, r#""{\"l\"""#),
        ("%DYNAMIC_METADATA(a.b:o:l:m)%", "-", "null"),
        ("%DYNAMIC_METADATA(a)%", "-", "null"),
        ("%METADATA(ROUTE:a.b)%", "-", "null"),
    ] {
        let mut out = Vec::new();
        let compiled = Format::text(format).unwrap();
        compiled.render(&source, Missing::Dash, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), text, "{format}");
        out.clear();
        let object = serde_json::json!({ "k": format });
        let compiled = Format::json(object.as_object().unwrap()).unwrap();
        compiled.render(&source, Missing::Dash, &mut out);
        let expect = format!("{{\"k\":{json}}}\n");
        assert_eq!(String::from_utf8_lossy(&out), expect, "{format}");
    }
}

proptest::proptest! {
    #[test]
    fn any_format_is_compiled_or_refused(format: String) {
        if let Ok(format) = Format::text(&format) {
            render(&format, Missing::Dash);
        }
    }

    #[test]
    fn percent_heavy_formats_are_compiled_or_refused(format in "[%A-Z_():0-9a-f?]{0,30}") {
        if let Ok(format) = Format::text(&format) {
            render(&format, Missing::Dash);
        }
    }
}
