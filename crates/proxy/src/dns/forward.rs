//! Asks the servers of `/etc/resolv.conf` what the mesh does not know.
//!
//! A question is passed on as it came, under a number of our own, and the first answer to exactly
//! this question is passed back as it came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Patience with one server; the client itself has five seconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// resolv.conf(5): more are ignored.
const MOST_SERVERS: usize = 3;
const DNS: u16 = 53;
const HEADER: usize = 12;

/// The servers and the first search domain that a `resolv.conf` names.
pub fn servers_of(resolv_conf: &str) -> (Vec<SocketAddr>, Option<String>) {
    let (mut servers, mut search) = (Vec::new(), None);
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) if servers.len() < MOST_SERVERS => {
                servers.extend(
                    address
                        .parse()
                        .ok()
                        .map(|ip: IpAddr| SocketAddr::new(ip, DNS)),
                );
            }
            // The last one counts, as with the system's resolver.
            (Some("search" | "domain"), Some(domain)) => search = Some(domain.to_owned()),
            _ => {}
        }
    }
    (servers, search)
}

/// The answer of the first server that gives one.
pub async fn ask(servers: &[SocketAddr], question: &[u8], over_udp: bool) -> Option<Vec<u8>> {
    for server in servers {
        let asking = async {
            match over_udp {
                true => ask_udp(*server, question).await,
                false => ask_tcp(*server, question).await,
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a DNS server failed"),
            Err(_) => tracing::debug!(%server, "a DNS server did not answer"),
        }
    }
    None
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question, chosen by the system at random, like the number.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let asked = renumbered(question, rand::rng().random());
    socket.send(&asked).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if is_answer_to(answer, &asked) {
            return Ok(renumbered(answer, number(question)));
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let asked = renumbered(question, rand::rng().random());
    write_message(&mut stream, &asked).await?;
    let answer = read_message(&mut stream).await?;
    match is_answer_to(&answer, &asked) {
        true => Ok(renumbered(&answer, number(question))),
        false => Err(std::io::Error::other("the answer is to another question")),
    }
}

/// A message with its length before it (RFC 1035 section 4.2.2).
pub async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    // In one write: some clients take a length alone for the end.
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}

fn number(message: &[u8]) -> u16 {
    match message {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

fn renumbered(message: &[u8], number: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    for (place, byte) in message.iter_mut().zip(number.to_be_bytes()) {
        *place = byte;
    }
    message
}

/// Same number, same question, and an answer. A forger has to guess number and port.
fn is_answer_to(answer: &[u8], asked: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same = match (question(answer), question(asked)) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        _ => false,
    };
    is_response && number(answer) == number(asked) && same
}

/// The bytes of the first question. A name in a question is never compressed: nothing stands
/// before it.
fn question(message: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        match length {
            0 => return message.get(HEADER..at + 4),
            1..=63 => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_domain_are_read_as_the_system_does() {
        let text = "# x\nsearch a.test b.test\nnameserver 10.0.0.1\nnameserver fd00::1\n\
                    nameserver nonsense\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions ndots:5\n";
        let (servers, search) = servers_of(text);
        let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fd00::1]:53", "10.0.0.2:53"]);
        assert_eq!(search.as_deref(), Some("a.test"));
        assert_eq!(servers_of(""), (vec![], None));
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let asked = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01A\x04test\0\0\x01\0\x01";
        let good = b"\x12\x34\x81\0\0\x01\0\0\0\0\0\0\x01a\x04TEST\0\0\x01\0\x01rest";
        assert!(is_answer_to(good, asked));
        for (place, byte) in [(0, 0x13), (2, 0x01), (13, b'b'), (21, 0x1c)] {
            let mut wrong = good.to_vec();
            wrong[place] = byte;
            assert!(!is_answer_to(&wrong, asked), "{place}");
        }
        assert!(!is_answer_to(&good[..20], asked));
        assert!(!is_answer_to(&[], &[]));
    }
}
