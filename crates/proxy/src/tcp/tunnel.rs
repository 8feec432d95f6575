//! TCP through an HTTP proxy: the endpoint is asked by CONNECT (or POST) to pass bytes on, and a
//! connection's bytes are what follows (Envoy's `tunneling_config`).
//!
//! Invariant: nothing is read from the client before the endpoint has agreed, so nothing is ever sent
//! to one that has not.

use super::{Ended, Limits, Passage};
use crate::http::head::{BodyLength, Method, RequestHead};
use crate::http::headers::Known;
use crate::http::stream::{
    Broken, Data, End, Piece, Sink, Source, StreamError, UpstreamStream, poll_transfer,
};
use crate::http::upstream::Upstream;
use crate::http2::client::Http2Stream;
use crate::io::{Backlog, Io};
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::upstream::health::Seen;
use crate::upstream::pool::{Acquired, Wanted};
use crate::upstream::ticket::RequestTicket;
use crate::upstream::{ActiveCluster, Host};
use crate::worker::state::Worker;
use lateen_proxy_config::{Priority, Tunnel as Through};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Interim responses that an endpoint may send before it agrees.
const MAX_INTERIMS: u32 = 64;

/// An endpoint that has agreed.
pub(super) struct Tunnel {
    upstream: Upstream,
    /// Counts the request as long as the tunnel is open.
    _ticket: RequestTicket,
}

/// Asks an endpoint to pass bytes on.
pub(super) async fn open(
    through: &Through,
    cluster: &Rc<ActiveCluster>,
    host: &Rc<Host>,
    client: &ConnInfo,
    worker: &Rc<Worker>,
    limits: &mut Limits<'_>,
) -> Result<Tunnel, Outcome> {
    let ticket = RequestTicket::take(cluster, host, Priority::Default).ok_or(Outcome::Overflow)?;
    let request = request(through, worker);
    let wanted = Wanted {
        priority: Priority::Default,
        downstream_http2: false,
        fresh: false,
        raw: false,
        key: cluster.conn_key(&request, client),
    };
    let acquired = match cluster.take(host, &wanted) {
        Some(acquired) => acquired,
        None => cluster
            .acquire(worker, host, &wanted)
            .await
            .inspect_err(|outcome| {
                let seen = match outcome {
                    Outcome::ConnectTimeout => Seen::LocalTimeout,
                    _ => Seen::LocalFailure,
                };
                host.note(cluster, seen);
            })?,
    };
    host.note(cluster, Seen::ConnectedOnly);
    let mut upstream = match acquired {
        Acquired::Http1(conn) => Upstream::Http1(conn),
        Acquired::Http2(conn) => Upstream::Http2(Box::new(Http2Stream::new(conn))),
    };
    let status = ask(&mut upstream, &request, client, worker, limits).await;
    worker.recycle(request.headers);
    // HTTP/1: RFC 9110 section 9.3.6. Elsewhere Envoy takes nothing but 200.
    let agreed = match (&upstream, status?) {
        (Upstream::Http1(_), status) => (200..300).contains(&status),
        (Upstream::Http2(_), status) => status == 200,
    };
    if !agreed {
        return Err(Outcome::ConnectFailure);
    }
    if through.post_path.is_none() {
        upstream.become_tunnel();
    }
    Ok(Tunnel {
        upstream,
        _ticket: ticket,
    })
}

fn request(through: &Through, worker: &Worker) -> RequestHead {
    let mut request = RequestHead::new(worker.block());
    request.headers.push(Known::Host, through.host.as_bytes());
    match &through.post_path {
        None => request.method = Method::Connect,
        Some(path) => {
            request.method = Method::Post;
            request.set_path(path.as_bytes());
            request.body = BodyLength::Unknown;
        }
    }
    request
}

/// Sends the request; the status of the answer.
async fn ask(
    upstream: &mut Upstream,
    request: &RequestHead,
    client: &ConnInfo,
    worker: &Worker,
    limits: &mut Limits<'_>,
) -> Result<u16, Outcome> {
    let sent = poll_fn(|cx| Poll::Ready(upstream.send_head(cx, worker, request, Piece::NOTHING)));
    sent.await.map_err(StreamError::before_response)?;
    let mut interims = 0;
    poll_fn(|cx| {
        // What the socket did not take at once; an error comes with the head, too.
        let _ = upstream.poll_ready(cx);
        while let Poll::Ready(answer) = upstream.poll_head(cx, worker) {
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => return Poll::Ready(Err(error.before_response())),
            };
            let (status, interim) = (answer.status, answer.is_interim());
            worker.recycle(answer.headers);
            interims += 1;
            if !interim {
                return Poll::Ready(Ok(status));
            }
            if interims > MAX_INTERIMS {
                return Poll::Ready(Err(Outcome::UpstreamProtocolError));
            }
        }
        let over = limits.poll_over(0, client, cx);
        over.map(|_| Err(Outcome::ConnectTimeout))
    })
    .await
}

impl Tunnel {
    /// Copies both directions until both have ended.
    pub(super) async fn copy(
        &mut self,
        down: &mut Io,
        passage: &mut Passage,
        worker: &Worker,
        limits: &mut Limits<'_>,
    ) -> Outcome {
        let upstream = &mut self.upstream;
        let mut client = Client {
            io: down,
            backlog: Backlog::default(),
            ends: false,
            ended: false,
        };
        let (mut sent, mut received) = (false, false);
        let ended = poll_fn(|cx| {
            let mut tap = |piece: &Piece<'_>| passage.received += length(piece);
            let up = poll_transfer(cx, worker, &mut client, upstream, &mut sent, &mut tap);
            let mut tap = |piece: &Piece<'_>| passage.sent += length(piece);
            let down = poll_transfer(cx, worker, upstream, &mut client, &mut received, &mut tap);
            match (up, down) {
                (Poll::Ready(Err(Broken::Source(_))), _)
                | (_, Poll::Ready(Err(Broken::Sink(_)))) => {
                    return Poll::Ready(Ended::ByClient);
                }
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                    return Poll::Ready(Ended::ByUpstream);
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::InOrder),
                _ => {}
            }
            limits.poll_over(passage.received + passage.sent, &passage.info, cx)
        })
        .await;
        match ended {
            Ended::InOrder | Ended::ByClient => {}
            Ended::ByUpstream => {
                client.io.reset_on_close();
                passage.flags.push("UR");
            }
            Ended::Idle => return Outcome::StreamIdle,
            Ended::Drained => passage.details = Some("filter_chain_is_being_removed".into()),
        }
        Outcome::Answered
    }
}

fn length(piece: &Piece<'_>) -> u64 {
    piece.data.as_slice().len() as u64
}

/// The client's connection, as a body in each direction.
struct Client<'c> {
    io: &'c mut Io,
    backlog: Backlog,
    /// The upstream has ended its stream,
    ends: bool,
    /// and the client has been told.
    ended: bool,
}

impl Source for Client<'_> {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        let n = ready!(self.io.poll_read(cx, scratch)).map_err(|_| StreamError::Reset)?;
        if n == 0 {
            return Poll::Ready(Ok(Piece::DONE));
        }
        Poll::Ready(Ok(Piece {
            data: Data::Slice(&scratch[..n]),
            end: End::More,
        }))
    }
}

impl Sink for Client<'_> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(self.backlog.poll_flush(self.io, cx)).map_err(|_| StreamError::Closed)?;
        if self.ends && !self.ended {
            ready!(self.io.poll_shutdown(cx)).map_err(|_| StreamError::Closed)?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), StreamError> {
        self.ends = piece.end.is_end();
        let data = piece.data.as_slice();
        let written = self.backlog.write(self.io, cx, &[data]);
        written.map_err(|_| StreamError::Closed)
    }
}
