//! One call to a server on behalf of a filter: a request out, its whole answer in.

use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::http::headers::HeaderBlock;
use crate::http::stream::{Data, End, Piece, Sink, Source, StreamError, UpstreamStream};
use crate::http::upstream::Upstream;
use crate::http2::client::Http2Stream;
use crate::listener::ConnInfo;
use crate::stats::{EndpointStat, count_cluster_status};
use crate::upstream::ActiveCluster;
use crate::upstream::pool::{Acquired, Wanted};
use crate::upstream::ticket::RequestTicket;
use crate::worker::state::{PIECE, Worker};
use bytes::Bytes;
use lateen_proxy_config::Priority;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};

/// A longer answer is none.
const MAX_ANSWER: usize = 1024 * 1024;
/// Interim responses after which the server is given up.
const MAX_INTERIMS: u32 = 1000;

/// What the server is sent.
pub(super) struct Question {
    pub head: RequestHead,
    pub body: Bytes,
}

/// What it answers.
pub(super) struct Reply {
    pub head: ResponseHead,
    pub body: Vec<u8>,
    pub trailers: Option<Box<HeaderBlock>>,
}

/// [`None`]: no answer, for whatever reason.
pub(super) async fn call(
    worker: &Rc<Worker>,
    conn: &Rc<ConnInfo>,
    cluster: &str,
    question: Question,
) -> Option<Reply> {
    let cluster = worker.clusters.get(worker, cluster)?;
    // A connection that waited in the pool may turn out to be dead; then a new one is tried.
    match once(worker, conn, &cluster, &question, false).await {
        Err(Failed { reused: true }) => once(worker, conn, &cluster, &question, true).await.ok(),
        other => other.ok(),
    }
}

/// No answer.
struct Failed {
    /// On a connection that had served before.
    reused: bool,
}

async fn once(
    worker: &Rc<Worker>,
    conn: &Rc<ConnInfo>,
    cluster: &Rc<ActiveCluster>,
    question: &Question,
    fresh: bool,
) -> Result<Reply, Failed> {
    const FAILED: Failed = Failed { reused: false };
    let host = cluster.pick(worker, None, 0, |_| false).ok_or(FAILED)?;
    let priority = Priority::Default;
    let _ticket = RequestTicket::take(cluster, &host, priority).ok_or(FAILED)?;
    let wanted = Wanted {
        priority,
        downstream_http2: question.head.version == Version::Http2,
        fresh,
        raw: false,
        key: cluster.conn_key(&question.head, conn),
    };
    let acquired = match cluster.take(&host, &wanted) {
        Some(acquired) => acquired,
        None => cluster
            .acquire(worker, &host, &wanted)
            .await
            .map_err(|_| FAILED)?,
    };
    let (mut upstream, reused) = match acquired {
        Acquired::Http1(conn) => {
            let reused = conn.requests > 0;
            (Upstream::Http1(conn), reused)
        }
        Acquired::Http2(conn) => (Upstream::Http2(Box::new(Http2Stream::new(conn))), false),
    };
    let reply = exchange(worker, &mut upstream, question).await;
    let status = reply.as_ref().ok().map(|reply| reply.head.status);
    host.stats(cluster).inc(match status {
        Some(..500) => EndpointStat::RqSuccess,
        _ => EndpointStat::RqError,
    });
    count_cluster_status(&cluster.stats, status.unwrap_or(503));
    let early = reply.as_ref().err() == Some(&StreamError::Closed);
    if let Upstream::Http1(conn) = upstream
        && reply.is_ok()
    {
        cluster.release(worker, conn);
    }
    reply.map_err(|_| Failed {
        reused: reused && early,
    })
}

async fn exchange(
    worker: &Rc<Worker>,
    upstream: &mut Upstream,
    question: &Question,
) -> Result<Reply, StreamError> {
    let mut sent = false;
    let (mut head, mut interims) = (None, 0);
    let (mut body, mut trailers) = (Vec::new(), None);
    poll_fn(|cx| {
        if !sent {
            sent = true;
            let piece = Piece {
                data: Data::Shared(question.body.clone()),
                end: End::Done,
            };
            upstream.send_head(cx, worker, &question.head, piece)?;
        }
        // What the socket did not take at once. Of a server that does not want it the answer counts.
        let _ = upstream.poll_ready(cx);
        while head.is_none() {
            let next = ready!(upstream.poll_head(cx, worker))?;
            interims += 1;
            if next.status == 101 || interims > MAX_INTERIMS {
                return Poll::Ready(Err(StreamError::Protocol));
            }
            if next.is_interim() {
                worker.recycle(next.headers);
            } else {
                head = Some(next);
            }
        }
        let mut scratch = worker.scratch.borrow_mut();
        loop {
            let piece = ready!(upstream.poll_piece(cx, &mut scratch[..PIECE]))?;
            let bytes = piece.data.as_slice();
            if body.len() + bytes.len() > MAX_ANSWER {
                return Poll::Ready(Err(StreamError::TooLarge));
            }
            body.extend_from_slice(bytes);
            match piece.end {
                End::More => {}
                End::Done => return Poll::Ready(Ok(())),
                End::Trailers(block) => {
                    trailers = Some(block);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    })
    .await?;
    Ok(Reply {
        head: head.ok_or(StreamError::Closed)?,
        body,
        trailers,
    })
}
