//! Hand-made HTTP/2 frames: floods, what is out of order, what is too large. Whatever comes, the
//! connection it came on ends or the stream is refused, others are served, and memory stays bounded.

use std::time::Duration;

use lateen_testkit::PATIENCE;
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::net::tcp::OwnedReadHalf;

use crate::fixed::Fixed;

on_both!(
    bad_frames_end_their_connection_or_their_stream_and_nothing_else,
    what_nobody_reads_is_not_kept_without_limit,
);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header that enters no table.
fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        let mut length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).unwrap());
        } else {
            block.push(127);
            length -= 127;
            while length >= 128 {
                block.push(u8::try_from(length % 128 + 128).unwrap());
                length /= 128;
            }
            block.push(u8::try_from(length).unwrap());
        }
        block.extend(text.as_bytes());
    }
}

fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    all.iter()
        .for_each(|(name, value)| field(&mut block, name, value));
    block
}

fn request(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    request_for("/", method, more)
}

fn request_for(path: &str, method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "app.test"),
    ];
    fields(&[&usual, more].concat())
}

pub fn get(stream: u32) -> Vec<u8> {
    get_path(stream, "/")
}

pub fn get_path(stream: u32, path: &str) -> Vec<u8> {
    frame(
        HEADERS,
        END_STREAM | END_HEADERS,
        stream,
        &request_for(path, "GET", &[]),
    )
}

fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", &[]))
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// It ends.
    Ends,
    /// The first stream is refused, in whatever way; or the connection ends.
    Refused,
    /// The first stream is answered with 200.
    Served,
    /// It may end or stand still; others are served.
    Whatever,
}

use Expect::{Ends, Refused, Served, Whatever};

fn cases() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let many = |count: usize, one: &[u8]| one.repeat(count);
    let then_get = |bytes: Vec<u8>| [bytes, get(1)].concat();
    let large = "x".repeat(100_000);
    let block = request("GET", &[("x-large", &large)]);
    let mut in_parts = Vec::new();
    for (i, part) in block.chunks(16_384).enumerate() {
        let kind = if i == 0 { HEADERS } else { CONTINUATION };
        let last = if i == block.len() / 16_384 {
            END_HEADERS
        } else {
            0
        };
        let flags = if i == 0 { last | END_STREAM } else { last };
        in_parts.extend(frame(kind, flags, 1, part));
    }
    let endless = [
        frame(HEADERS, END_STREAM, 1, &request("GET", &[])),
        many(
            20_000,
            &frame(
                CONTINUATION,
                0,
                1,
                &fields(&[("x-more", &"y".repeat(1000))]),
            ),
        ),
    ];
    let empty_continuations = [
        frame(HEADERS, END_STREAM, 1, &request("GET", &[])),
        many(200_000, &frame(CONTINUATION, 0, 1, b"")),
    ];
    let reset: Vec<u8> = (0..5000u32)
        .flat_map(|i| {
            [
                get(2 * i + 1),
                frame(RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8]),
            ]
            .concat()
        })
        .collect();
    let window = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let setting = |id: u16, value: u32| {
        let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        frame(SETTINGS, 0, 0, &payload)
    };
    vec![
        ("a request", get(1), Served),
        (
            "an unknown frame",
            then_get(frame(0xee, 0xff, 0, b"anything")),
            Served,
        ),
        (
            "priorities",
            then_get(many(100, &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]))),
            Served,
        ),
        (
            "empty data, then its end",
            [
                post(1),
                many(1, &frame(DATA, 0, 1, b"")),
                frame(DATA, END_STREAM, 1, b""),
            ]
            .concat(),
            Served,
        ),
        (
            "settings without end",
            many(50_000, &setting(3, 100)),
            Whatever,
        ),
        (
            "pings without end",
            many(50_000, &frame(PING, 0, 0, &[1; 8])),
            Whatever,
        ),
        ("streams opened and reset", reset, Ends),
        ("a header of 100 KB", in_parts, Refused),
        ("a head that does not end", endless.concat(), Ends),
        (
            "a head of nothing that does not end",
            empty_continuations.concat(),
            Ends,
        ),
        (
            "data on the connection",
            then_get(frame(DATA, 0, 0, b"x")),
            Ends,
        ),
        (
            "headers on the connection",
            frame(HEADERS, END_HEADERS, 0, &request("GET", &[])),
            Ends,
        ),
        ("a stream of the server's", get(2), Ends),
        ("streams backwards", [get(5), get(3)].concat(), Whatever),
        (
            "data on a stream that is none",
            then_get(frame(DATA, 0, 7, b"x")),
            Ends,
        ),
        (
            "a frame that is too long",
            frame(DATA, 0, 1, &vec![0; 17_000]),
            Ends,
        ),
        (
            "settings of a length that is none",
            frame(SETTINGS, 0, 0, &[0; 5]),
            Ends,
        ),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[]), Ends),
        (
            "a window of more than 31 bits",
            [window(0, 0x7fff_ffff), get(1)].concat(),
            Ends,
        ),
        (
            "a stream's window of more than 31 bits",
            [post(1), window(1, 0x7fff_ffff)].concat(),
            Refused,
        ),
        (
            "a window that grows by nothing",
            then_get(window(0, 0)),
            Ends,
        ),
        (
            "an initial window of more than 31 bits",
            setting(4, 0x8000_0000),
            Ends,
        ),
        ("a frame size that is none", setting(5, 1), Ends),
        (
            "a promise by the client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            Ends,
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &request("GET", &[])),
            Ends,
        ),
        (
            "something within a head",
            [
                frame(HEADERS, 0, 1, &request("GET", &[])),
                frame(PING, 0, 0, &[0; 8]),
            ]
            .concat(),
            Ends,
        ),
        (
            "a reset of a stream that never was",
            then_get(frame(RST_STREAM, 0, 1, &[0; 4])),
            Ends,
        ),
        (
            "a table that is broken",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f],
            ),
            Ends,
        ),
        (
            "padding longer than the frame",
            frame(DATA, 8, 1, &[200, 0]),
            Ends,
        ),
        (
            "no path",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &fields(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")]),
            ),
            Refused,
        ),
        (
            "two paths",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &request("GET", &[(":path", "/b")]),
            ),
            Refused,
        ),
        (
            "a pseudo header behind others",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &fields(&[
                    (":method", "GET"),
                    (":scheme", "http"),
                    ("x-a", "b"),
                    (":path", "/"),
                    (":authority", "a"),
                ]),
            ),
            Refused,
        ),
        (
            "a name in upper case",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &request("GET", &[("X-Upper", "a")]),
            ),
            Refused,
        ),
        (
            "a header of a connection",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &request("GET", &[("connection", "close")]),
            ),
            Refused,
        ),
        (
            "a coding of transfer",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &request("GET", &[("transfer-encoding", "chunked")]),
            ),
            Refused,
        ),
        (
            "a line break in a value",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &request("GET", &[("x-a", "b\r\nx-c: d")]),
            ),
            Refused,
        ),
        (
            "less body than announced",
            [
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &request("POST", &[("content-length", "9")]),
                ),
                frame(DATA, END_STREAM, 1, b"abc"),
            ]
            .concat(),
            Refused,
        ),
        (
            "more body than announced",
            [
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &request("POST", &[("content-length", "1")]),
                ),
                frame(DATA, END_STREAM, 1, b"abc"),
            ]
            .concat(),
            Refused,
        ),
        (
            "a body for a HEAD that ended",
            [get(1), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            Ends,
        ),
        (
            "a goodbye, then a request",
            then_get(frame(GOAWAY, 0, 0, &[0; 8])),
            Whatever,
        ),
    ]
}

/// What came back of a connection.
#[derive(Debug, Default)]
struct Seen {
    /// `:status 200` on the first stream.
    served: bool,
    /// Another status, or a reset.
    refused: bool,
    goodbye: bool,
    closed: bool,
}

impl Seen {
    fn is(&self, expect: Expect) -> bool {
        match expect {
            Ends => self.closed || self.goodbye,
            Refused => !self.served && (self.refused || self.closed || self.goodbye),
            Served => self.served,
            Whatever => true,
        }
    }
}

/// Reads frames until what is expected has come, or for a while.
async fn watch(mut read: OwnedReadHalf, expect: Expect) -> Seen {
    let mut seen = Seen::default();
    let reading = async {
        while !seen.is(expect) {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                seen.closed = true;
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            if read.read_exact(&mut payload).await.is_err() {
                seen.closed = true;
                return;
            }
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match (head[3], stream) {
                (GOAWAY, _) => seen.goodbye = true,
                (RST_STREAM, 1) => seen.refused = true,
                (HEADERS, 1) => {
                    // The size of the table may come first; then the first entry of 200.
                    let status = payload.iter().find(|byte| **byte & 0xe0 != 0x20);
                    let good = status == Some(&0x88);
                    seen.served |= good;
                    seen.refused |= !good;
                }
                _ => {}
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, reading).await;
    seen
}

async fn bad_frames_end_their_connection_or_their_stream_and_nothing_else(plane: Plane) {
    let test = "bad_frames_end_their_connection_or_their_stream_and_nothing_else";
    let app = Echo::start("app").await;
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]);
    let clusters = [("app", app.port())];
    let Some(proxy) = Fixed::start(plane, test, json!({}), routes, &clusters).await else {
        return;
    };
    let call = Call::get("app.test", "/");
    assert_eq!(call.send(proxy.http).await.unwrap().status, 200);
    let before = proxy.proxy.resident();
    let mut wrong = Vec::new();
    for (name, bytes, expect) in cases() {
        let stream = proxy.connect().await;
        let (read, mut write) = stream.into_split();
        let writing = tokio::spawn(async move {
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
            let _ = write.write_all(preface).await;
            let _ = write.write_all(&frame(SETTINGS, 0, 0, &[])).await;
            // The other end may close before it has all, or not read on.
            let _ = write.write_all(&bytes).await;
            // It must not end from this side before the other has its say.
            std::future::pending::<()>().await;
        });
        // Floods are not read, so that the answers to them pile up.
        if name.ends_with("without end") {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let seen = watch(read, expect).await;
        writing.abort();
        let answers = call.send(proxy.http).await.map(|answer| answer.status);
        if !seen.is(expect) || answers != Ok(200) {
            wrong.push(format!(
                "{name}: {seen:?}, not {expect:?}; then {answers:?}"
            ));
        }
    }
    let grown = proxy.proxy.resident().saturating_sub(before);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(grown < 32 << 20, "{grown} bytes more");
}

async fn what_nobody_reads_is_not_kept_without_limit(plane: Plane) {
    let test = "what_nobody_reads_is_not_kept_without_limit";
    // An application that takes connections and reads nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}]);
    let Some(proxy) = Fixed::start(plane, test, json!({}), routes, &[("app", port)]).await else {
        return;
    };
    let before = proxy.proxy.resident();
    let stream = proxy.connect().await;
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut sink = vec![0; 65_536];
        while read.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    });
    let writing = async {
        write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        write.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        // Far beyond any window, on fifty streams, in small pieces.
        for stream in 0..50u32 {
            write.write_all(&post(2 * stream + 1)).await?;
        }
        for _ in 0..40_000 {
            for stream in 0..50u32 {
                write
                    .write_all(&frame(DATA, 0, 2 * stream + 1, &[0; 100]))
                    .await?;
            }
        }
        std::io::Result::Ok(())
    };
    // The connection ends, or its writer is made to wait.
    let _ = tokio::time::timeout(Duration::from_secs(5), writing).await;
    let grown = proxy.proxy.resident().saturating_sub(before);
    // Envoy's own windows are 24 MB for a connection.
    assert!(grown < 64 << 20, "{grown} bytes more");
    reading.abort();
    task.abort();
}
