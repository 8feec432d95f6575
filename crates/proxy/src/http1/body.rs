//! How a body is delimited: by length, by chunks, or by the end of the connection.
//!
//! The decoder works in place on whatever has arrived and moves the payload to the front of the
//! buffer. It is strict: sizes are hexadecimal digits, lines end with CR LF, extensions and
//! trailers are bounded.
//!
//! Invariant: the result does not depend on how the input is cut into pieces.

use crate::http::head::BodyLength;
use crate::http::headers::{HeaderBlock, Known, Span};

/// Bytes of chunk extensions a body may carry in all, so that they cannot be used to send without
/// end what no one counts.
const MAX_EXTENSIONS: u32 = 16 * 1024;
/// Bytes of trailers.
const MAX_TRAILERS: usize = 16 * 1024;
/// Trailer lines.
const MAX_TRAILER_LINES: usize = 64;

/// Why a body is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("a chunk is malformed")]
    Chunk,
    #[error("chunk extensions or trailers are too long")]
    TooLarge,
    #[error("the connection ended within the body")]
    Truncated,
}

/// Reads one body.
#[derive(Debug, Default)]
pub(crate) struct BodyReader {
    state: State,
    /// Of the current chunk, or of the whole body.
    left: u64,
    extensions: u32,
    #[allow(
        clippy::box_collection,
        reason = "rare, and every connection has the field"
    )]
    trailers: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Done,
    /// What came cannot be read; nothing that follows can be trusted.
    Broken,
    Length,
    UntilClose,
    /// Before the first digit of a chunk size.
    SizeStart,
    Size,
    /// Digits may follow no more, only an extension or the end of the line.
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or the empty line.
    TrailerStart,
    TrailerLine,
    TrailerLf,
    EndLf,
}

/// What one call to [`BodyReader::decode`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Bytes of input used up.
    pub consumed: usize,
    /// Bytes of payload, now at the front of the buffer.
    pub payload: usize,
    /// The body is complete.
    pub done: bool,
}

impl BodyReader {
    pub(crate) fn new(length: BodyLength) -> BodyReader {
        let (state, left) = match length {
            BodyLength::None | BodyLength::Exactly(0) => (State::Done, 0),
            BodyLength::Exactly(n) => (State::Length, n),
            BodyLength::Unknown => (State::SizeStart, 0),
            BodyLength::UntilClose => (State::UntilClose, 0),
        };
        BodyReader {
            state,
            left,
            extensions: 0,
            trailers: None,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether it was malformed. It stays so: the error is met again by whoever reads on.
    pub(crate) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// The peer has closed its side. Only a body that ends so is complete then.
    pub(crate) fn end_of_input(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }

    /// Takes what has arrived; payload is moved to the front of `buf`.
    pub(crate) fn decode(&mut self, buf: &mut [u8]) -> Result<Decoded, BodyError> {
        self.decode_some(buf)
            .inspect_err(|_| self.state = State::Broken)
    }

    fn decode_some(&mut self, buf: &mut [u8]) -> Result<Decoded, BodyError> {
        let (consumed, payload) = match self.state {
            State::Done => (0, 0),
            State::Broken => return Err(BodyError::Chunk),
            State::UntilClose => (buf.len(), buf.len()),
            State::Length => {
                let n = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(buf.len());
                self.left -= n as u64;
                if self.left == 0 {
                    self.state = State::Done;
                }
                (n, n)
            }
            _ => self.decode_chunks(buf)?,
        };
        Ok(Decoded {
            consumed,
            payload,
            done: self.is_done(),
        })
    }

    fn decode_chunks(&mut self, buf: &mut [u8]) -> Result<(usize, usize), BodyError> {
        let (mut at, mut payload) = (0, 0);
        while at < buf.len() && self.state != State::Done {
            if self.state == State::Data {
                let n = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(buf.len() - at);
                buf.copy_within(at..at + n, payload);
                payload += n;
                at += n;
                self.left -= n as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(buf[at])?;
            at += 1;
        }
        Ok((at, payload))
    }

    /// One byte outside chunk data.
    fn step(&mut self, byte: u8) -> Result<State, BodyError> {
        let must = |want: u8, next: State| {
            if byte == want {
                Ok(next)
            } else {
                Err(BodyError::Chunk)
            }
        };
        match self.state {
            State::SizeStart => self.digit(byte),
            State::Size => match byte {
                b'\r' => Ok(State::SizeLf),
                b';' => Ok(State::Extension),
                b' ' | b'\t' => Ok(State::SizeSpace),
                _ => self.digit(byte),
            },
            State::SizeSpace => match byte {
                b' ' | b'\t' => self.extension(State::SizeSpace),
                b';' => Ok(State::Extension),
                _ => Err(BodyError::Chunk),
            },
            State::Extension => match byte {
                b'\r' => Ok(State::SizeLf),
                b'\t' | 0x20..=0x7e | 0x80.. => self.extension(State::Extension),
                _ => Err(BodyError::Chunk),
            },
            State::SizeLf => must(
                b'\n',
                if self.left == 0 {
                    State::TrailerStart
                } else {
                    State::Data
                },
            ),
            State::DataCr => must(b'\r', State::DataLf),
            State::DataLf => must(b'\n', State::SizeStart),
            State::TrailerStart if byte == b'\r' => Ok(State::EndLf),
            State::TrailerStart | State::TrailerLine => self.trailer(byte),
            State::TrailerLf => {
                must(b'\n', State::TrailerStart)?;
                self.keep_trailer(byte)?;
                Ok(State::TrailerStart)
            }
            State::EndLf => must(b'\n', State::Done),
            State::Done | State::Broken | State::Length | State::UntilClose | State::Data => {
                Err(BodyError::Chunk)
            }
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, BodyError> {
        let digit = (byte as char).to_digit(16).ok_or(BodyError::Chunk)?;
        if self.state == State::SizeStart {
            self.left = 0;
        }
        // Four bits to spare: a size that needs more than 60 bits is an attack, not a chunk.
        if self.left >> 56 != 0 {
            return Err(BodyError::Chunk);
        }
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn extension(&mut self, next: State) -> Result<State, BodyError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            Err(BodyError::TooLarge)
        } else {
            Ok(next)
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, BodyError> {
        if byte == b'\n' || byte == 0 {
            return Err(BodyError::Chunk);
        }
        self.keep_trailer(byte)?;
        Ok(if byte == b'\r' {
            State::TrailerLf
        } else {
            State::TrailerLine
        })
    }

    fn keep_trailer(&mut self, byte: u8) -> Result<(), BodyError> {
        let kept = self.trailers.get_or_insert_default();
        if kept.len() >= MAX_TRAILERS {
            return Err(BodyError::TooLarge);
        }
        kept.push(byte);
        Ok(())
    }

    /// The trailers, once the body is complete. Fields that frame or route a message are dropped
    /// (RFC 9110 section 6.5.1).
    pub(crate) fn take_trailers(&mut self) -> Result<Option<HeaderBlock>, BodyError> {
        let Some(mut bytes) = self.trailers.take() else {
            return Ok(None);
        };
        bytes.extend_from_slice(b"\r\n");
        let mut lines = [httparse::EMPTY_HEADER; MAX_TRAILER_LINES];
        let Ok(httparse::Status::Complete((_, lines))) =
            httparse::parse_headers(&bytes, &mut lines)
        else {
            self.state = State::Broken;
            return Err(BodyError::Chunk);
        };
        let mut block = HeaderBlock::default();
        block.load(&bytes);
        for line in lines {
            let known = Known::of(line.name.as_bytes());
            if forbidden_in_trailers(known, line.name.as_bytes()) {
                continue;
            }
            let at = |part: &[u8]| {
                Span::new(
                    (part.as_ptr() as usize) - (bytes.as_ptr() as usize),
                    part.len(),
                )
            };
            let name = at(line.name.as_bytes());
            let value = if line.value.is_empty() {
                Span::default()
            } else {
                at(line.value)
            };
            block.push_span(known, name, value);
        }
        Ok((block.len() > 0).then_some(block))
    }
}

/// Fields that frame or route a message, say who sent it, or change how it is read must not come
/// after those who decide by them have looked (RFC 9110 section 6.5.1).
pub(crate) fn forbidden_in_trailers(known: Known, name: &[u8]) -> bool {
    const NAMES: [&[u8]; 9] = [
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"max-forwards",
        b"proxy-authorization",
        b"range",
        b"set-cookie",
        b"www-authenticate",
    ];
    match known {
        Known::GrpcStatus | Known::GrpcMessage => false,
        Known::Other => NAMES.iter().any(|n| name.eq_ignore_ascii_case(n)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Whole = Result<(Vec<u8>, usize, bool), BodyError>;

    /// Feeds `input` in pieces that end at `cuts`.
    fn run(length: BodyLength, input: &[u8], cuts: &[usize]) -> Whole {
        let mut reader = BodyReader::new(length);
        let (mut out, mut used, mut from) = (Vec::new(), 0, 0);
        for to in cuts.iter().copied().chain([input.len()]) {
            let mut piece = input[from..to.max(from)].to_vec();
            from = to.max(from);
            let decoded = reader.decode(&mut piece)?;
            out.extend_from_slice(&piece[..decoded.payload]);
            used += decoded.consumed;
        }
        Ok((out, used, reader.is_done()))
    }

    fn chunked(text: &str) -> Whole {
        run(BodyLength::Unknown, text.as_bytes(), &[])
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        for (text, payload, left, done) in [
            ("5\r\nhello\r\n0\r\n\r\nGET", "hello", 3, true),
            (
                "5;a=b\r\nhello\r\n1 ;x=\"y\"\r\n!\r\n0\r\n\r\n",
                "hello!",
                0,
                true,
            ),
            ("00a\r\n0123456789\r\n000\r\n\r\n", "0123456789", 0, true),
            ("5\r\nhel", "hel", 0, false),
            ("0\r\nA: b\r\n\r\n", "", 0, true),
        ] {
            let (out, used, is_done) = chunked(text).expect(text);
            assert_eq!(
                (out.as_slice(), is_done),
                (payload.as_bytes(), done),
                "{text:?}"
            );
            assert_eq!(text.len() - used, left, "{text:?}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1\n",
            "1\r\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na0\r\n",
            "1;a\nb\r\n",
            "1 2\r\n",
            "ffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "0\r\na: b\n\r\n",
            "0\r\n\rx",
            "1 \r\na",
        ] {
            assert_eq!(chunked(text), Err(BodyError::Chunk), "{text:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        assert_eq!(
            chunked(&format!("1;{}", "a".repeat(20_000))),
            Err(BodyError::TooLarge)
        );
        assert_eq!(
            chunked(&format!("0\r\na: {}", "a".repeat(20_000))),
            Err(BodyError::TooLarge)
        );
    }

    #[test]
    fn trailers_are_kept_but_not_those_that_frame() {
        let mut reader = BodyReader::new(BodyLength::Unknown);
        let mut text = b"0\r\nX-Sum: 1\r\ncontent-length: 9\r\nempty:\r\n\r\n".to_vec();
        assert!(reader.decode(&mut text).unwrap().done);
        let trailers = reader.take_trailers().unwrap().unwrap();
        assert_eq!(trailers.len(), 2);
        assert_eq!(trailers.get_name(b"x-sum"), Some(b"1".as_slice()));
        assert_eq!(trailers.get_name(b"empty"), Some(b"".as_slice()));
    }

    #[test]
    fn only_a_body_until_close_may_end_with_the_connection() {
        assert_eq!(
            BodyReader::new(BodyLength::UntilClose).end_of_input(),
            Ok(())
        );
        assert_eq!(BodyReader::new(BodyLength::None).end_of_input(), Ok(()));
        assert!(
            BodyReader::new(BodyLength::Exactly(1))
                .end_of_input()
                .is_err()
        );
        assert!(BodyReader::new(BodyLength::Unknown).end_of_input().is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_input_gives_the_same_however_it_is_cut(
            input in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'0'), Just(b';'), any::<u8>()],
                0..80,
            ),
            mut cuts in proptest::collection::vec(0usize..80, 0..6),
        ) {
            cuts.iter_mut().for_each(|c| *c = (*c).min(input.len()));
            cuts.sort_unstable();
            prop_assert_eq!(
                run(BodyLength::Unknown, &input, &[]),
                run(BodyLength::Unknown, &input, &cuts)
            );
        }

        #[test]
        fn what_was_chunked_comes_out_again(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
            mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut input = Vec::new();
            for piece in &pieces {
                input.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                input.extend_from_slice(piece);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let mut at: Vec<usize> = cuts.drain(..).map(|c| c.index(input.len())).collect();
            at.sort_unstable();
            let (out, used, done) = run(BodyLength::Unknown, &input, &at).unwrap();
            prop_assert!(done);
            prop_assert_eq!(used, input.len());
            prop_assert_eq!(out, pieces.concat());
        }
    }
}
