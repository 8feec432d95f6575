//! HAProxy: one process, one thread, connections to the server reused always.

use std::process::Command;

use crate::contestant::Contestant;
use crate::error::Result;
use crate::ground::{Ground, free_port, loopback, program};

pub fn start(ground: &Ground, name: &str) -> Result<Contestant> {
    let path = program("haproxy", None, "apt-get install haproxy")?;
    let (http, h2, tcp) = (free_port()?, free_port()?, free_port()?);
    let (pair, mtls) = (free_port()?, free_port()?);
    let text = configuration(ground, http, h2, tcp) + &encrypted(ground, pair, mtls);
    let config = ground.write("haproxy.cfg", &text)?;
    // -db: stay in the foreground, no master process.
    let process = ground.start_proxy(name, Command::new(path).arg("-db").arg("-f").arg(config))?;
    Contestant {
        http: loopback(http),
        h2: loopback(h2),
        tcp: Some(loopback(tcp)),
        pair: Some(loopback(pair)),
        mtls: Some(loopback(mtls)),
        process: Some(process),
    }
    .wait_until_ready(|| None)
}

fn configuration(ground: &Ground, http: u16, h2: u16, tcp: u16) -> String {
    // HAProxy wants two descriptors per connection and a few more, or does not start.
    let most = (ground.descriptors / 2).saturating_sub(100).min(15_000);
    let (backend_http, backend_tcp) = (ground.backend.http, ground.backend.tcp);
    format!(
        "global
    nbthread 1
    maxconn {most}

defaults
    maxconn {most}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h

frontend http
    mode http
    bind 127.0.0.1:{http}
    bind 127.0.0.1:{h2} proto h2
    default_backend http

backend http
    mode http
    http-reuse always
    server backend {backend_http}

frontend tcp
    mode tcp
    bind 127.0.0.1:{tcp}
    default_backend tcp

backend tcp
    mode tcp
    server backend {backend_tcp}
"
    )
}

/// Two hops of mutual TLS through this one process.
fn encrypted(ground: &Ground, pair: u16, mtls: u16) -> String {
    let files = ground.directory().display();
    format!(
        "
frontend pair
    mode http
    bind 127.0.0.1:{pair}
    default_backend encrypted

backend encrypted
    mode http
    http-reuse always
    server mtls 127.0.0.1:{mtls} ssl crt {files}/client.both ca-file {files}/ca.pem verify required

frontend mtls
    mode http
    bind 127.0.0.1:{mtls} ssl crt {files}/server.both ca-file {files}/ca.pem verify required
    default_backend http
"
    )
}
