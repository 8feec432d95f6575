//! A question to its answer, both as bytes.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::Rng;

use super::table::{Found, Table};

/// Low, because addresses change and clients should notice (Istio's `defaultTTLInSeconds`).
const TTL: u32 = 30;
/// What every client takes over UDP (RFC 1035 section 4.2.1).
const PLAIN_SIZE: u16 = 512;
/// The most that is sent over UDP, whatever a client offers.
const LARGEST_DATAGRAM: u16 = 4_096;
/// Length of the header of a message.
const HEADER: usize = 12;

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// No question at all.
    Nothing,
    Reply(Vec<u8>),
    /// The mesh does not know the name.
    Forward,
}

/// Answers one message. Without a table the mesh has not said yet what it knows.
pub fn answer(packet: &[u8], table: Option<&Table>, is_udp: bool) -> Answer {
    let Some(head) = packet.get(..HEADER) else {
        return Answer::Nothing;
    };
    let is_response = head[2] & 0x80 != 0;
    if is_response {
        return Answer::Nothing;
    }
    let id = u16::from_be_bytes([head[0], head[1]]);
    let Ok(message) = Message::from_vec(packet) else {
        return refuse(
            &Message::new(id, MessageType::Query, OpCode::Query),
            ResponseCode::FormErr,
        );
    };
    if message.metadata.op_code != OpCode::Query {
        return refuse(&message, ResponseCode::NotImp);
    }
    let [question] = message.queries.as_slice() else {
        return refuse(&message, ResponseCode::FormErr);
    };
    let Some(table) = table else {
        return refuse(&message, ResponseCode::ServFail);
    };
    if question.query_class() != DNSClass::IN {
        return Answer::Forward;
    }
    let name = question.name().to_ascii().to_ascii_lowercase();
    let records = match (table.find(&name), question.query_type()) {
        (Some(found), RecordType::A) => {
            let four = found.addresses.four.iter();
            records(question, &found, four.map(|ip| RData::A((*ip).into())))
        }
        (Some(found), RecordType::AAAA) => {
            let six = found.addresses.six.iter();
            records(question, &found, six.map(|ip| RData::AAAA((*ip).into())))
        }
        _ => return Answer::Forward,
    };
    reply(&message, records, is_udp)
}

/// That nobody could answer a question.
pub fn server_failure(packet: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(packet).ok()?;
    match refuse(&message, ResponseCode::ServFail) {
        Answer::Reply(bytes) => Some(bytes),
        Answer::Nothing | Answer::Forward => None,
    }
}

/// The alias, if the name is one, and the addresses, in an order that differs from time to time.
/// No address of this family is an answer too: the name exists.
fn records(
    question: &Query,
    found: &Found<'_>,
    addresses: impl Iterator<Item = RData>,
) -> Vec<Record> {
    let asked = question.name().clone();
    let mut addresses: Vec<RData> = addresses.collect();
    if addresses.is_empty() {
        return Vec::new();
    }
    let first = rand::rng().random_range(0..addresses.len());
    addresses.rotate_left(first);
    let target = found.alias_of.and_then(|name| Name::from_ascii(name).ok());
    let owner = target.clone().unwrap_or_else(|| asked.clone());
    let alias = target.map(|target| Record::from_rdata(asked, TTL, RData::CNAME(CNAME(target))));
    let addresses = addresses.into_iter();
    let addresses = addresses.map(|data| Record::from_rdata(owner.clone(), TTL, data));
    alias.into_iter().chain(addresses).collect()
}

fn refuse(request: &Message, code: ResponseCode) -> Answer {
    let mut response = response_to(request);
    response.metadata.response_code = code;
    encode(&response).map_or(Answer::Nothing, Answer::Reply)
}

fn reply(request: &Message, records: Vec<Record>, is_udp: bool) -> Answer {
    let mut response = response_to(request);
    response.metadata.authoritative = true;
    response.metadata.recursion_available = true;
    response.add_answers(records);
    let offered = request
        .edns
        .as_ref()
        .map_or(PLAIN_SIZE, |edns| edns.max_payload());
    let most = match is_udp {
        true => usize::from(offered.clamp(PLAIN_SIZE, LARGEST_DATAGRAM)),
        false => usize::from(u16::MAX),
    };
    loop {
        let Some(bytes) = encode(&response) else {
            return Answer::Nothing;
        };
        if bytes.len() <= most || response.answers.is_empty() {
            return Answer::Reply(bytes);
        }
        // The client asks again over TCP when it wants them all.
        let fitting = response.answers.len() * most / bytes.len();
        response
            .answers
            .truncate(fitting.min(response.answers.len() - 1));
        response.metadata.truncation = true;
    }
}

fn response_to(request: &Message) -> Message {
    let metadata = &request.metadata;
    let mut response = Message::response(metadata.id, metadata.op_code);
    response.metadata.recursion_desired = metadata.recursion_desired;
    response.metadata.checking_disabled = metadata.checking_disabled;
    response.add_queries(request.queries.iter().take(1).cloned());
    if request.edns.is_some() {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(LARGEST_DATAGRAM);
        response.set_edns(edns);
    }
    response
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    message.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use lateen_proto::nds::{NameInfo, NameTable};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::table::Place;
    use super::*;

    fn table() -> Table {
        let mut table = NameTable::default();
        let info = NameInfo {
            ips: vec!["10.0.0.1".into(), "fd00::1".into()],
            ..Default::default()
        };
        table.table.insert("known.test".into(), info);
        Table::decode(&table.encode_to_vec(), &Place::default()).unwrap()
    }

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn code(packet: &[u8], table: Option<&Table>) -> String {
        match answer(packet, table, true) {
            Answer::Nothing => "nothing".into(),
            Answer::Forward => "forward".into(),
            Answer::Reply(bytes) => {
                assert_eq!(bytes[..2], packet[..2]);
                let message = Message::from_vec(&bytes).unwrap();
                format!("{:?}", message.metadata.response_code)
            }
        }
    }

    #[test]
    fn what_is_no_question_is_refused_or_passed_over() {
        let table = table();
        let known = question("known.test.");
        let changed = |place: usize, byte: u8| {
            let mut packet = known.clone();
            packet[place] = byte;
            packet
        };
        assert_eq!(code(&known, Some(&table)), "NoError");
        assert_eq!(code(&known, None), "ServFail");
        assert_eq!(code(&question("other.test."), Some(&table)), "forward");
        // A response, a status request, no question, two of which one is missing, cut, empty.
        assert_eq!(code(&changed(2, 0x81), Some(&table)), "nothing");
        assert_eq!(code(&changed(2, 0x10), Some(&table)), "NotImp");
        assert_eq!(code(&changed(5, 0), Some(&table)), "FormErr");
        assert_eq!(code(&changed(5, 2), Some(&table)), "FormErr");
        assert_eq!(code(&known[..20], Some(&table)), "FormErr");
        assert_eq!(code(&known[..11], Some(&table)), "nothing");
        // Another class.
        let class = known.len() - 1;
        assert_eq!(code(&changed(class, 3), Some(&table)), "forward");
    }

    proptest! {
        #[test]
        fn no_bytes_stop_it_and_every_reply_is_a_message(
            noise in proptest::collection::vec(any::<u8>(), 0..600),
            places in proptest::collection::vec((0usize..60, any::<u8>()), 0..6),
            with_table in any::<bool>(),
        ) {
            let table = table();
            let table = with_table.then_some(&table);
            // Pure noise, and a good question with a few bytes changed.
            let mut bent = question("known.test.");
            for (place, byte) in places {
                let place = place % bent.len();
                bent[place] = byte;
            }
            for packet in [noise, bent] {
                if let Answer::Reply(bytes) = answer(&packet, table, true) {
                    prop_assert!(bytes.len() <= usize::from(LARGEST_DATAGRAM));
                    prop_assert_eq!(&bytes[..2], &packet[..2]);
                    prop_assert!(Message::from_vec(&bytes).is_ok());
                }
                let _ = server_failure(&packet);
            }
        }
    }
}
