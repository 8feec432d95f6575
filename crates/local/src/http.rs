//! A small HTTP/1.1 client: what Bookinfo calls its neighbours with, what readiness checks use,
//! and what puts objects into the control plane.
//!
//! It is not a general client: no TLS, no redirects, bodies are read whole and up to a limit.
//! Invariant: every request ends within its deadline, connect and body included.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bodies larger than this are refused: nothing this client reads comes near it.
const BODY_LIMIT: usize = 8 << 20;
/// Idle connections kept per address.
const IDLE_PER_ADDRESS: usize = 16;

type Connection = SendRequest<Full<Bytes>>;

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0} is not a URL of the form http://HOST[:PORT]/PATH")]
    Url(String),
    #[error("cannot connect to {address}: {source}")]
    Connect {
        address: String,
        source: std::io::Error,
    },
    #[error("{address} did not answer within {} ms", .deadline.as_millis())]
    Timeout { address: String, deadline: Duration },
    #[error("the connection to {address} failed: {source}")]
    Connection {
        address: String,
        source: hyper::Error,
    },
    #[error("the response of {address} cannot be read: {reason}")]
    Body { address: String, reason: String },
}

/// A client with its idle connections. Shared by reference between tasks.
#[derive(Debug, Default)]
pub struct Client {
    /// `host:port` of an HTTP proxy that every request goes through, in absolute form
    /// (RFC 9112 section 3.2.2).
    proxy: Option<String>,
    idle: Mutex<HashMap<String, Vec<Connection>>>,
}

impl Client {
    /// A client that connects to the host of each URL.
    pub fn direct() -> Self {
        Self::default()
    }

    /// A client that sends everything through the proxy named by `HTTP_PROXY` or `http_proxy`,
    /// when one of them is set: the application's way into its sidecar.
    pub fn from_environment() -> Self {
        let proxy = ["HTTP_PROXY", "http_proxy"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
            .filter(|value| !value.is_empty());
        match proxy {
            Some(url) => Self::through(&url),
            None => Self::direct(),
        }
    }

    /// A client that sends everything through a proxy, given as `http://HOST:PORT`.
    pub fn through(proxy_url: &str) -> Self {
        let address = proxy_url
            .trim_start_matches("http://")
            .trim_end_matches('/');
        Self {
            proxy: Some(address.to_owned()),
            idle: Mutex::default(),
        }
    }

    /// GET without special headers.
    pub async fn get(&self, url: &str, deadline: Duration) -> Result<Response<Bytes>, ClientError> {
        self.send(Method::GET, url, HeaderMap::new(), Bytes::new(), deadline)
            .await
    }

    /// Sends one request and reads the whole response.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let (authority, uri) = self.target(url)?;
        let address = match &self.proxy {
            Some(proxy) => proxy.clone(),
            None if authority.port().is_some() => authority.to_string(),
            None => format!("{}:80", authority.host()),
        };
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| ClientError::Url(url.to_owned()))?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.headers_mut().insert(header::HOST, host);
        tokio::time::timeout(deadline, self.exchange(&address, request))
            .await
            .unwrap_or(Err(ClientError::Timeout { address, deadline }))
    }

    /// The authority of a URL and the request target to send: absolute form to a proxy, origin
    /// form otherwise.
    fn target(&self, url: &str) -> Result<(Authority, Uri), ClientError> {
        let wrong = || ClientError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().cloned().ok_or_else(wrong)?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong());
        }
        if self.proxy.is_some() {
            return Ok((authority, uri));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let origin_form = path.parse().map_err(|_| wrong())?;
        Ok((authority, origin_form))
    }

    async fn exchange(
        &self,
        address: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, ClientError> {
        let failed = |source| ClientError::Connection {
            address: address.to_owned(),
            source,
        };
        loop {
            let (mut connection, reused) = match self.take_idle(address) {
                Some(connection) => (connection, true),
                None => (connect(address).await?, false),
            };
            let response = match connection.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // The peer closed the idle connection before this request reached it.
                    Some(unsent) if reused => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(failed(error.into_error())),
                },
            };
            let (head, body) = response.into_parts();
            let body = Limited::new(body, BODY_LIMIT)
                .collect()
                .await
                .map_err(|error| ClientError::Body {
                    address: address.to_owned(),
                    reason: error.to_string(),
                })?;
            self.put_idle(address, connection);
            return Ok(Response::from_parts(head, body.to_bytes()));
        }
    }

    fn take_idle(&self, address: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(address)?;
        while let Some(connection) = connections.pop() {
            if !connection.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    fn put_idle(&self, address: &str, connection: Connection) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.entry(address.to_owned()).or_default();
        if connections.len() < IDLE_PER_ADDRESS {
            connections.push(connection);
        }
    }
}

async fn connect(address: &str) -> Result<Connection, ClientError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| ClientError::Connect {
            address: address.to_owned(),
            source,
        })?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|source| ClientError::Connection {
            address: address.to_owned(),
            source,
        })?;
    tokio::spawn(async move {
        // An error here reaches the caller through the request it was waiting on.
        let _ = connection.await;
    });
    Ok(sender)
}
