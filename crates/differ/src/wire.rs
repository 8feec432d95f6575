//! HTTP/1 messages as they stand on the wire.
//!
//! Read leniently and without judgement: this side only has to show what a proxy sent. Text is
//! Latin-1 in both directions, so that every byte survives.

/// Start line and fields of a message.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub line: String,
    pub headers: Vec<(String, String)>,
    /// Length with the empty line.
    pub size: usize,
}

impl Head {
    /// The first value of a field, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Status of an answer; 0 when the line has none.
    pub fn status(&self) -> u16 {
        let code = self.line.split(' ').nth(1);
        code.and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    /// First word of the line.
    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// Second word of the line.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

impl Framing {
    pub fn of_request(head: &Head) -> Framing {
        match (chunked(head), length(head)) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        }
    }

    /// The framing of the answer to a request with this method.
    pub fn of_answer(head: &Head, method: &str) -> Framing {
        match head.status() {
            _ if method == "HEAD" => Framing::None,
            200..=299 if method == "CONNECT" => Framing::UntilClose,
            101 => Framing::UntilClose,
            100..=199 | 204 | 304 => Framing::None,
            _ if chunked(head) => Framing::Chunked,
            _ => length(head).map_or(Framing::UntilClose, Framing::Length),
        }
    }
}

fn chunked(head: &Head) -> bool {
    head.header("transfer-encoding")
        .is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"))
}

fn length(head: &Head) -> Option<usize> {
    head.header("content-length")?.trim().parse().ok()
}

/// A body as far as it has come.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub data: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Bytes it takes on the wire.
    pub size: usize,
    pub complete: bool,
    /// What stands where a chunk should begin.
    pub broken: bool,
}

/// Bytes as text, each byte one character.
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Text as bytes: characters up to U+00FF are one byte, others are UTF-8.
pub fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match u8::try_from(u32::from(character)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend(character.to_string().as_bytes()),
        }
    }
    bytes
}

/// The head at the start of `buffer`, once all of it is there.
pub fn head(buffer: &[u8]) -> Option<Head> {
    let end = find(buffer, b"\r\n\r\n")?;
    let all = text(&buffer[..end]);
    let mut lines = all.split("\r\n");
    Some(Head {
        line: lines.next().unwrap_or_default().to_owned(),
        headers: lines.map(field).collect(),
        size: end + 4,
    })
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim().to_owned())
}

/// The body at the start of `buffer`; `ended` says that nothing more will come.
pub fn body(buffer: &[u8], framing: Framing, ended: bool) -> Body {
    match framing {
        Framing::None => Body {
            complete: true,
            ..Body::default()
        },
        Framing::Length(length) => {
            let data = buffer[..length.min(buffer.len())].to_vec();
            Body {
                complete: data.len() == length,
                size: data.len(),
                data,
                ..Body::default()
            }
        }
        Framing::UntilClose => Body {
            data: buffer.to_vec(),
            size: buffer.len(),
            complete: ended,
            ..Body::default()
        },
        Framing::Chunked => chunks(buffer),
    }
}

fn chunks(buffer: &[u8]) -> Body {
    let mut body = Body::default();
    let mut at = 0;
    while let Some(end) = find(&buffer[at..], b"\r\n") {
        let line = text(&buffer[at..at + end]);
        let size = line.split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(size, 16) else {
            body.broken = true;
            break;
        };
        at += end + 2;
        if size == 0 {
            return last_chunk(buffer, at, body);
        }
        let there = size.min(buffer.len() - at);
        body.data.extend(&buffer[at..at + there]);
        if buffer.len() < at + size + 2 {
            at += there;
            break;
        }
        at += size + 2;
    }
    body.size = at;
    body
}

fn last_chunk(buffer: &[u8], mut at: usize, mut body: Body) -> Body {
    while let Some(end) = find(&buffer[at..], b"\r\n") {
        let line = text(&buffer[at..at + end]);
        at += end + 2;
        if line.is_empty() {
            body.complete = true;
            break;
        }
        body.trailers.push(field(&line));
    }
    body.size = at;
    body
}

pub fn find(buffer: &[u8], what: &[u8]) -> Option<usize> {
    buffer.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_with_trailers_is_read_to_its_end() {
        let wire = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\nnext";
        let body = body(wire, Framing::Chunked, false);
        assert_eq!(body.data, b"abcde");
        assert_eq!(body.trailers, [("X-T".to_owned(), "1".to_owned())]);
        assert!(body.complete && !body.broken);
        assert_eq!(&wire[body.size..], b"next");
    }

    #[test]
    fn a_body_cut_short_is_not_complete() {
        let cut = body(b"5\r\nab", Framing::Chunked, true);
        assert!(!cut.complete && cut.data == b"ab");
        assert!(!body(b"ab", Framing::Length(3), true).complete);
        assert!(body(b"ab", Framing::UntilClose, true).complete);
    }

    #[test]
    fn every_byte_survives_as_text() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&text(&all)), all);
        assert_eq!(bytes("€"), "€".as_bytes());
    }
}
