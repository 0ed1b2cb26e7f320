//! TCP connections whose client has yet to say the name of its server. A name shares its addresses with others, so where a rule
//! by name has a say, the first bytes of the connection are read before they do anything.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::frame::{FIN, RST, Segment};
use crate::tls::Opening;
use crate::{http, tls};

/// How many connections may be in this state at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long the beginning of a connection may be, in bytes.
const MAX_OPENING: usize = 16 << 10;

/// The guest's port, and the server's address and port.
pub(crate) type Key = (u16, IpAddr, u16);

/// What is to be done with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on: the connection is not one of these, or what it says so far means nothing to a server.
    Pass,
    /// It cannot be understood yet: a part is missing before it, or it differs from what was sent before.
    Drop,
    /// The client has spoken: the name, if its protocol is one that has names and it gave one.
    Named(Option<String>),
    /// The protocol has no names that are known here: it goes on.
    Unnamed,
    /// It is malformed, or too long.
    Malformed,
}

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct Openings(HashMap<Key, Beginning>);

#[derive(Debug)]
struct Beginning {
    /// The sequence number of the first byte.
    first: u32,
    bytes: Vec<u8>,
}

impl Openings {
    /// Expects the first bytes of a connection whose SYN has this sequence number. False if there are too many, or if there is one
    /// between the same ports: passt goes on with its numbers, so they are the ones to read.
    pub(crate) fn expect(&mut self, key: Key, syn: u32) -> bool {
        let first = syn.wrapping_add(1);
        match self.0.get(&key) {
            Some(beginning) => beginning.first == first,
            None if self.0.len() >= MAX_CONNECTIONS => false,
            None => {
                self.0.insert(key, Beginning { first, bytes: Vec::new() });
                true
            }
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The connection is over, or needs no look any more.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Takes a segment of the guest's. A connection that is not to be looked at any more is forgotten.
    pub(crate) fn take(&mut self, key: &Key, segment: &Segment<'_>) -> Outcome {
        let Some(beginning) = self.0.get_mut(key) else { return Outcome::Pass };
        let expected = beginning.first.wrapping_add(beginning.bytes.len() as u32);
        if segment.payload.is_empty() {
            // Nothing can follow an end; a wrong sequence number may be ignored by the other side.
            if segment.flags & (FIN | RST) != 0 && segment.sequence == expected {
                self.forget(key);
            }
            return Outcome::Pass;
        }
        let offset = segment.sequence.wrapping_sub(beginning.first) as usize;
        let Some(had) = beginning.bytes.get(offset..) else { return Outcome::Drop };
        let repeated = had.len().min(segment.payload.len());
        if segment.payload[..repeated] != had[..repeated] {
            return Outcome::Drop;
        }
        beginning.bytes.extend(&segment.payload[repeated..]);
        let outcome = match tls::opening(&beginning.bytes) {
            Opening::Other => http::opening(&beginning.bytes),
            other => other,
        };
        let outcome = match outcome {
            Opening::Incomplete if beginning.bytes.len() > MAX_OPENING || segment.flags & FIN != 0 => {
                Outcome::Malformed
            }
            Opening::Incomplete => return Outcome::Pass,
            Opening::Other => Outcome::Unnamed,
            Opening::Name(name) => Outcome::Named(name),
            Opening::Malformed => Outcome::Malformed,
        };
        self.forget(key);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ACK;

    const SYN: u32 = u32::MAX - 2;

    fn key(port: u16) -> Key {
        (port, "203.0.113.9".parse().unwrap(), 80)
    }

    /// Takes segments: each has an offset from the first byte.
    fn take(segments: &[(u32, u8, &[u8])]) -> Vec<Outcome> {
        let mut openings = Openings::default();
        assert!(openings.expect(key(1), SYN));
        let take = |&(offset, flags, payload): &(u32, u8, &[u8])| {
            let sequence = SYN.wrapping_add(1).wrapping_add(offset);
            let segment =
                Segment { source: 1, destination: 80, sequence, acknowledgment: 0, flags, window: 0, payload };
            openings.take(&key(1), &segment)
        };
        segments.iter().map(take).collect()
    }

    #[test]
    fn the_first_bytes_of_a_connection_give_its_name() {
        let named = |name: &str| Outcome::Named(Some(name.into()));
        let (head, tail): (&[u8], &[u8]) = (b"GET / HTTP/1.1\r\nHo", b"st: a.test\r\n\r\n");
        let whole = [head, tail].concat();
        let hello = tls::tests::hello("a.test");
        let long = [b"GET / HTTP/1.1\r\nx: ", vec![b'x'; MAX_OPENING].as_slice()].concat();
        use Outcome::{Drop, Malformed, Pass, Unnamed};
        for (what, segments, expected) in [
            ("at once", &[(0, ACK, whole.as_slice())][..], vec![named("a.test")]),
            ("a hello", &[(0, ACK, &hello)], vec![named("a.test")]),
            ("in two parts", &[(0, ACK, b""), (0, ACK, head), (18, ACK, tail)], vec![Pass, Pass, named("a.test")]),
            ("once more", &[(0, ACK, head), (0, ACK, head), (0, ACK, &whole)], vec![Pass, Pass, named("a.test")]),
            ("with a gap", &[(18, ACK, tail), (0, ACK, head)], vec![Drop, Pass]),
            ("before the first byte", &[(u32::MAX, ACK, &whole)], vec![Drop]),
            ("changed", &[(0, ACK, head), (0, ACK, b"GET /x")], vec![Pass, Drop]),
            ("of another protocol", &[(0, ACK, b"SSH-2.0-x\r\n"), (11, ACK, &whole)], vec![Unnamed, Pass]),
            ("too long", &[(0, ACK, &long)], vec![Malformed]),
            ("cut short", &[(0, ACK | FIN, head)], vec![Malformed]),
            ("ended", &[(0, ACK | FIN, b""), (0, ACK, b"GET /x")], vec![Pass, Pass]),
            ("reset elsewhere", &[(9, RST, b""), (0, ACK, &whole)], vec![Pass, named("a.test")]),
        ] {
            assert_eq!(take(segments), expected, "{what}");
        }
    }

    #[test]
    fn there_are_only_so_many() {
        let mut openings = Openings::default();
        let max = MAX_CONNECTIONS as u16;
        assert!((0..max).all(|port| openings.expect(key(port), 1)));
        assert!(!openings.expect(key(max), 1) && openings.expect(key(0), 1) && !openings.expect(key(0), 2));
        openings.forget(&key(5));
        assert!(openings.expect(key(max), 1) && !openings.is_empty());
    }
}
