//! HTTP/1 and anything else that is bytes.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::stream::{Opened, Stream};
use super::{PATIENCE, Seen, open};
use crate::corpus::{Case, Content, RequestSpec, Step};
use crate::wire::{self, Framing};
use crate::{Failure, Result, outcome};

/// After an answer that keeps the connection, a shorter look suffices.
const LOOK: Duration = Duration::from_millis(300);

/// How a connection was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    Open,
    Closed,
    Reset,
}

impl Keeping {
    fn name(self) -> &'static str {
        match self {
            Keeping::Open => "open",
            Keeping::Closed => "closed",
            Keeping::Reset => "reset",
        }
    }
}

/// A connection and what came over it.
struct Connection {
    stream: Stream,
    got: Vec<u8>,
    keeping: Keeping,
}

impl Connection {
    fn new(stream: Stream) -> Connection {
        Connection {
            stream,
            got: Vec::new(),
            keeping: Keeping::Open,
        }
    }

    /// Reads once; false when nothing came in time or nothing more will.
    async fn more(&mut self, until: Instant) -> bool {
        if self.keeping != Keeping::Open {
            return false;
        }
        let mut chunk = vec![0; 65_536];
        match tokio::time::timeout_at(until, self.stream.read(&mut chunk)).await {
            Err(_) => false,
            Ok(Ok(0)) => {
                self.keeping = Keeping::Closed;
                false
            }
            Ok(Err(_)) => {
                self.keeping = Keeping::Reset;
                false
            }
            Ok(Ok(count)) => {
                self.got.extend(&chunk[..count]);
                true
            }
        }
    }

    fn ended(&self) -> bool {
        self.keeping != Keeping::Open
    }

    /// Until nothing came for this long.
    async fn quiet(&mut self, time: Duration) {
        while self.more(Instant::now() + time).await {}
    }

    /// Writes while reading: the other side may answer before it has everything, and must not be
    /// held up by an answer nobody takes.
    async fn write(&mut self, bytes: &[u8]) {
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let mut chunk = vec![0; 65_536];
        let mut at = 0;
        let deadline = Instant::now() + PATIENCE;
        while at < bytes.len() {
            tokio::select! {
                written = write.write(&bytes[at..]) => match written {
                    Ok(count) => at += count,
                    Err(_) => return,
                },
                count = read.read(&mut chunk) => match count {
                    Ok(0) => {
                        self.keeping = Keeping::Closed;
                        return;
                    }
                    Ok(count) => self.got.extend(&chunk[..count]),
                    Err(_) => {
                        self.keeping = Keeping::Reset;
                        return;
                    }
                },
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }
}

/// Well-formed requests one after the other, each when the answer to the one before is complete.
pub async fn requests(case: &Case, requests: &[RequestSpec], to: SocketAddr) -> Result<Seen> {
    let mut connection = match open(case, to).await? {
        Opened::Stream(stream) => Connection::new(stream),
        Opened::Refused(refused) => return Ok(refused),
    };
    let mut answers = Vec::new();
    let mut open_ended = false;
    for request in requests {
        connection.write(&written(request)).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (found, used, complete) =
                answers_in(&connection.got, &[&request.method], connection.ended());
            open_ended = found.last().is_some_and(|last| last["status"] == 101);
            if complete || open_ended || !connection.more(deadline).await {
                let (found, used) = match connection.ended() && !complete {
                    true => {
                        let (found, used, _) =
                            answers_in(&connection.got, &[&request.method], true);
                        (found, used)
                    }
                    false => (found, used),
                };
                answers.extend(found);
                connection.got.drain(..used);
                break;
            }
        }
    }
    let look = match answers.last() {
        Some(last) if last["status"].as_u64().is_some_and(|s| s < 400) && !closing(last) => LOOK,
        _ => case.quiet,
    };
    let _ = open_ended;
    connection.quiet(look).await;
    Ok(seen(connection, answers))
}

fn closing(answer: &Value) -> bool {
    answer["headers"]["connection"] == "close" || answer["framing"] == "until close"
}

/// Bytes, then whatever comes back until it is quiet.
pub async fn raw(case: &Case, steps: &[Step], to: SocketAddr) -> Result<Seen> {
    let mut connection = match open(case, to).await? {
        Opened::Stream(stream) => Connection::new(stream),
        Opened::Refused(refused) => return Ok(refused),
    };
    let mut sent = Vec::new();
    for step in steps {
        match step {
            Step::Send(bytes) => {
                sent.extend(bytes);
                connection.write(bytes).await;
            }
            Step::Wait(time) => tokio::time::sleep(*time).await,
            Step::Read(time) => connection.quiet(*time).await,
            Step::Shutdown => drop(connection.stream.shutdown().await),
            Step::Close => {
                drop(connection.stream);
                let connection = json!("left by the client");
                return Ok(Seen {
                    answers: Vec::new(),
                    connection,
                });
            }
            Step::Reset => {
                connection.stream.reset();
                let connection = json!("left by the client");
                return Ok(Seen {
                    answers: Vec::new(),
                    connection,
                });
            }
            other => return Err(Failure(format!("a client cannot {other:?}"))),
        }
    }
    connection.quiet(case.quiet).await;
    let methods = methods_in(&wire::text(&sent));
    let methods: Vec<&str> = methods.iter().map(String::as_str).collect();
    let (mut answers, used, _) = answers_in(&connection.got, &methods, connection.ended());
    connection.got.drain(..used);
    if answers.is_empty() && !connection.got.is_empty() {
        answers.push(json!({"bytes": outcome::body(&connection.got)}));
        connection.got.clear();
    }
    Ok(seen(connection, answers))
}

/// The same request again and again; each answer as status and who gave it.
pub async fn again(case: &Case, to: SocketAddr, times: usize) -> Result<Vec<Value>> {
    let Content::Requests(_, requests) = &case.content else {
        return Err(Failure(
            "only a well-formed request can be repeated".to_owned(),
        ));
    };
    let Some(request) = requests.first() else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    let mut current = None;
    while all.len() < times {
        let mut connection = match current.take() {
            Some(connection) => connection,
            None => match open(case, to).await? {
                Opened::Stream(stream) => Connection::new(stream),
                Opened::Refused(refused) => {
                    all.push(json!({"status": refused.connection}));
                    continue;
                }
            },
        };
        connection.write(&written(request)).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (mut found, used, complete) =
                answers_in(&connection.got, &[&request.method], connection.ended());
            if complete || !connection.more(deadline).await {
                connection.got.drain(..used);
                all.push(found.pop().unwrap_or_default());
                break;
            }
        }
        if !connection.ended() && all.last().is_some_and(|last| !closing(last)) {
            current = Some(connection);
        }
    }
    Ok(all)
}

fn seen(connection: Connection, answers: Vec<Value>) -> Seen {
    let mut left = json!({"end": connection.keeping.name()});
    if let Some(tls) = connection.stream.agreed() {
        left["tls"] = tls;
    }
    if !connection.got.is_empty() {
        left["rest"] = outcome::body(&connection.got);
    }
    Seen {
        answers,
        connection: left,
    }
}

/// A request as bytes.
fn written(request: &RequestSpec) -> Vec<u8> {
    let RequestSpec { method, path, .. } = request;
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    let has = |name: &str| {
        let mut names = request.headers.iter().map(|(name, _)| name);
        names.any(|own| own.eq_ignore_ascii_case(name))
    };
    if !has("host") {
        head += &format!("host: {}\r\n", request.host);
    }
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = request.body.as_deref().unwrap_or_default();
    let chunked = request.chunked || !request.trailers.is_empty();
    match chunked {
        true => head += "transfer-encoding: chunked\r\n",
        false if request.body.is_some() && !has("content-length") => {
            head += &format!("content-length: {}\r\n", body.len());
        }
        false => {}
    }
    head += "\r\n";
    let mut bytes = wire::bytes(&head);
    if !chunked {
        bytes.extend(body);
        return bytes;
    }
    if !body.is_empty() {
        bytes.extend(format!("{:x}\r\n", body.len()).into_bytes());
        bytes.extend(body);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n");
    for (name, value) in &request.trailers {
        bytes.extend(wire::bytes(&format!("{name}: {value}\r\n")));
    }
    bytes.extend(b"\r\n");
    bytes
}

/// The method of every request line in a text.
fn methods_in(text: &str) -> Vec<String> {
    let lines = text.split('\n').filter(|line| line.contains(" HTTP/1."));
    lines
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

/// Every answer in `buffer`, how many bytes they take, and whether there is a final one to each
/// request.
fn answers_in(buffer: &[u8], methods: &[&str], ended: bool) -> (Vec<Value>, usize, bool) {
    let (mut answers, mut at, mut finals) = (Vec::new(), 0, 0);
    while let Some(head) = wire::head(&buffer[at..]) {
        if !head.line.starts_with("HTTP/") {
            break;
        }
        let method = methods.get(finals).copied().unwrap_or("GET");
        let framing = Framing::of_answer(&head, method);
        let interim = matches!(head.status(), 100 | 102..=199);
        let body = wire::body(&buffer[at + head.size..], framing, ended);
        at += head.size + body.size;
        answers.push(json!({
            "status": head.status(),
            "line": head.line,
            "headers": outcome::headers(&head.headers),
            "names": outcome::names(&head.headers),
            "framing": match framing {
                Framing::None => "none",
                Framing::Length(_) => "length",
                Framing::Chunked => "chunked",
                Framing::UntilClose => "until close",
            },
            "body": outcome::body(&body.data),
            "trailers": outcome::headers(&body.trailers),
            "complete": body.complete,
        }));
        if !body.complete {
            return (answers, at, false);
        }
        finals += usize::from(!interim);
    }
    let complete = finals >= methods.len().max(1);
    (answers, at, complete)
}
