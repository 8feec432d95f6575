//! Issuers of JSON Web Tokens, and a server that publishes their keys.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::{Request, Response};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

enum Key {
    Es256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// Somebody who issues tokens, with one key.
pub struct Issuer {
    /// `iss`.
    pub name: String,
    /// `kid`.
    pub key_id: String,
    key: Key,
}

impl Issuer {
    /// With a P-256 key.
    pub fn new(name: &str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self::with(name, "es256", Key::Es256(key))
    }

    /// With an RSA key of 2,048 bits.
    pub fn rsa(name: &str) -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        Self::with(name, "rsa", Key::Rsa(key))
    }

    /// With an Ed25519 key.
    pub fn ed25519(name: &str) -> Self {
        let key = Ed25519KeyPair::generate().expect("a key");
        Self::with(name, "ed", Key::EdDsa(key))
    }

    fn with(name: &str, key_id: &str, key: Key) -> Self {
        Issuer {
            name: name.to_owned(),
            key_id: key_id.to_owned(),
            key,
        }
    }

    /// The same issuer with another key id.
    pub fn key_id(mut self, key_id: &str) -> Self {
        self.key_id = key_id.to_owned();
        self
    }

    /// The public key.
    pub fn jwk(&self) -> Value {
        let mut key = match &self.key {
            Key::Es256(key) => {
                // 4, x, y.
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
            }
            Key::Rsa(key) => {
                let (n, e) = rsa_numbers(key.public_key().as_ref());
                json!({"kty": "RSA", "n": text(n), "e": text(e)})
            }
            Key::EdDsa(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref())})
            }
        };
        key["kid"] = json!(self.key_id);
        key
    }

    /// The set of its one key.
    pub fn jwks(&self) -> String {
        key_set(&[self])
    }

    /// A token with these claims, beside `iss` and an `exp` in an hour where they do not say other.
    pub fn token(&self, claims: Value) -> String {
        let algorithm = match &self.key {
            Key::Es256(_) => "ES256",
            Key::Rsa(_) => "RS256",
            Key::EdDsa(_) => "EdDSA",
        };
        self.token_as(algorithm, claims)
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
        let part = |value: &Value| text(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&header), part(&all));
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", text(&signature))
    }

    fn sign(&self, algorithm: &str, data: &[u8]) -> Vec<u8> {
        if algorithm == "HS256" {
            // With the public key as the secret, as somebody without the private one would try.
            let secret = self.jwk().to_string();
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            return hmac::sign(&key, data).as_ref().to_vec();
        }
        let random = SystemRandom::new();
        match &self.key {
            Key::Es256(key) => {
                let signature = key.sign(&random, data).expect("a signature");
                signature.as_ref().to_vec()
            }
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let padding = match algorithm {
                    "PS256" => &RSA_PSS_SHA256,
                    _ => &RSA_PKCS1_SHA256,
                };
                let signed = key.sign(padding, &random, data, &mut signature);
                signed.expect("a signature");
                signature
            }
            Key::EdDsa(key) => key.sign(data).as_ref().to_vec(),
        }
    }
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017 appendix A.1.1) in DER.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    let (inside, _) = der_value(der);
    let (n, rest) = der_value(inside);
    let (e, _) = der_value(rest);
    (n.strip_prefix(&[0]).unwrap_or(n), e)
}

/// The content of the first element, and what follows it.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let first = usize::from(der[1]);
    let (length, start) = match first.checked_sub(128) {
        None => (first, 2),
        Some(bytes) => {
            let digits = der[2..2 + bytes].iter();
            (digits.fold(0, |n, b| n * 256 + usize::from(*b)), 2 + bytes)
        }
    };
    (&der[start..start + length], &der[start + length..])
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

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
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
        Self::with(None).await
    }

    /// Over TLS.
    pub async fn over_tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::with(Some(tokio_rustls::TlsAcceptor::from(config))).await
    }

    async fn with(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
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
