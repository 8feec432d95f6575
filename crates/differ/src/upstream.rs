//! Upstreams that do what a case says and write down what they see.
//!
//! Which case a request belongs to stands in its `x-case` header, else it follows from its host.
//! Which plane it came through is its peer's address.

pub mod h2_words;
mod http1;
mod http2;
mod tcp;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::corpus::{Attempt, Respond, UpstreamKind};
use crate::world::Plane;
use crate::{Result, failed};

/// One request, or one TCP connection, as an upstream saw it.
#[derive(Clone, Debug)]
pub struct Record {
    pub plane: Plane,
    /// Whole name of the case; `None` when nothing told.
    pub case: Option<String>,
    /// `SERVICE-VERSION`.
    pub upstream: String,
    pub seen: Value,
    pub at: Instant,
}

/// What all upstreams of a run share.
#[derive(Default)]
pub struct Shared {
    behaviour: Mutex<HashMap<String, Vec<Attempt>>>,
    hosts: Mutex<HashMap<String, String>>,
    counts: Mutex<HashMap<(Plane, String), usize>>,
    records: Mutex<Vec<Record>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// What the requests of a case meet, and the host that stands for it.
    pub fn expect(&self, case: &str, host: Option<&str>, attempts: Vec<Attempt>) {
        if !attempts.is_empty() {
            lock(&self.behaviour).insert(case.to_owned(), attempts);
        }
        if let Some(host) = host {
            lock(&self.hosts).insert(host.to_ascii_lowercase(), case.to_owned());
        }
    }

    /// Everything seen so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    fn record(&self, record: Record) {
        lock(&self.records).push(record);
    }

    fn case_of(&self, named: Option<&str>, host: Option<&str>) -> Option<String> {
        if let Some(named) = named {
            return Some(named.to_owned());
        }
        let host = host?.to_ascii_lowercase();
        let host = host
            .rsplit_once(':')
            .map_or(host.as_str(), |(name, _)| name);
        let host = host.strip_suffix('.').unwrap_or(host);
        lock(&self.hosts).get(host).cloned()
    }

    /// What is done with the next request of a case.
    fn next(&self, plane: Plane, case: Option<&str>) -> Option<Attempt> {
        let case = case?;
        let attempts = lock(&self.behaviour).get(case).cloned()?;
        let mut counts = lock(&self.counts);
        let count = counts.entry((plane, case.to_owned())).or_default();
        let attempt = attempts.get(*count).or(attempts.last()).cloned();
        *count += 1;
        attempt
    }
}

/// One upstream.
pub struct Upstream {
    /// `SERVICE-VERSION`.
    pub name: String,
    pub shared: Arc<Shared>,
    /// What it does where the case says nothing.
    pub usual: Vec<Attempt>,
    /// It closes every connection after an answer.
    pub fresh: bool,
}

impl Upstream {
    /// Listens on a port of its own and serves until the process ends.
    pub async fn start(self, kind: UpstreamKind) -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.map_err(failed("an upstream's port"))?;
        let address = listener
            .local_addr()
            .map_err(failed("an upstream's port"))?;
        if kind == UpstreamKind::Closed {
            drop(listener);
            return Ok(address.port());
        }
        let upstream = Arc::new(self);
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(upstream.clone(), kind, stream, peer));
            }
        });
        Ok(address.port())
    }

    fn next(&self, plane: Plane, case: Option<&str>) -> Attempt {
        let own = self.shared.next(plane, case);
        own.or_else(|| self.usual.first().cloned())
            .unwrap_or_else(usual)
    }

    fn record(&self, plane: Plane, case: Option<String>, seen: Value) {
        self.shared.record(Record {
            plane,
            case,
            upstream: self.name.clone(),
            seen,
            at: Instant::now(),
        });
    }
}

fn usual() -> Attempt {
    Attempt {
        early: false,
        steps: vec![crate::corpus::Step::Respond(Respond::default())],
    }
}

async fn serve(upstream: Arc<Upstream>, kind: UpstreamKind, stream: TcpStream, peer: SocketAddr) {
    let plane = Plane::of_address(peer.ip());
    match kind {
        UpstreamKind::Http => {
            let mut first = [0; 3];
            let Ok(count) = stream.peek(&mut first).await else {
                return;
            };
            // A client may be slow with its first bytes; only H2 begins with this word.
            match &first[..count] {
                b"PRI" => http2::serve(upstream, plane, stream).await,
                _ => http1::serve(upstream, plane, stream).await,
            }
        }
        other => tcp::serve(upstream, plane, other, stream).await,
    }
}

impl Plane {
    /// The plane that connects from this address: Envoy is told from where, ours leaves it to the
    /// system.
    fn of_address(address: IpAddr) -> Plane {
        match address == Plane::Envoy.address() {
            true => Plane::Envoy,
            false => Plane::Lateen,
        }
    }
}

/// Resets the connection: what is not sent yet is dropped.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Header fields of an answer.
fn headers_of(respond: &Respond, name: &str) -> Vec<(String, String)> {
    let mut headers = vec![("x-app".to_owned(), name.to_owned())];
    let own = fields_of(&respond.headers);
    if !own
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
    {
        headers.push(("content-type".to_owned(), "text/plain".to_owned()));
    }
    headers.extend(own);
    headers
}

fn fields_of(value: &Value) -> Vec<(String, String)> {
    crate::corpus::fields(value).unwrap_or_default()
}

fn body_of(respond: &Respond, name: &str) -> Vec<u8> {
    match (&respond.body, respond.size) {
        (Some(text), _) => crate::wire::bytes(text),
        (None, Some(size)) => vec![b'y'; size],
        (None, None) => format!("{name}\n").into_bytes(),
    }
}
