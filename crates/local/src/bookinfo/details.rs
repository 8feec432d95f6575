//! `details`: facts about one book.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

pub fn routes() -> Router {
    Router::new()
        .route(
            "/health",
            get(async || Json(json!({"status": "Details is healthy"}))),
        )
        .route("/details/{id}", get(details))
}

async fn details(Path(id): Path<String>) -> (StatusCode, Json<Value>) {
    let Ok(id) = id.parse::<u64>() else {
        let error = json!({"error": "please provide numeric product id"});
        return (StatusCode::BAD_REQUEST, Json(error));
    };
    let book = json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "Lateen Press",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    });
    (StatusCode::OK, Json(book))
}
