//! Clients: they do what a case says and write down what comes back.

mod http1;
mod http2;
pub(crate) mod stream;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};

use crate::corpus::{Case, Content, Protocol};
use crate::{Result, failed};

use stream::{Opened, Stream};

pub use http1::Keeping;

/// Where the client of a case connects from: each has an address of its own, by which the access
/// logs' lines are told apart. None is 127.0.0.1, which Envoy replaces by the machine's own address
/// in `x-forwarded-for`.
pub fn address(case: &Case) -> Ipv4Addr {
    let [high, low] = u16::try_from(case.number).unwrap_or(u16::MAX).to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}

/// No case waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Answers in order.
    pub answers: Vec<Value>,
    /// How the connection was left.
    pub connection: Value,
}

/// Runs a case against one plane.
pub async fn run(case: &Case, to: SocketAddr) -> Result<Seen> {
    match &case.content {
        Content::Raw(steps) => http1::raw(case, steps, to).await,
        Content::Requests(Protocol::Http1, requests) => http1::requests(case, requests, to).await,
        Content::Requests(Protocol::Http2, requests) => http2::requests(case, requests, to).await,
    }
}

/// Answers to a request that is sent again and again, over HTTP/1.
pub async fn again(case: &Case, to: SocketAddr, times: usize) -> Result<Vec<Value>> {
    http1::again(case, to, times).await
}

/// Connects, and encrypts if the case says so.
async fn open(case: &Case, to: SocketAddr) -> Result<Opened> {
    let tcp = connect(case, to).await?;
    match &case.tls {
        None => Ok(Opened::Stream(Stream::Plain(tcp))),
        Some(tls) => stream::encrypt(tcp, tls).await,
    }
}

async fn connect(case: &Case, to: SocketAddr) -> Result<TcpStream> {
    let what = || format!("connect to {to}");
    let socket = TcpSocket::new_v4().map_err(failed(what()))?;
    socket
        .bind(SocketAddr::from((address(case), 0)))
        .map_err(failed(what()))?;
    let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await;
    let stream = stream.map_err(failed(what()))?.map_err(failed(what()))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
