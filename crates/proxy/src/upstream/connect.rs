//! A new connection to an endpoint: socket, PROXY header, TLS handshake.

use super::{ActiveCluster, Host};
use crate::http::head::RequestHead;
use crate::io::Io;
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, EndpointStat};
use crate::tls::handshake::{self, Failed, Offer};
use crate::tls::{ClientSlot, TlsStore, proxy_header};
use lateen_proxy_config::{Cluster, ProxyVersion, UpstreamTransport};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// What carries the bytes to some of a cluster's endpoints.
pub(crate) struct HostTransport {
    proxy_header: Option<ProxyVersion>,
    tls: Option<Arc<ClientSlot>>,
}

/// The transports of a cluster: the default, then those for matching endpoints.
pub(super) fn transports(config: &Cluster, store: &TlsStore) -> Vec<HostTransport> {
    let for_name = config.http.auto_san_validation;
    let matched = config
        .transport_matches
        .iter()
        .map(|(_, transport)| transport);
    let all = std::iter::once(&config.transport).chain(matched);
    all.map(|UpstreamTransport { proxy_header, tls }| HostTransport {
        proxy_header: *proxy_header,
        tls: tls.as_ref().map(|tls| store.client(tls, for_name)),
    })
    .collect()
}

/// Whether connections of one generation of a cluster may serve the next.
pub(super) fn same_transports(a: &Cluster, b: &Cluster) -> bool {
    a.transport.is_same(&b.transport)
        && a.transport_matches.len() == b.transport_matches.len()
        && a.transport_matches
            .iter()
            .zip(&b.transport_matches)
            .all(|((ours, to), (theirs, other))| ours == theirs && to.is_same(other))
        && a.http.auto_sni == b.http.auto_sni
        && a.http.auto_san_validation == b.http.auto_san_validation
        && a.http.sni_header == b.http.sni_header
}

/// Why there is no connection.
enum NotMade {
    Socket(ErrorKind),
    Tls(Failed),
}

/// What a connection is tied to besides its endpoint: requests that differ in this cannot share it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnKey {
    server_name: Option<Box<str>>,
    /// Of the client, for the PROXY header: where from, and where to.
    client: Option<(SocketAddr, SocketAddr)>,
}

impl ActiveCluster {
    /// What a connection for this request is tied to; [`None`] for most clusters.
    pub(crate) fn conn_key(&self, head: &RequestHead, client: &ConnInfo) -> Option<Rc<ConnKey>> {
        if self.transports.iter().all(HostTransport::is_simple) {
            return None;
        }
        let http = &self.config.http;
        let encrypted = self.transports.iter().any(|t| t.tls.is_some());
        let server_name = (http.auto_sni && encrypted).then(|| {
            let name = match &http.sni_header {
                Some(name) => head.headers.get_name(name.as_bytes()),
                None => None,
            };
            host_of(name.unwrap_or(head.authority_bytes()))
        });
        let server_name = server_name.flatten();
        let headers = self.transports.iter().any(|t| t.proxy_header.is_some());
        let client = headers.then_some((client.peer, client.local));
        (server_name.is_some() || client.is_some()).then(|| {
            Rc::new(ConnKey {
                server_name,
                client,
            })
        })
    }

    /// The same for a connection that is not of HTTP.
    pub(crate) fn tcp_key(&self, client: &ConnInfo) -> Option<Rc<ConnKey>> {
        let headers = self.transports.iter().any(|t| t.proxy_header.is_some());
        headers.then(|| {
            Rc::new(ConnKey {
                server_name: None,
                client: Some((client.peer, client.local)),
            })
        })
    }

    /// A new connection to the endpoint; and whether its server chose HTTP/2.
    pub(crate) async fn connect(
        &self,
        host: &Host,
        key: Option<&ConnKey>,
        offer: Offer,
    ) -> Result<(Io, bool), Outcome> {
        let limit = self.config.connect_timeout;
        let failed = match tokio::time::timeout(limit, self.make(host, key, offer)).await {
            Ok(Ok(made)) => return Ok(made),
            Ok(Err(NotMade::Socket(kind))) => match kind {
                ErrorKind::ConnectionRefused => Outcome::ConnectRefused,
                _ => Outcome::ConnectFailure,
            },
            Ok(Err(NotMade::Tls(failed))) => {
                self.count_tls(&failed);
                *host.tls_failure.borrow_mut() = Some(failed.reason().into());
                Outcome::TlsFailure
            }
            Err(_) => {
                self.stats.inc(ClusterStat::UpstreamCxConnectTimeout);
                Outcome::ConnectTimeout
            }
        };
        self.stats.inc(ClusterStat::UpstreamCxConnectFail);
        host.stats(self).inc(EndpointStat::CxConnectFail);
        Err(failed)
    }

    async fn make(
        &self,
        host: &Host,
        key: Option<&ConnKey>,
        offer: Offer,
    ) -> Result<(Io, bool), NotMade> {
        let tcp = match &host.pipe {
            None => self.dial(host.address).await,
            Some(path) => crate::unix::dial(path).await,
        };
        let socket = |error: std::io::Error| NotMade::Socket(error.kind());
        let mut tcp = tcp.map_err(socket)?;
        if let (Some(keepalive), None) = (&self.config.tcp_keepalive, &host.pipe) {
            super::pool::set_keepalive(&tcp, keepalive);
        }
        let Some(transport) = self.transports.get(host.transport) else {
            return Err(NotMade::Socket(ErrorKind::Other));
        };
        if let Some(version) = transport.proxy_header {
            let header = proxy_header::write(version, key.and_then(|key| key.client));
            tcp.write_all(&header).await.map_err(socket)?;
        }
        let Some(slot) = &transport.tls else {
            return Ok((Io::new(tcp), false));
        };
        let of_request = key.and_then(|key| key.server_name.as_deref());
        let of_host =
            Some(&*host.hostname).filter(|name| slot.tls.auto_host_sni && !name.is_empty());
        let name = of_request.or(of_host).or(slot.tls.sni.as_deref());
        let shaken = handshake::connect(tcp, slot, offer, name, host.address.ip()).await;
        let made = shaken.map_err(NotMade::Tls)?;
        self.stats.inc(ClusterStat::SslHandshake);
        Ok(made)
    }

    fn count_tls(&self, failed: &Failed) {
        self.stats.inc(match failed {
            Failed::NoSecret => ClusterStat::UpstreamContextSecretsNotReady,
            Failed::Tls(error) => match &**error {
                rustls::Error::InvalidCertificate(
                    rustls::CertificateError::ApplicationVerificationFailure
                    | rustls::CertificateError::NotValidForName,
                ) => ClusterStat::SslFailVerifySan,
                rustls::Error::InvalidCertificate(_) => ClusterStat::SslFailVerifyError,
                _ => ClusterStat::SslConnectionError,
            },
            Failed::Timeout | Failed::Closed => ClusterStat::SslConnectionError,
        });
    }
}

impl HostTransport {
    fn is_simple(&self) -> bool {
        self.proxy_header.is_none() && self.tls.is_none()
    }
}

/// The host of an authority, without port, in lower case.
fn host_of(authority: &[u8]) -> Option<Box<str>> {
    let authority = std::str::from_utf8(authority).ok()?;
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => match authority.rsplit_once(':') {
            Some((host, _)) if !host.contains(':') => host,
            _ => authority,
        },
    };
    (!host.is_empty()).then(|| host.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_server_name_is_the_authority_without_port() {
        for (authority, host) in [
            ("A.test:443", Some("a.test")),
            ("a.test", Some("a.test")),
            ("[::1]:443", Some("::1")),
            ("::1", Some("::1")),
            ("", None),
            (":80", None),
        ] {
            assert_eq!(
                host_of(authority.as_bytes()).as_deref(),
                host,
                "{authority}"
            );
        }
    }
}
