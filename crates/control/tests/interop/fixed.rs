//! A proxy of either kind with a configuration of its own and no control plane: for what Envoy and
//! our proxy can do, but no document of a mesh asks for.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use lateen_testkit::certificates::Pair;
use lateen_testkit::envoy::{Envoy, Plane};
use lateen_testkit::ports;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::mesh::loopback;

/// One listener, one route table, clusters.
pub struct Fixed {
    pub proxy: Envoy,
    pub http: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Fixed {
    /// `manager` is merged into the connection manager. Routes are those of one virtual host `*`,
    /// clusters are names with the port of their endpoint; one whose name ends with `h2` is spoken
    /// to in HTTP/2.
    pub async fn start(
        plane: Plane,
        test: &str,
        manager: Value,
        routes: Value,
        clusters: &[(&str, u16)],
    ) -> Option<Self> {
        let binary = plane.binary(test)?;
        let command = Command::new(&binary);
        let chain = json!({});
        Some(Self::start_by(command, &binary, test, chain, manager, routes, clusters).await)
    }

    /// The same by a command of its own, with what `chain` adds to the filter chain.
    pub async fn start_by(
        command: Command,
        binary: &Path,
        test: &str,
        chain: Value,
        manager: Value,
        routes: Value,
        clusters: &[(&str, u16)],
    ) -> Self {
        let mut chain = chain;
        chain["filters"] = json!([{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": connection_manager(manager, routes),
        }]);
        let directory = tempfile::tempdir().unwrap();
        let (admin, http) = (ports::reserve(), ports::reserve());
        let clusters: Vec<Value> = clusters
            .iter()
            .map(|(name, port)| cluster(name, *port))
            .collect();
        let bootstrap = json!({
            "node": {"id": format!("sidecar~127.0.0.1~{test}~x")},
            "admin": {"address": address(admin)},
            "static_resources": {
                "clusters": clusters,
                "listeners": [{
                    "name": "http",
                    "address": address(http),
                    "filter_chains": [chain],
                }],
            },
        });
        let proxy = Envoy::start_by(command, binary, &bootstrap, directory.path()).await;
        proxy.ready().await;
        Fixed {
            proxy,
            http: loopback(http),
            _directory: directory,
        }
    }

    /// A connection to the listener.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.http).await.unwrap()
    }

    /// An HTTP/2 connection to the listener.
    pub async fn http2(&self) -> Http2 {
        let (sender, connection) = h2::client::handshake(self.connect().await).await.unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Http2 { sender, task }
    }
}

/// A filter chain's TLS, with this certificate.
pub fn tls(pair: &Pair, alpn: &[&str]) -> Value {
    let context = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    json!({"transport_socket": {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("type.googleapis.com/{context}"),
            "common_tls_context": {
                "alpn_protocols": alpn,
                "tls_certificates": [{
                    "certificate_chain": {"inline_string": pair.chain},
                    "private_key": {"inline_string": pair.key},
                }],
            },
        },
    }})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn cluster(name: &str, port: u16) -> Value {
    let endpoint = json!({"endpoint": {"address": address(port)}});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if name.ends_with("h2") {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}},
        }});
    }
    cluster
}

fn connection_manager(own: Value, routes: Value) -> Value {
    let of = |kind: &str| format!("type.googleapis.com/envoy.extensions.filters.{kind}");
    let mut manager = json!({
        "@type": of("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "fixed",
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": of("http.router.v3.Router")},
        }],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    });
    for (name, value) in own.as_object().unwrap() {
        manager[name] = value.clone();
    }
    manager
}

/// A client's HTTP/2 connection.
pub struct Http2 {
    pub sender: h2::client::SendRequest<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream with both directions open.
pub struct Stream {
    pub status: u16,
    pub headers: http::HeaderMap,
    send: h2::SendStream<Bytes>,
    recv: h2::RecvStream,
}

impl Http2 {
    /// A CONNECT, with `:protocol` if one is given; an error is what became of the stream.
    pub async fn tunnel(&mut self, uri: &str, protocol: Option<&str>) -> Result<Stream, String> {
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = uri.parse().unwrap();
        *request.version_mut() = http::Version::HTTP_2;
        if let Some(protocol) = protocol {
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from(protocol));
            request
                .headers_mut()
                .insert("x-tunnel", http::HeaderValue::from_static("yes"));
        }
        let mut sender = self
            .sender
            .clone()
            .ready()
            .await
            .map_err(|e| e.to_string())?;
        let (response, send) = sender
            .send_request(request, false)
            .map_err(|e| e.to_string())?;
        let response = response.await.map_err(|e| e.to_string())?;
        let (parts, recv) = response.into_parts();
        Ok(Stream {
            status: parts.status.as_u16(),
            headers: parts.headers,
            send,
            recv,
        })
    }
}

impl Stream {
    pub fn write(&mut self, bytes: &[u8], end: bool) {
        self.send
            .send_data(Bytes::copy_from_slice(bytes), end)
            .unwrap();
    }

    /// Bytes until there are so many, or the stream has ended.
    pub async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let Some(Ok(data)) = self.recv.data().await else {
                break;
            };
            let _ = self.recv.flow_control().release_capacity(data.len());
            all.extend_from_slice(&data);
        }
        all
    }
}

/// Reads up to the empty line.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A server of one kind of connection: reads a head, answers, then returns what it gets. Its answers
/// say what it got in `x-got`.
pub async fn answers(answer: &'static str) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let got = head(&mut stream).await;
                let got = got.trim_end().replace("\r\n", "|");
                let answer = answer.replace("{got}", &got);
                let _ = stream.write_all(answer.as_bytes()).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (port, task)
}
