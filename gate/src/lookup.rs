//! A question on its way through the name servers, and the order in which they are asked. The resolver process does the I/O.

use std::net::SocketAddr;

use crate::dns::{NOTIMP, Question, REFUSED, SERVFAIL, TRUNCATED};

/// How often each server is asked.
const ROUNDS: usize = 2;

/// A question, and how far it has come.
#[derive(Debug)]
pub struct Lookup {
    question: Question,
    /// The guest's identifier.
    guest: [u8; 2],
    /// The message for the servers.
    query: Vec<u8>,
    /// The answer of a server that has failed, for want of a better one.
    failure: Option<Vec<u8>>,
    tries: usize,
}

/// What a message from a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It answers no question of ours. The answer may still come.
    Foreign,
    /// The answer is longer than a datagram, and has to be asked for over TCP.
    Truncated,
    /// The server has failed, and another one may know better.
    Failed,
    /// The answer for the guest.
    Answer(Vec<u8>),
}

impl Lookup {
    /// A question of the guest's, which gets an identifier of its own; `None` if the message is not a question.
    pub fn new(message: Vec<u8>, id: u16) -> Option<Self> {
        let question = Question { id, ..Question::parse_query(&message)? };
        let mut query = message;
        let guest = [query[0], query[1]];
        query[..2].copy_from_slice(&id.to_be_bytes());
        Some(Self { question, guest, query, failure: None, tries: 0 })
    }

    /// The message for a server.
    pub fn query(&self) -> &[u8] {
        &self.query
    }

    /// The server that is asked next; `None` if all were asked often enough.
    pub fn next_server(&mut self, servers: &Servers) -> Option<SocketAddr> {
        let count = servers.list.len();
        if self.tries >= count * ROUNDS {
            return None;
        }
        let server = servers.list[(servers.preferred + self.tries) % count];
        self.tries += 1;
        Some(server)
    }

    /// Judges a message that has come from the server that was asked last.
    pub fn judge(&mut self, message: &[u8], is_over_tcp: bool) -> Reply {
        match Question::parse_answer(message) {
            Some(answer) if self.question.is_answered_by(&answer) => {}
            _ => return Reply::Foreign,
        }
        if message[2] & TRUNCATED != 0 && !is_over_tcp {
            return Reply::Truncated;
        }
        let answer = [&self.guest, &message[2..]].concat();
        if matches!(message[3] & 0xf, SERVFAIL | NOTIMP | REFUSED) {
            self.failure = Some(answer);
            return Reply::Failed;
        }
        Reply::Answer(answer)
    }

    /// The answer for the guest if no server has a better one.
    pub fn into_failure(self) -> Vec<u8> {
        let Self { question, guest, query, failure, .. } = self;
        failure.unwrap_or_else(|| [&guest, &question.failed(&query)[2..]].concat())
    }
}

/// The name servers, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Servers {
    list: Vec<SocketAddr>,
    /// The one that has answered last.
    preferred: usize,
}

impl Servers {
    /// These servers, of which the first is asked first.
    pub fn new(list: Vec<SocketAddr>) -> Self {
        Self { list, preferred: 0 }
    }

    /// Remembers that a server has answered: it is asked first from now on.
    pub fn prefer(&mut self, server: SocketAddr) {
        if let Some(index) = self.list.iter().position(|known| *known == server) {
            self.preferred = index;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::tests::{answer, query};

    fn servers(ports: &[u16]) -> Servers {
        Servers::new(ports.iter().map(|port| ([192, 0, 2, 1], *port).into()).collect())
    }

    fn order(servers: &Servers) -> Vec<u16> {
        let mut lookup = Lookup::new(query(7, "a.test"), 1).unwrap();
        std::iter::from_fn(|| lookup.next_server(servers)).map(|server| server.port()).collect()
    }

    #[test]
    fn servers_are_asked_in_order_beginning_with_the_last_that_answered() {
        assert!(order(&servers(&[])).is_empty());
        assert_eq!(order(&servers(&[1])), [1, 1]);
        let mut three = servers(&[1, 2, 3]);
        assert_eq!(order(&three), [1, 2, 3, 1, 2, 3]);
        three.prefer(([192, 0, 2, 1], 2).into());
        assert_eq!(order(&three), [2, 3, 1, 2, 3, 1]);
        // One of an earlier list.
        three.prefer(([192, 0, 2, 1], 9).into());
        assert_eq!(order(&three), [2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn a_server_sees_another_identifier_than_the_guest() {
        let mut lookup = Lookup::new(query(7, "A.test"), 0x1234).unwrap();
        assert_eq!(lookup.query(), query(0x1234, "A.test"));
        let good = answer(0x1234, "a.test", &["203.0.113.9"]);
        assert_eq!(lookup.judge(&good, false), Reply::Answer(answer(7, "a.test", &["203.0.113.9"])));
        assert!(Lookup::new(answer(7, "a.test", &[]), 1).is_none());
        assert!(Lookup::new(b"x".to_vec(), 1).is_none());
    }

    #[test]
    fn messages_are_judged() {
        let with = |at: usize, byte: u8| {
            let mut message = answer(1, "a.test", &["203.0.113.9"]);
            message[at] = byte;
            message
        };
        let kind = query(1, "a.test").len() - 3;
        for (what, message, expected) in [
            ("another identifier", with(1, 2), Some(Reply::Foreign)),
            ("another name", with(13, b'b'), Some(Reply::Foreign)),
            ("another type", with(kind, 28), Some(Reply::Foreign)),
            ("a query", with(2, 1), Some(Reply::Foreign)),
            ("an update", with(2, 0xa9), Some(Reply::Foreign)),
            ("two questions", with(5, 2), Some(Reply::Foreign)),
            ("nothing", Vec::new(), Some(Reply::Foreign)),
            ("half a header", vec![0, 1, 0x81, 0x80], Some(Reply::Foreign)),
            ("a truncated one", with(2, 0x83), Some(Reply::Truncated)),
            ("a failure", with(3, 0x82), Some(Reply::Failed)),
            ("not implemented", with(3, 0x84), Some(Reply::Failed)),
            ("a refusal", with(3, 0x85), Some(Reply::Failed)),
            ("no such name", with(3, 0x83), None),
            ("a format error", with(3, 0x81), None),
            ("an answer", with(3, 0x80), None),
        ] {
            let mut lookup = Lookup::new(query(7, "a.test"), 1).unwrap();
            let got = lookup.judge(&message, false);
            let expected = expected.unwrap_or_else(|| Reply::Answer([&[0, 7], &message[2..]].concat()));
            assert_eq!(got, expected, "{what}");
        }
        // Over TCP nothing is longer than it may be.
        let mut lookup = Lookup::new(query(7, "a.test"), 1).unwrap();
        assert!(matches!(lookup.judge(&with(2, 0x83), true), Reply::Answer(_)));
    }

    #[test]
    fn the_last_failure_is_the_answer_if_there_is_no_other() {
        let mut lookup = Lookup::new(query(7, "a.test"), 1).unwrap();
        let mut refusal = answer(1, "a.test", &[]);
        refusal[3] = 0x85;
        assert_eq!(lookup.judge(&refusal, false), Reply::Failed);
        assert_eq!(lookup.into_failure()[..4], [0, 7, 0x81, 0x85]);
        let silent = Lookup::new(query(7, "a.test"), 1).unwrap().into_failure();
        assert_eq!((&silent[..4], silent.len()), (&[0, 7, 0x81, 0x82][..], query(7, "a.test").len()));
    }
}
