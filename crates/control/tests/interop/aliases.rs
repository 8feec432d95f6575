//! Services of type ExternalName: other names of services of the mesh (Istio's
//! `ENABLE_EXTERNAL_NAME_ALIAS`, which is how it always is since 1.24).

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;

use crate::member::{Member, Secured};

/// Without ports, which mean nothing there.
fn alias(name: &str, of: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{type: ExternalName, externalName: {of}}}\n---\n"
    )
}

/// Whether `cart` answers its clients at these names.
async fn answers(shop: &Member, hosts: &[&str], does: bool, when: &str) {
    for host in hosts {
        settles(&format!("{host} {when}: {does}"), async || {
            let answer = shop.send(&Call::through_proxy(host, "/")).await?;
            match (answer.status == 200 && answer.header("x-echo") == "cart") == does {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
}

async fn an_external_name_is_another_name_of_a_service(plane: Plane) {
    let test = "an_external_name_is_another_name_of_a_service";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    // Whoever takes the name for something outside of the mesh does not get in.
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n",
    )
    .await;
    answers(&shop, &["cart"], true, "by its own name").await;
    let names = [
        "basket",
        "basket.default",
        "basket.default.svc.cluster.local",
    ];
    let all = [&names[..], &["trolley", "routed.test"]].concat();
    answers(&shop, &all, false, "before").await;
    let basket = alias("basket", "cart.default.svc.cluster.local");
    let trolley = alias("trolley", "basket.default.svc.cluster.local.");
    mesh.apply(&basket).await;
    answers(&shop, &names, true, "as an alias").await;
    // An alias of an alias, and a rule that sends to one.
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                metadata: {name: routed, namespace: default}\n\
                spec: {hosts: [routed.test], http: [{route: [{destination: {host: trolley, port: {number: 80}}}]}]}\n";
    mesh.apply(&(trolley.clone() + rule)).await;
    answers(&shop, &all, true, "as an alias of an alias").await;
    // A circle leads nowhere, and its end is what it was.
    let circle = alias("basket", "trolley.default.svc.cluster.local");
    mesh.apply(&circle).await;
    answers(&shop, &all, false, "in a circle").await;
    answers(&shop, &["cart"], true, "by its own name").await;
    mesh.apply(&basket).await;
    answers(&shop, &all, true, "as before").await;
    // What was an alias becomes a Service.
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: basket, namespace: default}\n\
         spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}\n",
    )
    .await;
    answers(&shop, &all, false, "as a Service without endpoints").await;
    mesh.apply(&basket).await;
    answers(&shop, &all, true, "as an alias again").await;
    mesh.delete(&(basket + &trolley)).await;
    answers(&shop, &all, false, "without the aliases").await;
    drop(cart);
}

on_both!(an_external_name_is_another_name_of_a_service);
