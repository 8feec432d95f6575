//! Many objects in one request and one revision: all of them are written, or none.
//!
//! Kubernetes has no such verb. `lateen apply` uses it, so that no proxy is given half of what a
//! person applied, and so that thousands of objects wait for the disk once.
//!
//! `POST /lateen/v1/apply?dryRun=All`, body `{"items": [...]}`. The answer has one item for each:
//! `verdict`, `warnings` and `object`, or `status`, which says why it is refused. Where one is
//! refused the answer is 422, and nothing was written.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use lateen_api::{Diagnostic, Object};
use lateen_store::{Draft, ObjectKey, Outcome, Write};
use serde_json::{Value, json};

use super::query::Query;
use super::resources::{self, change, in_version, internal, verdict};
use super::status::{self, ApiError};
use super::trust_maps::TrustMap;
use super::{Api, answer};

/// Bytes of one request: the objects of a large mesh.
const MOST: usize = 64 << 20;

pub(super) async fn apply(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let query = Query::parse(request.uri())?;
    let (parts, body) = request.into_parts();
    let body = resources::read(body, MOST).await?;
    let headers = parts.headers;
    let change = change(&headers, &query);
    let store = api.store.clone();
    // Parsing thousands of documents takes its time, and the store waits for the disk.
    let work = move || -> Result<(StatusCode, Value), ApiError> {
        let mut body: Value = serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
        let Some(Value::Array(items)) = body.get_mut("items").map(Value::take) else {
            let message = "the body must be an object with a list of objects in `items`";
            return Err(ApiError::bad_request(message));
        };
        let read: Vec<_> = items.iter().map(|item| Item::read(item, &query)).collect();
        let alone = |item: &Item| {
            let planned = store.dry_run(&change, vec![item.write()]);
            planned.err().map(ApiError::from_store)
        };
        let refusals = read.iter().map(|item| match item {
            Ok(item) if query.dry_run => alone(item),
            Ok(_) => None,
            Err(refused) => Some(refused.clone()),
        });
        let refusals: Vec<Option<ApiError>> = refusals.collect();
        if refusals.iter().any(Option::is_some) {
            return Ok((StatusCode::UNPROCESSABLE_ENTITY, refused(&refusals)));
        }
        let items: Vec<Item> = read.into_iter().flatten().collect();
        let writes = items.iter().map(Item::write).collect();
        let committed = resources::commit(&store, &change, writes, query.dry_run)
            .map_err(ApiError::from_store)?;
        let done = items.iter().zip(&committed.outcomes);
        let done: Vec<Value> = done.map(|(item, outcome)| item.done(outcome)).collect();
        Ok((StatusCode::OK, json!({"items": done})))
    };
    let done = tokio::task::spawn_blocking(work).await;
    let (code, document) = done.map_err(|error| internal(error.to_string()))??;
    Ok(answer::with_code(code, &document, &HeaderMap::new()))
}

fn refused(refusals: &[Option<ApiError>]) -> Value {
    let item = |refusal: &Option<ApiError>| match refusal {
        Some(refusal) => json!({"status": refusal.to_json()}),
        None => json!({}),
    };
    json!({"items": refusals.iter().map(item).collect::<Vec<_>>()})
}

/// One object of the request.
struct Item {
    key: ObjectKey,
    api_version: String,
    body: Value,
    expected: Option<String>,
    warnings: Vec<Diagnostic>,
}

impl Item {
    fn read(document: &Value, query: &Query) -> Result<Item, ApiError> {
        let (object, mut said) = Object::from_json_with(document, query.mode);
        let Some(mut object) = object else {
            said.retain(Diagnostic::is_error);
            let name = document.pointer("/metadata/name").and_then(Value::as_str);
            return Err(ApiError::invalid(None, name.unwrap_or_default(), &said));
        };
        if object.kind.info().namespaced && object.meta.namespace.is_empty() {
            object.meta.namespace = "default".to_owned();
        }
        if query.silent {
            said.retain(|warning| !warning.message.starts_with("unknown field"));
        }
        let api_version = document.get("apiVersion").and_then(Value::as_str);
        let key = ObjectKey::adopt(&mut object);
        if let Some(map) = TrustMap::of_key(&key) {
            return Err(map.refuse_write());
        }
        let expected = Some(object.meta.resource_version.clone()).filter(|v| !v.is_empty());
        Ok(Item {
            key,
            api_version: api_version.unwrap_or_default().to_owned(),
            body: object.to_stored_json(),
            expected,
            warnings: said,
        })
    }

    fn write(&self) -> Write {
        Write::Apply(Draft {
            key: self.key.clone(),
            body: self.body.clone(),
            expected: self.expected.clone(),
            file: None,
        })
    }

    fn done(&self, outcome: &Outcome) -> Value {
        json!({
            "verdict": verdict(outcome.verdict),
            "warnings": self.warnings.iter().map(status::text).collect::<Vec<_>>(),
            "object": in_version(&outcome.object, &self.api_version),
        })
    }
}
