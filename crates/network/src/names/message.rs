//! Queries and answers, RFC 1035.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::View;

/// Bytes of a query that are looked at; real ones have a few hundred.
pub const LARGEST_QUERY: usize = 4096;
/// What a client takes by UDP that does not say more.
const PLAIN_UDP: usize = 512;
/// What is sent by UDP at most: more would be fragmented.
const LARGEST_UDP: usize = 1232;
/// Seconds that an answer may be kept. Containers come and go; Docker's is 600, which outlives them.
const TIME_TO_LIVE: u32 = 5;
/// Addresses of one name that are told.
const MOST_ADDRESSES: usize = 512;

/// How the query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What is to be done with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// It is not about containers: ask somebody else.
    Forward,
    /// It is no query.
    Ignore,
}

/// Answers a query of a container. `turn` rotates the addresses of a name that has several.
#[must_use]
pub fn answer(bytes: &[u8], view: &View<'_>, transport: Transport, turn: usize) -> Answer {
    if bytes.len() > LARGEST_QUERY {
        return Answer::Ignore;
    }
    let query = match Message::from_vec(bytes) {
        Ok(query) if query.metadata.message_type == MessageType::Query => query,
        Ok(_) => return Answer::Ignore,
        // Twelve bytes are a header, whose sender wants to know.
        Err(_) => return refusal(bytes, ResponseCode::FormErr),
    };
    let [question] = query.queries.as_slice() else { return refusal(bytes, ResponseCode::FormErr) };
    if query.metadata.op_code != OpCode::Query {
        return refusal(bytes, ResponseCode::NotImp);
    }
    match records(question, view, turn) {
        Some(records) => reply(&query, question, records, transport),
        None if view.reaches_out() => Answer::Forward,
        None => refusal(bytes, ResponseCode::Refused),
    }
}

/// Says that nobody could be asked.
#[must_use]
pub fn failure(bytes: &[u8]) -> Option<Vec<u8>> {
    match refusal(bytes, ResponseCode::ServFail) {
        Answer::Reply(bytes) => Some(bytes),
        Answer::Forward | Answer::Ignore => None,
    }
}

/// Whether `answer` belongs to `query`: the same question and, but for the id, what whoever was asked says.
#[must_use]
pub fn relates(query: &[u8], answer: &[u8]) -> bool {
    const HEADER: usize = 12;
    let is_answer = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let Some(question) = question(query) else { return false };
    let same = answer.get(HEADER..HEADER + question.len());
    // An error may come without its question.
    let bare = answer.len() == HEADER && answer.get(3).is_some_and(|flags| flags & 0x0f != 0);
    is_answer && (bare || same.is_some_and(|same| same.eq_ignore_ascii_case(question)))
}

/// The bytes of the first question: labels up to an empty one, then type and class.
fn question(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.get(12..)?;
    let mut at = 0;
    loop {
        match usize::from(*rest.get(at)?) {
            0 => return rest.get(..at + 5),
            length if length < 64 => at += length + 1,
            // Nothing stands before the first question that it could point to.
            _ => return None,
        }
    }
}

/// What containers have to say about a question; `None` when it is not about them.
fn records(question: &Query, view: &View<'_>, turn: usize) -> Option<Vec<Record>> {
    if question.query_class() != DNSClass::IN {
        return None;
    }
    let name = question.name();
    if question.query_type() == RecordType::PTR {
        let address = name.parse_arpa_name().ok()?;
        let whole = if address.addr().is_ipv4() { 32 } else { 128 };
        let found = view.name(address.addr()).filter(|_| address.prefix_len() == whole)?;
        let target = Name::from_ascii(format!("{found}.")).ok()?;
        return Some(vec![record(name, RData::PTR(PTR(target)))]);
    }
    let mut addresses = view.addresses(&name.to_ascii())?;
    addresses.retain(|address| match question.query_type() {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    });
    if !addresses.is_empty() {
        let count = addresses.len();
        addresses.rotate_left(turn % count);
    }
    addresses.truncate(MOST_ADDRESSES);
    let data = |address| match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Some(addresses.into_iter().map(|address| record(name, data(address))).collect())
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TIME_TO_LIVE, data)
}

fn reply(query: &Message, question: &Query, records: Vec<Record>, transport: Transport) -> Answer {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = true;
    message.add_query(question.clone());
    message.add_answers(records);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_UDP as u16);
        message.set_edns(edns);
    }
    let Ok(bytes) = message.to_vec() else { return Answer::Ignore };
    let asked = query.edns.as_ref().map_or(PLAIN_UDP, |edns| usize::from(edns.max_payload()));
    let limit = asked.clamp(PLAIN_UDP, LARGEST_UDP);
    if transport == Transport::Tcp || bytes.len() <= limit {
        return Answer::Reply(bytes);
    }
    // Who wants all of them asks again by TCP.
    match message.truncate().to_vec() {
        Ok(bytes) => Answer::Reply(bytes),
        Err(_) => Answer::Ignore,
    }
}

/// A bare header with a code, for who sent at least a header that is no answer.
fn refusal(bytes: &[u8], code: ResponseCode) -> Answer {
    let (Some(id), Some(flags)) = (bytes.first_chunk::<2>(), bytes.get(2..12)) else { return Answer::Ignore };
    if flags[0] & 0x80 != 0 {
        return Answer::Ignore;
    }
    let mut message = Message::error_msg(u16::from_be_bytes(*id), OpCode::Query, code);
    message.metadata.recursion_desired = flags[0] & 1 != 0;
    message.metadata.recursion_available = true;
    if let Ok(query) = Message::from_vec(bytes) {
        message.add_queries(query.queries.into_iter().take(1));
    }
    message.to_vec().map_or(Answer::Ignore, Answer::Reply)
}

#[cfg(test)]
mod tests {
    use super::super::Directory;
    use super::super::directory::tests::directory;
    use super::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(name: &str, kind: RecordType) -> Option<Message> {
        let (directory, ids) = directory();
        let bytes = query(name, kind).to_vec().unwrap();
        match answer(&bytes, &directory.view(&ids[0]), Transport::Udp, 0) {
            Answer::Reply(bytes) => Some(Message::from_vec(&bytes).unwrap()),
            _ => None,
        }
    }

    fn texts(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn names_are_answered_by_kind() {
        let found = ask("web.", RecordType::A).unwrap();
        assert_eq!(texts(&found), ["10.9.0.2"]);
        assert!(found.metadata.recursion_available && found.metadata.id == 7);
        assert_eq!(texts(&ask("WEB.", RecordType::AAAA).unwrap()), ["fd00::2"]);
        let none = ask("db.", RecordType::AAAA).unwrap();
        assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(ask("db.", RecordType::MX).unwrap().answers.len(), 0);
        assert_eq!(texts(&ask("4.0.9.10.in-addr.arpa.", RecordType::PTR).unwrap()), ["db2.blue."]);
        // It reaches nothing outside, and so is nothing asked there.
        let refused = ask("example.org.", RecordType::A).unwrap();
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
        assert_eq!(ask("9.9.9.9.in-addr.arpa.", RecordType::PTR).unwrap().answers.len(), 0);
    }

    #[test]
    fn several_addresses_take_turns() {
        let (directory, ids) = directory();
        let bytes = query("sql.", RecordType::A).to_vec().unwrap();
        let first = |turn| match answer(&bytes, &directory.view(&ids[0]), Transport::Udp, turn) {
            Answer::Reply(bytes) => texts(&Message::from_vec(&bytes).unwrap())[0].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!([first(0), first(1), first(2)], ["10.9.0.3", "10.9.0.4", "10.9.0.3"]);
    }

    #[test]
    fn long_answers_go_by_tcp() {
        let (directory, ids) = crowd(60);
        let bytes = query("many.", RecordType::A).to_vec().unwrap();
        let ask = |transport| match answer(&bytes, &directory.view(&ids), transport, 0) {
            Answer::Reply(bytes) => (bytes.len(), Message::from_vec(&bytes).unwrap()),
            other => panic!("{other:?}"),
        };
        let (length, cut) = ask(Transport::Udp);
        assert!(length <= PLAIN_UDP && cut.metadata.truncation && cut.queries.len() == 1);
        let (_, whole) = ask(Transport::Tcp);
        assert!(!whole.metadata.truncation && whole.answers.len() == 60);
        let mut wide = query("many.", RecordType::A);
        wide.set_edns(Edns::new().set_max_payload(4096).clone());
        match answer(&wide.to_vec().unwrap(), &directory.view(&ids), Transport::Udp, 0) {
            Answer::Reply(bytes) => {
                assert!(bytes.len() <= LARGEST_UDP);
                assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 60);
            }
            other => panic!("{other:?}"),
        }
    }

    /// So many containers of one alias, and one of them.
    fn crowd(count: u8) -> (Directory, insula_base::ContainerId) {
        use crate::{Attachment, Endpoint};
        let directory = Directory::default();
        let network = insula_base::NetworkId::random();
        let mut last = insula_base::ContainerId::random();
        for number in 0..count {
            last = insula_base::ContainerId::random();
            let text = format!(
                r#"{{"network":"{network}","network_name":"blue","endpoint":"","interface":null,
                "address":"10.9.1.{number}","prefix":16,"gateway":null,"mac":"","aliases":["many"]}}"#
            );
            let attachment: Attachment = serde_json::from_str(&text).unwrap();
            directory.put(&Endpoint {
                container: last.clone(),
                name: format!("c{number}"),
                hostname: String::new(),
                attachments: vec![attachment],
                ports: Vec::new(),
                rate: None,
            });
        }
        (directory, last)
    }

    #[test]
    fn what_is_no_query_is_not_answered_or_refused() {
        let (directory, ids) = directory();
        let ask = |bytes: &[u8]| answer(bytes, &directory.view(&ids[0]), Transport::Udp, 0);
        for nothing in [&b""[..], &[0; 11], &[0xff; 12], &[0; LARGEST_QUERY + 1]] {
            assert_eq!(ask(nothing), Answer::Ignore, "{nothing:?}");
        }
        let code = |bytes: &[u8]| match ask(bytes) {
            Answer::Reply(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&[0; 12]), ResponseCode::FormErr);
        let mut status = query("db.", RecordType::A);
        status.metadata.op_code = OpCode::Status;
        assert_eq!(code(&status.to_vec().unwrap()), ResponseCode::NotImp);
        assert!(failure(&[1; 12]).is_some() && failure(&[0x80; 12]).is_none());
    }

    #[test]
    fn answers_belong_to_their_queries() {
        let asked = query("example.org.", RecordType::A).to_vec().unwrap();
        let mut said = Message::from_vec(&asked).unwrap().into_response().to_vec().unwrap();
        assert!(relates(&asked, &said));
        assert!(!relates(&asked, &asked));
        let other = query("example.net.", RecordType::A);
        assert!(!relates(&asked, &other.into_response().to_vec().unwrap()));
        said.truncate(20);
        assert!(!relates(&asked, &said));
        assert!(!relates(&[0; 11], &said) && !relates(&asked, &[]));
    }
}
