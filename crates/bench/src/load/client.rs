//! A blocking HTTP/1.1 client for one connection: one request, one whole answer, again.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::credentials::SERVER_NAME;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: backend.bench\r\nuser-agent: bench\r\n\r\n";

/// An answer later than this is none.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Client<S = TcpStream> {
    socket: S,
}

/// The same over TLS.
pub type TlsClient = Client<StreamOwned<ClientConnection, TcpStream>>;

impl Client {
    pub fn connect(to: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&to, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Connects; the handshake is made with the first request.
    pub fn connect_tls(to: SocketAddr, config: &Arc<ClientConfig>) -> Result<TlsClient> {
        let tcp = Self::connect(to)?.socket;
        let name = ServerName::try_from(SERVER_NAME).map_err(Error::other)?;
        let connection = ClientConnection::new(config.clone(), name).map_err(Error::other)?;
        Ok(Client {
            socket: StreamOwned::new(connection, tcp),
        })
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends one request and reads its answer to the end. An error for any status but 200.
    pub fn get(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        self.socket.write_all(REQUEST)?;
        buffer.clear();
        let mut chunk = [0; 4096];
        loop {
            let read = self.socket.read(&mut chunk)?;
            if read == 0 {
                return Err(bad("the connection was closed before the whole answer"));
            }
            buffer.extend_from_slice(&chunk[..read]);
            if let Some(length) = answer_length(buffer)? {
                return match buffer.len() == length {
                    true => Ok(()),
                    false => Err(bad("more bytes than the answer has")),
                };
            }
        }
    }
}

/// Length of head and body together once both are there.
fn answer_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(bad(&format!("the answer is `{status}`")));
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .ok_or_else(|| bad("the answer has no content-length"))?;
    let whole = end + 4 + length;
    Ok((bytes.len() >= whole).then_some(whole))
}

fn bad(text: &str) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is_there() {
        let check = |text: &str, expect: std::result::Result<Option<usize>, &str>| {
            let got = answer_length(text.as_bytes()).map_err(|error| error.to_string());
            assert_eq!(got, expect.map_err(str::to_owned), "{text:?}");
        };
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
            Ok(Some(40)),
        );
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Len", Ok(None));
        check(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            Err("the answer is `HTTP/1.1 503 Service Unavailable`"),
        );
        check(
            "HTTP/1.1 200 OK\r\ndate: x\r\n\r\n",
            Err("the answer has no content-length"),
        );
    }
}
