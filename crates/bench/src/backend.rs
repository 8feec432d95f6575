//! The backend: a fixed 1 KB answer to every HTTP/1.1 request, and a TCP port that sends for as
//! long as somebody reads. It does as little as possible, so that it is never the bottleneck.

use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result};
use crate::ground::loopback;

/// Bytes of the response body.
pub const BODY: usize = 1024;

/// Bytes the TCP port writes at once.
const CHUNK: usize = 256 * 1024;

/// Where the backend listens. It lives on a thread of its own until the program ends.
pub struct Backend {
    pub http: SocketAddr,
    pub tcp: SocketAddr,
}

impl Backend {
    pub fn start() -> Result<Self> {
        let listen = || -> std::io::Result<(StdListener, SocketAddr)> {
            let listener = StdListener::bind(loopback(0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let io = |source| Error::io("start the backend", source);
        let (http_listener, http) = listen().map_err(io)?;
        let (tcp_listener, tcp) = listen().map_err(io)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(io)?;
        std::thread::Builder::new()
            .name("backend".into())
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::join!(
                        accept(http_listener, |socket| async { answer(socket).await }),
                        accept(tcp_listener, |socket| async { send(socket).await }),
                    );
                });
            })
            .map_err(io)?;
        Ok(Self { http, tcp })
    }
}

async fn accept<F, S>(listener: StdListener, serve: F)
where
    F: Fn(TcpStream) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        if let Ok((socket, _)) = listener.accept().await {
            // Without it the last segment of an answer may wait for an acknowledgement.
            let _ = socket.set_nodelay(true);
            tokio::spawn(serve(socket));
        }
    }
}

/// One answer for every request head. Requests have no body.
async fn answer(mut socket: TcpStream) {
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n")
            .into_bytes();
    response.resize(response.len() + BODY, b'x');
    let mut buffer = vec![0; 4096];
    let mut filled = 0;
    while let Ok(read) = socket.read(&mut buffer[filled..]).await {
        filled += read;
        if read == 0 {
            return;
        }
        while let Some(head) = head_length(&buffer[..filled]) {
            buffer.copy_within(head..filled, 0);
            filled -= head;
            if socket.write_all(&response).await.is_err() {
                return;
            }
        }
        if filled == buffer.len() {
            // No head of our loaders is this long.
            return;
        }
    }
}

/// Length of the first complete request head.
fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

async fn send(mut socket: TcpStream) {
    let chunk = vec![b'x'; CHUNK];
    while socket.write_all(&chunk).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_head_ends_at_its_first_empty_line() {
        let check = |bytes: &str, expect| assert_eq!(head_length(bytes.as_bytes()), expect);
        check("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Some(27));
        check("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", Some(18));
        check("GET / HTTP/1.1\r\nhost: a\r\n", None);
        check("", None);
    }
}
