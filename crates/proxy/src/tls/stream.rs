//! The records of one TLS connection: its cryptographic state, and what is under way.
//!
//! Ciphertext is read into a buffer of the worker's thread, decrypted there, and copied to the
//! reader; what is written is encrypted in another. A connection itself holds only a record that
//! has begun to arrive, plaintext the reader had no room for, and ciphertext the socket did not
//! take. All three are empty, and without memory, while it is idle.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error};
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Ciphertext taken in one read: four full records.
const READ: usize = 4 * RECORD;
/// A record with its header and the most that ciphers add (RFC 8446 section 5.2).
const RECORD: usize = 16 * 1024 + 5 + 256;
/// Plaintext encrypted in one write.
const WRITE: usize = 64 * 1024;
/// A handshake message, and so what has to be kept of one, is at most this long.
const MAX_PARTIAL: usize = 64 * 1024 + RECORD;

/// The buffers of one thread. Borrowed within one poll, never across a wait.
#[derive(Default)]
struct Buffers {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    plain: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// One connection's TLS.
pub(crate) struct TlsStream {
    connection: Connection,
    /// A record, or a handshake message, that has not arrived whole.
    partial: Vec<u8>,
    /// Decrypted, and not yet read.
    plain: Vec<u8>,
    read_from: usize,
    /// Encrypted, and not yet sent.
    outgoing: Vec<u8>,
    sent: usize,
    /// A byte that is encrypted but was not reported as written: the caller has to come back, and
    /// so sees what waits in `outgoing` off.
    owed: usize,
    /// The peer has said that nothing more will come.
    ended: bool,
    closing: bool,
    /// After an error the cryptographic state is not asked any more: it refers to bytes that are gone.
    failed: bool,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("partial", &self.partial.len())
            .field("plain", &(self.plain.len() - self.read_from))
            .field("outgoing", &(self.outgoing.len() - self.sent))
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// What one step of the connection came to.
enum Step {
    /// Something happened; there may be more.
    Again,
    /// The connection may be written to. What was to be encrypted is.
    Writable,
    /// Nothing goes on without more bytes.
    Blocked,
    /// The peer has ended its stream.
    Ended,
}

/// What to do when the connection may be written to.
#[derive(Clone, Copy)]
enum Write<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

impl TlsStream {
    /// `first`: what has been read of the client already.
    pub(super) fn server(connection: UnbufferedServerConnection, first: Vec<u8>) -> TlsStream {
        TlsStream {
            partial: first,
            ..TlsStream::new(Connection::Server(connection))
        }
    }

    pub(super) fn client(connection: UnbufferedClientConnection) -> TlsStream {
        TlsStream::new(Connection::Client(connection))
    }

    fn new(connection: Connection) -> TlsStream {
        TlsStream {
            connection,
            partial: Vec::new(),
            plain: Vec::new(),
            read_from: 0,
            outgoing: Vec::new(),
            sent: 0,
            owed: 0,
            ended: false,
            closing: false,
            failed: false,
        }
    }

    /// What the handshake came to.
    pub(super) fn state(&self) -> &CommonState {
        match &self.connection {
            Connection::Server(connection) => connection,
            Connection::Client(connection) => connection,
        }
    }

    /// Ready when the handshake is done and all of it is sent.
    pub(super) fn poll_handshake(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let outcome = self.process_partial();
            // An alert says to the peer what was wrong.
            let flushed = self.poll_flush(tcp, cx);
            if let Err(error) = outcome {
                return Poll::Ready(Err(broken(error)));
            }
            ready!(flushed)?;
            if !self.state().is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let n = with_buffers(|buffers| {
                let into = sized(&mut buffers.incoming, READ);
                let n = ready!(poll_read(tcp, cx, into))?;
                self.partial.extend_from_slice(&into[..n]);
                Poll::Ready(io::Result::Ok(n))
            });
            if ready!(n)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if self.partial.len() > MAX_PARTIAL {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
    }

    /// Plaintext; 0 is the end of the stream. As Envoy, an end of TCP without a word is an end too:
    /// many servers close so.
    pub(crate) fn poll_read(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let taken = self.take_plain(buf);
            if taken > 0 || buf.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if self.failed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let read = with_buffers(|buffers| {
                let into = sized(&mut buffers.incoming, MAX_PARTIAL + READ);
                let have = self.partial.len();
                let n = ready!(poll_read(tcp, cx, &mut into[have..have + READ]))?;
                if n == 0 {
                    self.ended = true;
                    return Poll::Ready(Ok(0));
                }
                into[..have].copy_from_slice(&self.partial);
                let out = &mut buffers.outgoing;
                out.clear();
                let processed = self.process(&mut into[..have + n], out, Some(buf));
                self.outgoing.extend_from_slice(out);
                let (used, taken) = processed?;
                keep(&mut self.partial, &into[used..have + n]);
                Poll::Ready(Ok(taken))
            });
            let read: Result<usize, ReadError> = match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read,
            };
            // Answers of the protocol itself (alerts, new keys) wait for nobody.
            let _ = self.poll_flush(tcp, cx)?;
            match read {
                Ok(0) if self.partial.len() > MAX_PARTIAL => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Ok(0) => {}
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(ReadError::Tls(error)) => return Poll::Ready(Err(broken(error))),
                Err(ReadError::Io(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn take_plain(&mut self, buf: &mut [u8]) -> usize {
        let rest = self.plain.get(self.read_from..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.read_from += n;
        if self.read_from == self.plain.len() && self.read_from > 0 {
            self.plain = Vec::new();
            self.read_from = 0;
        }
        n
    }

    /// Writes pieces as one. A count below the whole says that something waits to be sent.
    pub(crate) fn poll_write(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        pieces: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(tcp, cx))?;
        let offered: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.owed > 0 {
            let paid = self.owed.min(offered);
            self.owed -= paid;
            return Poll::Ready(Ok(paid));
        }
        if offered == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = offered.min(WRITE);
        with_buffers(|buffers| {
            let Buffers {
                outgoing, plain, ..
            } = buffers;
            outgoing.clear();
            let data = match pieces {
                [one] => &one[..taken],
                several => {
                    plain.clear();
                    for piece in several {
                        let room = taken - plain.len();
                        plain.extend_from_slice(&piece[..piece.len().min(room)]);
                    }
                    &plain[..]
                }
            };
            self.encrypt(outgoing, Write::Data(data))?;
            let mut sent = 0;
            while sent < outgoing.len() {
                match Pin::new(&mut *tcp).poll_write(cx, &outgoing[sent..]) {
                    Poll::Ready(n) => sent += n?,
                    Poll::Pending => break,
                }
            }
            self.outgoing.extend_from_slice(&outgoing[sent..]);
            Ok::<_, io::Error>(())
        })?;
        if self.outgoing.is_empty() {
            return Poll::Ready(Ok(taken));
        }
        self.owed = 1;
        match taken - 1 {
            0 => Poll::Pending,
            n => Poll::Ready(Ok(n)),
        }
    }

    /// Ready when the peer has been told that nothing more will come.
    pub(crate) fn poll_shutdown(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            let mut outgoing = std::mem::take(&mut self.outgoing);
            let told = self.encrypt(&mut outgoing, Write::CloseNotify);
            self.outgoing = outgoing;
            // A connection that is broken closes without a word.
            if told.is_err() {
                return Pin::new(tcp).poll_shutdown(cx);
            }
        }
        ready!(self.poll_flush(tcp, cx))?;
        Pin::new(tcp).poll_shutdown(cx)
    }

    /// Whether there is something to read without the socket, be it only the end.
    pub(crate) fn is_readable(&self) -> bool {
        !self.plain.is_empty() || self.ended
    }

    fn poll_flush(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            let n = ready!(Pin::new(&mut *tcp).poll_write(cx, &self.outgoing[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        if self.sent > 0 {
            self.outgoing = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Lets the connection look at what has come of the handshake.
    fn process_partial(&mut self) -> Result<(), Error> {
        let mut partial = std::mem::take(&mut self.partial);
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let processed = self.process(&mut partial, &mut outgoing, None);
        self.outgoing = outgoing;
        let (used, _) = processed?;
        keep(&mut self.partial, &partial[used..]);
        Ok(())
    }

    /// Takes all whole records of `incoming`: how many bytes they were, and how many bytes of
    /// plaintext went to `buf`. What does not fit there is kept.
    fn process(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Vec<u8>,
        mut buf: Option<&mut [u8]>,
    ) -> Result<(usize, usize), Error> {
        let (mut used, mut taken) = (0, 0);
        let plain = &mut self.plain;
        let mut sink = |data: &[u8]| {
            let room = buf.as_mut().map(|buf| &mut buf[taken..]);
            let n = room.map_or(0, |room| {
                let n = if plain.is_empty() {
                    room.len().min(data.len())
                } else {
                    0
                };
                room[..n].copy_from_slice(&data[..n]);
                n
            });
            taken += n;
            plain.extend_from_slice(&data[n..]);
        };
        loop {
            let rest = incoming.get_mut(used..).unwrap_or_default();
            let (discard, outcome) = match &mut self.connection {
                Connection::Server(connection) => {
                    let status = connection.process_tls_records(rest);
                    step(status, outgoing, Write::Nothing, &mut sink)
                }
                Connection::Client(connection) => {
                    let status = connection.process_tls_records(rest);
                    step(status, outgoing, Write::Nothing, &mut sink)
                }
            };
            used += discard;
            match outcome {
                Ok(Step::Again) => {}
                Ok(Step::Blocked | Step::Writable) => return Ok((used, taken)),
                Ok(Step::Ended) => {
                    self.ended = true;
                    return Ok((used, taken));
                }
                Err(error) => {
                    self.failed = true;
                    let rest = incoming.get_mut(used..).unwrap_or_default();
                    self.alert(rest, outgoing);
                    return Err(error);
                }
            }
        }
    }

    /// After an error: what the peer is to be told of it. `rest` is what the error was found before;
    /// it is not looked at again, but must be there.
    fn alert(&mut self, rest: &mut [u8], outgoing: &mut Vec<u8>) {
        while self.state().wants_write() {
            let nothing = &mut |_: &[u8]| {};
            let (_, outcome) = match &mut self.connection {
                Connection::Server(connection) => {
                    let status = connection.process_tls_records(rest);
                    step(status, outgoing, Write::Nothing, nothing)
                }
                Connection::Client(connection) => {
                    let status = connection.process_tls_records(rest);
                    step(status, outgoing, Write::Nothing, nothing)
                }
            };
            if !matches!(outcome, Ok(Step::Again)) {
                return;
            }
        }
    }

    fn encrypt(&mut self, outgoing: &mut Vec<u8>, write: Write<'_>) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Bytes of a record that has begun to arrive belong to every look at the connection.
        let mut partial = std::mem::take(&mut self.partial);
        let plain = &mut self.plain;
        let mut sink = |data: &[u8]| plain.extend_from_slice(data);
        let mut used = 0;
        let outcome = loop {
            let rest = partial.get_mut(used..).unwrap_or_default();
            let (discard, outcome) = match &mut self.connection {
                Connection::Server(connection) => {
                    let status = connection.process_tls_records(rest);
                    step(status, outgoing, write, &mut sink)
                }
                Connection::Client(connection) => {
                    let status = connection.process_tls_records(rest);
                    step(status, outgoing, write, &mut sink)
                }
            };
            used += discard;
            match outcome {
                Ok(Step::Again) => {}
                Ok(Step::Ended) => self.ended = true,
                Ok(Step::Writable) => break Ok(()),
                Ok(Step::Blocked) => break Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => {
                    self.failed = true;
                    break Err(broken(error));
                }
            }
        };
        partial.drain(..used);
        keep(&mut self.partial, &partial);
        outcome
    }
}

enum ReadError {
    Tls(Error),
    Io(io::Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> ReadError {
        ReadError::Tls(error)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

/// One state of the connection: bytes of the incoming buffer that are done with, and what it was.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    write: Write<'_>,
    sink: &mut impl FnMut(&[u8]),
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let outcome = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => sink(record.payload),
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(needed)) => {
                    outgoing.resize(at + needed.required_size, 0);
                    match data.encode(&mut outgoing[at..]) {
                        Ok(n) => {
                            outgoing.truncate(at + n);
                            Ok(Step::Again)
                        }
                        Err(error) => Err(Error::General(error.to_string())),
                    }
                }
                Ok(_) => Ok(Step::Again),
                Err(error) => Err(Error::General(error.to_string())),
            }
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            let at = outgoing.len();
            let room = match write {
                Write::Nothing => 0,
                Write::CloseNotify => 64,
                Write::Data(data) => data.len() + (data.len() / 16_000 + 1) * 64,
            };
            outgoing.resize(at + room, 0);
            let encrypted = match write {
                Write::Nothing => Ok(0),
                Write::CloseNotify => traffic.queue_close_notify(&mut outgoing[at..]),
                Write::Data(data) => traffic.encrypt(data, &mut outgoing[at..]),
            };
            match encrypted {
                Ok(n) => {
                    outgoing.truncate(at + n);
                    Ok(Step::Writable)
                }
                Err(EncryptError::EncryptExhausted) => Err(Error::EncryptError),
                Err(error) => Err(Error::General(error.to_string())),
            }
        }
        Ok(ConnectionState::PeerClosed) => Ok(Step::Ended),
        // Also what later versions of rustls may add.
        Ok(_) => Ok(Step::Blocked),
    };
    (discard, outcome)
}

fn poll_read(
    tcp: &mut TcpStream,
    cx: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(into);
    ready!(Pin::new(tcp).poll_read(cx, &mut buf))?;
    Poll::Ready(Ok(buf.filled().len()))
}

fn with_buffers<R>(f: impl FnOnce(&mut Buffers) -> R) -> R {
    BUFFERS.with(|buffers| f(&mut buffers.borrow_mut()))
}

fn sized(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

/// Replaces what is kept; holds no memory when nothing is.
fn keep(kept: &mut Vec<u8>, rest: &[u8]) {
    if rest.is_empty() {
        *kept = Vec::new();
    } else {
        kept.clear();
        kept.extend_from_slice(rest);
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
