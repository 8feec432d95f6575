//! Bytes on the wire: requests at the edge of HTTP/1.1 get the same answers from both data planes.

use std::net::SocketAddr;
use std::time::Duration;

use lateen_testkit::envoy::Plane;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gateway::{rule, served};
use crate::mesh::{Gateway, Mesh, Reviews};

/// Same answer, header by header.
const ALIKE: &[&str] = &[
    "get / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\r\nhost:app.test\r\nConnection: close\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET http://app.test/absolute HTTP/1.1\r\nHost: other.test\r\n\r\n",
    "GET https://app.test/absolute HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET ftp://app.test/absolute HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET app.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET * HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "HEAD / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "TRACE / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "PATCH / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\n\r\nabc",
    "G@T / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    " GET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "\r\n\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / http/1.1\r\nHost: app.test\r\n\r\n",
    "nonsense\r\n\r\n",
    "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}",
    "GET /a%zz HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET //a//b/./c/../d HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /../../etc/passwd HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /%2e%2e/a HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /a\\b HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /\u{e9} HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /a b HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET ?a HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX-A : 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX A: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\n: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX-A\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX_A: under\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX-A: \u{1}\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX-A: \u{e9}\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX-A:   spaces   \r\nX-B:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3, 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: +3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: -1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: abc\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    "GET /1 HTTP/1.1\r\nHost: app.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /1 HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "POST /1 HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\n\r\nxGET /2 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: x-drop\r\nX-Drop: 1\r\nTE: trailers, gzip\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: APP.TEST\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test.\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test:8080\r\n\r\n",
    "GET /status/204 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /status/304 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "HEAD /status/404 HTTP/1.1\r\nHost: app.test\r\n\r\n",
];

/// Refused by both, each in its own words: Envoy counts some as "no such host", we as malformed.
const REFUSED: &[&str] = &[
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nHost: other.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "CONNECT app.test:80 HTTP/1.1\r\nHost: app.test:80\r\n\r\n",
    "GET /\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: app.test\r\n\r\n",
    "GET /a%20b%2Fc%00 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET /a?b=c#fragment HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: user@app.test\r\n\r\n",
];

/// Envoy is lenient where RFC 9112 lets us refuse what could be read in two ways.
const STRICTER: &[&str] = &[
    "GET  / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "GET / HTTP/1.1\nHost: app.test\n\n",
    "GET / HTTP/1.1\r\nHost: app.test\r\nX-A: 1\r\n folded\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
];

/// Envoy knows a list of methods; we pass any token on (RFC 9110 section 9.1).
const LOOSER: &[&str] = &["BREW / HTTP/1.1\r\nHost: app.test\r\n\r\n"];

/// Everything that came back until the proxy closed or had nothing more to say, and which of it.
async fn exchange(to: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let (mut got, mut buffer) = (Vec::new(), [0; 16_384]);
    loop {
        let read = stream.read(&mut buffer);
        match tokio::time::timeout(Duration::from_secs(10), read).await {
            Err(_) => return (String::from_utf8_lossy(&got).into_owned(), false),
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&got).into_owned(), true),
            Ok(Ok(count)) => got.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Without what differs from one request to the next, and without `x-forwarded-for`, where Envoy
/// has the machine's own address for a peer on loopback.
fn comparable(text: &str) -> String {
    let volatile = ["date:", "x-envoy-upstream-service-time:", "content-length:"];
    // Two answers in a row: the second begins where the body of the first ends.
    let text = text.replace("}HTTP/1.1 ", "}\nHTTP/1.1 ");
    let lines = text.lines().filter(|line| {
        let lower = line.to_ascii_lowercase();
        !volatile.iter().any(|name| lower.starts_with(name))
    });
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    for line in &mut lines {
        if let Ok(mut json) = serde_json::from_str::<serde_json::Value>(line)
            && let Some(headers) = json["headers"].as_object_mut()
        {
            headers.remove("x-request-id");
            headers.remove("x-forwarded-for");
            headers.sort_keys();
            *line = json.to_string();
        }
    }
    lines.join("\n")
}

/// The answers to all of these requests, each on a connection of its own.
async fn answers(gateway: &Gateway, requests: &[&str]) -> Vec<(String, bool)> {
    let exchanges = requests
        .iter()
        .map(|request| exchange(gateway.http, request.as_bytes()));
    futures_util::future::join_all(exchanges).await
}

async fn gateway(plane: Plane, mesh: &Mesh) -> Option<(Gateway, Reviews)> {
    let test = "requests_at_the_edge_of_http_are_answered_alike";
    let gateway = Gateway::start(plane, mesh, test, true).await?;
    let reviews = Reviews::start(mesh).await;
    let route = "  - route: [{destination: {host: reviews, subset: v1}}]";
    mesh.apply(&rule("app.test", route)).await;
    mesh.distributed(1).await;
    served(&gateway, "app.test").await;
    Some((gateway, reviews))
}

/// Status of the first answer; 0 when there was none.
fn status(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_the_edge_of_http_are_answered_alike() {
    let (their_mesh, our_mesh) = tokio::join!(Mesh::start(), Mesh::start());
    let (theirs, ours) = tokio::join!(
        gateway(Plane::StockEnvoy, &their_mesh),
        gateway(Plane::Lateen, &our_mesh)
    );
    let (Some((envoy, _their_app)), Some((own, _our_app))) = (theirs, ours) else {
        return;
    };
    let requests = [ALIKE, REFUSED, STRICTER, LOOSER].concat();
    let (theirs, ours) = tokio::join!(answers(&envoy, &requests), answers(&own, &requests));
    let mut differences = Vec::new();
    for ((request, theirs), ours) in requests.iter().zip(theirs).zip(ours) {
        let codes = (status(&theirs.0), status(&ours.0));
        let refused = |code: u16| (400..=501).contains(&code);
        let theirs = (comparable(&theirs.0), theirs.1);
        let ours = (comparable(&ours.0), ours.1);
        let expected = match request {
            _ if ALIKE.contains(request) => theirs == ours,
            _ if REFUSED.contains(request) => refused(codes.0) && refused(codes.1),
            _ if STRICTER.contains(request) => codes == (200, 400),
            _ => codes == (400, 200),
        };
        if !expected {
            differences.push(format!("{request:?}\n  Envoy {theirs:?}\n  own   {ours:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
