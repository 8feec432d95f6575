//! TLS towards endpoints.

use crate::certs::{Ca, Cert};
use crate::common::{
    Proxy, Seen, Upstream, eventually, exchange, http_listener, http2_upstream, merged,
    route_table, static_cluster, tcp_listener,
};
use crate::downstream::proxy as tls_server;
use crate::{client, inline, server};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

/// A plain listener in front of cluster `up`, which has these fields besides.
fn proxy(endpoints: &[SocketAddr], cluster: Value) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(1);
    proxy.cluster(&merged(static_cluster("up", endpoints), cluster));
    let table = route_table(
        "all",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    );
    let address = proxy.listener(&http_listener("l", json!({ "route_config": table })));
    (proxy, address)
}

fn trusting(ca: &Ca, sans: &[&str]) -> Value {
    let names: Vec<Value> = sans
        .iter()
        .map(|name| json!({ "san_type": "DNS", "matcher": { "exact": name } }))
        .collect();
    json!({ "validation_context": {
        "trusted_ca": { "inline_string": ca.pem() },
        "match_typed_subject_alt_names": names,
    }})
}

fn get(at: SocketAddr, host: &str) -> Seen {
    exchange(at, &format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

/// `openssl s_server` that answers every request with a page about the connection.
struct OpenSsl(Child, SocketAddr);

impl OpenSsl {
    fn start(cert: &Cert, arguments: &[&str]) -> OpenSsl {
        let port = SocketAddr::from(([127, 0, 0, 1], lateen_testkit::ports::reserve()));
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", &port.to_string(), "-www"])
            .arg("-cert")
            .arg(&cert.chain_path)
            .arg("-key")
            .arg(&cert.key_path)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Its first lines say that it listens.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("ACCEPT")));
        std::thread::spawn(move || lines.for_each(drop));
        OpenSsl(child, port)
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn openssl_is_reached_and_its_certificate_verified() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    for version in ["-tls1_2", "-tls1_3"] {
        let upstream = OpenSsl::start(&cert, &[version]);
        let socket = client(trusting(&ca, &["a.test"]), json!({ "sni": "a.test" }));
        let (_proxy, at) = proxy(&[upstream.1], json!({ "transport_socket": socket }));
        for _ in 0..3 {
            let answer = get(at, "h");
            assert_eq!(answer.status(), 200, "{version}: {answer:?}");
            assert!(answer.text().contains("s_server"), "{answer:?}");
        }
    }
}

#[test]
fn what_cannot_be_verified_is_not_used_and_the_answer_says_why() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let upstream = OpenSsl::start(&cert, &[]);
    for context in [trusting(&Ca::new("other"), &[]), trusting(&ca, &["b.test"])] {
        let socket = client(context, json!({}));
        let (proxy, at) = proxy(&[upstream.1], json!({ "transport_socket": socket }));
        let answer = get(at, "h");
        assert_eq!(answer.status(), 503);
        let text = answer.text();
        assert!(
            text.starts_with(
                "upstream connect error or disconnect/reset before headers. reset reason: remote \
                 connection failure, transport failure reason: TLS_error:|268435581:SSL \
                 routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED"
            ),
            "{text}"
        );
        let failed = proxy.stat("ssl.fail_verify_error") + proxy.stat("ssl.fail_verify_san");
        assert_eq!((failed, proxy.stat("ssl.handshake")), (1, 0));
    }
    // Nothing to verify by: anybody is taken, as in Envoy.
    let socket = client(json!({}), json!({}));
    let (_proxy, at) = proxy(&[upstream.1], json!({ "transport_socket": socket }));
    assert_eq!(get(at, "h").status(), 200);
    // What does not speak TLS is no upstream.
    let plain = Upstream::fixed("plain");
    let socket = client(json!({}), json!({}));
    let (_proxy, at) = proxy(&[plain.address], json!({ "transport_socket": socket }));
    assert_eq!(get(at, "h").status(), 503);
}

#[test]
fn self_signed_certificates_are_trusted_when_they_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (chain_path, key_path) = (directory.path().join("c"), directory.path().join("k"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=a.test",
        ])
        .args([
            "-addext",
            "subjectAltName=DNS:a.test",
            "-days",
            "2",
            "-keyout",
        ])
        .arg(&key_path)
        .arg("-out")
        .arg(&chain_path)
        .output()
        .unwrap();
    assert!(made.status.success());
    let read = |path| std::fs::read_to_string(path).unwrap();
    let cert = Cert {
        chain: read(&chain_path),
        key: read(&key_path),
        chain_path,
        key_path,
    };
    let upstream = OpenSsl::start(&cert, &[]);
    let context = json!({ "validation_context": {
        "trusted_ca": { "filename": cert.chain_path },
        "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": "a.test" } }],
    }});
    let socket = client(context, json!({ "sni": "a.test" }));
    let (_proxy, at) = proxy(&[upstream.1], json!({ "transport_socket": socket }));
    let answer = get(at, "h");
    assert_eq!(answer.status(), 200, "{answer:?}");
}

/// A proxy that terminates TLS for `cert` and says which protocol and client it saw.
fn echo(ca: &Ca, cert: &Cert, require: bool) -> (Proxy, SocketAddr, Upstream) {
    let upstream = Upstream::echo();
    let common = json!({
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [inline(cert)],
        "validation_context": { "trusted_ca": { "inline_string": ca.pem() } },
    });
    let manager = json!({
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "uri": true },
    });
    let table = route_table(
        "all",
        json!([{
            "match": { "prefix": "/" },
            "route": { "cluster": "up" },
            "request_headers_to_add": [
                { "header": { "key": "seen", "value": "%PROTOCOL% %REQUESTED_SERVER_NAME%" } },
            ],
        }]),
    );
    let more = json!({ "require_client_certificate": require });
    let manager = merged(manager, json!({ "route_config": table }));
    let (proxy, at) = tls_server(server(common, more), manager, upstream.address);
    (proxy, at, upstream)
}

#[test]
fn http2_is_spoken_over_tls_when_configured_or_when_the_server_chooses_it() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let (_server, upstream, _echo) = echo(&ca, &cert, false);
    let socket = client(trusting(&ca, &["a.test"]), json!({ "sni": "a.test" }));
    let auto = json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "auto_config": {},
        }
    }});
    for (options, version) in [
        (json!({}), "HTTP/1.1"),
        (http2_upstream(), "HTTP/2"),
        (auto, "HTTP/2"),
    ] {
        let cluster = merged(json!({ "transport_socket": socket }), options);
        let (proxy, at) = proxy(&[upstream], cluster);
        for _ in 0..3 {
            let answer = get(at, "h");
            assert_eq!(answer.status(), 200, "{answer:?}");
            let seen = format!("seen: {version} a.test\r\n");
            assert!(
                answer.text().contains(&seen),
                "{version}: {}",
                answer.text()
            );
        }
        assert_eq!(proxy.stat("ssl.handshake"), 1, "connections are reused");
    }
}

#[test]
fn server_names_come_from_requests_and_certificates_must_fit_them() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test", "*.b.test"]);
    let (_server, upstream, _echo) = echo(&ca, &cert, false);
    let socket = client(trusting(&ca, &[]), json!({}));
    let options = json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http_protocol_options": {} },
            "upstream_http_protocol_options": { "auto_sni": true, "auto_san_validation": true },
        }
    }});
    let cluster = merged(json!({ "transport_socket": socket }), options);
    let (proxy, at) = proxy(&[upstream], cluster);
    for _ in 0..2 {
        for (host, name) in [("A.test:443", "a.test"), ("x.b.test", "x.b.test")] {
            let answer = get(at, host);
            assert_eq!(answer.status(), 200, "{answer:?}");
            let seen = format!("seen: HTTP/1.1 {name}\r\n");
            assert!(answer.text().contains(&seen), "{}", answer.text());
        }
        assert_eq!(get(at, "c.test").status(), 503);
    }
    assert_eq!(
        proxy.stat("ssl.handshake"),
        2,
        "one connection for each name"
    );
}

#[test]
fn requests_for_the_same_server_name_wait_for_one_connection() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test", "b.test"]);
    let (_server, upstream, _echo) = echo(&ca, &cert, false);
    // The handshake takes a while, so that all come before it is over.
    let slow = Upstream::raw(move |client, _| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let server = TcpStream::connect(upstream).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut from, mut to) = (server, client);
        let _ = std::io::copy(&mut from, &mut to);
    });
    let socket = client(trusting(&ca, &[]), json!({}));
    let options = json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "upstream_http_protocol_options": { "auto_sni": true, "auto_san_validation": true },
        }
    }});
    let cluster = merged(http2_upstream(), options);
    let cluster = merged(json!({ "transport_socket": socket }), cluster);
    let (proxy, at) = proxy(&[slow.address], cluster);
    let ask = |host: &'static str| std::thread::spawn(move || get(at, host).status());
    let all: Vec<_> = (0..5)
        .flat_map(|_| [ask("a.test"), ask("b.test")])
        .collect();
    let all: Vec<u16> = all.into_iter().map(|one| one.join().unwrap()).collect();
    assert_eq!(all, [200; 10]);
    assert_eq!(proxy.stat("ssl.handshake"), 2, "one for each name");
}

#[test]
fn a_certificate_is_shown_to_who_asks_and_endpoints_choose_their_transport() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let me = ca.issue(&["spiffe://td/ns/d/sa/me"]);
    let (_server, upstream, _echo) = echo(&ca, &cert, true);
    let mut context = trusting(&ca, &["a.test"]);
    let (_proxy, at) = proxy(
        &[upstream],
        json!({ "transport_socket": client(context.clone(), json!({})) }),
    );
    assert_eq!(get(at, "h").status(), 503);
    context["tls_certificates"] = json!([inline(&me)]);
    // Only endpoints that say so are reached over TLS.
    let matches = json!([
        {
            "name": "tls",
            "match": { "tlsMode": "istio" },
            "transport_socket": client(context, json!({})),
        },
        {
            "name": "plain",
            "match": {},
            "transport_socket": { "name": "envoy.transport_sockets.raw_buffer" },
        },
    ]);
    let (proxy, at) = proxy(&[upstream], json!({ "transport_socket_matches": matches }));
    // Plaintext to a TLS port: the answer is an alert, not HTTP.
    assert_eq!(get(at, "h").status(), 502);
    let mut labelled = static_cluster("up", &[upstream]);
    labelled["transport_socket_matches"] = matches;
    labelled["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["metadata"] = json!({
        "filter_metadata": { "envoy.transport_socket_match": { "tlsMode": "istio" } },
    });
    proxy.cluster(&labelled);
    let answer = get(at, "h");
    assert_eq!(answer.status(), 200, "{answer:?}");
    let text = answer.text();
    assert!(text.contains("URI=spiffe://td/ns/d/sa/me"), "{text}");
}

#[test]
fn tcp_goes_over_tls_and_behind_a_proxy_header() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let (_server, upstream, _echo) = echo(&ca, &cert, false);
    let proxy = Proxy::start(1);
    let socket = client(trusting(&ca, &["a.test"]), json!({ "sni": "a.test" }));
    let cluster = merged(
        static_cluster("up", &[upstream]),
        json!({ "transport_socket": socket }),
    );
    proxy.cluster(&cluster);
    let at = proxy.listener(&tcp_listener("l", json!({ "cluster": "up" })));
    let answer = get(at, "h");
    assert_eq!(answer.status(), 200, "{answer:?}");

    // The header comes first, then what the inner transport makes.
    let (sender, headers) = std::sync::mpsc::channel();
    let plain = Upstream::raw(move |mut stream, _| {
        let mut first = [0; 256];
        let n = stream.read(&mut first).unwrap();
        sender
            .send(String::from_utf8_lossy(&first[..n]).into_owned())
            .unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.read(&mut first);
    });
    let socket = json!({
        "name": "envoy.transport_sockets.upstream_proxy_protocol",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": { "version": "V1" },
            "transport_socket": { "name": "envoy.transport_sockets.raw_buffer" },
        },
    });
    let (_proxy, at) =
        crate::upstream::proxy(&[plain.address], json!({ "transport_socket": socket }));
    let mut stream = TcpStream::connect(at).unwrap();
    let local = stream.local_addr().unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let header = headers.recv().unwrap();
    let expect = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        local.port(),
        at.port()
    );
    assert!(header.starts_with(&expect), "{header}");
    // Another client, another header: connections are not shared between them.
    let mut other = TcpStream::connect(at).unwrap();
    other
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let header = headers.recv().unwrap();
    let port = format!(" {} ", other.local_addr().unwrap().port());
    assert!(header.contains(&port), "{header}");
    eventually("two connections", || plain.connections() == 2);
}
