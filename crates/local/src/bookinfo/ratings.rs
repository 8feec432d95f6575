//! `ratings`: stars per reviewer, kept in memory; a POST replaces those of one book.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

/// Books whose ratings were posted. Bounded, so that a client cannot fill the memory.
type Posted = Arc<Mutex<HashMap<u64, Value>>>;
const MAX_BOOKS: usize = 1000;

pub fn routes() -> Router {
    Router::new()
        .route(
            "/health",
            get(async || Json(json!({"status": "Ratings is healthy"}))),
        )
        .route("/ratings/{id}", get(read).post(replace))
        .with_state(Posted::default())
}

async fn read(State(posted): State<Posted>, Path(id): Path<String>) -> (StatusCode, Json<Value>) {
    let Ok(id) = id.parse::<u64>() else {
        return bad_request("please provide numeric product ID");
    };
    let ratings = posted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&id)
        .cloned();
    let ratings = ratings.unwrap_or_else(|| json!({"Reviewer1": 5, "Reviewer2": 4}));
    (StatusCode::OK, Json(json!({"id": id, "ratings": ratings})))
}

async fn replace(
    State(posted): State<Posted>,
    Path(id): Path<String>,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    let Ok(id) = id.parse::<u64>() else {
        return bad_request("please provide numeric product ID");
    };
    let Ok(ratings) = serde_json::from_slice::<Value>(&body) else {
        return bad_request("please provide valid ratings JSON");
    };
    let mut posted = posted.lock().unwrap_or_else(PoisonError::into_inner);
    if posted.len() >= MAX_BOOKS && !posted.contains_key(&id) {
        return bad_request("too many books have ratings already");
    }
    posted.insert(id, ratings.clone());
    (StatusCode::OK, Json(json!({"id": id, "ratings": ratings})))
}

fn bad_request(error: &str) -> (StatusCode, Json<Value>) {
    (StatusCode::BAD_REQUEST, Json(json!({"error": error})))
}
