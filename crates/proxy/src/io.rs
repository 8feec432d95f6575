//! A byte stream to a peer, whatever transport carries it.
//!
//! Reads are made with `poll_read` into a buffer that is larger than what usually comes: a short
//! read tells tokio that the socket is empty, which saves the read that would only say so.

use crate::tls::stream::TlsStream;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connected stream: plain, or encrypted.
#[derive(Debug)]
pub(crate) struct Io {
    tcp: TcpStream,
    tls: Option<Box<TlsStream>>,
}

impl Io {
    pub(crate) fn new(tcp: TcpStream) -> Io {
        // Small writes must not wait for the peer's acknowledgement; the engine itself joins what
        // belongs together into one write.
        let _ = tcp.set_nodelay(true);
        Io { tcp, tls: None }
    }

    /// After a handshake.
    pub(crate) fn with_tls(tcp: TcpStream, tls: Box<TlsStream>) -> Io {
        Io {
            tcp,
            tls: Some(tls),
        }
    }

    /// Bytes read; 0 is the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(tls) = &mut self.tls {
            return tls.poll_read(&mut self.tcp, cx, buf);
        }
        let mut into = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut into))?;
        Poll::Ready(Ok(into.filled().len()))
    }

    /// The same for codecs that bring their own buffer.
    pub(crate) fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(tls) = &mut self.tls {
            let n = ready!(tls.poll_read(&mut self.tcp, cx, buf.initialize_unfilled()))?;
            buf.advance(n);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }

    /// Writes as much as the socket takes of several pieces, in one call. What is not written has to
    /// be offered again, from the first byte on.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        if let Some(tls) = &mut self.tls {
            return tls.poll_write(&mut self.tcp, cx, pieces);
        }
        let mut slices = [IoSlice::new(&[]); 4];
        let mut used = 0;
        for piece in pieces.iter().filter(|p| !p.is_empty()).take(slices.len()) {
            slices[used] = IoSlice::new(piece);
            used += 1;
        }
        match &slices[..used] {
            [] => Poll::Ready(Ok(0)),
            [one] => Pin::new(&mut self.tcp).poll_write(cx, one),
            several => Pin::new(&mut self.tcp).poll_write_vectored(cx, several),
        }
    }

    /// Ready when there is something to read, be it only the end. No system call.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.tls.as_ref().is_some_and(|tls| tls.is_readable()) {
            return Poll::Ready(());
        }
        self.tcp.poll_read_ready(cx).map(|_| ())
    }

    /// Makes the close to come a reset.
    pub(crate) fn reset_on_close(&self) {
        let _ = self.tcp.set_zero_linger();
    }

    /// Says to the peer that nothing more will come.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &mut self.tls {
            return tls.poll_shutdown(&mut self.tcp, cx);
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Bytes that a socket would not take yet. Empty most of the time, and then without memory.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: Vec<u8>,
    at: usize,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Writes what waits. Ready when nothing waits any more.
    pub(crate) fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let n = ready!(io.poll_write(cx, &[&self.bytes[self.at..]]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += n;
        }
        self.bytes = Vec::new();
        self.at = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes pieces now as far as the socket takes them and keeps the rest. The caller does not
    /// produce more until [`Self::poll_flush`] is ready, so what is kept is at most one piece of
    /// scratch buffer and a head.
    pub(crate) fn write(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
        pieces: &[&[u8]],
    ) -> io::Result<()> {
        let mut written = 0;
        if self.is_empty() {
            match io.poll_write(cx, pieces) {
                Poll::Ready(Ok(n)) => written = n,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
        }
        for piece in pieces {
            let skip = written.min(piece.len());
            written -= skip;
            self.bytes
                .extend_from_slice(piece.get(skip..).unwrap_or_default());
        }
        Ok(())
    }
}
