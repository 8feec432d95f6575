//! Documents 08 and 09, 43 and 44: gateways that serve TLS, and the rules behind them.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::Call;

use super::read;
use crate::mesh::{service, workload};
use crate::secure_gateway::Secure;

/// A service on port 8080 behind the gateway.
async fn with_service(secure: &Secure, name: &str) -> Echo {
    let echo = Echo::start(name).await;
    let objects = service(name, "http", 8080) + &workload(name, "v1", "http", echo.port());
    secure.mesh.create(&objects).await;
    echo
}

/// Waits until plain HTTP is sent to https.
async fn redirects(secure: &Secure, host: &str) {
    eventually(&format!("http://{host} is redirected"), async || {
        let call = Call::get(host, "/products?x=1");
        let answer = call.send(secure.gateway.http).await?;
        let location = answer.header("location");
        match answer.status == 301 && location == format!("https://{host}/products?x=1") {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
}

async fn documents_08_and_09_gateway_and_virtualservice_myapp(plane: Plane) {
    let test = "documents_08_and_09_gateway_and_virtualservice_myapp";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let _echo = with_service(&secure, "myapp-service").await;
    secure.mesh.apply(&read("08").1).await;
    secure.mesh.apply(&read("09").1).await;
    // Without the Secret, which belongs into the gateway's namespace, there is no TLS; the rest
    // works, and what is missing is said.
    redirects(&secure, "myapp.example.com").await;
    let found = secure.findings("myapp-gateway").await.join("\n");
    let expect = "IST0101 Referenced credentialName not found: \"myapp-tls\"";
    assert!(found.starts_with(expect), "{found}");
    let pair = secure.authority.issue("myapp", &["myapp.example.com"]);
    secure.secret("myapp-tls", &pair).await;
    let said = secure.answers(secure.https, "myapp.example.com", &[], "200 2");
    assert!(said.await.text.contains("\"name\":\"myapp-service\""));
    assert_eq!(secure.findings("myapp-gateway").await, [""; 0]);
}

async fn documents_43_and_44_gateway_and_virtualservice_api(plane: Plane) {
    let test = "documents_43_and_44_gateway_and_virtualservice_api";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let _echo = with_service(&secure, "product-service").await;
    let pair = secure.authority.issue("example", &["*.example.com"]);
    secure.secret("example-tls", &pair).await;
    secure.mesh.apply(&read("43").1).await;
    secure.mesh.apply(&read("44").1).await;
    redirects(&secure, "api.example.com").await;
    // A bare name is looked for in the rule's own namespace: the rule has no effect.
    let host = "api.example.com";
    secure.answers(secure.https, host, &[], "404 2").await;
    let found = secure.mesh.page("/debug/findings").await;
    let about = |one: &&serde_json::Value| one["subject"]["name"] == "api-virtualservice";
    let found = found.as_array().unwrap().iter().find(about).unwrap();
    assert_eq!(found["code"], "IST0101");
    let said = found["message"].as_str().unwrap();
    assert!(
        said.contains("did you mean \"istio-system/public-gateway\"?"),
        "{said}"
    );
    // With the full name it has.
    let full = read("44")
        .1
        .replace("- public-gateway", "- istio-system/public-gateway");
    secure.mesh.apply(&full).await;
    let said = eventually("the rule is in force", async || {
        let said = secure
            .curl_path(secure.https, host, "/products/7", &[])
            .await;
        match said.success && said.text.ends_with("200 2") {
            true => Ok(said),
            false => Err(format!("{said:?}")),
        }
    })
    .await;
    assert!(
        said.text.contains("\"name\":\"product-service\""),
        "{said:?}"
    );
    secure.answers(secure.https, host, &[], "404 2").await;
}

on_both! {
    documents_08_and_09_gateway_and_virtualservice_myapp,
    documents_43_and_44_gateway_and_virtualservice_api,
}
