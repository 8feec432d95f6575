//! What a scanner of TLS servers (sslyze) finds at a gateway and at a sidecar: the versions, the
//! ciphers and the demand for certificates that the configuration says.
//!
//! All of it runs in a network namespace with nothing but a loopback interface and a bridge without
//! other members, so the scanner can talk to nobody else.

use std::net::SocketAddr;
use std::path::Path;

use lateen_testkit::certificates::Pair;
use lateen_testkit::envoy::Plane;
use lateen_testkit::tls_client::Dial;
use lateen_testkit::{PATIENCE, netns, settles, tools};
use serde_json::Value;

use crate::callers::{Clients, http};
use crate::member::Secured;
use crate::secure_gateway::{Secure, TO_REVIEWS, block, gateway, routes, secret};

mod stock_envoy {
    #[test]
    fn a_scanner_finds_what_the_settings_say() {
        super::start(lateen_testkit::envoy::Plane::StockEnvoy);
    }
}

mod lateen {
    #[test]
    fn a_scanner_finds_what_the_settings_say() {
        super::start(lateen_testkit::envoy::Plane::Lateen);
    }
}

const TEST: &str = "a_scanner_finds_what_the_settings_say";

fn start(plane: Plane) {
    let Some(program) = tools::sslyze() else {
        return tools::skip(TEST, "sslyze");
    };
    netns::run(TEST, async |network| {
        gateway_is_scanned(plane, &program).await;
        sidecar_is_scanned(plane, &program).await;
        drop(network);
    });
}

/// Versions of TLS and the names of what a scan says about each.
const VERSIONS: [(&str, &str); 5] = [
    ("3.0", "ssl_3_0_cipher_suites"),
    ("1.0", "tls_1_0_cipher_suites"),
    ("1.1", "tls_1_1_cipher_suites"),
    ("1.2", "tls_1_2_cipher_suites"),
    ("1.3", "tls_1_3_cipher_suites"),
];

/// What a scan found.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    versions: Vec<&'static str>,
    /// Of TLS 1.2, by OpenSSL's names, sorted.
    ciphers: Vec<String>,
    /// `DISABLED`, `OPTIONAL` or `REQUIRED`.
    client_certificate: String,
}

/// The program, and a directory for what it writes.
type Scanner<'a> = (&'a Path, &'a Path);

async fn scan(
    (program, directory): Scanner<'_>,
    to: SocketAddr,
    name: &str,
    more: &[&str],
) -> Found {
    let output = directory.join("scan.json");
    let (json, sni) = (
        format!("--json_out={}", output.display()),
        format!("--sni={name}"),
    );
    let to = to.to_string();
    let mut arguments = vec!["--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3"];
    arguments.extend([json.as_str(), sni.as_str(), "--quiet"]);
    arguments.extend(more);
    arguments.push(&to);
    // A scan is seconds of computing.
    let mut command = tokio::process::Command::new(program);
    let scanning = command.args(&arguments).kill_on_drop(true).output();
    let said = tokio::time::timeout(4 * PATIENCE, scanning).await;
    let said = said.expect("a scan ends").unwrap();
    let text = std::fs::read_to_string(&output).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let _ = std::fs::remove_file(&output);
    let all: Value = serde_json::from_str(&text).unwrap();
    let server = &all["server_scan_results"][0];
    let scanned = |key: &str| server["scan_result"][key]["result"].clone();
    let taken = |key: &str| scanned(key)["accepted_cipher_suites"].as_array().cloned();
    let versions = VERSIONS.iter().filter(|(_, key)| {
        let suites = taken(key).unwrap_or_else(|| panic!("{key}: {server:#}"));
        !suites.is_empty()
    });
    let versions = versions.map(|(version, _)| *version).collect();
    let suites = taken("tls_1_2_cipher_suites").unwrap_or_default();
    let name = |suite: &Value| {
        suite["cipher_suite"]["openssl_name"]
            .as_str()
            .map(str::to_owned)
    };
    let mut ciphers: Vec<String> = suites.iter().filter_map(name).collect();
    ciphers.sort();
    let demand = &server["connectivity_result"]["client_auth_requirement"];
    Found {
        versions,
        ciphers,
        client_certificate: demand.as_str().unwrap_or_default().to_owned(),
    }
}

fn found(versions: &[&'static str], ciphers: &[&str], client_certificate: &str) -> Found {
    Found {
        versions: versions.to_vec(),
        ciphers: ciphers.iter().map(|name| (*name).to_owned()).collect(),
        client_certificate: client_certificate.to_owned(),
    }
}

const AES128: &str = "ECDHE-ECDSA-AES128-GCM-SHA256";
const AES256: &str = "ECDHE-ECDSA-AES256-GCM-SHA384";

async fn gateway_is_scanned(plane: Plane, program: &Path) {
    let Some(secure) = Secure::start(plane, TEST).await else {
        return;
    };
    let hosts = ["simple.test", "mutual.test", "newest.test"];
    let pair = secure.authority.issue("web", &hosts);
    let clients = format!(
        "stringData:\n  ca.crt: |\n    {}\n",
        block(&secure.authority.pem)
    );
    let web = secret("web", "istio-system", &pair).replace("stringData:\n", &clients);
    let tls = |more: &str| format!("credentialName: web, {more}");
    let limited = tls(&format!(
        "mode: SIMPLE, minProtocolVersion: TLSV1_2, cipherSuites: [{AES256}]"
    ));
    let newest = tls("mode: SIMPLE, minProtocolVersion: TLSV1_3");
    let objects = [
        web,
        gateway("simple", 443, "HTTPS", hosts[0], &limited),
        gateway(
            "mutual",
            443,
            "HTTPS",
            hosts[1],
            &tls("mode: MUTUAL, minProtocolVersion: TLSV1_2"),
        ),
        gateway("newest", 443, "HTTPS", hosts[2], &newest),
        routes(hosts[0], "simple", TO_REVIEWS),
        routes(hosts[1], "mutual", TO_REVIEWS),
        routes(hosts[2], "newest", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    secure.rejected_nothing().await;
    secure.answers(secure.https, hosts[0], &[], " 200 2").await;
    let scanner = (program, secure.mesh.directory());
    let simple = scan(scanner, secure.https, hosts[0], &[]).await;
    assert_eq!(simple, found(&["1.2", "1.3"], &[AES256], "DISABLED"));
    secure.answers(secure.https, hosts[2], &[], " 200 2").await;
    let newest = scan(scanner, secure.https, hosts[2], &[]).await;
    assert_eq!(newest, found(&["1.3"], &[], "DISABLED"));
    let arguments = credentials(secure.mesh.directory(), &secure.authority.issue("me", &[]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let shown = arguments[0].split_once('=').unwrap().1;
    let key = arguments[1].split_once('=').unwrap().1;
    let curl = ["--cert", shown, "--key", key];
    secure
        .answers(secure.https, hosts[1], &curl, " 200 2")
        .await;
    let mutual = scan(scanner, secure.https, hosts[1], &arguments).await;
    assert_eq!(mutual.versions, ["1.2", "1.3"]);
    let forward_secret = |name: &String| name.starts_with("ECDHE-ECDSA-");
    assert!(mutual.ciphers.iter().all(forward_secret), "{mutual:?}");
    let nobody = scan(scanner, secure.https, hosts[1], &[]).await;
    assert_eq!(nobody.client_certificate, "REQUIRED");
}

async fn sidecar_is_scanned(plane: Plane, program: &Path) {
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, TEST, "cart").await else {
        return;
    };
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n",
    )
    .await;
    mesh.distributed(1).await;
    settles("plain requests are refused", async || {
        match http(cart.http, Dial::Plain).await {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        }
    })
    .await;
    let clients = Clients::new(&mesh.authority);
    let arguments = credentials(mesh.directory(), &clients.right);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let scanner = (program, mesh.directory());
    let strict = scan(scanner, cart.http, "cart", &arguments).await;
    assert_eq!(strict.versions, ["1.2", "1.3"]);
    assert_eq!(strict.ciphers, [AES128, AES256]);
    let nobody = scan(scanner, cart.http, "cart", &[]).await;
    assert_eq!(nobody.client_certificate, "REQUIRED");
    assert_eq!(cart.envoy.rejected().await, Default::default());
}

/// The scanner shows this certificate.
fn credentials(directory: &Path, pair: &Pair) -> [String; 2] {
    let file = |name: &str, content: &str| {
        lateen_testkit::certificates::file(directory, name, content)
            .display()
            .to_string()
    };
    [
        format!("--cert={}", file("scanner.crt", &pair.chain)),
        format!("--key={}", file("scanner.key", &pair.key)),
    ]
}
