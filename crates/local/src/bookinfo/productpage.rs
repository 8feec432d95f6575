//! `productpage`: the page in the browser, and a JSON API over the same data.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Settings, WORKLOAD_HEADER, forward, page};

const END_USER: HeaderName = HeaderName::from_static("end-user");
const SESSION: &str = "session";
/// Longest user name that is accepted.
const MAX_USER: usize = 64;
/// Patience with one call, as in Istio's sample: its fault-injection task counts on it.
const PATIENCE: Duration = Duration::from_secs(3);
const DESCRIPTION: &str = "<a href=\"https://en.wikipedia.org/wiki/The_Comedy_of_Errors\">The \
    Comedy of Errors</a> is <b>William Shakespeare's</b> shortest play: two pairs of twins, parted \
    by a shipwreck, come to the same port on the same day, and everyone takes everyone for \
    somebody else.";

/// What came back from one neighbour.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// The neighbour's JSON, or `{"error": ...}` in the sample's words.
    pub body: Value,
    /// The workload that answered, when it said so.
    pub workload: Option<String>,
}

pub fn routes(settings: Arc<Settings>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/index.html", get(index))
        .route("/health", get(async || "Product page is healthy"))
        .route("/productpage", get(productpage))
        .route(
            "/login",
            post(login).get(async || Redirect::to("/productpage")),
        )
        .route("/logout", get(logout))
        .route("/api/v1/products", get(async || Json(json!([product()]))))
        .route("/api/v1/products/{id}", get(api_details))
        .route("/api/v1/products/{id}/reviews", get(api_reviews))
        .route("/api/v1/products/{id}/ratings", get(api_ratings))
        .with_state(settings)
}

/// The only book of the store.
fn product() -> Value {
    json!({"id": 0, "title": "The Comedy of Errors", "descriptionHtml": DESCRIPTION})
}

async fn index(State(settings): State<Arc<Settings>>, headers: HeaderMap) -> Html<String> {
    Html(page::index(
        &settings.workload,
        session_user(&headers).as_deref(),
    ))
}

async fn productpage(State(settings): State<Arc<Settings>>, headers: HeaderMap) -> Response {
    let user = session_user(&headers);
    let forwarded = forwarded(&headers, user.as_deref());
    let (details, reviews) = tokio::join!(
        fetch_details(&settings, "0", &forwarded),
        fetch_reviews(&settings, "0", &forwarded)
    );
    let html = page::productpage(&page::Product {
        workload: &settings.workload,
        user: user.as_deref(),
        title: "The Comedy of Errors",
        description_html: DESCRIPTION,
        details: &details,
        reviews: &reviews,
    });
    ([(header::CACHE_CONTROL, "no-store")], Html(html)).into_response()
}

#[derive(Debug, Deserialize)]
struct Login {
    username: String,
}

/// Any user name will do and no password is checked: this is a demonstration of routing by user.
async fn login(Form(login): Form<Login>) -> Response {
    let user = login.username.trim();
    if user.is_empty() || user.len() > MAX_USER {
        let text = format!("a user name has 1 to {MAX_USER} characters");
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    let value = utf8_percent_encode(user, NON_ALPHANUMERIC);
    see_productpage(format!("{SESSION}={value}; Path=/; HttpOnly; SameSite=Lax"))
}

async fn logout() -> Response {
    see_productpage(format!(
        "{SESSION}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"
    ))
}

fn see_productpage(cookie: String) -> Response {
    // 302 as the sample does; every browser follows a POST's 302 with a GET.
    let location = (header::LOCATION, "/productpage".to_owned());
    (StatusCode::FOUND, [location, (header::SET_COOKIE, cookie)]).into_response()
}

/// The user who signed in, from the session cookie.
fn session_user(headers: &HeaderMap) -> Option<String> {
    let user = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix(SESSION)?.strip_prefix('='))?;
    let user = percent_decode_str(user).decode_utf8().ok()?.into_owned();
    (!user.is_empty() && user.len() <= MAX_USER).then_some(user)
}

/// The headers for a call to a neighbour: the trace's, and `end-user` for the user who signed in.
/// An `end-user` header from outside is not passed on: it would let anybody be anybody.
fn forwarded(incoming: &HeaderMap, user: Option<&str>) -> HeaderMap {
    let mut headers = forward::trace(incoming);
    if let Some(agent) = incoming.get(header::USER_AGENT) {
        headers.insert(header::USER_AGENT, agent.clone());
    }
    if let Some(user) = user.and_then(|user| HeaderValue::from_str(user).ok()) {
        headers.insert(END_USER, user);
    }
    headers
}

async fn api_details(
    State(settings): State<Arc<Settings>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let forwarded = forwarded(&headers, session_user(&headers).as_deref());
    let answer = fetch_details(&settings, &id, &forwarded).await;
    (answer.status, Json(answer.body))
}

async fn api_reviews(
    State(settings): State<Arc<Settings>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let forwarded = forwarded(&headers, session_user(&headers).as_deref());
    let answer = fetch_reviews(&settings, &id, &forwarded).await;
    (answer.status, Json(answer.body))
}

async fn api_ratings(
    State(settings): State<Arc<Settings>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let forwarded = forwarded(&headers, session_user(&headers).as_deref());
    let answer = fetch(&settings, "ratings", &id, &forwarded, "product ratings").await;
    (answer.status, Json(answer.body))
}

async fn fetch_details(settings: &Settings, id: &str, headers: &HeaderMap) -> Answer {
    fetch(settings, "details", id, headers, "product details").await
}

/// Reviews are asked for twice when the first call fails, as the sample does on purpose.
async fn fetch_reviews(settings: &Settings, id: &str, headers: &HeaderMap) -> Answer {
    let first = fetch(settings, "reviews", id, headers, "product reviews").await;
    if first.status == StatusCode::OK {
        return first;
    }
    fetch(settings, "reviews", id, headers, "product reviews").await
}

async fn fetch(
    settings: &Settings,
    service: &str,
    id: &str,
    headers: &HeaderMap,
    what: &str,
) -> Answer {
    // The id comes from the URL of the request; it must not be able to add a query or a host.
    let id = utf8_percent_encode(id, NON_ALPHANUMERIC);
    let url = format!("http://{service}:9080/{service}/{id}");
    let result = settings
        .client
        .send(Method::GET, &url, headers.clone(), Bytes::new(), PATIENCE)
        .await;
    let status = match result {
        Ok(response) => {
            let workload = response.headers().get(WORKLOAD_HEADER);
            let workload = workload
                .and_then(|name| name.to_str().ok())
                .map(str::to_owned);
            let body = serde_json::from_slice(response.body());
            if let (StatusCode::OK, Ok(body)) = (response.status(), body) {
                return Answer {
                    status: StatusCode::OK,
                    body,
                    workload,
                };
            }
            eprintln!("GET {url}: status {}", response.status());
            match response.status() {
                StatusCode::OK => StatusCode::BAD_GATEWAY,
                status => status,
            }
        }
        Err(error) => {
            eprintln!("GET {url}: {error}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let error = format!("Sorry, {what} are currently unavailable for this book.");
    Answer {
        status,
        body: json!({ "error": error }),
        workload: None,
    }
}
