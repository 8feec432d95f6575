//! Settings of the whole mesh, given as a ConfigMap and as IstioOperators, take effect on proxies
//! that run.

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, settles};

use super::mesh::{Gateway, Mesh, Reviews};

on_both!(
    the_mesh_switches_the_access_log_on_and_off,
    the_access_log_can_be_json,
    a_gateway_behind_proxies_believes_what_the_mesh_says,
    paths_are_normalized_as_the_mesh_says,
    routes_without_retries_have_those_of_the_mesh,
);

const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: ['*']
  gateways: [web]
  http:
  - match: [{uri: {prefix: /twice//slashed}}]
    directResponse: {status: 418}
  - match: [{uri: {prefix: /nobody}}]
    route: [{destination: {host: reviews, subset: nobody}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";

/// The ConfigMap `istio` with some settings.
pub fn config_map(mesh: &str) -> String {
    let mesh: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |-\n{mesh}"
    )
}

/// An IstioOperator with some settings, in flow style.
fn operator(name: &str, mesh: &str) -> String {
    format!(
        "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n\
         metadata: {{name: {name}, namespace: istio-system}}\nspec: {{meshConfig: {{{mesh}}}}}\n"
    )
}

async fn start(plane: Plane, mesh: &Mesh, test: &str) -> Option<(Gateway, Reviews)> {
    let gateway = Gateway::start(plane, mesh, test, true).await?;
    let reviews = Reviews::start(mesh).await;
    mesh.apply(ROUTE).await;
    mesh.distributed(1).await;
    Some((gateway, reviews))
}

async fn the_mesh_switches_the_access_log_on_and_off(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some((gateway, _reviews)) = start(plane, &mesh, "the access log").await else {
        return;
    };
    let file = mesh.directory().join("access.log");
    let shown = file.display();
    let on = format!("accessLogFile: {shown}\naccessLogFormat: '%REQ(:PATH)% %RESPONSE_CODE%|'\n");
    mesh.apply(&config_map(&on)).await;
    mesh.distributed(1).await;
    let log = || std::fs::read_to_string(&file).unwrap_or_default();
    settles("requests are logged", async || {
        gateway.get("reviews", "/logged").await;
        match log().contains("/logged 200|") {
            true => Ok(()),
            false => Err(log()),
        }
    })
    .await;

    // An operator says less than the ConfigMap while that is there, and all when it is gone.
    mesh.apply(&operator(
        "logging-config",
        &format!("accessLogFile: {shown}"),
    ))
    .await;
    mesh.delete(&config_map(&on)).await;
    mesh.distributed(1).await;
    settles("requests are logged in Istio's format", async || {
        gateway.get("reviews", "/as-istio").await;
        match log().contains("\"GET /as-istio HTTP/1.1\" 200 - via_upstream") {
            true => Ok(()),
            false => Err(log()),
        }
    })
    .await;
    mesh.apply(&operator("no-access-log", "accessLogFile: ''"))
        .await;
    mesh.distributed(1).await;
    settles("requests are not logged", async || {
        let before = log().len();
        gateway.get("reviews", "/unlogged").await;
        tokio::time::sleep(std::time::Duration::from_millis(70)).await;
        match log().len() == before {
            true => Ok(()),
            false => Err(log()),
        }
    })
    .await;
}

async fn the_access_log_can_be_json(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some((gateway, _reviews)) = start(plane, &mesh, "the JSON access log").await else {
        return;
    };
    let file = mesh.directory().join("access.json");
    let settings = format!(
        "accessLogFile: {}\naccessLogEncoding: JSON\n",
        file.display()
    );
    mesh.apply(&config_map(&settings)).await;
    mesh.distributed(1).await;
    let line = eventually("a line of JSON", async || {
        gateway.get("reviews", "/json").await;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let line = text.split_once('\n').map(|(line, _)| line.to_owned());
        line.ok_or_else(|| "the log is empty".to_owned())
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["response_code"], 200, "{line}");
    assert_eq!(line["path"], "/json", "{line}");
    assert_eq!(
        line["upstream_cluster"], "outbound|9080|v1|reviews.default.svc.cluster.local",
        "{line}"
    );
}

/// What the upstream saw of a header.
async fn seen(gateway: &Gateway, call: &Call, header: &str) -> Option<String> {
    let answer = gateway.send(call).await;
    let headers = &answer.json()["headers"];
    headers[header].as_str().map(str::to_owned)
}

async fn a_gateway_behind_proxies_believes_what_the_mesh_says(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some((gateway, _reviews)) = start(plane, &mesh, "trusted proxies").await else {
        return;
    };
    let call = Call::get("reviews", "/")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-client-cert", "By=spiffe://before");
    assert_eq!(
        seen(&gateway, &call, "x-envoy-external-address")
            .await
            .as_deref(),
        Some("127.0.0.1"),
        "the connection's own address while nobody is trusted"
    );
    assert_eq!(seen(&gateway, &call, "x-forwarded-client-cert").await, None);
    let topology = "defaultConfig:\n  gatewayTopology:\n    numTrustedProxies: 1\n    \
                    forwardClientCertDetails: ALWAYS_FORWARD_ONLY\n";
    mesh.apply(&config_map(topology)).await;
    mesh.distributed(1).await;
    settles(
        "the address the proxy before says is believed",
        async || {
            let address = seen(&gateway, &call, "x-envoy-external-address").await;
            let certificate = seen(&gateway, &call, "x-forwarded-client-cert").await;
            match (address.as_deref(), certificate.as_deref()) {
                (Some("203.0.113.7"), Some("By=spiffe://before")) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
}

async fn paths_are_normalized_as_the_mesh_says(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some((gateway, _reviews)) = start(plane, &mesh, "path normalization").await else {
        return;
    };
    let path = "/a/../twice//slashed";
    assert_eq!(gateway.get("reviews", path).await.status, 418);
    let expected = [
        ("NONE", Some("/a/../twice//slashed")),
        ("MERGE_SLASHES", Some("/twice/slashed")),
        ("BASE", None),
    ];
    for (normalization, forwarded) in expected {
        let settings = format!("pathNormalization: {{normalization: {normalization}}}");
        mesh.apply(&config_map(&settings)).await;
        mesh.distributed(1).await;
        settles(normalization, async || {
            let answer = gateway.get("reviews", path).await;
            let found = (answer.status == 200).then(|| answer.json()["path"].clone());
            match found.as_ref().map(|path| path.as_str()) {
                Some(Some(path)) if forwarded == Some(path) => Ok(()),
                None if forwarded.is_none() && answer.status == 418 => Ok(()),
                _ => Err(format!("{} {found:?}", answer.status)),
            }
        })
        .await;
    }
}

async fn routes_without_retries_have_those_of_the_mesh(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some((gateway, reviews)) = start(plane, &mesh, "retries of the mesh").await else {
        return;
    };
    let attempts = async || {
        let before = reviews.v1.hits("/status/503");
        gateway.get("reviews", "/status/503").await;
        reviews.v1.hits("/status/503") - before
    };
    assert_eq!(attempts().await, 1, "Istio's default does not retry a 503");
    mesh.apply(&config_map(
        "defaultHttpRetryPolicy: {attempts: 3, retryOn: 5xx}",
    ))
    .await;
    mesh.distributed(1).await;
    settles("a 503 is retried three times", async || {
        match attempts().await {
            4 => Ok(()),
            other => Err(format!("{other} attempts")),
        }
    })
    .await;
}
