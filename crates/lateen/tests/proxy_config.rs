//! `proxy-config` on a dump in Envoy's form: istioctl's columns and order.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use expect_test::{Expect, expect};
use support::lateen;

const DUMP: &str = include_str!("data/config_dump.json");

/// A workload's certificate (no key), its root, a certificate of 2020, and one that has not come.
const SECRETS: &str = include_str!("data/secrets_dump.json");

fn check(arguments: &[&str], expect: Expect) {
    check_dump(DUMP, arguments, expect);
}

fn check_dump(dump: &str, arguments: &[&str], expect: Expect) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dump.json");
    std::fs::write(&file, dump).unwrap();
    let mut all = vec!["proxy-config"];
    all.extend(arguments);
    let output = lateen().args(all).arg("--file").arg(file).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    expect.assert_eq(&String::from_utf8(output.stdout).unwrap());
}

#[test]
fn secrets_with_their_certificates() {
    check_dump(
        SECRETS,
        &["secret"],
        expect![[r#"
            RESOURCE NAME          TYPE           STATUS            VALID CERT     SERIAL NUMBER     NOT AFTER                NOT BEFORE               TRUST DOMAIN
            kubernetes://later                    UNINITIALIZED     false
            default                Cert Chain     ACTIVE            true           d4c3b2a1          2125-12-31T23:59:59Z     2026-01-01T00:00:00Z     cluster.local
            ROOTCA                 CA             ACTIVE            true           a1b               2125-12-31T23:59:59Z     2026-01-01T00:00:00Z
            kubernetes://old       Cert Chain     ACTIVE            false          77                2020-01-02T00:00:00Z     2020-01-01T00:00:00Z     cluster.local
        "#]],
    );
}

#[test]
fn clusters() {
    check(
        &["cluster"],
        expect![[r#"
        SERVICE FQDN                          PORT      SUBSET     DIRECTION     TYPE             DESTINATION RULE
                                              15102     -          inbound       STATIC
        BlackHoleCluster                      -         -          -             STATIC
        PassthroughCluster                    -         -          -             ORIGINAL_DST
        ratings.default.svc.cluster.local     9080      -          outbound      EDS
        reviews.default.svc.cluster.local     9080      -          outbound      EDS              reviews.default
        reviews.default.svc.cluster.local     9080      v1         outbound      EDS              reviews.default
        reviews.default.svc.cluster.local     9080      v2         outbound      EDS              reviews.default
        xds-grpc                              -         -          -             STATIC
    "#]],
    );
    check(
        &["c", "--fqdn", "reviews", "--subset", "v1"],
        expect![[r#"
        SERVICE FQDN                          PORT     SUBSET     DIRECTION     TYPE     DESTINATION RULE
        reviews.default.svc.cluster.local     9080     v1         outbound      EDS      reviews.default
    "#]],
    );
    check(
        &["clusters", "--direction", "inbound"],
        expect![[r#"
        SERVICE FQDN     PORT      SUBSET     DIRECTION     TYPE       DESTINATION RULE
                         15102     -          inbound       STATIC
    "#]],
    );
    check(
        &["clusters", "--port", "9999"],
        expect![[r#"
        SERVICE FQDN     PORT     SUBSET     DIRECTION     TYPE     DESTINATION RULE
    "#]],
    );
}

#[test]
fn listeners() {
    check(
        &["listener"],
        expect![[r#"
        ADDRESSES PORT  MATCH                                           DESTINATION
        0.0.0.0   8443  SNI: a.example,b.example; Trans: tls; App: HTTP Route: https.8443.https.gw.default
        0.0.0.0   8443  ALL                                             PassthroughCluster
        0.0.0.0   8443  Addr: 10.0.0.0/8:15090                          Non-HTTP/Non-TCP
        127.0.0.1 15101 ALL                                             Route: http_proxy
        127.0.0.1 15102 ALL                                             Cluster: inbound|15102||
        127.0.0.1 15104 ALL                                             Cluster: outbound|3306||mysql.default.svc.cluster.local
    "#]],
    );
    check(
        &["l", "--verbose=false"],
        expect![[r#"
        ADDRESSES PORT  TYPE
        0.0.0.0   8443  HTTP+TCP
        127.0.0.1 15101 HTTP
        127.0.0.1 15102 HTTP
        127.0.0.1 15104 TCP
    "#]],
    );
    check(
        &["l", "--type", "tcp"],
        expect![[r#"
        ADDRESSES PORT  MATCH DESTINATION
        127.0.0.1 15104 ALL   Cluster: outbound|3306||mysql.default.svc.cluster.local
    "#]],
    );
    check(
        &["l", "--port", "15101", "-o", "json"],
        expect![[r#"
        [
            {
                "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
                "name": "127.0.0.1_15101",
                "address": {
                    "socket_address": {
                        "address": "127.0.0.1",
                        "port_value": 15101
                    }
                },
                "filter_chains": [
                    {
                        "filters": [
                            {
                                "name": "envoy.filters.network.http_connection_manager",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                                    "rds": {
                                        "route_config_name": "http_proxy"
                                    }
                                }
                            }
                        ]
                    }
                ]
            }
        ]
    "#]],
    );
}

#[test]
fn routes() {
    check(
        &["route"],
        expect![[r#"
        NAME                VHOST NAME                                 DOMAINS                                  MATCH                  VIRTUAL SERVICE
        80                  a:80                                       a                                        /*
        http_proxy          reviews.default.svc.cluster.local:9080     reviews, reviews.default + 1 more...     /login                 reviews.default
        http_proxy          reviews.default.svc.cluster.local:9080     reviews, reviews.default + 1 more...     regex /api/v[0-9]+     reviews.default
        http_proxy          reviews.default.svc.cluster.local:9080     reviews, reviews.default + 1 more...     /*
        http_proxy          empty                                      empty.example                            /*                     404
        inbound|15102||     inbound|http|15102                         *                                        /*
    "#]],
    );
    check(
        &["r", "--name", "http_proxy", "--verbose=false"],
        expect![[r#"
        NAME           VIRTUAL HOSTS
        http_proxy     3
    "#]],
    );
}

#[test]
fn endpoints() {
    check(
        &["endpoint"],
        expect![[r#"
        ENDPOINT            STATUS        OUTLIER CHECK     CLUSTER
        127.0.0.1:15102     HEALTHY       OK                outbound|9080|v1|reviews.default.svc.cluster.local
        127.0.0.1:15102     HEALTHY       OK                outbound|9080||reviews.default.svc.cluster.local
        127.0.0.1:15112     UNHEALTHY     OK                outbound|9080||reviews.default.svc.cluster.local
    "#]],
    );
    check(
        &["ep", "--port", "15102"],
        expect![[r#"
        ENDPOINT            STATUS      OUTLIER CHECK     CLUSTER
        127.0.0.1:15102     HEALTHY     OK                outbound|9080|v1|reviews.default.svc.cluster.local
        127.0.0.1:15102     HEALTHY     OK                outbound|9080||reviews.default.svc.cluster.local
    "#]],
    );
}

#[test]
fn bootstrap() {
    check(
        &["bootstrap"],
        expect![[r#"
        {
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            "bootstrap": {
                "node": {
                    "id": "sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local",
                    "user_agent_name": "envoy",
                    "metadata": {
                        "ISTIO_VERSION": "1.30.0"
                    }
                }
            },
            "last_updated": "2026-01-01T00:00:00Z"
        }
    "#]],
    );
    check(
        &["bootstrap", "-o", "short"],
        expect![[r#"
        Istio Version:       1.30.0
        Proxy:               envoy
        Node:                sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local
    "#]],
    );
}

#[test]
fn what_is_no_dump_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dump.json");
    for (text, expect) in [("{}", "no config dump"), ("not json", "is not JSON")] {
        std::fs::write(&file, text).unwrap();
        let run = lateen()
            .args(["pc", "cluster", "--file"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(65));
        let error = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(error.contains(expect), "{error}");
    }
    let run = lateen()
        .args(["pc", "endpoint", "--file", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
}
