//! The DNS server over real sockets.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lateen_proto::nds::{KUBERNETES, NameInfo, NameTable};
use lateen_proxy::dns::{Place, Server, Settings};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

const PATIENCE: Duration = Duration::from_secs(20);

async fn server(servers: Vec<SocketAddr>) -> Server {
    let settings = Settings {
        address: "127.0.0.1:0".parse().unwrap(),
        servers,
        place: Place {
            namespace: "default".into(),
            domain: "svc.cluster.local".into(),
            search: Some("default.svc.cluster.local".into()),
        },
    };
    // The port that is free for UDP may be somebody's for TCP.
    loop {
        match Server::start(settings.clone()).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            started => return started.unwrap(),
        }
    }
}

/// A table in which `many.test` has a hundred addresses.
fn table() -> Vec<u8> {
    let info = |ips: &[&str]| NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        ..Default::default()
    };
    let mut table = NameTable::default();
    let reviews = NameInfo {
        registry: KUBERNETES.into(),
        shortname: "reviews".into(),
        namespace: "default".into(),
        ..info(&["10.0.0.1"])
    };
    table
        .table
        .insert("reviews.default.svc.cluster.local".into(), reviews);
    table
        .table
        .insert("both.test".into(), info(&["10.0.0.2", "fd00::2"]));
    table
        .table
        .insert("*.wild.test".into(), info(&["10.0.0.3"]));
    let many: Vec<String> = (1..=100).map(|n| format!("10.1.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    table.table.insert("many.test".into(), info(&many));
    table.encode_to_vec()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn over_udp(to: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket
        .send_to(&question.to_vec().unwrap(), to)
        .await
        .unwrap();
    let mut buffer = [0; 65_535];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
    let answer = Message::from_vec(&buffer[..received.unwrap().unwrap()]).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

async fn over_tcp(stream: &mut TcpStream, question: &Message) -> Message {
    let bytes = question.to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// Code and records, sorted.
fn text(answer: &Message) -> String {
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    let mut records: Vec<String> = answer
        .answers
        .iter()
        .map(|r| format!("{} {} {}", r.name, r.ttl, r.data))
        .collect();
    records.sort();
    format!("{:?} {}", answer.metadata.response_code, records.join(", "))
}

#[tokio::test]
async fn known_names_are_answered_over_udp_and_tcp() {
    let server = server(Vec::new()).await;
    let before = over_udp(server.address(), &question("reviews.", RecordType::A)).await;
    assert_eq!(text(&before), "ServFail ", "nothing is known yet");
    server.update(&table()).unwrap();
    assert!(
        server.update(b"\xff\xff").is_err(),
        "and the table before stays"
    );
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let cases = [
        ("reviews.", RecordType::A, "NoError reviews. 30 10.0.0.1"),
        (
            "Reviews.Default.svc.",
            RecordType::A,
            "NoError Reviews.Default.svc. 30 10.0.0.1",
        ),
        ("reviews.", RecordType::AAAA, "NoError "),
        (
            "both.test.",
            RecordType::A,
            "NoError both.test. 30 10.0.0.2",
        ),
        (
            "both.test.",
            RecordType::AAAA,
            "NoError both.test. 30 fd00::2",
        ),
        (
            "both.test.default.svc.cluster.local.",
            RecordType::A,
            "NoError both.test. 30 10.0.0.2, both.test.default.svc.cluster.local. 30 both.test.",
        ),
        (
            "a.b.wild.test.",
            RecordType::A,
            "NoError a.b.wild.test. 30 10.0.0.3",
        ),
        // Nobody to ask.
        ("unknown.test.", RecordType::A, "ServFail "),
        ("reviews.", RecordType::TXT, "ServFail "),
    ];
    for (name, kind, expect) in cases {
        let question = question(name, kind);
        let answer = over_udp(server.address(), &question).await;
        assert_eq!(text(&answer), expect, "{name} {kind}");
        assert_eq!(
            text(&over_tcp(&mut stream, &question).await),
            expect,
            "{name} {kind}"
        );
        assert_eq!(answer.queries, question.queries);
    }
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_is_cut_and_whole_over_tcp() {
    let server = server(Vec::new()).await;
    server.update(&table()).unwrap();
    let mut question = question("many.test.", RecordType::A);
    let plain = over_udp(server.address(), &question).await;
    assert!(plain.metadata.truncation);
    assert!(
        (10..100).contains(&plain.answers.len()),
        "{}",
        plain.answers.len()
    );
    assert!(plain.to_vec().unwrap().len() <= 512);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let whole = over_tcp(&mut stream, &question).await;
    assert_eq!(
        (whole.answers.len(), whole.metadata.truncation),
        (100, false)
    );
    let mut edns = Edns::new();
    edns.set_max_payload(4_096);
    question.set_edns(edns);
    let large = over_udp(server.address(), &question).await;
    assert_eq!(
        (large.answers.len(), large.metadata.truncation),
        (100, false)
    );
    assert!(large.edns.is_some());
    // Clients take the first address: each comes first at some time.
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let answer = over_udp(server.address(), &question).await;
        first.insert(answer.answers[0].data.to_string());
    }
    // Three or fewer of a hundred, forty times, come by chance once in 10^55 runs.
    assert!(first.len() > 3, "{first:?}");
}

/// A server that knows one address, and first sends an answer to another question.
async fn upstream() -> SocketAddr {
    // The same port for both, which somebody else may have for one of them.
    let (udp, address, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address).await {
            break (udp, address, tcp);
        }
    };
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut forged = reply(&asked, [6, 6, 6, 6]);
            forged.metadata.id = asked.metadata.id.wrapping_add(1);
            udp.send_to(&forged.to_vec().unwrap(), client)
                .await
                .unwrap();
            let good = reply(&asked, [9, 9, 9, 9]);
            udp.send_to(&good.to_vec().unwrap(), client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut asked = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut asked).await.unwrap();
            let bytes = reply(&Message::from_vec(&asked).unwrap(), [8, 8, 8, 8]);
            let bytes = bytes.to_vec().unwrap();
            stream.write_u16(bytes.len() as u16).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    address
}

fn reply(asked: &Message, address: [u8; 4]) -> Message {
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.add_queries(asked.queries.clone());
    let [a, b, c, d] = address;
    let name = asked.queries[0].name().clone();
    answer.add_answer(Record::from_rdata(name, 77, RData::A(A::new(a, b, c, d))));
    answer
}

#[tokio::test]
async fn unknown_names_are_asked_of_the_servers_in_order() {
    // Both sockets keep their port from others and take nothing: the one listens to itself only, the
    // other one not at all.
    let (nobody, udp, _tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let nobody = udp.local_addr().unwrap();
        udp.connect(nobody).await.unwrap();
        let tcp = TcpSocket::new_v4().unwrap();
        if tcp.bind(nobody).is_ok() {
            break (nobody, udp, tcp);
        }
    };
    let server = server(vec![nobody, upstream().await]).await;
    server.update(&table()).unwrap();
    let question = question("unknown.test.", RecordType::A);
    let answer = over_udp(server.address(), &question).await;
    assert_eq!(text(&answer), "NoError unknown.test. 77 9.9.9.9");
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let answer = over_tcp(&mut stream, &question).await;
    assert_eq!(text(&answer), "NoError unknown.test. 77 8.8.8.8");
    drop(udp);
}

#[tokio::test]
async fn a_server_that_is_silent_holds_up_nobody_else_and_questions_are_bounded() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = server(vec![silent.local_addr().unwrap()]).await;
    server.update(&table()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let unknown = question("unknown.test.", RecordType::A).to_vec().unwrap();
    let mut refused = 0;
    let mut buffer = [0; 512];
    for _ in 0..700 {
        client.send_to(&unknown, server.address()).await.unwrap();
        // Slow enough for the socket's buffer.
        tokio::task::yield_now().await;
        let received = tokio::time::timeout(Duration::from_millis(1), client.recv(&mut buffer));
        if let Ok(Ok(length)) = received.await {
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            refused += 1;
        }
    }
    assert!(refused > 50, "{refused} of 700 were beyond the bound");
    let known = question("reviews.", RecordType::A);
    let answer = over_udp(server.address(), &known).await;
    assert_eq!(text(&answer), "NoError reviews. 30 10.0.0.1");
}
