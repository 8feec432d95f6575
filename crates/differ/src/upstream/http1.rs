//! An HTTP/1 upstream, on bare bytes: it can answer early, wrongly, or not at all.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Upstream, reset};
use crate::corpus::{Attempt, Respond, Step};
use crate::outcome;
use crate::wire::{self, Framing, Head};
use crate::world::Plane;

/// A request whose end does not come is written down as cut short.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a connection does after a request.
enum Then {
    Continue,
    Leave,
}

struct Connection {
    upstream: Arc<Upstream>,
    plane: Plane,
    stream: TcpStream,
    buffer: Vec<u8>,
}

pub async fn serve(upstream: Arc<Upstream>, plane: Plane, stream: TcpStream) {
    let mut connection = Connection {
        upstream,
        plane,
        stream,
        buffer: Vec::new(),
    };
    loop {
        let Some(head) = connection.head().await else {
            return;
        };
        match connection.request(head).await {
            Then::Continue => {}
            Then::Leave => return,
        }
    }
}

impl Connection {
    /// More bytes; false when there are none.
    async fn more(&mut self) -> bool {
        let mut chunk = [0; 16_384];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend(&chunk[..count]);
                true
            }
        }
    }

    async fn head(&mut self) -> Option<Head> {
        loop {
            if let Some(head) = wire::head(&self.buffer) {
                self.buffer.drain(..head.size);
                return Some(head);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn request(&mut self, head: Head) -> Then {
        let shared = self.upstream.shared.clone();
        let case = shared.case_of(head.header("x-case"), head.header("host"));
        let attempt = self.upstream.next(self.plane, case.as_deref());
        let mut then = Then::Continue;
        if attempt.early {
            then = self.act(&attempt, &head).await;
        }
        let seen = self.rest(&head).await;
        let complete = seen["complete"] == true;
        self.upstream.record(self.plane, case, seen);
        if !attempt.early {
            then = self.act(&attempt, &head).await;
        }
        match complete && !self.upstream.fresh {
            true => then,
            false => Then::Leave,
        }
    }

    /// The body, and everything about the request in one value.
    async fn rest(&mut self, head: &Head) -> serde_json::Value {
        let framing = Framing::of_request(head);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let body = loop {
            let body = wire::body(&self.buffer, framing, false);
            if body.complete || body.broken {
                break body;
            }
            let more = tokio::time::timeout_at(deadline, self.more()).await;
            if !matches!(more, Ok(true)) {
                break body;
            }
        };
        self.buffer.drain(..body.size.min(self.buffer.len()));
        json!({
            "method": head.method(),
            "target": head.target(),
            "version": head.line.rsplit(' ').next(),
            "headers": outcome::headers(&head.headers),
            "names": outcome::names(&head.headers),
            "body": outcome::body(&body.data),
            "trailers": outcome::headers(&body.trailers),
            "complete": body.complete,
        })
    }

    async fn act(&mut self, attempt: &Attempt, head: &Head) -> Then {
        for step in &attempt.steps {
            let written = match step {
                Step::Send(bytes) => self.stream.write_all(bytes).await,
                Step::Wait(time) => {
                    tokio::time::sleep(*time).await;
                    Ok(())
                }
                Step::Respond(respond) => self.respond(respond, head).await,
                Step::Echo => {
                    self.echo().await;
                    return Then::Leave;
                }
                Step::Read(time) => {
                    while let Ok(true) = tokio::time::timeout(*time, self.more()).await {}
                    self.buffer.clear();
                    Ok(())
                }
                Step::Shutdown => self.stream.shutdown().await,
                Step::Hang => {
                    while self.more().await {
                        self.buffer.clear();
                    }
                    return Then::Leave;
                }
                Step::Close | Step::Goaway => return Then::Leave,
                Step::Reset | Step::ResetStream(_) => {
                    reset(&self.stream);
                    return Then::Leave;
                }
            };
            if written.is_err() {
                return Then::Leave;
            }
        }
        Then::Continue
    }

    async fn respond(&mut self, respond: &Respond, head: &Head) -> std::io::Result<()> {
        tokio::time::sleep(Duration::from_millis(respond.wait)).await;
        let (mut text, body) = answer(respond, head.method(), &self.upstream);
        if respond.pause > 0 {
            self.stream.write_all(&wire::bytes(&text)).await?;
            tokio::time::sleep(Duration::from_millis(respond.pause)).await;
            text.clear();
        }
        let mut bytes = wire::bytes(&text);
        bytes.extend(body);
        self.stream.write_all(&bytes).await
    }

    async fn echo(&mut self) {
        loop {
            if self.stream.write_all(&self.buffer).await.is_err() {
                return;
            }
            self.buffer.clear();
            if !self.more().await {
                return;
            }
        }
    }
}

/// Head and body of an answer as bytes.
fn answer(respond: &Respond, method: &str, upstream: &Upstream) -> (String, Vec<u8>) {
    let status = respond.status;
    let reason = http::StatusCode::from_u16(status).ok();
    let reason = reason.and_then(|status| status.canonical_reason());
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Unknown"));
    let headers = crate::upstream::headers_of(respond, &upstream.name);
    let trailers = crate::upstream::fields_of(&respond.trailers);
    let body = crate::upstream::body_of(respond, &upstream.name);
    let bodyless = matches!(status, 100..=199 | 204 | 304);
    let has_length = headers.iter().any(|(n, _)| n == "content-length");
    for (name, value) in &headers {
        head += &format!("{name}: {value}\r\n");
    }
    if upstream.fresh {
        head += "connection: close\r\n";
    }
    let chunked = respond.chunked || !trailers.is_empty();
    match chunked {
        true => head += "transfer-encoding: chunked\r\n",
        false if bodyless || has_length => {}
        false => head += &format!("content-length: {}\r\n", body.len()),
    }
    head += "\r\n";
    if bodyless || method == "HEAD" {
        return (head, Vec::new());
    }
    if !chunked {
        return (head, body);
    }
    let mut framed = Vec::new();
    if !body.is_empty() {
        framed.extend(format!("{:x}\r\n", body.len()).into_bytes());
        framed.extend(body);
        framed.extend(b"\r\n");
    }
    framed.extend(b"0\r\n");
    for (name, value) in &trailers {
        framed.extend(wire::bytes(&format!("{name}: {value}\r\n")));
    }
    framed.extend(b"\r\n");
    (head, framed)
}
