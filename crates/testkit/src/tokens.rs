//! Issuers of JSON Web Tokens, and a server that publishes their keys.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::signing::{SigningKey, encode, hs256};

/// Somebody who issues tokens, with one key.
pub struct Issuer {
    /// `iss`.
    pub name: String,
    /// `kid`.
    pub key_id: String,
    key: SigningKey,
    /// What it signs with where nothing else is said.
    algorithm: &'static str,
}

impl Issuer {
    /// With a P-256 key.
    pub fn new(name: &str) -> Self {
        Self::with(name, "es256", "ES256")
    }

    /// With an RSA key of 2,048 bits.
    pub fn rsa(name: &str) -> Self {
        Self::with(name, "rsa", "RS256")
    }

    /// With an Ed25519 key.
    pub fn ed25519(name: &str) -> Self {
        Self::with(name, "ed", "EdDSA")
    }

    fn with(name: &str, key_id: &str, algorithm: &'static str) -> Self {
        Issuer {
            name: name.to_owned(),
            key_id: key_id.to_owned(),
            key: SigningKey::generate(algorithm),
            algorithm,
        }
    }

    /// The same issuer with another key id.
    pub fn key_id(mut self, key_id: &str) -> Self {
        self.key_id = key_id.to_owned();
        self
    }

    /// The public key.
    pub fn jwk(&self) -> Value {
        let mut key = self.key.jwk();
        key["kid"] = json!(self.key_id);
        key
    }

    /// The set of its one key.
    pub fn jwks(&self) -> String {
        key_set(&[self])
    }

    /// A token with these claims, beside `iss` and an `exp` in an hour where they do not say other.
    pub fn token(&self, claims: Value) -> String {
        self.token_as(self.algorithm, claims)
    }

    /// The same with another word in `alg`: `PS256` is signed so, `HS256` with the public key as
    /// secret, others as the key is meant to.
    pub fn token_as(&self, algorithm: &str, claims: Value) -> String {
        let mut all = json!({"iss": self.name, "exp": now() + 3600});
        for (name, value) in claims.as_object().expect("claims") {
            match value {
                Value::Null => all.as_object_mut().expect("claims").remove(name),
                value => all
                    .as_object_mut()
                    .expect("claims")
                    .insert(name.clone(), value.clone()),
            };
        }
        let header = json!({"alg": algorithm, "kid": self.key_id, "typ": "JWT"});
        let part = |value: &Value| encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&header), part(&all));
        let signature = match algorithm {
            "HS256" => hs256(&self.jwk().to_string(), signed.as_bytes()),
            _ => self.key.sign(algorithm, signed.as_bytes()),
        };
        format!("{signed}.{}", encode(&signature))
    }
}

/// The keys of several issuers.
pub fn key_set(issuers: &[&Issuer]) -> String {
    let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// What a path is answered with.
#[derive(Clone, Debug)]
struct Page {
    status: u16,
    location: Option<String>,
    body: String,
}

#[derive(Default)]
struct Pages {
    pages: HashMap<String, Page>,
    hits: HashMap<String, u32>,
}

/// An HTTP server whose pages can be changed; 404 for others. It stops when it is dropped.
pub struct KeyServer {
    port: u16,
    state: Arc<Mutex<Pages>>,
    task: JoinHandle<()>,
}

impl KeyServer {
    pub async fn start() -> Self {
        Self::with(None, 0).await
    }

    /// On a port that is known before.
    pub async fn at(port: u16) -> Self {
        Self::with(None, port).await
    }

    /// Over TLS.
    pub async fn over_tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::with(Some(tokio_rustls::TlsAcceptor::from(config)), 0).await
    }

    async fn with(tls: Option<tokio_rustls::TlsAcceptor>, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await;
        let listener = listener.expect("a socket");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::<Mutex<Pages>>::default();
        let pages = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (pages, tls) = (pages.clone(), tls.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request| {
                        let answer = answer(&pages, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => {
                            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
                        }
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let stream = TokioIo::new(stream);
                                let _ = http.serve_connection(stream, answer).await;
                            }
                        }
                    }
                });
            }
        });
        KeyServer { port, state, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT/PATH`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// From now on a path is answered so.
    pub fn page(&self, path: &str, status: u16, body: &str) {
        self.put(path, status, None, body);
    }

    /// From now on a path leads elsewhere.
    pub fn redirect(&self, path: &str, to: &str) {
        self.put(path, 302, Some(to.to_owned()), "");
    }

    fn put(&self, path: &str, status: u16, location: Option<String>, body: &str) {
        let page = Page {
            status,
            location,
            body: body.to_owned(),
        };
        let mut state = self.state.lock().expect("no request panicked");
        state.pages.insert(path.to_owned(), page);
    }

    /// How often a path was asked for.
    pub fn hits(&self, path: &str) -> u32 {
        let state = self.state.lock().expect("no request panicked");
        state.hits.get(path).copied().unwrap_or_default()
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(pages: &Mutex<Pages>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let mut state = pages.lock().expect("no request panicked");
    *state.hits.entry(path.clone()).or_default() += 1;
    let missing = Page {
        status: 404,
        location: None,
        body: String::new(),
    };
    let page = state.pages.get(&path).cloned().unwrap_or(missing);
    let mut response = Response::builder().status(page.status);
    if let Some(location) = page.location {
        response = response.header("location", location);
    }
    response
        .body(Full::new(Bytes::from(page.body)))
        .expect("a response")
}
