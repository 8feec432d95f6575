//! Conditions of AuthorizationPolicies that plain requests do not have: the server name of a
//! connection, and what other filters know.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tls_client::{Dial, ask};

use crate::authorization::{Guarded, policy};
use crate::callers::{Clients, tcp};
use crate::external_authorizers::{SERVICE, get, grpc_authorizer, guarded_by};
use crate::member::Secured;
use crate::sidecar::SIDECAR;

/// Whether a request is answered by the application.
async fn passes(to: SocketAddr, dial: Dial<'_>) -> bool {
    let request = b"GET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n";
    let whole = |answer: &[u8]| answer.ends_with(b"}") || answer.ends_with(b"access denied");
    let answer = ask(to, dial, request, whole).await;
    answer.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}

/// The client asks for `server.test`, and is `spiffe://cluster.local/ns/default/sa/client`.
async fn connections_pass_by_the_name_they_ask_for_and_by_who_asks(plane: Plane) {
    let test = "connections_pass_by_the_name_they_ask_for_and_by_who_asks";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let clients = Clients::new(&mesh.authority);
    let named = Dial::Tls(Some(&clients.right), &["istio-http/1.1", "istio"]);
    for (condition, by_name, plain) in [
        ("connection.sni, values: [server.test]", true, false),
        ("connection.sni, values: [other.test]", false, false),
        ("connection.sni, values: ['*.test']", true, false),
        ("connection.sni, values: ['server*']", true, false),
        ("connection.sni, values: ['*.other']", false, false),
        ("connection.sni, values: ['*']", true, false),
        // Who asks for none does not ask for that one.
        ("connection.sni, notValues: [server.test]", false, true),
        ("connection.sni, notValues: [other.test]", true, true),
        (
            "source.principal, values: [cluster.local/ns/default/sa/client]",
            true,
            false,
        ),
        (
            "source.principal, values: [cluster.local/ns/default/sa/other]",
            false,
            false,
        ),
        ("source.principal, notValues: ['*/sa/client']", false, true),
        ("source.namespace, values: [default]", true, false),
        ("source.namespace, values: [other]", false, false),
        ("source.namespace, notValues: [default]", false, true),
        ("source.serviceAccount, values: [client]", true, false),
        (
            "source.serviceAccount, values: [other/client]",
            false,
            false,
        ),
        (
            "source.serviceAccount, notValues: [default/client]",
            false,
            true,
        ),
    ] {
        let when = format!("rules: [{{when: [{{key: {condition}}}]}}]");
        let document = policy("tested", &when).replace("app: front", "app: cart");
        mesh.apply(&document).await;
        mesh.distributed(1).await;
        settles(condition, async || {
            let found = [
                passes(cart.http, named).await,
                tcp(cart.tcp, named).await.is_ok(),
                passes(cart.http, Dial::Plain).await,
                tcp(cart.tcp, Dial::Plain).await.is_ok(),
            ];
            match found == [by_name, by_name, plain, plain] {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
    }
}

/// As the proxy in front says it.
async fn requests_pass_by_where_they_come_from_behind_proxies(plane: Plane) {
    let test = "requests_pass_by_where_they_come_from_behind_proxies";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let rounds = "{to: [{operation: {paths: [/round/*]}}]}";
    for (values, passes) in [
        ("values: [203.0.113.0/24]", true),
        ("values: [198.51.100.1]", false),
        ("notValues: [203.0.113.7]", false),
        ("notValues: [198.51.100.0/24]", true),
    ] {
        let when = format!("{{when: [{{key: remote.ip, {values}}}]}}");
        let rules = format!("rules: [{rounds}, {when}]");
        guarded.apply(&policy("tested", &rules)).await;
        let call = Call::get("front", "/").header("x-forwarded-for", "203.0.113.7");
        assert_eq!(guarded.passes(&call).await, passes, "{values}");
    }
}

async fn requests_and_connections_pass_by_what_an_authorizer_says_of_them(plane: Plane) {
    let test = "requests_and_connections_pass_by_what_an_authorizer_says_of_them";
    let (address, authorizer) = grpc_authorizer().await;
    let settings = format!("envoyExtAuthzGrpc: {{{SERVICE}}}");
    let Some(guarded) = guarded_by(plane, test, address, &settings).await else {
        return;
    };
    let rounds = "{to: [{operation: {paths: [/round/*]}}]}";
    let red = [("x-decide", "allow"), ("x-team", "red")];
    let blue = [("x-decide", "allow"), ("x-team", "blue")];
    for condition in [
        "team], values: [red]",
        "teams], values: ['[red]']",
        "team], notValues: [blue, net]",
    ] {
        let key = condition.replacen("], ", "]', ", 1);
        guarded
            .apply(&policy(
                "known",
                &format!(
                    "rules: [{rounds}, {{to: [{{operation: {{paths: ['/guarded*']}}}}], \
                     when: [{{key: 'experimental.envoy.filters.http.ext_authz[{key}}}]}}]"
                ),
            ))
            .await;
        assert_eq!(
            get(&guarded, "/guarded", &red).await.status,
            200,
            "{condition}"
        );
        let answer = get(&guarded, "/guarded", &blue).await;
        assert_eq!(answer.status, 403, "{condition}");
        assert_eq!(answer.body, "RBAC: access denied", "{condition}");
        // What the client says by itself is nothing that anybody knows.
        let answer = get(&guarded, "/open", &red).await;
        assert_eq!(answer.status, 403, "{condition}");
    }

    authorizer.connections.store(true, Ordering::SeqCst);
    let custom =
        "action: CUSTOM, provider: {name: mine}, rules: [{to: [{operation: {ports: ['7000']}}]}]";
    guarded.apply(&policy("custom", custom)).await;
    for (value, passes) in [("net", true), ("red", false)] {
        guarded
            .apply(&policy(
                "known",
                &format!(
                    "rules: [{rounds}, {{when: [{{key: \
                     'experimental.envoy.filters.network.ext_authz[team]', values: [{value}]}}]}}]"
                ),
            ))
            .await;
        assert_eq!(guarded.connects().await, passes, "{value}");
    }
    guarded.mesh.synced(SIDECAR).await;
    assert_eq!(guarded.sidecar.envoy.rejected().await, Default::default());
}

on_both!(
    connections_pass_by_the_name_they_ask_for_and_by_who_asks,
    requests_pass_by_where_they_come_from_behind_proxies,
    requests_and_connections_pass_by_what_an_authorizer_says_of_them,
);
