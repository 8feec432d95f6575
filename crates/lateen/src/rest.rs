//! The client side of the configuration API: one request, one answer, or a stream of lines.
//!
//! Plain HTTP/1.1 to the control plane and to proxies' admin ports. It knows addresses and status
//! documents; what is asked and what the answer means is the verbs' business.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::failure::Failure;

/// Everything here is on this machine or near it.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(30);

/// Which control plane a verb talks to
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Address of the control plane's API
    #[arg(long, env = "LATEEN_SERVER", value_name = "HOST:PORT")]
    #[arg(default_value = "127.0.0.1:15088")]
    pub server: String,
}

/// A peer that speaks HTTP, and the runtime to talk to it.
pub struct Server {
    address: String,
    role: Role,
    runtime: tokio::runtime::Runtime,
}

/// Whom a failure to connect is about; the remedy differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Control,
    Proxy,
}

#[derive(Debug)]
pub struct Answer {
    pub code: StatusCode,
    pub body: Bytes,
}

/// A request without the parts that are always the same.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub fn get(path: &'a str) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl ServerArgs {
    pub fn connect(&self) -> Result<Server, Failure> {
        Server::new(&self.server, Role::Control)
    }
}

impl Server {
    /// `address` is `HOST:PORT`, with or without `http://`.
    pub fn new(address: &str, role: Role) -> Result<Self, Failure> {
        let bare = address
            .strip_prefix("http://")
            .unwrap_or(address)
            .trim_end_matches('/');
        let port = bare
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>().is_ok());
        if address.starts_with("https://") || port != Some(true) {
            return Err(Failure::usage(format!(
                "{address:?} is not an address; use HOST:PORT, for example 127.0.0.1:15088"
            )));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|e| Failure::other(format!("cannot start: {e}")))?;
        Ok(Self {
            address: bare.to_owned(),
            role,
            runtime,
        })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether something listens there.
    pub fn is_there(&self) -> bool {
        self.runtime.block_on(self.connect()).is_ok()
    }

    /// One request and its whole answer, whatever the status.
    pub fn call(&self, call: Call<'_>) -> Result<Answer, Failure> {
        self.runtime.block_on(async {
            let path = call.path.to_owned();
            let exchange = async {
                let response = self.send(call).await?;
                let (parts, body) = response.into_parts();
                let body = body
                    .collect()
                    .await
                    .map_err(|e| self.broken(&path, e))?
                    .to_bytes();
                Ok(Answer {
                    code: parts.status,
                    body,
                })
            };
            match tokio::time::timeout(ANSWER, exchange).await {
                Ok(answer) => answer,
                Err(_) => {
                    let seconds = ANSWER.as_secs();
                    let text = format!("{} gave no answer within {seconds} s", self.address);
                    Err(Failure::other(text))
                }
            }
        })
    }

    /// A GET whose answer must be good JSON.
    pub fn json(&self, path: &str) -> Result<Value, Failure> {
        self.call(Call::get(path))?.good()?.json()
    }

    /// A GET whose answer is read line by line until it ends or `each` returns false.
    pub fn lines(
        &self,
        call: Call<'_>,
        mut each: impl FnMut(&str) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let path = call.path.to_owned();
            let response = self.send(call).await?;
            let mut body = response.into_body();
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| self.broken(&path, e))?;
                pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if !each(String::from_utf8_lossy(&line).trim_end())? {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    async fn send(&self, call: Call<'_>) -> Result<http::Response<Incoming>, Failure> {
        let stream = self.connect().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| self.broken(call.path, e))?;
        tokio::spawn(async move {
            // Its errors reach the request.
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, &self.address)
            .header(
                header::USER_AGENT,
                concat!("lateen/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(call.body)));
        let request = request.map_err(|e| Failure::other(format!("a bad request: {e}")))?;
        sender
            .send_request(request)
            .await
            .map_err(|e| self.broken("the request", e))
    }

    async fn connect(&self) -> Result<TcpStream, Failure> {
        let refused = |reason: String| match self.role {
            Role::Control => Failure::other(format!(
                "no control plane answers at {} ({reason}).\n\
                 Start a mesh with `lateen demo`, or name another control plane with --server or \
                 LATEEN_SERVER",
                self.address
            )),
            Role::Proxy => Failure::other(format!(
                "the proxy's admin port {} does not answer ({reason}); see `lateen proxy-status`",
                self.address
            )),
        };
        match tokio::time::timeout(CONNECT, TcpStream::connect(&self.address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused("no answer in time".to_owned())),
        }
    }

    fn broken(&self, what: &str, error: hyper::Error) -> Failure {
        Failure::other(format!(
            "talking to {} failed ({what}): {error}",
            self.address
        ))
    }
}

impl Answer {
    pub fn is_good(&self) -> bool {
        self.code.is_success()
    }

    /// This answer, or the failure it tells of in kubectl's words.
    pub fn good(self) -> Result<Self, Failure> {
        if self.is_good() {
            return Ok(self);
        }
        anstream::eprintln!("{}", self.refusal());
        Err(Failure::silent(1))
    }

    /// The refusal in kubectl's words.
    pub fn refusal(&self) -> String {
        let status: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        match status["message"].is_string() {
            true => refusal(&status),
            false => {
                let text = String::from_utf8_lossy(&self.body);
                format!("Error from server: {} {}", self.code, text.trim())
            }
        }
    }

    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Failure::other(format!("the answer is not JSON as expected: {e}")))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// `Error from server (NotFound): virtualservices.networking.istio.io "x" not found`, of a `Status`.
pub fn refusal(status: &Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap_or("?");
    format!(
        "Error from server ({}): {}",
        text("reason"),
        text("message")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_use() {
        for good in ["127.0.0.1:15088", "http://localhost:1/", "[::1]:15088"] {
            assert!(Server::new(good, Role::Control).is_ok(), "{good}");
        }
        for bad in [
            "",
            "localhost",
            "https://localhost:1",
            "127.0.0.1:99999",
            "a:b",
        ] {
            assert!(Server::new(bad, Role::Control).is_err(), "{bad}");
        }
    }
}
