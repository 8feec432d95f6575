//! `reviews`: what two readers say. v1 shows no stars, v2 black ones, v3 red ones; v2 and v3 ask
//! `ratings` for them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Settings, forward};

const RATINGS_UNAVAILABLE: &str = "Ratings service is currently unavailable";
const REVIEWS: [(&str, &str); 2] = [
    (
        "Reviewer1",
        "Two pairs of twins, one harbour town and nobody who stops to ask: \
         I laughed on every page.",
    ),
    (
        "Reviewer2",
        "The best fun you can have with mistaken identity, even if the plot \
         is as light as a sail in a calm.",
    ),
];

pub fn routes(settings: Arc<Settings>) -> Router {
    Router::new()
        .route(
            "/health",
            get(async || Json(json!({"status": "Reviews is healthy"}))),
        )
        .route("/reviews/{id}", get(reviews))
        .with_state(settings)
}

/// The colour of a version's stars, and how long it waits for `ratings`. The long patience of the
/// black stars is part of the sample: a delay injected into `ratings` then outlasts productpage's
/// patience with `reviews`, which is what Istio's fault-injection task demonstrates.
fn stars(version: &str) -> Option<(&'static str, Duration)> {
    match version {
        "v2" => Some(("black", Duration::from_secs(10))),
        "v3" => Some(("red", Duration::from_millis(2500))),
        _ => None,
    }
}

async fn reviews(
    State(settings): State<Arc<Settings>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let Ok(id) = id.parse::<u64>() else {
        let error = json!({"error": "please provide numeric product ID"});
        return (StatusCode::BAD_REQUEST, Json(error));
    };
    let ratings = match stars(&settings.version) {
        Some((color, patience)) => Some((
            color,
            fetch_ratings(&settings, id, &headers, patience).await,
        )),
        None => None,
    };
    let reviews: Vec<Value> = REVIEWS
        .iter()
        .map(|(reviewer, text)| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            if let Some((color, ratings)) = &ratings {
                review["rating"] = rating(ratings.as_ref(), reviewer, color);
            }
            review
        })
        .collect();
    let cluster = std::env::var("CLUSTER_NAME").unwrap_or_else(|_| "null".into());
    let body = json!({
        "id": id.to_string(),
        "podname": settings.workload,
        "clustername": cluster,
        "reviews": reviews,
    });
    (StatusCode::OK, Json(body))
}

fn rating(ratings: Option<&Value>, reviewer: &str, color: &str) -> Value {
    let stars = ratings.and_then(|body| body["ratings"][reviewer].as_i64());
    match stars {
        Some(stars) => json!({"stars": stars, "color": color}),
        None => json!({"error": RATINGS_UNAVAILABLE}),
    }
}

/// The body of `GET ratings/ID`, or nothing when it fails: reviews are shown without stars then.
async fn fetch_ratings(
    settings: &Settings,
    id: u64,
    incoming: &HeaderMap,
    patience: Duration,
) -> Option<Value> {
    let url = format!("http://ratings:9080/ratings/{id}");
    let headers = forward::trace_and_user(incoming);
    let response = settings
        .client
        .send(Method::GET, &url, headers, Bytes::new(), patience)
        .await;
    match response {
        Ok(response) if response.status() == StatusCode::OK => {
            serde_json::from_slice(response.body()).ok()
        }
        Ok(response) => {
            eprintln!("GET {url}: status {}", response.status());
            None
        }
        Err(error) => {
            eprintln!("GET {url}: {error}");
            None
        }
    }
}
