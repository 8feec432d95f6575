//! Trailers of requests: which of them go on.
//!
//! They come when everybody who decides by headers has decided, and applications may read them as
//! headers all the same. Envoy passes them as they are. The codecs leave out what frames or routes
//! a message, says who sent it, or changes how it is read; the rest is here.
//!
//! Invariant: no trailer goes on under a name that stands in the head, that was taken out of the
//! head on the way, or that only proxies may use.

use super::exchange::Exchange;
use super::filters::Marks;
use super::head::{BodyLength, RequestHead, Version};
use super::headers::HeaderBlock;
use super::stream::{End, Piece, Source, StreamError};
use lateen_proxy_config::{HttpConnectionManager, HttpFilter, Underscores};
use std::task::{Context, Poll};

/// What the trailers of one request are held against.
pub(super) struct Screen<'a> {
    head: &'a RequestHead,
    manager: &'a HttpConnectionManager,
    removed: &'a [Box<[u8]>],
}

impl<'a> Screen<'a> {
    pub(super) fn new(
        head: &'a RequestHead,
        manager: &'a HttpConnectionManager,
        marks: Option<&'a Marks>,
    ) -> Screen<'a> {
        let removed = marks.map_or(&[][..], |marks| &marks.removed);
        Screen {
            head,
            manager,
            removed,
        }
    }

    pub(super) fn of(x: &'a Exchange) -> Screen<'a> {
        Screen::new(&x.request, &x.service.manager, x.marks.as_deref())
    }

    pub(super) fn piece<'p>(&self, piece: Piece<'p>) -> Piece<'p> {
        let Piece { data, end } = piece;
        let end = match end {
            End::Trailers(trailers) => self.trailers(trailers).map_or(End::Done, End::Trailers),
            end => end,
        };
        Piece { data, end }
    }

    /// [`None`]: none is left.
    pub(super) fn trailers(&self, mut trailers: Box<HeaderBlock>) -> Option<Box<HeaderBlock>> {
        trailers.remove_if(|_, name, _| self.stops(name));
        (trailers.len() > 0).then_some(trailers)
    }

    fn stops(&self, name: &[u8]) -> bool {
        const OF_PROXIES: &[u8] = b"x-envoy-";
        let start = name.get(..OF_PROXIES.len()).unwrap_or_default();
        start.eq_ignore_ascii_case(OF_PROXIES)
            || self.head.headers.get_name(name).is_some()
            || self
                .removed
                .iter()
                .any(|own| own.eq_ignore_ascii_case(name))
            || (self.manager.underscores != Underscores::Allow && name.contains(&b'_'))
            || self.manager.filters.iter().any(|filter| match filter {
                HttpFilter::JwtAuthn(filter) => {
                    let mut own = filter.own_headers.iter();
                    own.any(|own| own.as_bytes().eq_ignore_ascii_case(name))
                }
                _ => false,
            })
    }
}

/// Remembers names that were taken out of a request's head, if it may have trailers that go on.
pub(super) fn note_removed<'n>(x: &mut Exchange, names: impl Iterator<Item = &'n str>) {
    let http2 = x.request.version == Version::Http2;
    let possible = http2 || x.service.manager.http1.enable_trailers;
    if possible && x.request.body != BodyLength::None {
        let names = names.map(|name| name.as_bytes().into());
        let mut names = names.peekable();
        if names.peek().is_some() {
            x.marks.get_or_insert_default().removed.extend(names);
        }
    }
}

/// A request's body, with the trailers that may go on.
pub(super) struct Screened<'a, S> {
    pub source: &'a mut S,
    pub screen: Screen<'a>,
}

impl<S: Source> Source for Screened<'_, S> {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        let polled = self.source.poll_piece(cx, scratch);
        polled.map_ok(|piece| self.screen.piece(piece))
    }
}
