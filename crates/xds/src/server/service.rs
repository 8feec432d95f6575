//! The gRPC service: two streaming methods, with bodies that carry the pieces of responses as they
//! are. (tonic's own server encodes a message into a buffer of its stream and keeps the buffer.)

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready as poll_ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::wire::{Delta, HEADER, Sotw, Wire};
use super::{Caller, Server, Source};

const NAME: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

/// The pieces of a response.
pub(super) type Pieces = Vec<Bytes>;

/// `envoy.service.discovery.v3.AggregatedDiscoveryService`; a clone is cheap and always ready.
pub struct Service<S: Source>(pub(super) Server<S>);

impl<S: Source> Clone for Service<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Source> tonic::server::NamedService for Service<S> {
    const NAME: &'static str = NAME;
}

impl<S: Source, B> tower::Service<http::Request<B>> for Service<S>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().strip_prefix('/');
        let method = method.and_then(|path| path.strip_prefix(NAME));
        let answer = match method {
            Some("/DeltaAggregatedResources") => self.open::<Delta, B>(request),
            Some("/StreamAggregatedResources") => self.open::<Sotw, B>(request),
            _ => Err(Status::unimplemented(
                "only the aggregated discovery service is served here",
            )),
        };
        ready(Ok(answer.unwrap_or_else(Status::into_http)))
    }
}

impl<S: Source> Service<S> {
    fn open<W: Wire, B>(
        &self,
        request: http::Request<B>,
    ) -> Result<http::Response<tonic::body::Body>, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let compressed = request.headers().get("grpc-encoding");
        if compressed.is_some_and(|encoding| encoding != "identity") {
            return Err(Status::unimplemented("requests must not be compressed"));
        }
        let caller = request.extensions().get::<Caller>().cloned();
        let most = self.0.inner.limits.request_bytes;
        let inbound = Requests {
            body: tonic::body::Body::new(request.into_body()),
            unread: Vec::new(),
            most,
            of: PhantomData,
        };
        let (receiver, end) = self.0.open::<W>(caller, inbound)?;
        let body = Responses {
            receiver,
            end,
            pieces: Vec::new().into_iter(),
            ended: false,
        };
        let mut response = http::Response::new(tonic::body::Body::new(body));
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }
}

/// The requests of a stream. What is read is forgotten at once: a client subscribes to thousands
/// of names in one request and then says little for hours.
pub(super) struct Requests<W> {
    body: tonic::body::Body,
    unread: Vec<u8>,
    most: usize,
    of: PhantomData<fn() -> W>,
}

impl<W: Wire> Requests<W> {
    /// The next request; `None` when the client has ended its side. May be dropped while it waits.
    pub(super) async fn message(&mut self) -> Result<Option<W::Request>, Status> {
        loop {
            if let Some(request) = self.whole()? {
                return Ok(Some(request));
            }
            match poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.unread.extend_from_slice(&data);
                    }
                }
                None if self.unread.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a request")),
            }
        }
    }

    /// A request that has come as a whole.
    fn whole(&mut self) -> Result<Option<W::Request>, Status> {
        let Some(([compressed, length @ ..], rest)) = self.unread.split_first_chunk::<HEADER>()
        else {
            return Ok(None);
        };
        if *compressed != 0 {
            return Err(Status::unimplemented("requests must not be compressed"));
        }
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.most {
            let most = self.most;
            return Err(Status::out_of_range(format!(
                "a request of {length} bytes is too large; this control plane takes {most}"
            )));
        }
        let Some(bytes) = rest.get(..length) else {
            return Ok(None);
        };
        let request = W::Request::decode(bytes)
            .map_err(|error| Status::invalid_argument(format!("not a request: {error}")))?;
        self.unread = self.unread.split_off(HEADER + length);
        Ok(Some(request))
    }
}

/// The body of a stream.
struct Responses {
    receiver: mpsc::Receiver<Pieces>,
    /// How the stream ended, said beside what is sent: a client that is slow hears of it all the same.
    end: oneshot::Receiver<Status>,
    pieces: std::vec::IntoIter<Bytes>,
    ended: bool,
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match poll_ready!(self.receiver.poll_recv(context)) {
                Some(pieces) => self.pieces = pieces.into_iter(),
                None => {
                    self.ended = true;
                    // It is there before the last sender is gone.
                    let status = self.end.try_recv();
                    let status =
                        status.unwrap_or_else(|_| Status::internal("the stream broke off"));
                    let mut trailers = HeaderMap::new();
                    status.add_header(&mut trailers)?;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The room for responses is taken when the stream ends, and the client still hears how.
    #[tokio::test]
    async fn a_slow_client_hears_how_its_stream_ended() {
        let check = async |said: Option<Status>, expect: &str| {
            let (sender, receiver) = mpsc::channel(2);
            let (end, ended) = oneshot::channel();
            for byte in [b"a", b"b"] {
                sender.try_send(vec![Bytes::from_static(byte)]).unwrap();
            }
            match said {
                Some(status) => end.send(status).unwrap(),
                None => drop(end),
            }
            drop(sender);
            let mut body = Responses {
                receiver,
                end: ended,
                pieces: Vec::new().into_iter(),
                ended: false,
            };
            let mut data = Vec::new();
            loop {
                let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
                match frame.unwrap().unwrap().into_data() {
                    Ok(piece) => data.extend_from_slice(&piece),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap();
                        assert_eq!(trailers["grpc-status"], expect);
                        break;
                    }
                }
            }
            assert_eq!(data, b"ab");
        };
        check(Some(Status::ok("")), "0").await;
        check(Some(Status::unavailable("later")), "14").await;
        // A task that broke off is no good end.
        check(None, "13").await;
    }
}
