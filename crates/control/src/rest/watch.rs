//! `?watch=true`: changes as they happen, one JSON event per line.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use lateen_api::Kind;
use lateen_store::{Body as Declaration, Event, ObjectChange, ObjectKey, Stored, Watch};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::query::Query;
use super::resources::in_version;
use super::status::ApiError;
use super::{Api, table};

/// How long a watch lasts when the client does not say; it then asks again.
const DEFAULT_SECONDS: u64 = 30 * 60;

/// How the client wants objects.
pub(super) struct Form {
    pub kind: Kind,
    pub api_version: String,
    pub table: bool,
}

type Wanted = Box<dyn Fn(&Stored) -> bool + Send>;
/// Objects that stand in no store, as they are now.
pub(super) type Made = Box<dyn Fn() -> Vec<Stored> + Send>;

/// How often those are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Streams events from `resourceVersion` on; without one, first everything there is as ADDED.
pub(super) fn stream(
    api: &Api,
    wanted: Wanted,
    made: Option<Made>,
    query: &Query,
    form: Form,
) -> Result<Response, ApiError> {
    let (from, first) = match query.resource_version.as_deref() {
        None | Some("0") => {
            let (revision, objects) = api.store.list(&wanted);
            let added = objects
                .iter()
                .map(|o| form.event("ADDED", o, o.resource_version));
            (revision, added.collect::<Vec<_>>().concat())
        }
        Some(text) => {
            let revision = text.parse().map_err(|_| {
                ApiError::bad_request(format!("resourceVersion {text:?} is not a number"))
            })?;
            (revision, Vec::new())
        }
    };
    let mut made = made.map(|made| MadeObjects {
        made,
        known: BTreeMap::new(),
        revision: from,
    });
    let mut first = first;
    if let Some(made) = &mut made {
        // Who comes from a list has them, perhaps as they were before.
        first.extend(made.news(&wanted, &form));
    }
    let watch = api.store.watch(from).map_err(ApiError::from_store)?;
    let seconds = query.timeout_seconds.unwrap_or(DEFAULT_SECONDS);
    let following = Following {
        watch,
        wanted,
        made,
        next_look: Instant::now() + LOOK,
        form,
        leaving: api.leaving.clone(),
        until: Instant::now() + Duration::from_secs(seconds.min(24 * 3_600)),
        first: Some(first),
        ended: false,
    };
    let events = stream::unfold(following, |mut following| async move {
        let bytes = following.next().await?;
        Some((Ok::<_, Infallible>(bytes), following))
    });
    let mut response = Response::new(Body::from_stream(events));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

struct Following {
    watch: Watch,
    wanted: Wanted,
    made: Option<MadeObjects>,
    next_look: Instant,
    form: Form,
    leaving: tokio::sync::watch::Receiver<bool>,
    until: Instant,
    /// What is sent at once. Also when empty: headers leave with the first bytes.
    first: Option<Vec<u8>>,
    ended: bool,
}

impl Following {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first.into());
        }
        while !self.ended {
            let event = tokio::select! {
                event = self.watch.next() => event,
                () = tokio::time::sleep_until(self.next_look), if self.made.is_some() => {
                    self.next_look = Instant::now() + LOOK;
                    let made = self.made.as_mut();
                    let news = made.map(|made| made.news(&self.wanted, &self.form));
                    match news.filter(|news| !news.is_empty()) {
                        Some(news) => return Some(news.into()),
                        None => continue,
                    }
                }
                () = tokio::time::sleep_until(self.until) => return None,
                _ = self.leaving.wait_for(|leaving| *leaving) => return None,
            };
            let bytes = match event {
                Event::Revision(revision) => {
                    if let Some(made) = &mut self.made {
                        made.revision = revision.number;
                    }
                    let changes = revision.changes.iter();
                    changes
                        .filter_map(|c| self.change(c, revision.number))
                        .collect::<Vec<_>>()
                }
                Event::Resync => {
                    // The client reads everything anew and watches from there.
                    self.ended = true;
                    let error = ApiError::gone("too old resource version: read the list again");
                    vec![line(&json!({"type": "ERROR", "object": error.to_json()}))]
                }
            };
            let bytes = bytes.concat();
            if !bytes.is_empty() {
                return Some(bytes.into());
            }
        }
        None
    }

    /// A change as the client sees it: an object that leaves the selection is deleted for it.
    fn change(&self, change: &ObjectChange, revision: u64) -> Option<Vec<u8>> {
        let before = change.before.as_deref().filter(|o| (self.wanted)(o));
        let after = change.after.as_deref().filter(|o| (self.wanted)(o));
        let (what, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(object)) => ("ADDED", object),
            (Some(_), Some(object)) => ("MODIFIED", object),
            (Some(object), None) => ("DELETED", object),
        };
        Some(self.form.event(what, object, revision))
    }
}

/// Objects that stand in no store, and what the client has of them.
struct MadeObjects {
    made: Made,
    known: BTreeMap<ObjectKey, Declaration>,
    /// The newest that the client has seen.
    revision: u64,
}

impl MadeObjects {
    /// Events about what is other than the client has it.
    fn news(&mut self, wanted: &Wanted, form: &Form) -> Vec<u8> {
        let mut events = Vec::new();
        let mut now = BTreeMap::new();
        for object in (self.made)().iter().filter(|object| wanted(object)) {
            let what = match self.known.get(&object.key) {
                None => Some("ADDED"),
                Some(body) => (*body != object.body).then_some("MODIFIED"),
            };
            events.extend(what.map(|what| form.event(what, object, self.revision)));
            now.insert(object.key.clone(), object.body.clone());
        }
        self.known = now;
        events.concat()
    }
}

impl Form {
    fn event(&self, what: &str, object: &Stored, revision: u64) -> Vec<u8> {
        let mut document = if self.table {
            table::table(
                self.kind,
                &[object],
                json!({"resourceVersion": revision.to_string()}),
            )
        } else {
            in_version(object, &self.api_version)
        };
        if !self.table {
            document["metadata"]["resourceVersion"] = json!(revision.to_string());
        }
        line(&json!({"type": what, "object": document}))
    }
}

fn line(event: &Value) -> Vec<u8> {
    let mut line = event.to_string().into_bytes();
    line.push(b'\n');
    line
}
