//! The socket below the `h2` crate's codec: bytes that were read before it come first, and what it
//! writes in one turn leaves in one call.
//!
//! The codec flushes after every frame with a payload of more than a few hundred bytes, which would
//! be a system call, and under TLS a record, for each answer. So while it is driven
//! ([`Wire::drive`]) its writes are gathered and its flushes do nothing; at the end of the turn what
//! has come together is sent. Large payloads are not copied: they leave at once, behind what waits.
//!
//! Invariant: bytes leave in the order in which they were written. Nothing waits for longer than
//! the turn unless the socket takes no more, and an idle connection holds no memory here.

use crate::io::Io;
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From here on a copy costs more than a call.
const LARGE: usize = 8 * 1024;
/// What is gathered at most.
const MOST: usize = 64 * 1024;

thread_local! {
    /// The memory of the connection that was driven last: they take turns.
    static SPARE: RefCell<Vec<u8>> = RefCell::default();
}

/// The codec's end.
#[derive(Debug)]
pub(super) struct Socket {
    first: Vec<u8>,
    at: usize,
    wire: Wire,
}

/// The end of who drives the codec.
#[derive(Clone, Debug)]
pub(super) struct Wire(Rc<RefCell<Outlet>>);

#[derive(Debug)]
struct Outlet {
    io: Io,
    waiting: Vec<u8>,
    sent: usize,
    /// The codec is being driven.
    gathers: bool,
    /// A write failed while nobody asked.
    broken: bool,
}

/// `first`: what has been read already.
pub(super) fn socket(first: Vec<u8>, io: Io) -> (Socket, Wire) {
    let wire = Wire(Rc::new(RefCell::new(Outlet {
        io,
        waiting: Vec::new(),
        sent: 0,
        gathers: false,
        broken: false,
    })));
    let socket = Socket {
        first,
        at: 0,
        wire: wire.clone(),
    };
    (socket, wire)
}

impl Wire {
    /// Polls the codec. What it writes is sent when it has nothing more to do.
    pub(super) fn drive<T>(
        &self,
        cx: &mut Context<'_>,
        codec: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.0.borrow_mut().gathers = true;
        let polled = codec(cx);
        let mut outlet = self.0.borrow_mut();
        outlet.gathers = false;
        if let Poll::Ready(Err(_)) = outlet.poll_send(cx) {
            // The codec learns of it when it reads.
            outlet.broken = true;
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl Outlet {
    /// Ready when nothing waits any more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let n = ready!(self.io.poll_write(cx, &[&self.waiting[self.sent..]]))?;
            self.left(n)?;
        }
        Poll::Ready(Ok(()))
    }

    /// So many of the bytes that waited have gone.
    fn left(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sent += n;
        if self.sent >= self.waiting.len() {
            let mut memory = std::mem::take(&mut self.waiting);
            self.sent = 0;
            memory.clear();
            if memory.capacity() <= 2 * MOST {
                SPARE.with(|spare| *spare.borrow_mut() = memory);
            }
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[&[u8]]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let offered: usize = pieces.iter().map(|piece| piece.len()).sum();
        let have = self.waiting.len() - self.sent;
        if self.gathers && offered < LARGE && have + offered <= MOST {
            if self.waiting.capacity() == 0 {
                self.waiting = SPARE.with(|spare| std::mem::take(&mut *spare.borrow_mut()));
            }
            pieces
                .iter()
                .for_each(|p| self.waiting.extend_from_slice(p));
            return Poll::Ready(Ok(offered));
        }
        loop {
            let have = self.waiting.len() - self.sent;
            if have == 0 {
                return self.io.poll_write(cx, pieces);
            }
            let mut all: [&[u8]; 4] = [&[]; 4];
            all[0] = &self.waiting[self.sent..];
            let room = all[1..].iter_mut().zip(pieces);
            room.for_each(|(to, piece)| *to = piece);
            let n = ready!(self.io.poll_write(cx, &all))?;
            self.left(n.min(have))?;
            if n > have {
                return Poll::Ready(Ok(n - have));
            }
        }
    }
}

impl Drop for Outlet {
    /// The last words of a connection that ends by itself.
    fn drop(&mut self) {
        if !self.broken {
            let _ = self.poll_send(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.first.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            let mut outlet = self.wire.0.borrow_mut();
            if outlet.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            return outlet.io.poll_read_buf(cx, buf);
        }
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        self.at += n;
        if self.at == self.first.len() {
            self.first = Vec::new();
            self.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.wire.0.borrow_mut().poll_write(cx, &[buf])
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The codec writes a head and a payload.
        let mut pieces: [&[u8]; 3] = [&[]; 3];
        for (piece, buf) in pieces.iter_mut().zip(bufs) {
            *piece = buf;
        }
        self.wire.0.borrow_mut().poll_write(cx, &pieces)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outlet = self.wire.0.borrow_mut();
        match outlet.gathers {
            true => Poll::Ready(Ok(())),
            false => outlet.poll_send(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outlet = self.wire.0.borrow_mut();
        ready!(outlet.poll_send(cx))?;
        outlet.io.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Socket, Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, wire) = socket(Vec::new(), Io::new(ours.unwrap()));
        (socket, wire, theirs.unwrap().0)
    }

    fn write(socket: &mut Socket, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<usize> {
        let head = IoSlice::new(&bytes[..bytes.len() / 3]);
        let payload = IoSlice::new(&bytes[bytes.len() / 3..]);
        let written = Pin::new(socket).poll_write_vectored(cx, &[head, payload]);
        written.map(Result::unwrap)
    }

    #[tokio::test(flavor = "local")]
    async fn what_is_written_in_one_turn_leaves_at_its_end_at_once() {
        let (mut socket, wire, mut peer) = pair().await;
        let drive = poll_fn(|cx| {
            wire.drive(cx, |cx| {
                for _ in 0..5 {
                    assert_eq!(write(&mut socket, cx, b"one answer"), Poll::Ready(10));
                    assert!(Pin::new(&mut socket).poll_flush(cx).is_ready());
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
                let early = peer.try_read(&mut [0; 64]);
                assert_eq!(early.unwrap_err().kind(), io::ErrorKind::WouldBlock);
                Poll::Ready(())
            })
        });
        drive.await;
        let mut all = [0; 50];
        peer.read_exact(&mut all).await.unwrap();
        assert_eq!(&all[..], b"one answer".repeat(5));
        assert_eq!(wire.0.borrow().waiting.capacity(), 0, "nothing is kept");
    }

    #[tokio::test(flavor = "local")]
    async fn small_and_large_pieces_arrive_in_order_at_a_reader_that_is_slow() {
        let (mut socket, wire, mut peer) = pair().await;
        let lengths = [10, 9, 20_000, 100, 8 * 1024, 3, 70_000, 8 * 1024 - 1];
        let count = 400;
        let all: Vec<u8> = (0..count)
            .flat_map(|i| vec![i as u8; lengths[i % lengths.len()]])
            .collect();
        let expect = all.clone();
        let reader = tokio::task::spawn_local(async move {
            let mut got = Vec::new();
            let mut part = vec![0; 30_000];
            loop {
                match peer.read(&mut part).await.unwrap() {
                    0 => return got,
                    n => got.extend_from_slice(&part[..n]),
                }
                tokio::task::yield_now().await;
            }
        });
        let (mut at, mut i) = (0, 0);
        poll_fn(|cx| {
            wire.drive(cx, |cx| {
                while at < all.len() {
                    let end = (at + lengths[i % lengths.len()]).min(all.len());
                    match write(&mut socket, cx, &all[at..end]) {
                        Poll::Ready(n) => at += n,
                        Poll::Pending => return Poll::Pending,
                    }
                    assert!(wire.0.borrow().waiting.len() <= MOST);
                    i += 1;
                }
                Poll::Ready(())
            })
        })
        .await;
        poll_fn(|cx| Pin::new(&mut socket).poll_shutdown(cx))
            .await
            .unwrap();
        assert!(reader.await.unwrap() == expect);
    }

    #[tokio::test(flavor = "local")]
    async fn last_words_leave_when_the_connection_is_dropped() {
        let (mut socket, wire, mut peer) = pair().await;
        wire.0.borrow_mut().gathers = true;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(write(&mut socket, &mut cx, b"goaway").is_ready());
        drop((socket, wire));
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"goaway");
    }
}
