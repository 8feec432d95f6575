//! Versions, ciphers and key exchanges: what the mesh says of its own TLS and of all other, and what
//! compliance policies make of both. Clients and servers of the tests can do only so much, which
//! shows what the other side can.

use std::net::SocketAddr;

use lateen_control::Compliance;
use lateen_testkit::certificates::{Authority, Pair, file};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tls_client::{Agreed, Limited, Offer, handshake};

use crate::callers::Clients;
use crate::member::Secured;
use crate::mesh::{Mesh, loopback};
use crate::mesh_settings::config_map;
use crate::origination::{outside, policy};
use crate::secure_gateway::{Secure, TO_REVIEWS, gateway, routes};

on_both!(
    workloads_agree_on_the_ciphers_and_versions_of_the_mesh,
    gateways_have_the_ciphers_and_curves_of_the_mesh_unless_they_say_their_own,
    the_server_chooses_among_ciphers_of_tls_1_2_and_the_client_among_those_of_1_3,
    services_outside_are_spoken_to_with_the_ciphers_and_curves_of_the_mesh,
    all_tls_of_a_workload_complies_with_fips,
    all_tls_of_a_workload_is_safe_from_quantum_computers,
    a_compliance_policy_has_the_last_word_at_gateways,
);

const AES128: &str = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
const AES256: &str = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
const CHACHA: &str = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
const P256: &str = "secp256r1";
const PQ: &str = "X25519MLKEM768";

/// What one side can do: version, cipher suite and group; empty is everything.
#[derive(Clone, Copy, Debug)]
struct Can(&'static str, &'static str, &'static str);

fn list<'a>(one: &'a &'static str) -> &'a [&'static str] {
    match one.is_empty() {
        true => &[],
        false => std::slice::from_ref(one),
    }
}

impl Can {
    fn limited(&self) -> Limited<'_> {
        Limited {
            version: self.0,
            suites: list(&self.1),
            groups: list(&self.2),
        }
    }
}

/// What a server agrees on with a client that can do this much.
async fn agreed(
    to: SocketAddr,
    name: &str,
    pair: Option<&Pair>,
    can: Can,
) -> Result<Agreed, String> {
    let Limited {
        version,
        suites,
        groups,
    } = can.limited();
    let alpn: &[&str] = match pair {
        Some(_) => &["istio"],
        None => &["h2", "http/1.1"],
    };
    let offer = Offer {
        name,
        pair,
        alpn,
        version,
        suites,
        groups,
    };
    handshake(to, offer).await
}

/// Waits until all that is expected of a server is true together: some of it may have been before.
async fn check(to: SocketAddr, name: &str, pair: Option<&Pair>, expected: &[(Can, bool)]) {
    settles(&format!("{name} {expected:?}"), async || {
        for (can, taken) in expected {
            let found = agreed(to, name, pair, *can).await;
            if found.is_ok() != *taken {
                return Err(format!("{can:?}: {found:?}"));
            }
            let Ok(found) = found else { continue };
            let as_wanted = |found: &str, wanted: &str| wanted.is_empty() || found == wanted;
            assert!(as_wanted(&found.version, can.0), "{can:?} {found:?}");
            assert!(as_wanted(&found.suite, can.1), "{can:?} {found:?}");
            assert!(as_wanted(&found.group, can.2), "{can:?} {found:?}");
        }
        Ok(())
    })
    .await;
}

async fn workloads_agree_on_the_ciphers_and_versions_of_the_mesh(plane: Plane) {
    let test = "workloads_agree_on_the_ciphers_and_versions_of_the_mesh";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    let right = Clients::new(&mesh.authority).right;
    let v12 = |suite| Can("TLSv1_2", suite, "");
    let both = [
        (v12(AES128), true),
        (v12(AES256), true),
        (v12(CHACHA), false),
        (Can("TLSv1_3", "", ""), true),
    ];
    check(cart.http, "cart", Some(&right), &both).await;
    let set = "meshMTLS: {cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]}\n\
               tlsDefaults: {cipherSuites: [ECDHE-ECDSA-CHACHA20-POLY1305]}\n";
    mesh.apply(&config_map(set)).await;
    mesh.distributed(2).await;
    let one = [
        (v12(AES128), false),
        (v12(AES256), true),
        (v12(CHACHA), false),
        (Can("TLSv1_3", "", ""), true),
    ];
    check(cart.http, "cart", Some(&right), &one).await;
    shop.gets("cart", "/", 200).await;
    mesh.apply(&config_map("meshMTLS: {minProtocolVersion: TLSV1_3}"))
        .await;
    mesh.distributed(2).await;
    let newest = [(v12(""), false), (Can("TLSv1_3", "", ""), true)];
    check(cart.http, "cart", Some(&right), &newest).await;
    shop.gets("cart", "/", 200).await;
}

/// Without effect in `tlsDefaults`: the version, as in Istio.
const DEFAULTS: &str = "tlsDefaults: {cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384], \
                        ecdhCurves: [P-256], minProtocolVersion: TLSV1_3}\n";

async fn gateways_have_the_ciphers_and_curves_of_the_mesh_unless_they_say_their_own(plane: Plane) {
    let test = "gateways_have_the_ciphers_and_curves_of_the_mesh_unless_they_say_their_own";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let pair = secure.authority.issue("web", &["a.test", "b.test"]);
    secure.secret("web", &pair).await;
    let tls = "mode: SIMPLE, credentialName: web";
    let own = format!("{tls}, cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256]");
    let objects = [
        gateway("a", 443, "HTTPS", "a.test", tls),
        gateway("b", 443, "HTTPS", "b.test", &own),
        routes("a.test", "a", TO_REVIEWS),
        routes("b.test", "b", TO_REVIEWS),
        config_map(DEFAULTS),
    ];
    secure.mesh.apply(&objects.join("\n")).await;
    secure.rejected_nothing().await;
    let expected = [
        (Can("TLSv1_2", AES256, P256), true),
        (Can("TLSv1_2", AES128, P256), false),
        (Can("TLSv1_2", AES256, "X25519"), false),
        (Can("TLSv1_3", "", P256), true),
        (Can("TLSv1_3", "", "X25519"), false),
    ];
    check(secure.https, "a.test", None, &expected).await;
    let expected = [
        (Can("TLSv1_2", AES128, P256), true),
        (Can("TLSv1_2", AES256, P256), false),
        (Can("TLSv1_2", AES128, "X25519"), false),
    ];
    check(secure.https, "b.test", None, &expected).await;
}

async fn the_server_chooses_among_ciphers_of_tls_1_2_and_the_client_among_those_of_1_3(
    plane: Plane,
) {
    let test = "the_server_chooses_among_ciphers_of_tls_1_2_and_the_client_among_those_of_1_3";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let pair = secure.authority.issue("web", &["a.test", "b.test"]);
    secure.secret("web", &pair).await;
    let tls = "mode: SIMPLE, credentialName: web";
    let own = "cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES128-GCM-SHA256]";
    let objects = [
        gateway("a", 443, "HTTPS", "a.test", tls),
        gateway("b", 443, "HTTPS", "b.test", &format!("{tls}, {own}")),
        routes("a.test", "a", TO_REVIEWS),
        routes("b.test", "b", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.join("\n")).await;
    let (long, short) = ("TLS13_AES_256_GCM_SHA384", "TLS13_AES_128_GCM_SHA256");
    for (name, version, suites, expected) in [
        // Of what is as good as each other, the client's first: it may have no instructions for AES.
        ("a.test", "TLSv1_2", [AES256, AES128], AES128),
        ("a.test", "TLSv1_2", [AES256, CHACHA], CHACHA),
        ("a.test", "TLSv1_2", [CHACHA, AES128], CHACHA),
        ("a.test", "TLSv1_2", [AES128, CHACHA], AES128),
        ("b.test", "TLSv1_2", [AES128, AES256], AES256),
        ("b.test", "TLSv1_2", [AES256, AES128], AES256),
        ("b.test", "TLSv1_2", [CHACHA, AES128], AES128),
        ("b.test", "TLSv1_3", [long, short], long),
        ("b.test", "TLSv1_3", [short, long], short),
    ] {
        settles(&format!("{name} {version} {suites:?}"), async || {
            let offer = Offer {
                name,
                pair: None,
                alpn: &["h2"],
                version,
                suites: &suites,
                groups: &[],
            };
            let agreed = handshake(secure.https, offer).await?;
            match agreed.suite == expected {
                true => Ok(()),
                false => Err(agreed.suite),
            }
        })
        .await;
    }
}

/// Services outside that can do only so much, each with a name, and what becomes of requests.
struct Outside {
    objects: String,
    expected: Vec<(String, u16)>,
    _servers: Vec<Echo>,
}

impl Outside {
    async fn start(authority: &Authority, mesh: &Mesh, servers: &[(Can, u16)]) -> Outside {
        let roots = file(mesh.directory(), "outside.pem", &authority.pem);
        let mut all = Outside {
            objects: String::new(),
            expected: Vec::new(),
            _servers: Vec::new(),
        };
        for (i, (can, status)) in servers.iter().enumerate() {
            let host = format!("outside{i}.test");
            let pair = authority.issue(&host, &[&host]);
            let echo = Echo::over_tls(&host, pair.server_limited(can.limited())).await;
            let tls = format!("mode: SIMPLE, caCertificates: {}", roots.display());
            all.objects += &outside(&host, "HTTP", echo.port());
            all.objects += &policy(&host, &format!("tls: {{{tls}}}"));
            all.expected.push((host, *status));
            all._servers.push(echo);
        }
        all
    }

    /// Asks for all of them through a proxy.
    async fn check(&self, through: SocketAddr) {
        for (host, status) in &self.expected {
            settles(&format!("{status} from {host}"), async || {
                let answer = Call::through_proxy(host, "/").send(through).await?;
                match answer.status == *status {
                    true => Ok(()),
                    false => Err(format!("{answer:?}")),
                }
            })
            .await;
        }
    }
}

async fn services_outside_are_spoken_to_with_the_ciphers_and_curves_of_the_mesh(plane: Plane) {
    let test = "services_outside_are_spoken_to_with_the_ciphers_and_curves_of_the_mesh";
    let mesh = Secured::start().await;
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    let servers = [
        (Can("TLSv1_2", AES256, P256), 200),
        (Can("TLSv1_2", AES128, P256), 503),
        (Can("TLSv1_3", "", P256), 200),
        (Can("TLSv1_3", "", "X25519"), 503),
    ];
    let outside = Outside::start(&Authority::new("outside"), &mesh, &servers).await;
    mesh.create(&outside.objects).await;
    mesh.distributed(1).await;
    // Every one of them is reached as long as nobody says otherwise.
    for (host, _) in &outside.expected {
        shop.gets(host, "/", 200).await;
    }
    mesh.apply(&config_map(DEFAULTS)).await;
    mesh.distributed(1).await;
    outside.check(shop.proxy).await;
}

async fn all_tls_of_a_workload_complies_with_fips(plane: Plane) {
    let test = "all_tls_of_a_workload_complies_with_fips";
    let taken = [
        (Can("TLSv1_2", AES128, P256), true),
        (Can("TLSv1_2", AES256, P256), true),
        (Can("TLSv1_2", CHACHA, P256), false),
        (Can("TLSv1_2", "", "X25519"), false),
        (Can("TLSv1_3", "", ""), false),
    ];
    let servers = [
        (Can("TLSv1_2", AES128, P256), 200),
        (Can("TLSv1_2", CHACHA, P256), 503),
        (Can("TLSv1_2", "", "X25519"), 503),
        (Can("TLSv1_3", "", ""), 503),
    ];
    comply(plane, test, Compliance::Fips140_2, &taken, &servers).await;
}

async fn all_tls_of_a_workload_is_safe_from_quantum_computers(plane: Plane) {
    let test = "all_tls_of_a_workload_is_safe_from_quantum_computers";
    let taken = [
        (Can("TLSv1_3", "", PQ), true),
        (Can("TLSv1_3", "", "X25519"), false),
        (Can("TLSv1_3", "", P256), false),
        (Can("TLSv1_2", "", ""), false),
    ];
    let servers = [
        (Can("TLSv1_3", "", PQ), 200),
        (Can("TLSv1_3", "", "X25519"), 503),
        (Can("TLSv1_2", "", ""), 503),
    ];
    comply(plane, test, Compliance::Pqc, &taken, &servers).await;
}

/// A workload's server for the mesh, its client in the mesh and to the outside, and the control plane.
async fn comply(
    plane: Plane,
    test: &str,
    policy: Compliance,
    taken: &[(Can, bool)],
    servers: &[(Can, u16)],
) {
    let mesh = Secured::complying(Some(policy)).await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    let outside = Outside::start(&Authority::new("outside"), &mesh, servers).await;
    mesh.create(&outside.objects).await;
    // What the mesh says otherwise does not count.
    let settings = "{meshMTLS: {cipherSuites: [ECDHE-ECDSA-CHACHA20-POLY1305]}, \
                    tlsDefaults: {ecdhCurves: [X25519]}}";
    mesh.apply(&config_map(settings)).await;
    mesh.distributed(2).await;
    let right = Clients::new(&mesh.authority).right;
    check(cart.http, "cart", Some(&right), taken).await;
    check(loopback(mesh.secure), "istiod", None, taken).await;
    let answer = shop.gets("cart", "/", 200).await;
    let certificate = answer.got("x-forwarded-client-cert");
    assert!(certificate.contains(&shop.spiffe_id), "{certificate}");
    outside.check(shop.proxy).await;
    assert_eq!(cart.envoy.rejected().await, Default::default());
    assert_eq!(shop.envoy.rejected().await, Default::default());
}

async fn a_compliance_policy_has_the_last_word_at_gateways(plane: Plane) {
    let test = "a_compliance_policy_has_the_last_word_at_gateways";
    let older = [
        (Can("TLSv1_2", AES128, P256), true),
        (Can("TLSv1_2", "", "X25519"), false),
        (Can("TLSv1_3", "", ""), false),
    ];
    let newer = [
        (Can("TLSv1_3", "", PQ), true),
        (Can("TLSv1_3", "", "X25519"), false),
        (Can("TLSv1_2", "", ""), false),
    ];
    for (compliance, says, expected) in [
        (Compliance::Fips140_2, "minProtocolVersion: TLSV1_3", older),
        (Compliance::Pqc, "maxProtocolVersion: TLSV1_2", newer),
    ] {
        let mesh = Mesh::complying(compliance).await;
        let Some(secure) = Secure::start_in(mesh, plane, test).await else {
            return;
        };
        let pair = secure.authority.issue("web", &["a.test"]);
        secure.secret("web", &pair).await;
        let tls = format!("mode: SIMPLE, credentialName: web, {says}");
        let objects =
            gateway("a", 443, "HTTPS", "a.test", &tls) + &routes("a.test", "a", TO_REVIEWS);
        secure.mesh.apply(&objects).await;
        secure.rejected_nothing().await;
        check(secure.https, "a.test", None, &expected).await;
    }
}
