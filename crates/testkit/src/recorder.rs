//! A server that writes down every request it gets, body included.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ::http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use crate::echo::{accept, listen};

/// An HTTP/1.1 server that answers 200 and stops when it is dropped.
pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Recorder {
    /// A server whose answers have its name as body.
    pub async fn start(name: &'static str) -> Self {
        let (listener, address) = listen().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let written = seen.clone();
        let task = tokio::spawn(accept(listener, move |stream| {
            let written = written.clone();
            async move {
                let service = service_fn(move |request| record(request, written.clone(), name));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        }));
        Recorder {
            address,
            seen,
            task,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests for a path, without its query, in the order they came.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        let seen = self.seen.lock().expect("no request panicked");
        let of_path = |one: &&Seen| one.path.split('?').next() == Some(path);
        seen.iter().filter(of_path).cloned().collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    /// All values of a header, joined with commas; empty when it is missing.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        values.join(",")
    }
}

async fn record(
    request: Request<Incoming>,
    written: Arc<Mutex<Vec<Seen>>>,
    name: &'static str,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    // A body that breaks off is no request.
    if let Ok(body) = body.collect().await {
        let trailers = body.trailers().cloned();
        written.lock().expect("no request panicked").push(Seen {
            method: head.method.to_string(),
            path: head.uri.to_string(),
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        });
    }
    Ok(Response::new(Full::from(name)))
}
