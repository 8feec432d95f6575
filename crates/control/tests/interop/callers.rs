//! Clients of a test's own: what they show of themselves, and whom each mode of mutual TLS lets in.

use std::net::SocketAddr;

use lateen_testkit::certificates::{Authority, Pair};
use lateen_testkit::tls_client::{Dial, ask};

/// What a client shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    Plain,
    Nothing,
    Right,
    Stranger,
    Expired,
    ForeignDomain,
}

pub const ALL: [Shows; 6] = [
    Shows::Plain,
    Shows::Nothing,
    Shows::Right,
    Shows::Stranger,
    Shows::Expired,
    Shows::ForeignDomain,
];

pub struct Clients {
    pub right: Pair,
    stranger: Pair,
    expired: Pair,
    pub foreign: Pair,
}

pub const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

impl Clients {
    pub fn new(authority: &Authority) -> Self {
        Clients {
            right: authority.issue("client", &[CLIENT]),
            stranger: Authority::new("stranger").issue("client", &[CLIENT]),
            expired: authority.issue_expired("client", &[CLIENT]),
            foreign: authority.issue("client", &["spiffe://other.domain/ns/default/sa/client"]),
        }
    }

    pub fn dial<'a>(&'a self, shows: Shows, alpn: &'a [&'a str]) -> Dial<'a> {
        let pair = match shows {
            Shows::Plain => return Dial::Plain,
            Shows::Nothing => None,
            Shows::Right => Some(&self.right),
            Shows::Stranger => Some(&self.stranger),
            Shows::Expired => Some(&self.expired),
            Shows::ForeignDomain => Some(&self.foreign),
        };
        Dial::Tls(pair, alpn)
    }
}

/// What cart's application got to know of the client of a request: the whole answer.
pub async fn http(to: SocketAddr, dial: Dial<'_>) -> Result<String, String> {
    http_of(to, "cart", dial).await
}

/// The same of a request for a host.
pub async fn http_of(to: SocketAddr, host: &str, dial: Dial<'_>) -> Result<String, String> {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let whole = |answer: &[u8]| answer.ends_with(b"}");
    let answer = ask(to, dial, request.as_bytes(), whole).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(answer),
    }
}

pub async fn tcp(to: SocketAddr, dial: Dial<'_>) -> Result<String, String> {
    let answer = ask(to, dial, b"hello\n", |answer| answer.ends_with(b"hello\n")).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether a mode lets a client in. Without TLS of its own a server takes what is plain.
pub fn is_let_in(mode: &str, shows: Shows) -> bool {
    match mode {
        "STRICT" => shows == Shows::Right,
        "PERMISSIVE" => matches!(shows, Shows::Right | Shows::Plain),
        _ => shows == Shows::Plain,
    }
}

/// Who is let in is known to the application, if by certificate.
pub fn check(mode: &str, port: &str, shows: Shows, expected: bool, found: &Result<String, String>) {
    assert_eq!(
        found.is_ok(),
        expected,
        "{mode} {port} {shows:?}: {found:?}"
    );
    let Ok(answer) = found else { return };
    let known = answer.contains(&format!("URI={CLIENT}"));
    assert_eq!(
        known,
        shows == Shows::Right,
        "{mode} {port} {shows:?}: {answer}"
    );
}
