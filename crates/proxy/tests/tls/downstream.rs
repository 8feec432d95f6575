//! TLS of clients.

use crate::certs::{Ca, Cert};
use crate::common::{
    Proxy, Upstream, eventually, http_listener, merged, ok, route_table, static_cluster,
    tcp_listener,
};
use crate::{curl, files, inline, server};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A proxy whose one listener has this transport socket in front of cluster `up`.
pub fn proxy(socket: Value, manager: Value, upstream: SocketAddr) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(1);
    proxy.cluster(&static_cluster("up", &[upstream]));
    let address = listen(&proxy, socket, manager);
    (proxy, address)
}

fn listen(proxy: &Proxy, socket: Value, manager: Value) -> SocketAddr {
    let table = route_table(
        "all",
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }]),
    );
    let manager = merged(json!({ "route_config": table }), manager);
    let mut listener = http_listener("l", manager);
    listener["filter_chains"][0]["transport_socket"] = socket;
    proxy.listener(&listener)
}

pub fn ca_of(ca: &Ca) -> String {
    ca.path().display().to_string()
}

fn stat(proxy: &Proxy, name: &str) -> u64 {
    let stats = proxy.workers.stats();
    let of_listener = stats
        .scopes
        .iter()
        .filter(|s| matches!(s.scope, lateen_proxy::stats::Scope::Listener(_)));
    of_listener
        .flat_map(|s| &s.values)
        .filter(|value| value.name == name)
        .map(|value| value.value)
        .sum()
}

#[test]
fn http1_and_http2_are_served_over_tls_as_the_client_can() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let upstream = Upstream::echo();
    let alpn = json!({ "alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [inline(&cert)] });
    let (_proxy, at) = proxy(server(alpn, json!({})), json!({}), upstream.address);
    let ca = ca_of(&ca);
    for (flag, version) in [
        ("--http1.1", "1.1"),
        ("--http2", "2"),
        ("--no-alpn", "1.1"),
        ("--http2-prior-knowledge", "2"),
    ] {
        let got = curl(
            at,
            "https://a.test/x",
            &[flag, "--cacert", &ca, "-w", "%{http_version}"],
        )
        .unwrap();
        assert!(got.contains("GET /x HTTP/1.1\r\n"), "{flag}: {got}");
        assert!(
            got.contains("x-forwarded-proto: https\r\n"),
            "{flag}: {got}"
        );
        assert!(got.ends_with(version), "{flag}: {got}");
    }
    let tls12 = ["--cacert", &ca, "--tls-max", "1.2"];
    assert!(curl(at, "https://a.test/x", &tls12).is_ok());
    assert!(curl(at, "https://b.test/x", &["--cacert", &ca]).is_err());
}

#[test]
fn bodies_larger_than_all_buffers_pass_in_both_directions() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let upstream = Upstream::http(|seen| {
        let text = String::from_utf8_lossy(&seen.body);
        ok(&format!("{}{text}", text.len()))
    });
    let alpn = json!({ "alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [inline(&cert)] });
    let (_proxy, at) = proxy(server(alpn, json!({})), json!({}), upstream.address);
    let ca_path = ca_of(&ca);
    let body: String = (0..400_000).map(|i| format!("{i:07}")).collect();
    let file = ca.directory.path().join("body");
    std::fs::write(&file, &body).unwrap();
    for flag in ["--http1.1", "--http2"] {
        let data = format!("@{}", file.display());
        let arguments = [
            flag,
            "--cacert",
            &ca_path,
            "--data-binary",
            &data,
            "--limit-rate",
            "3M",
        ];
        let got = curl(at, "https://a.test/x", &arguments).unwrap();
        assert!(
            got == format!("{}{body}", body.len()),
            "{flag}: {} bytes",
            got.len()
        );
    }
}

#[test]
fn certificates_are_chosen_by_server_name_and_reloaded_from_files() {
    let ca = Ca::new("test");
    let (a, b) = (ca.issue(&["a.test"]), ca.issue(&["*.b.test"]));
    let upstream = Upstream::fixed("fine");
    let common = json!({ "tls_certificates": [files(&a), inline(&b)] });
    let (proxy, at) = proxy(server(common, json!({})), json!({}), upstream.address);
    let ca_path = ca_of(&ca);
    for (url, fine) in [
        ("https://a.test/", true),
        ("https://x.b.test/", true),
        ("https://c.test/", false),
    ] {
        assert_eq!(
            curl(at, url, &["--cacert", &ca_path]).is_ok(),
            fine,
            "{url}"
        );
    }
    // A connection that is open stays as it is while the certificate changes.
    let mut open = openssl(at, &["-servername", "a.test"]);
    open.ask("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "fine");
    let other = Ca::new("other");
    other
        .issue(&["a.test"])
        .write_to(&a.chain_path, &a.key_path);
    assert!(proxy.workers.watches_files());
    proxy.workers.reload_files();
    assert!(curl(at, "https://a.test/", &["--cacert", &ca_path]).is_err());
    assert!(curl(at, "https://a.test/", &["--cacert", &ca_of(&other)]).is_ok());
    open.ask("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "fine");
    // What cannot be read leaves what is there.
    std::fs::write(&a.key_path, "nonsense").unwrap();
    proxy.workers.reload_files();
    assert!(curl(at, "https://a.test/", &["--cacert", &ca_of(&other)]).is_ok());
}

#[test]
fn client_certificates_are_asked_for_verified_and_told_to_the_upstream() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test", "spiffe://td/ns/d/sa/proxy"]);
    let good = ca.issue_to("client, Inc.", &["spiffe://td/ns/d/sa/good", "good.test"]);
    let bad = ca.issue(&["spiffe://td/ns/d/sa/bad"]);
    let strange = Ca::new("stranger");
    let stranger = strange.issue(&["spiffe://td/ns/d/sa/good"]);
    let upstream = Upstream::echo();
    let sans = json!([{ "san_type": "URI", "matcher": { "prefix": "spiffe://td/ns/d/sa/good" } }]);
    let common = json!({
        "tls_certificates": [inline(&cert)],
        "validation_context": {
            "trusted_ca": { "inline_string": ca.pem() },
            "match_typed_subject_alt_names": sans,
        },
    });
    let set = json!({
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "subject": true, "uri": true, "dns": true },
    });
    let required = json!({ "require_client_certificate": true });
    let (strict, at) = proxy(
        server(common.clone(), required),
        set.clone(),
        upstream.address,
    );
    let (_optional, lenient) = proxy(server(common, json!({})), set, upstream.address);
    let ca_path = ca_of(&ca);
    let get = |to, cert: Option<&Cert>| {
        let (chain, key) = cert.map_or(Default::default(), |c| {
            (
                c.chain_path.display().to_string(),
                c.key_path.display().to_string(),
            )
        });
        let mut arguments = vec![
            "--cacert",
            &ca_path,
            "-H",
            "x-forwarded-client-cert: forged",
        ];
        if cert.is_some() {
            arguments.extend(["--cert", &chain, "--key", &key]);
        }
        curl(to, "https://a.test/", &arguments)
    };
    for to in [at, lenient] {
        let got = get(to, Some(&good)).unwrap();
        let line = got
            .lines()
            .find(|l| l.starts_with("x-forwarded-client-cert: "))
            .unwrap();
        let hash = line.split("Hash=").nth(1).unwrap();
        assert_eq!(hash.split(';').next().unwrap().len(), 64, "{line}");
        assert!(
            line.contains("By=spiffe://td/ns/d/sa/proxy;Hash="),
            "{line}"
        );
        let rest = "Subject=\"CN=client\\\\, Inc.\";URI=spiffe://td/ns/d/sa/good;DNS=good.test";
        assert!(line.ends_with(rest), "{line}");
        assert!(get(to, Some(&bad)).is_err());
        assert!(get(to, Some(&stranger)).is_err());
    }
    assert!(get(at, None).is_err());
    let got = get(lenient, None).unwrap();
    assert!(!got.contains("x-forwarded-client-cert"), "{got}");
    for (name, count) in [
        ("ssl.handshake", 1),
        ("ssl.fail_verify_san", 1),
        ("ssl.fail_verify_error", 1),
        ("ssl.fail_verify_no_cert", 1),
    ] {
        eventually(name, || stat(&strict, name) == count);
    }
}

#[test]
fn sessions_are_resumed_and_versions_and_ciphers_kept_to() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let upstream = Upstream::fixed("fine");
    let parameters = json!({
        "tls_minimum_protocol_version": "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_2",
        "cipher_suites": ["ECDHE-ECDSA-AES256-GCM-SHA384"],
    });
    let common = json!({ "tls_certificates": [inline(&cert)], "tls_params": parameters });
    let (proxy, at) = proxy(server(common, json!({})), json!({}), upstream.address);
    assert!(openssl_fails(at, &["-tls1_3"]));
    assert!(openssl_fails(
        at,
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]
    ));
    let session = ca.directory.path().join("session").display().to_string();
    let mut first = openssl(at, &["-servername", "a.test", "-sess_out", &session]);
    first.ask("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "fine");
    drop(first);
    let mut second = openssl(at, &["-servername", "a.test", "-sess_in", &session]);
    second.ask("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "fine");
    assert_eq!(stat(&proxy, "ssl.session_reused"), 1);
}

#[test]
fn the_client_chooses_the_cipher_where_it_is_preferred() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let upstream = Upstream::fixed("fine");
    let (short, long) = (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
    );
    let chacha = "ECDHE-ECDSA-CHACHA20-POLY1305";
    for (configured, prefers, offered, expected) in [
        (
            vec![short.to_owned(), long.to_owned()],
            false,
            [long, short],
            short,
        ),
        (
            vec![short.to_owned(), long.to_owned()],
            true,
            [long, short],
            long,
        ),
        (
            vec![format!("[{short}|{chacha}]"), long.to_owned()],
            false,
            [long, chacha],
            chacha,
        ),
        (
            vec![format!("[{short}|{chacha}]"), long.to_owned()],
            false,
            [chacha, short],
            chacha,
        ),
        (
            vec![format!("[{short}|{chacha}]"), long.to_owned()],
            false,
            [short, chacha],
            short,
        ),
        (
            vec![short.to_owned(), chacha.to_owned()],
            false,
            [chacha, short],
            short,
        ),
    ] {
        let common = json!({
            "tls_certificates": [inline(&cert)], "tls_params": { "cipher_suites": configured },
        });
        let more = json!({ "prefer_client_ciphers": prefers });
        let (_proxy, at) = proxy(server(common, more), json!({}), upstream.address);
        let said = Command::new("openssl")
            .args(["s_client", "-brief", "-tls1_2", "-connect", &at.to_string()])
            .args(["-cipher", &offered.join(":")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let expected = format!("Ciphersuite: {expected}\n");
        assert!(
            said.contains(&expected),
            "{configured:?} {prefers} {offered:?}: {said}"
        );
    }
}

#[test]
fn a_client_that_does_not_finish_its_handshake_is_closed() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    let upstream = Upstream::fixed("fine");
    let proxy = Proxy::start(1);
    proxy.cluster(&static_cluster("up", &[upstream.address]));
    let mut listener = tcp_listener("l", json!({ "cluster": "up" }));
    let socket = server(json!({ "tls_certificates": [inline(&cert)] }), json!({}));
    listener["filter_chains"][0]["transport_socket"] = socket;
    listener["filter_chains"][0]["transport_socket_connect_timeout"] = json!("0.3s");
    let at = proxy.listener(&listener);
    for first in [&b""[..], &[22, 3, 1], &[22, 3, 1, 0x40, 0, 1]] {
        let started = Instant::now();
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(first).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    eventually("timeouts are counted", || {
        stat(&proxy, "downstream_cx_transport_socket_connect_timeout") == 3
    });
    // What is not TLS is refused at once.
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"));
    eventually("errors are counted", || {
        stat(&proxy, "ssl.connection_error") == 1
    });
}

#[test]
fn tcp_behind_tls_is_passed_in_both_directions_and_half_closed() {
    let ca = Ca::new("test");
    let cert = ca.issue(&["a.test"]);
    // Answers only when the client has said that it is done.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream
                .write_all(format!("got {}\n", all.len()).as_bytes())
                .unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let proxy = Proxy::start(1);
    proxy.cluster(&static_cluster("up", &[upstream]));
    let mut listener = tcp_listener("l", json!({ "cluster": "up" }));
    listener["filter_chains"][0]["transport_socket"] =
        server(json!({ "tls_certificates": [inline(&cert)] }), json!({}));
    let at = proxy.listener(&listener);
    let script = format!(
        "import socket, ssl\n\
         c = ssl.create_default_context(cafile={:?})\n\
         i, o = ssl.MemoryBIO(), ssl.MemoryBIO()\n\
         s = c.wrap_bio(i, o, server_hostname='a.test')\n\
         t = socket.create_connection(('127.0.0.1', {}))\n\
         def pump(f):\n\
        \x20 while True:\n\
        \x20  try:\n\
        \x20   r = f(); t.sendall(o.read()); return r\n\
        \x20  except ssl.SSLWantReadError:\n\
        \x20   t.sendall(o.read())\n\
        \x20   d = t.recv(65536)\n\
        \x20   i.write(d) if d else i.write_eof()\n\
         pump(s.do_handshake)\n\
         pump(lambda: s.write(b'x' * 1000))\n\
         try:\n\
        \x20 s.unwrap()\n\
         except ssl.SSLError:\n\
        \x20 pass\n\
         t.sendall(o.read())\n\
         while True:\n\
        \x20 d = t.recv(65536)\n\
        \x20 if not d: break\n\
        \x20 i.write(d)\n\
         print('raw closed')\n",
        ca_of(&ca),
        at.port(),
    );
    let output = Command::new("python3")
        .arg("-c")
        .arg(script)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        text.trim(),
        "raw closed",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    eventually("the upstream's answer is passed on", || {
        let stats = proxy.workers.stats();
        stats.cluster("up", "upstream_cx_rx_bytes_total") == 9
    });
}

/// `openssl s_client`, and what it prints.
struct Session {
    child: std::process::Child,
}

fn openssl(at: SocketAddr, arguments: &[&str]) -> Session {
    let child = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &at.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Session { child }
}

fn openssl_fails(at: SocketAddr, arguments: &[&str]) -> bool {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &at.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    !output.status.success()
}

impl Session {
    /// Sends, and reads until what is expected has come.
    fn ask(&mut self, text: &str, expect: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut all = String::new();
        let mut buffer = [0; 4096];
        while !all.contains(expect) {
            let n = stdout.read(&mut buffer).unwrap();
            assert!(n > 0, "{all}");
            all.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
