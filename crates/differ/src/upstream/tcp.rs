//! TCP upstreams. A connection belongs to the case whose name its first line is.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Upstream, reset};
use crate::corpus::UpstreamKind;
use crate::outcome;
use crate::wire;
use crate::world::Plane;

/// A connection that is quiet for so long is written down as it is.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn serve(
    upstream: Arc<Upstream>,
    plane: Plane,
    kind: UpstreamKind,
    mut stream: TcpStream,
) {
    if kind == UpstreamKind::TcpGreet {
        let greeting = format!("{}\n", upstream.name);
        if stream.write_all(greeting.as_bytes()).await.is_err() {
            return;
        }
    }
    let mut got = Vec::new();
    let mut buffer = [0; 16_384];
    let ended = loop {
        match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await {
            Err(_) => break "quiet",
            Ok(Ok(0)) => break "closed",
            Ok(Err(_)) => break "reset",
            Ok(Ok(count)) => {
                got.extend(&buffer[..count]);
                if kind == UpstreamKind::TcpReset {
                    reset(&stream);
                    break "reset by the upstream";
                }
                if stream.write_all(&buffer[..count]).await.is_err() {
                    break "reset";
                }
            }
        }
    };
    let text = wire::text(&got);
    let case = text.split(['\r', '\n']).next().unwrap_or_default();
    let case = (case.split('/').count() == 3).then(|| case.to_owned());
    let seen = json!({"bytes": outcome::body(&got), "ended": ended});
    upstream.record(plane, case, seen);
}
