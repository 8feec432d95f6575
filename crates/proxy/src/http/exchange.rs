//! What is known about one request while it is served, and what is made of it at its end.
//!
//! Invariant: every request that began is finished exactly once, with one outcome, one count and
//! one line per access log.

use super::filters::Marks;
use super::head::{RequestHead, ResponseHead, Version};
use super::headers::{HeaderBlock, Known};
use super::metadata::DynamicMetadata;
use super::request::Routed;
use super::service::HttpService;
use super::stream::Downstream;
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, EndpointStat, HttpStat, count_http_status};
use crate::upstream::{ActiveCluster, Host};
use crate::worker::state::Worker;
use lateen_proxy_config::HeaderOps;
use lateen_proxy_config::route::{ClusterTarget, RouteAction};
use lateen_telemetry::format::{Field, Headers, Source, Value};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

/// One request.
pub(crate) struct Exchange {
    pub worker: Rc<Worker>,
    pub service: Rc<HttpService>,
    pub conn: Rc<ConnInfo>,
    pub request: RequestHead,
    pub response: Option<ResponseHead>,
    /// Of the response.
    pub trailers: Option<Box<HeaderBlock>>,
    /// Decides everything about this request that chance decides.
    pub random: u64,
    pub started: Instant,
    /// When the last try's response began.
    pub answered: Option<Instant>,
    /// When the last byte of the response had gone.
    pub ended: Option<Instant>,
    pub outcome: Outcome,
    /// Sent to the client; 0: none.
    pub status: u16,
    /// Bytes of bodies.
    pub received: u64,
    pub sent: u64,
    pub tries: u32,
    /// A retry was wanted but no more were allowed.
    pub retries_exhausted: bool,
    pub cluster: Option<Rc<ActiveCluster>>,
    pub host: Option<Rc<Host>>,
    pub upstream_http2: bool,
    /// Why the last TLS handshake with an endpoint failed.
    pub tls_failure: Option<Rc<TlsFailure>>,
    /// Of the route, for this request.
    pub timeout: Option<std::time::Duration>,
    /// Which of the weighted clusters was chosen.
    pub weighted: Option<u32>,
    /// Decides on the endpoint in clusters that hash.
    pub hash: Option<u64>,
    /// To be added to the response.
    pub set_cookies: Vec<Vec<u8>>,
    /// What filters have noted, boxed since most requests have nothing of it.
    pub marks: Option<Box<Marks>>,
    /// Where the request comes from, when trusted proxies say so.
    pub remote: Option<IpAddr>,
    /// What filters have found out, for those after them.
    pub metadata: DynamicMetadata,
}

impl Exchange {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        service: &Rc<HttpService>,
        conn: &Rc<ConnInfo>,
        mut request: RequestHead,
    ) -> Exchange {
        request.https |= conn.tls().is_some();
        service.stats.inc(HttpStat::DownstreamRqTotal);
        service.stats.inc(HttpStat::DownstreamRqActive);
        service.stats.inc(match request.version {
            Version::Http2 => HttpStat::DownstreamRqHttp2Total,
            _ => HttpStat::DownstreamRqHttp1Total,
        });
        Exchange {
            random: worker.random(),
            worker: worker.clone(),
            service: service.clone(),
            conn: conn.clone(),
            request,
            response: None,
            trailers: None,
            started: worker.timers.read().0,
            answered: None,
            ended: None,
            outcome: Outcome::Answered,
            status: 0,
            received: 0,
            sent: 0,
            tries: 0,
            retries_exhausted: false,
            cluster: None,
            host: None,
            upstream_http2: false,
            tls_failure: None,
            timeout: None,
            weighted: None,
            hash: None,
            set_cookies: Vec::new(),
            marks: None,
            remote: None,
            metadata: DynamicMetadata::default(),
        }
    }

    /// Remembers why a TLS handshake failed, if that is what a try failed for.
    pub(super) fn note_tls_failure(&mut self, outcome: Outcome, host: &Host) {
        if outcome != Outcome::TlsFailure {
            self.tls_failure = None;
            return;
        }
        let reason = host.tls_failure.borrow().clone();
        let reason = reason.unwrap_or_else(|| "".into());
        self.tls_failure = Some(Rc::new(TlsFailure {
            details: format!(
                "upstream_reset_before_response_started{{remote_connection_failure|{reason}}}"
            ),
            body: format!(
                "{}, transport failure reason: {reason}",
                Outcome::TlsFailure.row().body
            ),
            reason,
        }));
    }

    /// To be called when a response head is about to be sent: tells the client to go if it should.
    /// As Envoy, this is decided by the moment of the response, not of the request.
    pub(super) fn note_drain(&self, down: &mut impl Downstream) {
        if self.conn.draining() && self.request.version != Version::Http2 {
            self.service.stats.inc(HttpStat::DownstreamCxDrainClose);
            down.is_last();
        }
    }

    /// The header operations of the weighted cluster that was chosen.
    pub(super) fn cluster_ops<'a>(&self, routed: Routed<'a>) -> Option<&'a HeaderOps> {
        let RouteAction::Forward(to) = &routed.route.action else {
            return None;
        };
        let ClusterTarget::Weighted(weighted) = &to.cluster else {
            return None;
        };
        weighted
            .clusters
            .get(usize::try_from(self.weighted?).ok()?)
            .map(|cluster| &cluster.headers)
    }

    /// The request as a format sees it.
    pub(super) fn facts<'a>(&'a self, routed: Option<Routed<'a>>) -> Facts<'a> {
        Facts {
            x: self,
            routed,
            response: self.response.as_ref(),
            flags: self.flags(),
        }
    }

    fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        for (set, word) in [
            (self.marks.as_ref().is_some_and(|m| m.delayed), "DI"),
            (self.retries_exhausted, "URX"),
            (true, self.outcome.row().flag),
        ] {
            if set && !word.is_empty() {
                flags.words[flags.len] = word;
                flags.len += 1;
            }
        }
        flags
    }

    /// Counts and logs the request, and gives its memory back.
    pub(crate) fn finish(self, routed: Option<Routed<'_>>) {
        let stats = &self.service.stats;
        stats.dec(HttpStat::DownstreamRqActive);
        if self.status != 0 {
            count_http_status(stats, self.status);
        }
        let row = self.outcome.row();
        if let Some(stat) = row.http_stat {
            stats.inc(stat);
        }
        match self.outcome {
            Outcome::DirectResponse => stats.inc(HttpStat::RqDirectResponse),
            Outcome::Redirected => stats.inc(HttpStat::RqRedirect),
            _ => {}
        }
        let took = self.ended.unwrap_or_else(|| self.worker.timers.read().0) - self.started;
        stats.latency(took.as_micros() as u64);
        if let Some(cluster) = &self.cluster
            && self.outcome == Outcome::ClientGone
        {
            cluster.stats.inc(ClusterStat::UpstreamRqCancelled);
        }
        if !self.service.logs.is_empty() {
            let facts = self.facts(routed);
            self.service.logs.iter().for_each(|log| log.write(&facts));
        }
        self.worker.recycle(self.request.headers);
        if let Some(response) = self.response {
            self.worker.recycle(response.headers);
        }
    }

    /// Counts what a try came to, on its endpoint.
    pub(super) fn count_try(&self, failed: Option<Outcome>) {
        let (Some(cluster), Some(host)) = (&self.cluster, &self.host) else {
            return;
        };
        let stats = host.stats(cluster);
        match failed {
            None => stats.inc(EndpointStat::RqSuccess),
            Some(Outcome::PerTryTimeout | Outcome::RouteTimeout) => {
                stats.inc(EndpointStat::RqTimeout);
                stats.inc(EndpointStat::RqError);
            }
            Some(_) => stats.inc(EndpointStat::RqError),
        }
    }
}

/// A TLS handshake that failed, as Envoy words it.
#[derive(Clone, Debug)]
pub(crate) struct TlsFailure {
    pub reason: Rc<str>,
    pub details: String,
    pub body: String,
}

/// Up to three response flags, without allocating.
#[derive(Clone, Copy, Default)]
struct Flags {
    words: [&'static str; 3],
    len: usize,
}

/// An [`Exchange`] with what belongs to it but is borrowed from elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    x: &'a Exchange,
    routed: Option<Routed<'a>>,
    response: Option<&'a ResponseHead>,
    flags: Flags,
}

impl<'a> Facts<'a> {
    /// A response that is not part of the exchange yet.
    pub(super) fn with_response(self, response: &'a ResponseHead) -> Facts<'a> {
        Facts {
            response: Some(response),
            ..self
        }
    }
}

impl Source for Facts<'_> {
    fn header(&self, of: Headers, name: &str) -> Option<&[u8]> {
        let request = &self.x.request;
        match of {
            Headers::Request => match name {
                ":method" => Some(request.method_bytes()),
                ":path" => Some(request.path_bytes()),
                ":authority" => Some(request.authority_bytes()),
                ":scheme" => Some(if request.https { b"https" } else { b"http" }),
                name => request.headers.get_name(name.as_bytes()),
            },
            Headers::Response => self.response?.headers.get_name(name.as_bytes()),
            Headers::ResponseTrailers => self.x.trailers.as_ref()?.get_name(name.as_bytes()),
        }
    }

    fn value(&self, field: Field) -> Value<'_> {
        let x = self.x;
        let millis = |d: std::time::Duration| Value::Number(d.as_millis() as u64);
        // The clock is read for what has not ended yet only.
        let end = || x.ended.unwrap_or_else(Instant::now);
        let since = |at: Instant| end().saturating_duration_since(at);
        match field {
            Field::StartTime => Value::Time(SystemTime::now() - since(x.started)),
            Field::Protocol => Value::Text(x.request.version.name().as_bytes()),
            Field::ResponseCode => Value::Number(u64::from(x.status)),
            Field::ResponseCodeDetails => Value::Text(match &x.tls_failure {
                _ if x.marks.as_ref().is_some_and(|m| m.details.is_some()) => {
                    let details = x.marks.as_ref().and_then(|m| m.details.as_deref());
                    details.unwrap_or_default().as_bytes()
                }
                Some(failure) if x.outcome == Outcome::TlsFailure => failure.details.as_bytes(),
                _ => x.outcome.row().details.as_bytes(),
            }),
            Field::UpstreamTransportFailureReason if x.outcome == Outcome::TlsFailure => {
                Value::text(x.tls_failure.as_ref().map(|failure| &*failure.reason))
            }
            Field::UpstreamTransportFailureReason => {
                let reason = x.outcome.transport_failure();
                Value::text(Some(reason).filter(|reason| !reason.is_empty()))
            }
            Field::ResponseFlags if self.flags.len == 0 => Value::Absent,
            Field::ResponseFlags => Value::List(&self.flags.words[..self.flags.len]),
            Field::BytesReceived => Value::Number(x.received),
            Field::BytesSent => Value::Number(x.sent),
            Field::Duration => millis(since(x.started)),
            Field::ResponseDuration => match x.answered {
                Some(at) => millis(at.saturating_duration_since(x.started)),
                None => Value::Absent,
            },
            Field::ResponseTxDuration => match x.answered {
                Some(at) => millis(since(at)),
                None => Value::Absent,
            },
            Field::UpstreamHost | Field::UpstreamRemoteAddress => match &x.host {
                Some(host) => Value::Address(host.address),
                None => Value::Absent,
            },
            Field::UpstreamHostName => Value::text(
                x.host
                    .as_ref()
                    .map(|host| &*host.hostname)
                    .filter(|h| !h.is_empty()),
            ),
            Field::UpstreamCluster => {
                let chosen = x.cluster.as_ref().map(|cluster| &*cluster.config.stat_name);
                Value::text(chosen.or_else(|| self.cluster_of_route()))
            }
            Field::UpstreamClusterRaw => {
                let chosen = x.cluster.as_ref().map(|cluster| &*cluster.config.name);
                Value::text(chosen.or_else(|| self.cluster_of_route()))
            }
            Field::UpstreamProtocol => match &x.host {
                Some(_) if x.upstream_http2 => Value::Text(b"HTTP/2"),
                Some(_) => Value::Text(b"HTTP/1.1"),
                None => Value::Absent,
            },
            Field::UpstreamRequestAttemptCount => Value::Number(u64::from(x.tries)),
            Field::DownstreamRemoteAddress => Value::Address(match x.remote {
                // Of an address in a header no port is known.
                Some(remote) => SocketAddr::new(remote, 0),
                None => x.conn.peer,
            }),
            Field::DownstreamDirectRemoteAddress => Value::Address(x.conn.direct_peer()),
            Field::RequestedServerName => {
                Value::text(Some(x.conn.server_name()).filter(|name| !name.is_empty()))
            }
            Field::DownstreamLocalAddress => Value::Address(x.conn.local),
            Field::ConnectionId => Value::Number(x.conn.id),
            Field::RouteName => {
                let name = self.routed.map(|routed| &*routed.route.name);
                Value::text(name.filter(|name| !name.is_empty()))
            }
            Field::FilterChainName => {
                Value::text(Some(&*x.service.chain).filter(|n| !n.is_empty()))
            }
            Field::GrpcStatus => match self.grpc_status() {
                Some(status) => Value::Number(status),
                None => Value::Absent,
            },
            Field::AccessLogType => Value::Text(b"DownstreamEnd"),
            field => x.conn.tls().map_or(Value::Absent, |tls| tls.value(field)),
        }
    }

    fn metadata(&self, namespace: &str, path: &[Box<str>]) -> Option<&serde_json::Value> {
        self.x.metadata.get(namespace, path)
    }
}

impl Facts<'_> {
    /// Where the request would have gone, had a filter not answered it.
    fn cluster_of_route(&self) -> Option<&str> {
        if self.x.outcome == Outcome::NoCluster {
            return None;
        }
        match &self.routed?.route.action {
            RouteAction::Forward(to) => match &to.cluster {
                ClusterTarget::One(name) => Some(name),
                _ => None,
            },
            _ => None,
        }
    }

    fn grpc_status(&self) -> Option<u64> {
        let trailer = self
            .x
            .trailers
            .as_ref()
            .and_then(|t| t.get(Known::GrpcStatus));
        let value = trailer.or_else(|| self.response?.headers.get(Known::GrpcStatus))?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}
