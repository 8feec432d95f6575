//! An HTTP/1.1 client that shows everything of an answer and follows nothing.

use std::net::SocketAddr;

use ::http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    /// Target of the request line: a path, or a whole URL for a proxy.
    target: String,
    host: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    /// `GET path` with this `Host`.
    pub fn get(host: &str, path: &str) -> Self {
        Call {
            method: Method::GET,
            target: path.to_owned(),
            host: host.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// `GET http://host/path` in absolute form, as a client sends it to its proxy.
    pub fn through_proxy(host: &str, path: &str) -> Self {
        Call {
            target: format!("http://{host}{path}"),
            ..Call::get(host, path)
        }
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.parse().expect("a method");
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it on a connection of its own.
    pub async fn send(&self, to: SocketAddr) -> Result<Answer, String> {
        Client::connect(to).await?.send(self).await
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let uri: Uri = self.target.parse().expect("a request target");
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(uri)
            .header("host", &self.host);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let body = Full::new(self.body.clone());
        request.body(body).expect("a request")
    }
}

/// A connection that is used again.
pub struct Client {
    requests: SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(to).await;
        Self::over(stream.map_err(|error| format!("connect to {to}: {error}"))?).await
    }

    /// On a connection that is there already.
    pub async fn over(stream: TcpStream) -> Result<Self, String> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Client { requests })
    }

    pub async fn send(&mut self, call: &Call) -> Result<Answer, String> {
        let said = |error: hyper::Error| format!("{call:?}: {error:?}");
        self.requests.ready().await.map_err(said)?;
        let response = self.requests.send_request(call.request()).await;
        let (head, body) = response.map_err(said)?.into_parts();
        let body = body.collect().await.map_err(said)?.to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// One response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// All values of a header, joined with commas; empty when it is missing.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect();
        values.join(",")
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Which echo server answered; empty when none did.
    pub fn name(&self) -> String {
        self.json()["name"].as_str().unwrap_or_default().to_owned()
    }

    /// A header as the echo server got it; empty when it is missing.
    pub fn got(&self, header: &str) -> String {
        let json = self.json();
        json["headers"][header]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}
