//! TLS to the control plane, as the bootstrap has it: the context that a cluster would have, with
//! the same secrets, for the one connection that the main thread makes itself.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::TransportSocket;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_proto::Descriptors;
use lateen_proxy_config::compile::compile_cluster;
use lateen_proxy_config::{SecretRef, UpstreamTls};
use lateen_xds::client::{Connection, Secure, Socket, Target};
use prost::Message;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::tls::{self, ClientSlot};

/// While the first certificate is on its way; less than a connection may take.
const SECRETS: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(5);
const SOCKET: &str = "envoy.config.core.v3.TransportSocket";

/// The context of a `TransportSocket` in proto3 JSON; `None`: it says plaintext.
pub(super) fn compile(transport_socket: &Value) -> Result<Option<Arc<UpstreamTls>>, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let descriptors = Descriptors::load_transport_sockets().map_err(|error| said(&error))?;
    let socket = descriptors.json_to_message(SOCKET, transport_socket);
    let socket = TransportSocket::decode(&*socket.map_err(|error| said(&error))?);
    let cluster = Cluster {
        name: "control plane".to_owned(),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: "control plane".to_owned(),
            ..Default::default()
        }),
        transport_socket: Some(socket.map_err(|error| said(&error))?),
        ..Default::default()
    };
    let compiled = compile_cluster(&cluster.encode_to_vec()).map_err(|error| said(&error))?;
    tls::check(std::iter::empty(), compiled.value.tls()).map_err(|error| said(&error))?;
    Ok(compiled.value.tls().next().cloned())
}

/// What the context waits for.
pub(super) fn secrets(tls: &UpstreamTls) -> BTreeSet<SecretRef> {
    tls.common.secrets().cloned().collect()
}

/// Every connection is made with the newest certificate.
pub(super) fn secure(slot: Arc<ClientSlot>, target: &Target) -> Secure {
    let host = match target {
        Target::Tcp { host, .. } => host.clone(),
        Target::Unix(_) => String::new(),
    };
    let name = slot.tls.sni.as_deref().map_or(host, str::to_owned);
    Secure(Arc::new(move |socket| {
        let (slot, name) = (slot.clone(), name.clone());
        Box::pin(async move {
            let stream: Box<dyn Connection> = Box::new(connect(&slot, name, socket).await?);
            Ok(stream)
        })
    }))
}

async fn connect(
    slot: &ClientSlot,
    name: String,
    socket: Socket,
) -> io::Result<tokio_rustls::client::TlsStream<Socket>> {
    let arrived = async {
        loop {
            match slot.get() {
                Some(context) => return context,
                None => tokio::time::sleep(POLL).await,
            }
        }
    };
    let context = tokio::time::timeout(SECRETS, arrived).await.map_err(|_| {
        let names: Vec<_> = slot
            .tls
            .common
            .secrets()
            .map(|whose| &*whose.name)
            .collect();
        io::Error::other(format!(
            "no certificate to connect with: the secrets {} have not arrived",
            names.join(", ")
        ))
    })?;
    let name = ServerName::try_from(name.clone())
        .map_err(|error| io::Error::other(format!("sni {name:?}: {error}")))?;
    let connector = TlsConnector::from(context.http2.clone());
    connector.connect(name, socket).await
}
