//! The header block: one byte buffer and a list of offset entries.
//!
//! Bytes of a received head are copied into the block once and stay as they are, spelling
//! included; later values are appended to the same buffer and the entry is pointed at them. A name
//! the proxy itself looks at has an id ([`Known`]), so that looking it up compares bytes of one
//! `u8`. It is not a map: order and repetition are kept, as HTTP wants.
//!
//! Invariant: every entry's spans lie within the buffer. Values never contain CR, LF or NUL.

use std::borrow::Cow;

macro_rules! known {
    ($($variant:ident $name:literal,)*) => {
        /// Names the proxy itself looks at or writes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Known { Other, $($variant),* }
        impl Known {
            const ALL: &'static [(Known, &'static str)] = &[$((Known::$variant, $name)),*];
            /// Lower-case spelling; empty for [`Known::Other`].
            pub(crate) const fn name(self) -> &'static str {
                match self { Known::Other => "", $(Known::$variant => $name),* }
            }
        }
    };
}

known! {
    Te "te",
    Via "via",
    Date "date",
    Host "host",
    Cookie "cookie",
    Expect "expect",
    Server "server",
    Trailer "trailer",
    Upgrade "upgrade",
    Location "location",
    Connection "connection",
    KeepAlive "keep-alive",
    GrpcStatus "grpc-status",
    GrpcMessage "grpc-message",
    GrpcTimeout "grpc-timeout",
    XRequestId "x-request-id",
    ContentType "content-type",
    ContentLength "content-length",
    Http2Settings "http2-settings",
    XForwardedFor "x-forwarded-for",
    TransferEncoding "transfer-encoding",
    ProxyConnection "proxy-connection",
    ProxyAuthenticate "proxy-authenticate",
    XForwardedProto "x-forwarded-proto",
    XForwardedHost "x-forwarded-host",
    XForwardedPort "x-forwarded-port",
    XForwardedClientCert "x-forwarded-client-cert",
    EnvoyInternal "x-envoy-internal",
    EnvoyRetryOn "x-envoy-retry-on",
    EnvoyMaxRetries "x-envoy-max-retries",
    EnvoyAttemptCount "x-envoy-attempt-count",
    EnvoyRatelimited "x-envoy-ratelimited",
    EnvoyOriginalHost "x-envoy-original-host",
    EnvoyOriginalPath "x-envoy-original-path",
    EnvoyRetryGrpcOn "x-envoy-retry-grpc-on",
    EnvoyIsTimeoutRetry "x-envoy-is-timeout-retry",
    EnvoyExternalAddress "x-envoy-external-address",
    EnvoyRqTimeout "x-envoy-upstream-rq-timeout-ms",
    EnvoyRqPerTryTimeout "x-envoy-upstream-rq-per-try-timeout-ms",
    EnvoyExpectedTimeout "x-envoy-expected-rq-timeout-ms",
    EnvoyServiceTime "x-envoy-upstream-service-time",
    EnvoyDecorator "x-envoy-decorator-operation",
    EnvoyRetriableStatusCodes "x-envoy-retriable-status-codes",
    EnvoyRetriableHeaderNames "x-envoy-retriable-header-names",
    EnvoyAltResponse "x-envoy-upstream-rq-timeout-alt-response",
    EnvoyOriginalDstHost "x-envoy-original-dst-host",
}

/// The longest name in [`Known`].
const LONGEST: usize = 40;

/// For each length, where in [`Known::ALL`] names of that length are; filled at compile time.
static BY_LENGTH: [[u8; 8]; LONGEST + 1] = {
    let mut table = [[u8::MAX; 8]; LONGEST + 1];
    let mut i = 0;
    while i < Known::ALL.len() {
        let len = Known::ALL[i].1.len();
        let mut slot = 0;
        while table[len][slot] != u8::MAX {
            slot += 1;
        }
        table[len][slot] = i as u8;
        i += 1;
    }
    table
};

impl Known {
    /// All but [`Known::Other`], in the order of their numbers.
    pub(crate) fn all() -> impl Iterator<Item = Known> {
        Known::ALL.iter().map(|(known, _)| *known)
    }

    /// The id of a name, in any case.
    pub(crate) fn of(name: &[u8]) -> Known {
        let (Some(candidates), [first, .., last]) = (BY_LENGTH.get(name.len()), name) else {
            return Known::Other;
        };
        for at in candidates {
            let Some((known, text)) = Known::ALL.get(usize::from(*at)) else {
                break;
            };
            // Most names are known by their ends not to be it.
            let [begins, .., ends] = text.as_bytes() else {
                break;
            };
            let may_be = *begins == first | 0x20 && *ends == last | 0x20;
            if may_be && text.as_bytes().eq_ignore_ascii_case(name) {
                return *known;
            }
        }
        Known::Other
    }
}

/// A piece of a block's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// Offsets above 4 GiB cannot occur: heads are limited to a few hundred KiB.
    pub(crate) fn new(start: usize, len: usize) -> Span {
        Span {
            start: start as u32,
            len: len as u32,
        }
    }

    pub(crate) fn end(self) -> usize {
        self.start as usize + self.len as usize
    }

    pub(crate) fn start(self) -> usize {
        self.start as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Empty: the name is `known.name()`.
    name: Span,
    value: Span,
    known: Known,
}

/// The headers of one message.
///
/// Boxed, since heads move between futures and blocks are used again by later requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeaderBlock(Box<Parts>);

#[derive(Clone, Debug, Default)]
struct Parts {
    buf: Vec<u8>,
    entries: Vec<Entry>,
}

impl HeaderBlock {
    /// Empties the block and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.0.buf.clear();
        self.0.entries.clear();
    }

    /// Bytes of memory held.
    pub(crate) fn capacity(&self) -> usize {
        self.0.buf.capacity() + self.0.entries.capacity() * size_of::<Entry>()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Copies the bytes of a received head; spans given to [`Self::push_span`] point into them.
    pub(crate) fn load(&mut self, head: &[u8]) {
        self.clear();
        self.0.buf.extend_from_slice(head);
    }

    /// Adds a header that lies in the loaded bytes.
    pub(crate) fn push_span(&mut self, known: Known, name: Span, value: Span) {
        self.0.entries.push(Entry { name, value, known });
    }

    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        self.0.buf.get(span.start()..span.end()).unwrap_or_default()
    }

    /// Appends bytes that are not a header themselves (a rewritten path).
    pub(crate) fn store(&mut self, bytes: &[u8]) -> Span {
        let span = Span::new(self.0.buf.len(), bytes.len());
        self.0.buf.extend_from_slice(bytes);
        span
    }

    fn name_of(&self, entry: &Entry) -> &[u8] {
        if entry.name.len == 0 {
            entry.known.name().as_bytes()
        } else {
            self.bytes(entry.name)
        }
    }

    fn is_named(&self, entry: &Entry, known: Known, name: &[u8]) -> bool {
        entry.known == known
            && (known != Known::Other || self.name_of(entry).eq_ignore_ascii_case(name))
    }

    /// Name and value of every header, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.0
            .entries
            .iter()
            .map(|e| (e.known, self.name_of(e), self.bytes(e.value)))
    }

    /// The first value.
    pub(crate) fn get(&self, known: Known) -> Option<&[u8]> {
        self.0
            .entries
            .iter()
            .find(|e| e.known == known)
            .map(|e| self.bytes(e.value))
    }

    pub(crate) fn has(&self, known: Known) -> bool {
        self.0.entries.iter().any(|e| e.known == known)
    }

    /// All values, in order.
    pub(crate) fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.0
            .entries
            .iter()
            .filter(move |e| e.known == known)
            .map(|e| self.bytes(e.value))
    }

    /// The first value of a header by name, in any case.
    pub(crate) fn get_name(&self, name: &[u8]) -> Option<&[u8]> {
        let known = Known::of(name);
        self.0
            .entries
            .iter()
            .find(|e| self.is_named(e, known, name))
            .map(|e| self.bytes(e.value))
    }

    /// Whether any value of a header passes; `None` when there is none.
    pub(crate) fn any_value(
        &self,
        name: &[u8],
        mut test: impl FnMut(&[u8]) -> bool,
    ) -> Option<bool> {
        let known = Known::of(name);
        let mut found = None;
        for entry in &self.0.entries {
            if self.is_named(entry, known, name) {
                if test(self.bytes(entry.value)) {
                    return Some(true);
                }
                found = Some(false);
            }
        }
        found
    }

    /// All values of a header, joined with `,`; borrowed when there is only one.
    pub(crate) fn joined(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        let known = Known::of(name);
        let mut values = self
            .0
            .entries
            .iter()
            .filter(|e| self.is_named(e, known, name))
            .map(|e| self.bytes(e.value));
        let first = values.next()?;
        let mut joined = Cow::Borrowed(first);
        for value in values {
            let joined = joined.to_mut();
            joined.push(b',');
            joined.extend_from_slice(value);
        }
        Some(joined)
    }

    /// Adds a header behind the others.
    pub(crate) fn push(&mut self, known: Known, value: &[u8]) {
        let value = self.store(value);
        self.0.entries.push(Entry {
            name: Span::default(),
            value,
            known,
        });
    }

    /// Adds a header by name behind the others.
    pub(crate) fn push_name(&mut self, name: &[u8], value: &[u8]) {
        let known = Known::of(name);
        let spelled = self.store(name);
        let value = self.store(value);
        self.0.entries.push(Entry {
            name: spelled,
            value,
            known,
        });
    }

    /// Puts `host` before all others, where a client would write it.
    pub(crate) fn push_front(&mut self, known: Known, value: &[u8]) {
        let value = self.store(value);
        self.0.entries.insert(
            0,
            Entry {
                name: Span::default(),
                value,
                known,
            },
        );
    }

    /// Leaves exactly one such header, at the place of the first.
    pub(crate) fn set(&mut self, known: Known, value: &[u8]) {
        let value = self.store(value);
        let Some(at) = self.0.entries.iter().position(|e| e.known == known) else {
            self.0.entries.push(Entry {
                name: Span::default(),
                value,
                known,
            });
            return;
        };
        self.0.entries[at].value = value;
        let mut index = 0;
        self.0.entries.retain(|e| {
            index += 1;
            e.known != known || index - 1 == at
        });
    }

    /// Leaves exactly one such header, by name. Whether there was one before.
    pub(crate) fn set_name(&mut self, name: &[u8], value: &[u8]) -> bool {
        let existed = self.remove_name(name);
        self.push_name(name, value);
        existed
    }

    pub(crate) fn remove(&mut self, known: Known) {
        self.0.entries.retain(|e| e.known != known);
    }

    /// Removes all headers of a name; whether there was one.
    pub(crate) fn remove_name(&mut self, name: &[u8]) -> bool {
        let known = Known::of(name);
        let before = self.0.entries.len();
        let buf = &self.0.buf;
        self.0.entries.retain(|e| {
            let same = e.known == known
                && (known != Known::Other
                    || buf
                        .get(e.name.start()..e.name.end())
                        .is_some_and(|have| have.eq_ignore_ascii_case(name)));
            !same
        });
        self.0.entries.len() != before
    }

    /// Removes every header for which `unwanted` says so.
    pub(crate) fn remove_if(&mut self, mut unwanted: impl FnMut(Known, &[u8], &[u8]) -> bool) {
        let buf = std::mem::take(&mut self.0.buf);
        let piece = |span: Span| buf.get(span.start()..span.end()).unwrap_or_default();
        self.0.entries.retain(|e| {
            let name = if e.name.len == 0 {
                e.known.name().as_bytes()
            } else {
                piece(e.name)
            };
            !unwanted(e.known, name, piece(e.value))
        });
        self.0.buf = buf;
    }

    /// Appends all headers in HTTP/1 syntax, without the empty line.
    pub(crate) fn write_http1(&self, out: &mut Vec<u8>) {
        let mut run = 0..0;
        for entry in &self.0.entries {
            let start = entry.name.start();
            let plain = entry.name.len != 0
                && entry.value.start() == entry.name.end() + 2
                && self.0.buf.get(entry.name.end()..entry.value.start()) == Some(b": ".as_slice())
                && self.0.buf.get(entry.value.end()..entry.value.end() + 2)
                    == Some(b"\r\n".as_slice());
            if plain && run.end == start && !run.is_empty() {
                run.end = entry.value.end() + 2;
                continue;
            }
            out.extend_from_slice(self.0.buf.get(run.clone()).unwrap_or_default());
            run = 0..0;
            if plain {
                run = start..entry.value.end() + 2;
            } else {
                out.extend_from_slice(self.name_of(entry));
                out.extend_from_slice(b": ");
                out.extend_from_slice(self.bytes(entry.value));
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(self.0.buf.get(run).unwrap_or_default());
    }
}

/// Whether bytes may stand in a header value: no control characters but tab.
pub(crate) fn is_value(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|b| *b >= 0x20 && *b != 0x7f || *b == b'\t')
}

/// The members of a comma-separated list, trimmed, empty ones left out.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|b| *b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|m| !m.is_empty())
}

/// Whether one of the values of a list header is `token`, in any case.
pub(crate) fn has_token(block: &HeaderBlock, known: Known, token: &[u8]) -> bool {
    block
        .all(known)
        .any(|value| list(value).any(|member| member.eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> HeaderBlock {
        let mut block = HeaderBlock::default();
        block.load(text.as_bytes());
        let mut at = 0;
        for line in text.split_inclusive("\r\n") {
            let (name, value) = line.trim_end().split_once(':').unwrap();
            let start = at + name.len() + 1 + (value.len() - value.trim_start().len());
            block.push_span(
                Known::of(name.as_bytes()),
                Span::new(at, name.len()),
                Span::new(start, value.trim().len()),
            );
            at += line.len();
        }
        block
    }

    fn written(block: &HeaderBlock) -> String {
        let mut out = Vec::new();
        block.write_http1(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for (known, name) in Known::ALL {
            assert_eq!(Known::of(name.as_bytes()), *known);
            assert_eq!(Known::of(name.to_uppercase().as_bytes()), *known);
        }
        assert_eq!(Known::of(b"x-other"), Known::Other);
    }

    #[test]
    fn untouched_headers_keep_their_spelling_and_order() {
        let text = "HOST: a\r\nX-One: 1\r\nx-two: 2\r\n";
        assert_eq!(written(&block(text)), text);
    }

    #[test]
    fn spacing_around_values_is_normalised() {
        assert_eq!(
            written(&block("A:1\r\nB:   2  \r\nC: 3\r\n")),
            "A: 1\r\nB: 2\r\nC: 3\r\n"
        );
    }

    #[test]
    fn setting_replaces_all_of_a_name_at_the_place_of_the_first() {
        let mut b = block("Te: a\r\nX: 1\r\nTE: b\r\n");
        b.set(Known::Te, b"c");
        assert_eq!(written(&b), "Te: c\r\nX: 1\r\n");
        b.set_name(b"x", b"9");
        b.push(Known::Date, b"now");
        assert_eq!(written(&b), "Te: c\r\nx: 9\r\ndate: now\r\n");
        assert!(b.remove_name(b"X"));
        assert!(!b.remove_name(b"X"));
    }

    #[test]
    fn repeated_values_are_joined_only_when_there_are_several() {
        let b = block("A: 1\r\na: 2\r\nB: 3\r\n");
        assert_eq!(b.joined(b"a").unwrap().as_ref(), b"1,2");
        assert!(matches!(b.joined(b"b"), Some(Cow::Borrowed(b"3"))));
        assert!(b.joined(b"c").is_none());
    }
}
