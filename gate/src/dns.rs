//! DNS messages, RFC 1035: the question that the guest asks, the addresses in an answer, and the answers of the gate's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::{be16, be32};

const HEADER: usize = 12;
/// The size of a question's type and class.
const KIND: usize = 4;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// Bits of the third byte.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
pub(crate) const TRUNCATED: u8 = 2;
/// Response codes.
pub(crate) const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
pub(crate) const NOTIMP: u8 = 4;
pub(crate) const REFUSED: u8 = 5;
/// The largest answer in a datagram that every client takes, and the largest that the gate sends, in bytes.
const LEAST_UDP_SIZE: usize = 512;
const MOST_UDP_SIZE: usize = 4096;
/// How many compression pointers a name may follow.
const MAX_POINTERS: usize = 16;

/// A message with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The identifier that the answer repeats.
    pub id: u16,
    /// The name in lower case, without the last dot; empty for the root.
    pub name: String,
    /// The type and the class.
    pub kind: [u8; KIND],
    /// Where the question ends in the message.
    pub end: usize,
}

impl Question {
    /// The question of a query; `None` for any other message.
    pub(crate) fn parse_query(message: &[u8]) -> Option<Self> {
        Self::parse(message).filter(|_| is_query(message))
    }

    /// The question of an answer; `None` for any other message.
    pub(crate) fn parse_answer(message: &[u8]) -> Option<Self> {
        let question = Self::parse(message)?;
        (message[2] & (RESPONSE | OPCODE) == RESPONSE).then_some(question)
    }

    fn parse(message: &[u8]) -> Option<Self> {
        if !has_one_question(message) {
            return None;
        }
        let (name, end) = name(message, HEADER)?;
        let kind = *message.get(end..)?.first_chunk()?;
        Some(Self { id: be16(message, 0), name, kind, end: end + kind.len() })
    }

    /// Whether an answer is one to this question.
    pub(crate) fn is_answered_by(&self, answer: &Self) -> bool {
        (self.id, &self.name, self.kind) == (answer.id, &answer.name, answer.kind)
    }

    /// The largest answer in a datagram that the sender of this query takes, in bytes: RFC 6891 has it in a record of its own.
    pub(crate) fn udp_size(&self, query: &[u8]) -> usize {
        let size = records(query, self.end, be16(query, 10)).map_while(|record| record);
        let size = size.filter(|record| record.kind == TYPE_OPT).map(|record| usize::from(record.class)).next();
        size.unwrap_or(LEAST_UDP_SIZE).clamp(LEAST_UDP_SIZE, MOST_UDP_SIZE)
    }

    /// The same message as a refusal to answer.
    pub(crate) fn refused(&self, message: &[u8]) -> Vec<u8> {
        without_records(message, self.end, REFUSED)
    }

    /// The same message, which says that there is no such name.
    pub(crate) fn no_such_name(&self, message: &[u8]) -> Vec<u8> {
        without_records(message, self.end, NXDOMAIN)
    }

    /// The same message, which says that the servers have failed.
    pub(crate) fn failed(&self, message: &[u8]) -> Vec<u8> {
        without_records(message, self.end, SERVFAIL)
    }

    /// An answer without its records, which says that it was too long: the client asks again over TCP.
    pub(crate) fn truncated(&self, message: &[u8]) -> Vec<u8> {
        let mut answer = without_records(message, self.end, message[3] & 0xf);
        answer[2] |= TRUNCATED;
        answer
    }

    /// The addresses in an answer, with the seconds that they are valid; `None` if its records are malformed.
    pub(crate) fn addresses(&self, message: &[u8]) -> Option<Vec<(IpAddr, u32)>> {
        let mut addresses = Vec::new();
        for record in records(message, self.end, be16(message, 6)) {
            let Record { kind, class, ttl, data } = record?;
            match (class, kind) {
                (CLASS_IN, TYPE_A) => addresses.push((Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into(), ttl)),
                (CLASS_IN, TYPE_AAAA) => addresses.push((Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into(), ttl)),
                _ => {}
            }
        }
        Some(addresses)
    }
}

/// The identifier of a query whose name [`Question::parse_query`] does not take, and the refusal to answer it; `None` for what is
/// not a query.
pub(crate) fn refused_name(message: &[u8]) -> Option<(u16, Vec<u8>)> {
    if !has_one_question(message) || !is_query(message) {
        return None;
    }
    let end = skip_name(message, HEADER)? + KIND;
    (end <= message.len()).then(|| (be16(message, 0), without_records(message, end, REFUSED)))
}

fn has_one_question(message: &[u8]) -> bool {
    message.len() >= HEADER && be16(message, 4) == 1
}

/// Whether a message with a header is a query. Answers and authorities in one are nobody's business.
fn is_query(message: &[u8]) -> bool {
    message[2] & (RESPONSE | OPCODE) == 0 && be16(message, 6) == 0 && be16(message, 8) == 0
}

/// A message up to the end of its question as an answer with this code.
fn without_records(message: &[u8], end: usize, code: u8) -> Vec<u8> {
    let mut answer = message[..end].to_vec();
    answer[2] = RESPONSE | (answer[2] & 1);
    answer[3] = 0x80 | code;
    answer[6..HEADER].fill(0);
    answer
}

/// A resource record.
struct Record<'m> {
    kind: u16,
    class: u16,
    ttl: u32,
    data: &'m [u8],
}

/// So many records from `at` on; `None` in the place of the first malformed one, which is the last then.
fn records(message: &[u8], mut at: usize, count: u16) -> impl Iterator<Item = Option<Record<'_>>> {
    let mut is_malformed = false;
    (0..count).map_while(move |_| {
        if is_malformed {
            return None;
        }
        let record = record(message, at);
        is_malformed = record.is_none();
        at = record.as_ref().map_or(at, |(_, end)| *end);
        Some(record.map(|(record, _)| record))
    })
}

/// The record at `at`, and where it ends.
fn record(message: &[u8], at: usize) -> Option<(Record<'_>, usize)> {
    let header = skip_name(message, at)?;
    let data = header + 10;
    let head = message.get(header..data)?;
    let end = data + usize::from(be16(head, 8));
    let data = message.get(data..end)?;
    Some((Record { kind: be16(head, 0), class: be16(head, 2), ttl: be32(head, 4), data }, end))
}

/// Where the name at `at` ends, whatever characters it has: a reverse lookup may lead to one with a slash, RFC 2317.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// The name at `at`, and where it ends. Only letters, digits, "-" and "_" are taken.
fn name(message: &[u8], at: usize) -> Option<(String, usize)> {
    let (mut name, mut at, mut end, mut pointers) = (String::new(), at, None, 0);
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + usize::from(length))?;
                if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|&byte| char::from(byte.to_ascii_lowercase())));
                if name.len() > 253 {
                    return None;
                }
                at += 1 + usize::from(length);
            }
            0xc0.. => {
                end.get_or_insert(at + 2);
                at = usize::from(length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                pointers += 1;
                if pointers > MAX_POINTERS {
                    return None;
                }
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn encode(name: &str) -> Vec<u8> {
        let labels = name.split('.').filter(|label| !label.is_empty());
        let mut bytes: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
        bytes.push(0);
        bytes
    }

    /// A query for the A records of a name.
    pub(crate) fn query(id: u16, name: &str) -> Vec<u8> {
        let head = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        [head, encode(name), vec![0, 1, 0, 1]].concat()
    }

    /// An answer to it with these addresses, valid for 300 seconds.
    pub(crate) fn answer(id: u16, name: &str, addresses: &[&str]) -> Vec<u8> {
        let mut message = query(id, name);
        (message[2], message[3], message[7]) = (0x81, 0x80, addresses.len() as u8);
        for address in addresses {
            message.extend([0xc0, 12]);
            match address.parse().unwrap() {
                IpAddr::V4(address) => {
                    message.extend([0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
                    message.extend(address.octets());
                }
                IpAddr::V6(address) => {
                    message.extend([0, 28, 0, 1, 0, 0, 1, 44, 0, 16]);
                    message.extend(address.octets());
                }
            }
        }
        message
    }

    fn with(mut message: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
        message[at] = byte;
        message
    }

    #[test]
    fn a_query_has_one_question() {
        let good = query(0x1234, "WWW.Example.org");
        let question = Question::parse_query(&good).unwrap();
        assert_eq!((question.id, question.name.as_str(), question.end), (0x1234, "www.example.org", good.len()));
        assert_eq!(Question::parse_query(&query(1, "")).unwrap().name, "");
        // An OPT record after the question, as most resolvers send.
        let mut edns = with(good.clone(), 11, 1);
        edns.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert!(Question::parse_query(&edns).is_some());
        for (what, message) in [
            ("nothing", Vec::new()),
            ("half a header", good[..11].to_vec()),
            ("no type", good[..good.len() - 1].to_vec()),
            ("two questions", with(good.clone(), 5, 2)),
            ("no question", with(good.clone(), 5, 0)),
            ("an answer", with(good.clone(), 2, 0x81)),
            ("an update", with(good.clone(), 2, 0x28)),
            ("answers", with(good.clone(), 7, 1)),
            ("authorities", with(good.clone(), 9, 1)),
            ("a space in a label", with(good.clone(), 13, b' ')),
            ("a NUL in a label", with(good.clone(), 13, 0)),
            ("a label type of old", with(good.clone(), 12, 0x43)),
            ("a pointer to itself", with(with(good.clone(), 12, 0xc0), 13, 12)),
            ("a pointer past the end", with(with(good.clone(), 12, 0xff), 13, 255)),
            ("a name of 300 bytes", query(1, &vec!["x".repeat(59); 5].join("."))),
        ] {
            assert_eq!(Question::parse_query(&message), None, "{what}");
        }
    }

    #[test]
    fn a_name_has_up_to_253_bytes() {
        let name = |last: usize| [vec!["x".repeat(63); 3], vec!["x".repeat(last)]].concat().join(".");
        assert_eq!(Question::parse_query(&query(1, &name(61))).unwrap().name, name(61));
        assert_eq!(Question::parse_query(&query(1, &name(62))), None);
    }

    #[test]
    fn a_name_is_read_behind_up_to_16_pointers() {
        // The question is a pointer, and the first of a chain. The last one leads to the name, beyond the first 256 bytes.
        const NAME: u16 = 300;
        let behind = |pointers: u16| {
            let mut message = query(1, "");
            message.truncate(HEADER);
            message.extend([0xc0, 18, 0, 1, 0, 1]);
            for at in 0..pointers - 1 {
                let to = if at == pointers - 2 { NAME } else { 18 + 2 * at + 2 };
                message.extend((0xc000 | to).to_be_bytes());
            }
            message.resize(NAME.into(), 0);
            message.extend(encode("a.test"));
            Question::parse_query(&message)
        };
        for pointers in [2, 16] {
            let question = behind(pointers).unwrap();
            assert_eq!((question.name.as_str(), question.kind, question.end), ("a.test", [0, 1, 0, 1], 18));
        }
        assert_eq!(behind(17), None);
    }

    #[test]
    fn a_query_about_a_name_with_other_characters_is_refused() {
        let good = query(7, "a/b.test");
        assert_eq!(Question::parse_query(&good), None);
        let (id, refusal) = refused_name(&[good.as_slice(), b"more"].concat()).unwrap();
        assert_eq!((id, refusal), (7, with(with(good.clone(), 2, 0x81), 3, 0x85)));
        for (what, message) in [
            ("nothing", Vec::new()),
            ("half a header", good[..11].to_vec()),
            ("half a name", good[..16].to_vec()),
            ("no type", good[..good.len() - 1].to_vec()),
            ("two questions", with(good.clone(), 5, 2)),
            ("an answer", with(good.clone(), 2, 0x81)),
            ("an update", with(good.clone(), 2, 0x28)),
            ("answers", with(good.clone(), 7, 1)),
        ] {
            assert_eq!(refused_name(&message), None, "{what}");
        }
    }

    #[test]
    fn an_answer_gives_addresses() {
        let message = answer(7, "a.test", &["203.0.113.9", "2001:db8::9"]);
        let question = Question::parse_answer(&message).unwrap();
        let expected = ["203.0.113.9", "2001:db8::9"].map(|address| (address.parse().unwrap(), 300));
        assert_eq!(question.addresses(&message).unwrap(), expected);
        assert_eq!(Question::parse_answer(&query(7, "a.test")), None);
        assert_eq!(question.addresses(&message[..message.len() - 1]), None);
        // One that says it has a record more.
        assert_eq!(question.addresses(&with(message.clone(), 7, 3)), None);
        // The record of a name that no question may have.
        let short = answer(7, "a.test", &["203.0.113.9"]);
        let end = question.end;
        let of_another = [&short[..end], &[1, b'/', 0], &short[end + 2..]].concat();
        assert_eq!(question.addresses(&of_another).unwrap(), expected[..1]);
        // Five bytes of address.
        let at = short.len() - 5;
        assert_eq!(question.addresses(&[with(short, at, 5), vec![0]].concat()), None);
    }

    #[test]
    fn an_answer_of_our_own_has_the_question_alone() {
        let message = answer(7, "a.test", &["10.9.9.9"]);
        let question = Question::parse_answer(&message).unwrap();
        let none = question.no_such_name(&message);
        assert_eq!(none[..12], [0, 7, 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
        let again = Question::parse_answer(&none).unwrap();
        assert_eq!((again, none.len()), (question.clone(), question.end));
        let refused = question.refused(&query(7, "a.test"));
        assert_eq!(refused[..4], [0, 7, 0x81, 0x85]);
        // Of the bits beside the response code, "recursion desired" is kept.
        for (asked, expected) in [(0, 0x80), (1, 0x81), (0x85, 0x81)] {
            assert_eq!(question.refused(&with(query(7, "a.test"), 2, asked))[2], expected);
        }
        let failed = question.failed(&query(7, "a.test"));
        assert_eq!(failed[..4], [0, 7, 0x81, 0x82]);
        let truncated = question.truncated(&with(message, 3, 0x83));
        assert_eq!(truncated[..12], [0, 7, 0x83, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(truncated.len(), question.end);
    }

    #[test]
    fn an_answer_is_one_to_the_same_question() {
        let question = Question::parse_query(&query(7, "a.test")).unwrap();
        let parse = |message: &[u8]| Question::parse_answer(message).unwrap();
        let same = answer(7, "A.Test", &["203.0.113.9"]);
        assert!(question.is_answered_by(&parse(&same)));
        let end = question.end;
        for (what, other) in [
            ("another identifier", answer(8, "a.test", &[])),
            ("another name", answer(7, "b.test", &[])),
            ("another type", with(same.clone(), end - 3, 28)),
            ("another class", with(same.clone(), end - 1, 3)),
        ] {
            assert!(!question.is_answered_by(&parse(&other)), "{what}");
        }
    }

    #[test]
    fn a_query_says_how_long_an_answer_may_be() {
        let plain = query(7, "a.test");
        let edns = |size: u16| [&with(plain.clone(), 11, 1)[..], &[0, 0, 41], &size.to_be_bytes(), &[0; 6]].concat();
        let after_another = [
            &with(plain.clone(), 11, 2)[..],
            &[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4],
            &edns(2000)[plain.len()..],
        ];
        for (what, message, expected) in [
            ("nothing", plain.clone(), 512),
            ("an ordinary size", edns(1232), 1232),
            ("less than the least", edns(100), 512),
            ("more than is sent", edns(65535), 4096),
            ("a second record", after_another.concat(), 2000),
            ("another record", with(edns(1232), plain.len() + 2, 16), 512),
            ("half a record", edns(1232)[..plain.len() + 6].to_vec(), 512),
        ] {
            let question = Question::parse_query(&message).unwrap();
            assert_eq!(question.udp_size(&message), expected, "{what}");
        }
    }
}
