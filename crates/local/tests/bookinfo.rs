//! Bookinfo's applications over real sockets, calling each other through a proxy that sends
//! absolute-form requests to the application that the host names, as a sidecar does.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lateen_local::bookinfo::{App, Settings, router};
use lateen_local::http::Client;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// Service name to address, and what was seen on the way to each service.
#[derive(Clone, Default)]
struct Sidecar {
    services: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
    seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Sidecar {
    async fn forward(self, request: Request) -> Response {
        let (head, _) = request.into_parts();
        let host = head.uri.host().unwrap_or_default().to_owned();
        assert_eq!(
            head.uri.port_u16(),
            Some(9080),
            "absolute form names the service's port"
        );
        assert_eq!(head.headers["host"], format!("{host}:9080"));
        self.seen
            .lock()
            .unwrap()
            .push((host.clone(), head.headers.clone()));
        let address = self.services.lock().unwrap().get(&host).copied();
        let Some(address) = address else {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        let url = format!("http://{address}{}", head.uri.path());
        let answer = Client::direct()
            .send(head.method, &url, head.headers, Bytes::new(), PATIENCE)
            .await
            .unwrap();
        let (head, body) = answer.into_parts();
        Response::from_parts(head, Body::from(body))
    }

    fn set(&self, service: &str, address: Option<SocketAddr>) {
        let mut services = self.services.lock().unwrap();
        match address {
            Some(address) => services.insert(service.to_owned(), address),
            None => services.remove(service),
        };
    }

    /// The headers of the last request to a service.
    fn last(&self, service: &str) -> HeaderMap {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .rev()
            .find(|(host, _)| host == service)
            .unwrap()
            .1
            .clone()
    }
}

async fn serve(routes: axum::Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// All applications, `reviews` in one version.
struct Bookinfo {
    sidecar: Sidecar,
    proxy: String,
    addresses: BTreeMap<&'static str, SocketAddr>,
}

impl Bookinfo {
    async fn start(reviews: &str) -> Self {
        let sidecar = Sidecar::default();
        let forward = sidecar.clone();
        let routes = axum::Router::new().fallback(move |request| forward.clone().forward(request));
        let proxy = format!("http://{}", serve(routes).await);
        let mut bookinfo = Self {
            sidecar,
            proxy,
            addresses: BTreeMap::new(),
        };
        for (app, version) in [
            (App::Productpage, "v1"),
            (App::Details, "v1"),
            (App::Ratings, "v1"),
            (App::Reviews, reviews),
        ] {
            bookinfo.add(app, version).await;
        }
        bookinfo
    }

    async fn add(&mut self, app: App, version: &str) {
        let address = serve(router(Settings {
            app,
            version: version.to_owned(),
            workload: format!("{}-{version}", app.name()),
            client: Client::through(&self.proxy),
        }))
        .await;
        self.sidecar.set(app.name(), Some(address));
        self.addresses.insert(app.name(), address);
    }

    async fn call(
        &self,
        method: Method,
        app: &str,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &str,
    ) -> (StatusCode, HeaderMap, String) {
        let url = format!("http://{}{path}", self.addresses[app]);
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let answer = Client::direct()
            .send(method, &url, headers, body, PATIENCE)
            .await
            .unwrap();
        let (head, body) = answer.into_parts();
        (
            head.status,
            head.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    async fn get(&self, app: &str, path: &str) -> (StatusCode, String) {
        let (status, _, body) = self.call(Method::GET, app, path, &[], "").await;
        (status, body)
    }

    async fn json(&self, app: &str, path: &str) -> Value {
        let (status, body) = self.get(app, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn every_application_is_healthy_in_the_samples_words() {
    let bookinfo = Bookinfo::start("v1").await;
    assert_eq!(
        bookinfo.get("productpage", "/health").await.1,
        "Product page is healthy"
    );
    for (app, name) in [
        ("details", "Details"),
        ("ratings", "Ratings"),
        ("reviews", "Reviews"),
    ] {
        let expect = json!({"status": format!("{name} is healthy")});
        assert_eq!(bookinfo.json(app, "/health").await, expect);
    }
}

#[tokio::test]
async fn the_three_versions_of_reviews_differ_in_their_stars() {
    for (version, color) in [("v1", None), ("v2", Some("black")), ("v3", Some("red"))] {
        let bookinfo = Bookinfo::start(version).await;
        let body = bookinfo.json("reviews", "/reviews/0").await;
        assert_eq!(body["id"], "0");
        assert_eq!(body["podname"], format!("reviews-{version}"));
        assert_eq!(body["clustername"], "null");
        let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "podname", "clustername", "reviews"]);
        for (index, (reviewer, stars)) in [("Reviewer1", 5), ("Reviewer2", 4)].iter().enumerate() {
            let review = &body["reviews"][index];
            assert_eq!(review["reviewer"], *reviewer);
            assert!(review["text"].as_str().is_some_and(|text| text.len() > 20));
            let rating = color.map(|color| json!({"stars": stars, "color": color}));
            assert_eq!(review.get("rating"), rating.as_ref(), "{version}");
        }
    }
}

#[tokio::test]
async fn reviews_without_ratings_say_so_and_still_answer() {
    let bookinfo = Bookinfo::start("v2").await;
    bookinfo.sidecar.set("ratings", None);
    let body = bookinfo.json("reviews", "/reviews/0").await;
    let error = json!({"error": "Ratings service is currently unavailable"});
    assert_eq!(body["reviews"][1]["rating"], error);
}

#[tokio::test]
async fn ratings_can_be_read_and_replaced() {
    let bookinfo = Bookinfo::start("v2").await;
    let before = json!({"id": 0, "ratings": {"Reviewer1": 5, "Reviewer2": 4}});
    assert_eq!(bookinfo.json("ratings", "/ratings/0").await, before);
    let post = r#"{"Reviewer1": 1, "Reviewer2": 2}"#;
    let (status, _, _) = bookinfo
        .call(Method::POST, "ratings", "/ratings/0", &[], post)
        .await;
    assert_eq!(status, StatusCode::OK);
    let reviews = bookinfo.json("reviews", "/reviews/0").await;
    assert_eq!(reviews["reviews"][0]["rating"]["stars"], 1);
    for (path, body) in [("/ratings/x", post), ("/ratings/0", "not json")] {
        let (status, _, body) = bookinfo
            .call(Method::POST, "ratings", path, &[], body)
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    }
    for (app, path) in [
        ("details", "/details/x"),
        ("reviews", "/reviews/x"),
        ("ratings", "/ratings/x"),
    ] {
        let (status, body) = bookinfo.get(app, path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(body.contains("please provide numeric product"), "{body}");
    }
}

#[tokio::test]
async fn the_products_api_passes_its_neighbours_answers_on() {
    let bookinfo = Bookinfo::start("v3").await;
    let products = bookinfo.json("productpage", "/api/v1/products").await;
    assert_eq!(products[0]["id"], 0);
    assert_eq!(products[0]["title"], "The Comedy of Errors");
    assert!(products[0]["descriptionHtml"].is_string());
    let details = bookinfo.json("productpage", "/api/v1/products/0").await;
    let keys: Vec<&String> = details.as_object().unwrap().keys().collect();
    let expect = [
        "id",
        "author",
        "year",
        "type",
        "pages",
        "publisher",
        "language",
        "ISBN-10",
        "ISBN-13",
    ];
    assert_eq!(keys, expect);
    let reviews = bookinfo
        .json("productpage", "/api/v1/products/0/reviews")
        .await;
    assert_eq!(reviews["podname"], "reviews-v3");
    let ratings = bookinfo
        .json("productpage", "/api/v1/products/0/ratings")
        .await;
    assert_eq!(ratings["ratings"]["Reviewer2"], 4);
    bookinfo.sidecar.set("ratings", None);
    let (status, body) = bookinfo
        .get("productpage", "/api/v1/products/0/ratings")
        .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body.contains("Sorry, product ratings are currently unavailable"),
        "{body}"
    );
}

#[tokio::test]
async fn the_page_has_its_title_and_names_the_workload_that_answered() {
    let bookinfo = Bookinfo::start("v3").await;
    let (status, page) = bookinfo.get("productpage", "/productpage").await;
    assert_eq!(status, StatusCode::OK);
    for part in [
        "<title>Simple Bookstore App</title>",
        "The Comedy of Errors",
        "Reviews served by: reviews-v3",
        "aria-label=\"5 of 5 red stars\"",
        "Book Details",
        "William Shakespeare",
    ] {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
    assert!(
        !page.contains("src=\"http") && !page.contains("href=\"http://"),
        "external asset"
    );
    let (_, index) = bookinfo.get("productpage", "/").await;
    assert!(index.contains("href=\"/productpage\""));
}

#[tokio::test]
async fn a_page_without_its_neighbours_says_what_is_missing() {
    let bookinfo = Bookinfo::start("v1").await;
    bookinfo.sidecar.set("reviews", None);
    bookinfo.sidecar.set("details", None);
    let (status, page) = bookinfo.get("productpage", "/productpage").await;
    assert_eq!(status, StatusCode::OK);
    for what in ["details", "reviews"] {
        assert!(
            page.contains(&format!("Error fetching product {what}")),
            "{page}"
        );
        let sorry = format!("Sorry, product {what} are currently unavailable for this book.");
        assert!(page.contains(&sorry), "{page}");
    }
}

#[tokio::test]
async fn whoever_signs_in_is_the_end_user_of_every_further_request() {
    let bookinfo = Bookinfo::start("v2").await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let login = bookinfo
        .call(
            Method::POST,
            "productpage",
            "/login",
            &form,
            "username=jason&passwd=anything",
        )
        .await;
    assert_eq!(login.0, StatusCode::FOUND);
    assert_eq!(login.1["location"], "/productpage");
    let cookie = login.1["set-cookie"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let headers = [
        ("cookie", cookie.as_str()),
        ("x-request-id", "r-1"),
        ("x-b3-traceid", "463ac35c9f6413ad"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        ("end-user", "somebody else"),
    ];
    let page = bookinfo
        .call(Method::GET, "productpage", "/productpage", &headers, "")
        .await
        .2;
    assert!(
        page.contains(">jason<") && page.contains("/logout"),
        "{page}"
    );
    for service in ["details", "reviews", "ratings"] {
        let seen = bookinfo.sidecar.last(service);
        assert_eq!(seen["end-user"], "jason", "{service}");
        assert_eq!(seen["x-request-id"], "r-1", "{service}");
        assert_eq!(seen["x-b3-traceid"], "463ac35c9f6413ad", "{service}");
        assert!(seen.contains_key("traceparent"), "{service}");
    }
    // Without a session, nobody is the end user, whatever the request says.
    let headers = [("end-user", "jason")];
    bookinfo
        .call(Method::GET, "productpage", "/productpage", &headers, "")
        .await;
    assert!(!bookinfo.sidecar.last("reviews").contains_key("end-user"));
    let logout = bookinfo
        .call(Method::GET, "productpage", "/logout", &[], "")
        .await;
    assert!(
        logout.1["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
}

#[tokio::test]
async fn a_user_name_cannot_bring_markup_or_headers_in() {
    let bookinfo = Bookinfo::start("v1").await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = "username=%3Cscript%3Ex%3C%2Fscript%3E%0D%0Ax%3Ay";
    let login = bookinfo
        .call(Method::POST, "productpage", "/login", &form, body)
        .await;
    let cookie = login.1["set-cookie"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let headers = [("cookie", cookie.as_str())];
    let page = bookinfo
        .call(Method::GET, "productpage", "/productpage", &headers, "")
        .await
        .2;
    assert!(
        page.contains("&lt;script&gt;") && !page.contains("<script>"),
        "{page}"
    );
    assert!(!bookinfo.sidecar.last("details").contains_key("x"));
    let long = format!("username={}", "a".repeat(65));
    let refused = bookinfo
        .call(Method::POST, "productpage", "/login", &form, &long)
        .await;
    assert_eq!(refused.0, StatusCode::BAD_REQUEST);
}
