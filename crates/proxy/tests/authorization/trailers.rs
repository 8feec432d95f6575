//! Trailers of requests: an application may read them as headers, after everybody has decided.

use crate::ext_authz::{clusters, ext_authz};
use crate::planes::{both, cluster, manager};
use crate::servers::server;
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// An HTTP/2 server that says the names of the trailers it got.
async fn names_of_trailers(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
            let mut names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            let head = http::Response::builder().header("x-names", names.join(" "));
            let _ = respond.send_response(head.body(()).unwrap(), true);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_do_not_bring_back_what_was_set_or_removed() {
    let up = Echo::start("up").await;
    let mut all = clusters(&up).await.to_vec();
    let mut http2 = all[2].clone();
    let port = server(names_of_trailers).await;
    http2["name"] = json!("http2");
    http2["load_assignment"] = cluster("http2", port)["load_assignment"].take();
    all.push(http2);
    let routes = json!([{
        "match": { "prefix": "/" },
        "route": { "cluster": "http2" },
        "request_headers_to_remove": ["x-routed"],
    }]);
    let planes = both("trailers_do_not_bring_back", &all, |_| {
        let asks = |more: Value| vec![ext_authz("grpc", more)];
        let body = json!({ "with_request_body": { "max_request_bytes": 64 } });
        [json!({}), body]
            .map(|more| json!({ "filters": [manager(asks(more), routes.clone(), json!({}))] }))
            .into()
    })
    .await;
    // Set, removed, taken out by the route, and what only proxies say.
    let forged = [
        "x-user",
        "x-both",
        "x-routed",
        "x-envoy-force-trace",
        "x-envoy-any",
    ];
    for plane in &planes {
        for listener in [0, 1] {
            let stream = TcpStream::connect(plane.at(listener)).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            for names in [&["x-sum"][..], &forged, &[&["x-sum"][..], &forged].concat()] {
                let request = http::Request::post("http://h.test/t")
                    .header("x-want", "allow")
                    .body(())
                    .unwrap();
                let mut sender = sender.clone().ready().await.unwrap();
                let (response, mut send) = sender.send_request(request, false).unwrap();
                send.send_data("body".into(), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                for name in names {
                    let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                    trailers.insert(name, http::HeaderValue::from_static("mallory"));
                }
                send.send_trailers(trailers).unwrap();
                let answer = response.await.unwrap();
                assert_eq!(answer.status(), 200, "{:?} {listener}", plane.plane);
                let passed = answer.headers()["x-names"].to_str().unwrap();
                // Envoy passes all of them on.
                let expect = if names.contains(&"x-sum") {
                    "x-sum"
                } else {
                    ""
                };
                if plane.plane == Plane::Lateen {
                    assert_eq!(passed, expect, "{listener} {names:?}");
                } else {
                    assert!(passed.contains(expect), "{listener} {names:?}: {passed}");
                }
            }
        }
    }
}
