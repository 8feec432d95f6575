//! Documents 07 and 14 to 16: mutual TLS, as clients ask for it and as servers insist on it.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;

use super::read;
use crate::member::{Member, Secured, Who};

/// Applies a document of the user as it stands.
async fn apply(mesh: &Secured, document: &str, proxies: usize) {
    mesh.apply(&read(document).1).await;
    mesh.distributed(proxies).await;
}

async fn document_07_destinationrule_reviews(plane: Plane) {
    let mesh = Secured::start().await;
    let Some(shop) = mesh.member(plane, "07", "shop").await else {
        return;
    };
    // Servers that end mutual TLS themselves, and take nothing else.
    let identity = mesh
        .authority
        .issue("reviews", &["spiffe://cluster.local/ns/default/sa/reviews"]);
    let config = identity.server(Some(&mesh.authority), &["h2", "http/1.1"]);
    let mut objects = crate::mesh::service("reviews", "http", 80);
    let mut servers = Vec::new();
    for version in ["v1", "v2", "v3"] {
        let server = Echo::over_tls(&format!("reviews-{version}"), config.clone()).await;
        objects += &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: reviews-{version}, namespace: default}}\nspec:\n  \
             address: 127.0.0.1\n  serviceAccount: reviews\n  ports: {{http: {}}}\n  \
             labels: {{app: reviews, version: {version}}}\n---\n",
            server.port()
        );
        servers.push(server);
    }
    mesh.create(&objects).await;
    mesh.distributed(1).await;
    // Nothing says so far that they take TLS.
    settles("plain bytes are refused", async || {
        let answer = shop.send(&Call::through_proxy("reviews", "/")).await?;
        match answer.status {
            502 | 503 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    apply(&mesh, "07", 1).await;
    // The subsets are those that document 06 names.
    apply(&mesh, "06", 1).await;
    settles(
        "HTTP/2 over mutual TLS to the version that is asked for",
        async || {
            let call = Call::through_proxy("reviews", "/").header("end-user", "jason");
            let answer = shop.send(&call).await?;
            let json = answer.json();
            match answer.name() == "reviews-v2"
                && json["version"] == "HTTP/2.0"
                && json["tls"]["certificate"] == true
                && json["tls"]["sni"] == "outbound_.80_.v2_.reviews.default.svc.cluster.local"
            {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        },
    )
    .await;
}

/// Waits until `cart` answers requests without TLS, or does not.
async fn takes_plain(cart: &Member, expected: bool) {
    settles(
        &format!("plain requests are taken: {expected}"),
        async || {
            let answer = Call::get("cart", "/").send(cart.http).await;
            match answer.is_ok_and(|answer| answer.status == 200) == expected {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            }
        },
    )
    .await;
}

async fn document_14_peerauthentication_default(plane: Plane) {
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, "14", "cart").await else {
        return;
    };
    let elsewhere = Who {
        namespace: "production",
        ..Who::named("till")
    };
    let Some(till) = mesh.member_as(plane, "14", elsewhere).await else {
        return;
    };
    takes_plain(&cart, true).await;
    apply(&mesh, "14", 2).await;
    takes_plain(&cart, false).await;
    // Without a namespace it is a rule of `default` alone, not of the mesh.
    takes_plain(&till, true).await;
    let answer = till.gets("cart.default", "/", 200).await;
    let certificate = answer.got("x-forwarded-client-cert");
    assert!(certificate.contains(&till.spiffe_id), "{certificate}");
}

async fn document_15_peerauthentication_default(plane: Plane) {
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, "15", "cart").await else {
        return;
    };
    let elsewhere = Who {
        namespace: "production",
        ..Who::named("till")
    };
    let Some(till) = mesh.member_as(plane, "15", elsewhere).await else {
        return;
    };
    apply(&mesh, "15", 2).await;
    takes_plain(&till, false).await;
    takes_plain(&cart, true).await;
    let answer = cart.gets("till.production", "/", 200).await;
    let certificate = answer.got("x-forwarded-client-cert");
    assert!(certificate.contains(&cart.spiffe_id), "{certificate}");
}

async fn document_16_peerauthentication_default(plane: Plane) {
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, "16", "cart").await else {
        return;
    };
    apply(&mesh, "14", 1).await;
    takes_plain(&cart, false).await;
    // Of the same name and namespace: it takes the other's place.
    apply(&mesh, "16", 1).await;
    takes_plain(&cart, true).await;
}

on_both! {
    document_07_destinationrule_reviews,
    document_14_peerauthentication_default,
    document_15_peerauthentication_default,
    document_16_peerauthentication_default,
}
