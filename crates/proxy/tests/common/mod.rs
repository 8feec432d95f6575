//! A proxy with hand-made configuration, upstreams that answer byte for byte what a test wants, and
//! a client that sees every byte.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at what is not as expected"
)]

use lateen_proto::Descriptors;
use lateen_proxy::worker::{WorkerUpdate, Workers};
use lateen_proxy_config::compile;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Long enough for anything on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Proxy {
    pub workers: Workers,
}

pub fn message(type_name: &str, json: &Value) -> Vec<u8> {
    static DESCRIPTORS: OnceLock<Descriptors> = OnceLock::new();
    let descriptors = DESCRIPTORS.get_or_init(|| Descriptors::load().unwrap());
    descriptors
        .json_to_message(type_name, json)
        .unwrap_or_else(|e| panic!("{e}: {json}"))
}

impl Proxy {
    pub fn start(workers: usize) -> Proxy {
        Proxy {
            workers: Workers::start(workers).unwrap(),
        }
    }

    /// Adds a listener or its next generation; its address.
    pub fn listener(&self, json: &Value) -> SocketAddr {
        let bytes = message("envoy.config.listener.v3.Listener", json);
        let listener = compile::compile_listener(&bytes).unwrap().value;
        let name = listener.name.clone();
        self.workers
            .update(WorkerUpdate::Listener(listener))
            .unwrap();
        self.flush();
        let all = self.workers.listeners();
        all.iter()
            .find(|open| open.listener == name)
            .unwrap()
            .addresses[0]
            .socket()
            .unwrap()
    }

    pub fn cluster(&self, json: &Value) {
        let bytes = message("envoy.config.cluster.v3.Cluster", json);
        let cluster = compile::compile_cluster(&bytes).unwrap().value;
        self.workers.update(WorkerUpdate::Cluster(cluster)).unwrap();
        self.flush();
    }

    pub fn routes(&self, json: &Value) {
        let bytes = message("envoy.config.route.v3.RouteConfiguration", json);
        let table = compile::compile_routes(&bytes).unwrap().value;
        self.workers.update(WorkerUpdate::Routes(table)).unwrap();
        self.flush();
    }

    pub fn endpoints(&self, cluster: &str, addresses: &[SocketAddr]) {
        let bytes = message(
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            &load_assignment(cluster, addresses),
        );
        let set = compile::compile_endpoints(&bytes).unwrap().value;
        self.workers
            .update(WorkerUpdate::Endpoints(cluster.into(), set))
            .unwrap();
        self.flush();
    }

    pub fn flush(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(self.workers.flush());
    }

    /// One listener on a free port that routes everything to one static cluster `up`.
    pub fn simple(addresses: &[SocketAddr]) -> (Proxy, SocketAddr) {
        Proxy::with(json!({}), json!({ "cluster": "up" }), json!({}), addresses)
    }

    /// The same with changes to connection manager, route action and cluster.
    pub fn with(
        manager: Value,
        action: Value,
        cluster: Value,
        addresses: &[SocketAddr],
    ) -> (Proxy, SocketAddr) {
        let proxy = Proxy::start(1);
        proxy.cluster(&merged(static_cluster("up", addresses), cluster));
        let table = route_table(
            "all",
            json!([{ "match": { "prefix": "/" }, "route": action }]),
        );
        let address = proxy.listener(&http_listener(
            "l",
            merged(json!({ "route_config": table }), manager),
        ));
        (proxy, address)
    }

    /// A counter or gauge of cluster `up`.
    pub fn stat(&self, name: &str) -> u64 {
        self.workers.stats().cluster("up", name)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.workers.shutdown(Duration::from_secs(5));
    }
}

/// Fields of `over` replace or extend those of `base`.
pub fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let slot = base.entry(key).or_insert(Value::Null);
                *slot = merged(slot.take(), value);
            }
        }
        (base, over) => *base = over,
    }
    base
}

pub fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn load_assignment(cluster: &str, addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|a| json!({ "endpoint": { "address": socket(*a) } }))
        .collect();
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": endpoints }] })
}

pub fn static_cluster(name: &str, addresses: &[SocketAddr]) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": load_assignment(name, addresses),
    })
}

pub fn eds_cluster(name: &str) -> Value {
    json!({
        "name": name,
        "type": "EDS",
        "connect_timeout": "5s",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
    })
}

/// HTTP/2 towards the endpoints.
pub fn http2_upstream() -> Value {
    json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        }
    }})
}

pub fn route_table(name: &str, routes: Value) -> Value {
    json!({ "name": name, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] })
}

pub fn http_listener(name: &str, manager: Value) -> Value {
    let base = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    listener(
        name,
        "envoy.filters.network.http_connection_manager",
        merged(base, manager),
    )
}

pub fn tcp_listener(name: &str, proxy: Value) -> Value {
    let base = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
    });
    listener(name, "envoy.filters.network.tcp_proxy", merged(base, proxy))
}

fn listener(name: &str, filter: &str, config: Value) -> Value {
    json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": filter, "typed_config": config }] }],
    })
}

/// An upstream; its connections are served by threads.
pub struct Upstream {
    pub address: SocketAddr,
    /// Connections taken so far.
    pub connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Serves each connection with `serve`, which gets the number of the connection.
    pub fn raw(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (connections.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let number = count.fetch_add(1, SeqCst);
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream, number));
            }
        });
        Upstream {
            address,
            connections,
        }
    }

    /// Answers each request with the bytes `answer` makes of it.
    pub fn http(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Upstream {
        Upstream::raw(move |mut stream, _| {
            let mut left = Vec::new();
            while let Some(seen) = read_message(&mut stream, &mut left, false) {
                if stream.write_all(&answer(&seen)).is_err() {
                    return;
                }
            }
        })
    }

    /// Answers every request with 200 and `body`.
    pub fn fixed(body: &str) -> Upstream {
        let answer = ok(body);
        Upstream::http(move |_| answer.clone())
    }

    /// Answers with the request it saw.
    pub fn echo() -> Upstream {
        Upstream::http(|seen| {
            ok(&format!(
                "{}{}",
                seen.head,
                String::from_utf8_lossy(&seen.body)
            ))
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// A message as it stood on the wire; its body decoded.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// With the empty line.
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
}

impl Seen {
    pub fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0)
    }

    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, value) = line.split_once(": ")?;
            n.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn more(stream: &mut TcpStream, left: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 65536];
    match stream.read(&mut buffer) {
        Ok(n) if n > 0 => {
            left.extend_from_slice(&buffer[..n]);
            true
        }
        _ => false,
    }
}

fn line(stream: &mut TcpStream, left: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = left.windows(2).position(|w| w == b"\r\n") {
            let line = String::from_utf8_lossy(&left[..at]).into_owned();
            left.drain(..at + 2);
            return Some(line);
        }
        if !more(stream, left) {
            return None;
        }
    }
}

fn exactly(stream: &mut TcpStream, left: &mut Vec<u8>, n: usize) -> Option<Vec<u8>> {
    while left.len() < n {
        if !more(stream, left) {
            return None;
        }
    }
    Some(left.drain(..n).collect())
}

/// Reads one message. `bodiless`: whatever its head says.
pub fn read_message(stream: &mut TcpStream, left: &mut Vec<u8>, bodiless: bool) -> Option<Seen> {
    let mut seen = Seen::default();
    loop {
        let line = line(stream, left)?;
        seen.head.push_str(&line);
        seen.head.push_str("\r\n");
        if line.is_empty() {
            break;
        }
    }
    let response = seen.head.starts_with("HTTP/");
    if bodiless || (response && matches!(seen.status(), 100..=199 | 204 | 304)) {
        return Some(seen);
    }
    if seen.header("transfer-encoding").is_some() {
        loop {
            let size = line(stream, left)?;
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                break;
            }
            seen.body.extend(exactly(stream, left, size)?);
            exactly(stream, left, 2)?;
        }
        loop {
            let line = line(stream, left)?;
            if line.is_empty() {
                return Some(seen);
            }
            seen.trailers.push_str(&line);
            seen.trailers.push_str("\r\n");
        }
    }
    if let Some(length) = seen.header("content-length") {
        let length = length.parse().ok()?;
        seen.body = exactly(stream, left, length)?;
    } else if response {
        while more(stream, left) {}
        seen.body = std::mem::take(left);
    }
    Some(seen)
}

/// A client's connection.
pub struct Client {
    pub stream: TcpStream,
    left: Vec<u8>,
}

impl Client {
    pub fn new(to: SocketAddr) -> Client {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client {
            stream,
            left: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).unwrap();
    }

    pub fn read(&mut self) -> Seen {
        self.try_read().expect("a whole response")
    }

    /// [`None`]: the connection ended before the response did.
    pub fn try_read(&mut self) -> Option<Seen> {
        read_message(&mut self.stream, &mut self.left, false)
    }

    /// The response to a HEAD request.
    pub fn read_head(&mut self) -> Seen {
        read_message(&mut self.stream, &mut self.left, true).expect("a response head")
    }

    pub fn get(&mut self, path: &str) -> Seen {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.read()
    }

    /// Everything until the proxy closes.
    pub fn rest(&mut self) -> String {
        while more(&mut self.stream, &mut self.left) {}
        String::from_utf8_lossy(&std::mem::take(&mut self.left)).into_owned()
    }

    pub fn closed(&mut self) -> bool {
        self.left.is_empty()
            && match self.stream.read(&mut [0; 1]) {
                Ok(n) => n == 0,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
    }
}

/// One request on a connection of its own.
pub fn exchange(to: SocketAddr, request: &str) -> Seen {
    let mut client = Client::new(to);
    client.send(request);
    client.read()
}

pub fn get(to: SocketAddr, path: &str) -> Seen {
    Client::new(to).get(path)
}

/// A port of 127.0.0.1 where nobody listens and, as long as this is held, nobody else can.
pub struct Closed {
    pub address: SocketAddr,
    _bound: tokio::net::TcpSocket,
}

impl Closed {
    pub fn port() -> Closed {
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Closed {
            address: bound.local_addr().unwrap(),
            _bound: bound,
        }
    }
}

/// Something that opens once.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open);
        assert!(!waited.unwrap().1.timed_out(), "the gate stays closed");
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
