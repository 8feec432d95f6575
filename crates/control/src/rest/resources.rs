//! The verbs on objects: get, list, watch, create, replace, patch, delete.

use std::sync::Arc;

use axum::body::{self, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use lateen_api::{Diagnostic, Kind};
use lateen_model::MeshSnapshot;
use lateen_store::{
    Author, Change, Committed, Draft, ObjectKey, Outcome, Source, Store, StoreError, Stored,
    Verdict, Write,
};
use serde_json::{Value, json};

use super::document::{self, Document};
use super::path::Target;
use super::query::Query;
use super::status::ApiError;
use super::trust_maps::TrustMap;
use super::{
    Api, MAX_BODY, answer, object_status as status, patch, root_secret, table, trust_maps, watch,
};
use crate::trust::Trust;

/// Says what a write did; `lateen apply` prints it.
const VERDICT: HeaderName = HeaderName::from_static("x-lateen-verdict");
/// The id that groups the writes of one `lateen apply` in the history.
const CHANGE: HeaderName = HeaderName::from_static("x-lateen-change");
/// `later`: the client writes several objects and asks for /debug/findings when all are there.
const ADVICE: HeaderName = HeaderName::from_static("x-lateen-advice");
/// The person who runs the client.
const USER: HeaderName = HeaderName::from_static("x-lateen-user");

pub(crate) async fn serve(
    api: &Api,
    target: Target,
    request: Request,
) -> Result<Response, ApiError> {
    let query = Query::parse(request.uri())?;
    let (parts, body) = request.into_parts();
    let call = Call {
        api,
        target,
        query,
        headers: parts.headers,
    };
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    if let (false, Some((map, _))) = (is_read, TrustMap::of(&call.target)) {
        return Err(map.refuse_write());
    }
    match (parts.method, &call.target) {
        (Method::GET | Method::HEAD, Target::Collection { .. }) if call.query.watch => call.watch(),
        (Method::GET | Method::HEAD, Target::Collection { .. }) => call.list(),
        (Method::GET | Method::HEAD, Target::Object { .. }) => call.get(),
        (Method::POST, Target::Collection { .. }) => call.create(read(body, MAX_BODY).await?).await,
        (Method::PUT, Target::Object { .. }) => call.replace(read(body, MAX_BODY).await?).await,
        (Method::PATCH, Target::Object { .. }) => call.patch(read(body, MAX_BODY).await?).await,
        (Method::DELETE, Target::Object { .. }) => call.delete(read(body, MAX_BODY).await?).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

pub(super) async fn read(body: body::Body, most: usize) -> Result<Bytes, ApiError> {
    body::to_bytes(body, most).await.map_err(|error| {
        let (code, reason) = (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge");
        ApiError::new(
            code,
            reason,
            format!("the body is refused: {error}; {most} bytes at most"),
        )
    })
}

/// One request that is about objects.
struct Call<'a> {
    api: &'a Api,
    target: Target,
    query: Query,
    headers: HeaderMap,
}

impl Call<'_> {
    fn get(&self) -> Result<Response, ApiError> {
        let object = self.current()?;
        if wants_table(&self.headers) {
            let table = table::table(self.target.kind(), &[&object], json!({}));
            return Ok(answer::ok(&table, &self.headers));
        }
        Ok(answer::ok(&self.served(&object), &self.headers))
    }

    fn list(&self) -> Result<Response, ApiError> {
        let (revision, mut objects) = self.api.store.list(|o| self.wants(o));
        let made = made(&self.api.store, &self.api.trust, &self.target);
        if !made.is_empty() {
            objects.extend(made.into_iter().filter(|o| self.wants(o)).map(Arc::new));
            objects.sort_by(|a, b| a.key.cmp(&b.key));
        }
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if let Some(resume) = &self.query.resume {
            objects.retain(|object| page_key(object) > *resume);
        }
        if let Some(limit) = self.query.limit
            && objects.len() > limit
        {
            metadata["remainingItemCount"] = json!(objects.len() - limit);
            objects.truncate(limit);
            metadata["continue"] = json!(objects.last().map(|o| page_key(o)));
        }
        let kind = self.target.kind();
        if wants_table(&self.headers) {
            let rows: Vec<&Stored> = objects.iter().map(|o| &**o).collect();
            return Ok(answer::ok(
                &table::table(kind, &rows, metadata),
                &self.headers,
            ));
        }
        let mesh = self.mesh_for_status();
        let items = objects.iter().map(|o| self.served_of(o, mesh.as_deref()));
        let items: Vec<Value> = items.collect();
        let list = json!({
            "kind": format!("{kind}List"),
            "apiVersion": self.target.api_version(),
            "metadata": metadata,
            "items": items,
        });
        Ok(answer::ok(&list, &self.headers))
    }

    fn watch(&self) -> Result<Response, ApiError> {
        let (info, namespace) = (
            self.target.kind().info(),
            self.namespace().map(str::to_owned),
        );
        let selector = self.query.selector.clone();
        let wanted = move |object: &Stored| {
            of_kind(object, info, namespace.as_deref()) && selector.selects(object)
        };
        let (store, trust) = (self.api.store.clone(), self.api.trust.clone());
        let target = self.target.clone();
        let made = move || made(&store, &trust, &target);
        let has_made = matches!(info.name, "ConfigMap" | "Secret");
        watch::stream(
            self.api,
            Box::new(wanted),
            has_made.then(|| Box::new(made) as watch::Made),
            &self.query,
            watch::Form {
                kind: self.target.kind(),
                api_version: self.target.api_version(),
                table: wants_table(&self.headers),
            },
        )
    }

    async fn create(&self, body: Bytes) -> Result<Response, ApiError> {
        let document = self.document(&body)?;
        self.write(document, Write::Create).await
    }

    async fn replace(&self, body: Bytes) -> Result<Response, ApiError> {
        let document = self.document(&body)?;
        let write = match root_secret::is_made(&*self.current()?) {
            true => Write::Apply,
            false => Write::Replace,
        };
        self.write(document, write).await
    }

    async fn patch(&self, body: Bytes) -> Result<Response, ApiError> {
        let content_type = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok());
        let media_type = content_type
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default();
        let merge = match media_type.trim() {
            // The whole of what the author wants, as with a single field manager.
            "application/apply-patch+yaml" => {
                let document = self.document(&body)?;
                return self.write(document, Write::Apply).await;
            }
            "application/merge-patch+json" => patch::merge,
            "application/strategic-merge-patch+json" => patch::strategic,
            other => {
                return Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "UnsupportedMediaType",
                    format!(
                        "the patch type {other:?} is not supported; use \
                         application/apply-patch+yaml or application/merge-patch+json"
                    ),
                ));
            }
        };
        let patch: Value = serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("the patch is not JSON: {error}")))?;
        let current = self.current()?;
        let mut merged = in_version(&current, &self.target.api_version());
        merge(&mut merged, &patch);
        // Against what was merged into, so that a write in between is not lost.
        let mut document = document::from_json(&merged, self.query.mode, &self.target)?;
        if root_secret::is_made(&current) {
            document.expected = None;
            return self.write(document, Write::Apply).await;
        }
        document.expected = Some(current.resource_version.to_string());
        if let Some(given) = patch
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
        {
            document.expected = Some(given.to_owned());
        }
        self.write(document, Write::Replace).await
    }

    async fn delete(&self, body: Bytes) -> Result<Response, ApiError> {
        let key = self.key();
        if root_secret::of_object(&self.api.store, &self.api.trust, &self.target).is_some() {
            return Err(root_secret::refuse_delete());
        }
        let options: Value = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&body).map_err(|error| {
                ApiError::bad_request(format!("the delete options are not JSON: {error}"))
            })?,
        };
        let given = |pointer: &str| options.pointer(pointer).and_then(Value::as_str);
        let expected = given("/preconditions/resourceVersion").map(str::to_owned);
        let uid = given("/preconditions/uid").map(str::to_owned);
        let dry_run = self.query.dry_run || options.pointer("/dryRun/0") == Some(&json!("All"));
        let delete = Write::Delete { key, expected, uid };
        let outcome = self.commit(vec![delete], dry_run).await?;
        let info = self.target.kind().info();
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": outcome.object.key.name,
                "group": info.group,
                "kind": info.plural,
                "uid": outcome.object.uid,
            },
        });
        Ok(answer::ok(&status, &self.headers))
    }

    fn document(&self, body: &[u8]) -> Result<Document, ApiError> {
        document::read(body, &self.headers, self.query.mode, &self.target)
    }

    async fn write(
        &self,
        document: Document,
        write: fn(Draft) -> Write,
    ) -> Result<Response, ApiError> {
        let Document {
            key,
            object,
            expected,
            mut warnings,
        } = document;
        if self.query.silent {
            warnings.retain(|w| !w.message.starts_with("unknown field"));
        }
        let draft = Draft {
            key,
            body: object.to_stored_json(),
            expected,
            file: None,
        };
        let outcome = self.commit(vec![write(draft)], self.query.dry_run).await?;
        // A dry run leaves nothing in the mesh that could be looked at.
        let later = self
            .headers
            .get(ADVICE)
            .is_some_and(|value| value == "later");
        if !self.query.dry_run && !later {
            let advice = self.api.advice.clone();
            // It may have to look at the whole mesh.
            let found = tokio::task::spawn_blocking(move || advice(&object)).await;
            warnings.extend(found.map_err(|error| internal(error.to_string()))?);
        }
        Ok(self.written(&outcome, &warnings))
    }

    fn written(&self, outcome: &Outcome, warnings: &[Diagnostic]) -> Response {
        let code = match outcome.verdict {
            Verdict::Created => StatusCode::CREATED,
            Verdict::Configured | Verdict::Unchanged | Verdict::Deleted => StatusCode::OK,
        };
        let mut response = answer::with_code(code, &self.served(&outcome.object), &self.headers);
        answer::add_warnings(&mut response, warnings);
        let verdict = HeaderValue::from_static(verdict(outcome.verdict));
        response.headers_mut().insert(VERDICT, verdict);
        response
    }

    async fn commit(&self, writes: Vec<Write>, dry_run: bool) -> Result<Outcome, ApiError> {
        let (store, change) = (self.api.store.clone(), change(&self.headers, &self.query));
        // The store waits for the disk.
        let committed =
            tokio::task::spawn_blocking(move || commit(&store, &change, writes, dry_run))
                .await
                .map_err(|error| internal(error.to_string()))?
                .map_err(ApiError::from_store)?;
        let outcome = committed.outcomes.into_iter().next();
        outcome.ok_or_else(|| internal("the store answered without an outcome"))
    }

    fn current(&self) -> Result<Arc<Stored>, ApiError> {
        if let Some((map, namespace)) = TrustMap::of(&self.target) {
            return Ok(Arc::new(map.object(
                &self.api.store,
                &self.api.trust,
                namespace,
            )));
        }
        let key = self.key();
        let made = || root_secret::of_object(&self.api.store, &self.api.trust, &self.target);
        let found = self.api.store.get(&key).or_else(|| made().map(Arc::new));
        found.ok_or_else(|| ApiError::from_store(StoreError::NotFound { key }))
    }

    fn key(&self) -> ObjectKey {
        let info = self.target.kind().info();
        match &self.target {
            Target::Object {
                namespace, name, ..
            } => ObjectKey::new(info.group, info.name, namespace, name),
            Target::Collection { .. } => ObjectKey::new(info.group, info.name, "", ""),
        }
    }

    fn namespace(&self) -> Option<&str> {
        match &self.target {
            Target::Collection { namespace, .. } => namespace.as_deref(),
            Target::Object { namespace, .. } => Some(namespace),
        }
    }

    fn wants(&self, object: &Stored) -> bool {
        of_kind(object, self.target.kind().info(), self.namespace())
            && self.query.selector.selects(object)
    }

    fn served(&self, object: &Stored) -> Value {
        self.served_of(object, self.mesh_for_status().as_deref())
    }

    fn served_of(&self, object: &Stored, mesh: Option<&MeshSnapshot>) -> Value {
        let mut document = in_version(object, &self.target.api_version());
        if let Some(mesh) = mesh {
            status::add_addresses(&mut document, object, mesh);
        }
        document
    }

    /// What the status of these objects is read from; most kinds have none that is.
    fn mesh_for_status(&self) -> Option<Arc<MeshSnapshot>> {
        (self.target.kind() == Kind::ServiceEntry).then(|| (self.api.view)())
    }
}

/// What a list of this target has beside what is stored.
fn made(store: &Store, trust: &Trust, target: &Target) -> Vec<Stored> {
    let mut made = trust_maps::of_list(store, trust, target);
    made.extend(root_secret::of_list(store, trust, target));
    made
}

/// Who writes, and under which id the history has it.
pub(super) fn change(headers: &HeaderMap, query: &Query) -> Change {
    let text = |name: HeaderName| {
        let value = headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        value.chars().take(200).collect::<String>()
    };
    let agent = text(header::USER_AGENT);
    let agent = agent.split_whitespace().next().unwrap_or_default();
    let agent = match (agent, &query.field_manager) {
        ("", Some(manager)) => manager.clone(),
        (agent, _) => agent.to_owned(),
    };
    let author = Author {
        agent,
        user: text(USER),
    };
    Change {
        author,
        id: text(CHANGE),
        source: Source::Api,
    }
}

/// The word for what a write did.
pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Created => "created",
        Verdict::Configured => "configured",
        Verdict::Unchanged => "unchanged",
        Verdict::Deleted => "deleted",
    }
}

pub(super) fn commit(
    store: &Store,
    change: &Change,
    writes: Vec<Write>,
    dry_run: bool,
) -> Result<Committed, StoreError> {
    match dry_run {
        true => store.dry_run(change, writes),
        false => store.commit(change, writes),
    }
}

fn of_kind(object: &Stored, info: &lateen_api::KindInfo, namespace: Option<&str>) -> bool {
    object.key.kind == info.name
        && object.key.group == info.group
        && namespace.is_none_or(|namespace| object.key.namespace == namespace)
}

/// The object in the version that was asked for; all versions have one form.
pub(super) fn in_version(object: &Stored, api_version: &str) -> Value {
    let mut document = object.document();
    document["apiVersion"] = json!(api_version);
    document
}

fn page_key(object: &Stored) -> String {
    format!("{}/{}", object.key.namespace, object.key.name)
}

fn wants_table(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|accept| accept.contains("as=Table"))
}

pub(super) fn internal(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}
