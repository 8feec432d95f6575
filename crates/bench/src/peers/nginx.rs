//! nginx: a master and one worker. Debian's light package has no TCP proxy, so it takes no part
//! there.

use std::process::Command;

use crate::contestant::Contestant;
use crate::error::Result;
use crate::ground::{Ground, free_port, loopback, program};

pub fn start(ground: &Ground, name: &str) -> Result<Contestant> {
    let path = program("nginx", None, "apt-get install nginx-light")?;
    let (http, h2) = (free_port()?, free_port()?);
    let (pair, mtls) = (free_port()?, free_port()?);
    let text = configuration(ground, http, h2, &encrypted(ground, pair, mtls));
    let config = ground.write("nginx.conf", &text)?;
    let process = ground.start_proxy(
        name,
        Command::new(path)
            .args(["-e", "stderr", "-p"])
            .arg(ground.directory())
            .arg("-c")
            .arg(config),
    )?;
    Contestant {
        http: loopback(http),
        h2: loopback(h2),
        tcp: None,
        pair: Some(loopback(pair)),
        mtls: Some(loopback(mtls)),
        process: Some(process),
    }
    .wait_until_ready(|| None)
}

/// `keepalive` must hold as many idle upstream connections as there are clients, or nginx opens
/// new ones all the time; `keepalive_requests` is 1000 by default.
fn configuration(ground: &Ground, http: u16, h2: u16, encrypted: &str) -> String {
    let backend = ground.backend.http;
    let connections = ground.descriptors.saturating_sub(100);
    format!(
        "daemon off;
worker_processes 1;
error_log stderr warn;
pid nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path nginx-body;
    proxy_temp_path nginx-proxy;
    fastcgi_temp_path nginx-fastcgi;
    uwsgi_temp_path nginx-uwsgi;
    scgi_temp_path nginx-scgi;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    upstream backend {{
        server {backend};
        keepalive 1024;
        keepalive_timeout 1h;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{h2} http2;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
{encrypted}}}
"
    )
}

/// Two hops of mutual TLS through this one worker.
fn encrypted(ground: &Ground, pair: u16, mtls: u16) -> String {
    let files = ground.directory().display();
    format!(
        "    upstream encrypted {{
        server 127.0.0.1:{mtls};
        keepalive 1024;
        keepalive_timeout 1h;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{pair};
        location / {{
            proxy_pass https://encrypted;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_ssl_certificate {files}/client.pem;
            proxy_ssl_certificate_key {files}/client.key;
            proxy_ssl_trusted_certificate {files}/ca.pem;
            proxy_ssl_verify on;
            proxy_ssl_name backend.bench;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
        }}
    }}
    server {{
        listen 127.0.0.1:{mtls} ssl;
        ssl_certificate {files}/server.pem;
        ssl_certificate_key {files}/server.key;
        ssl_client_certificate {files}/ca.pem;
        ssl_verify_client on;
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
"
    )
}
