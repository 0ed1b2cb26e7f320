//! TCP connections whose client has yet to say the name of its server. A name shares its addresses with others, so where a rule
//! by name has a say, the first bytes of the connection are read before they do anything.
//!
//! passt ignores data in the segment that completes a handshake, and waits for it to be sent again. So the bytes that were judged
//! are kept until passt acknowledges them: until then they can be repeated, but not replaced.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::frame::{FIN, RST, SYN, Segment};
use crate::tls::Opening;
use crate::{http, tls};

/// How many connections may be in this state at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long the beginning of a connection may be, in bytes.
const MAX_OPENING: usize = 16 << 10;
/// How long those of all connections may be together, in bytes.
const MAX_HELD: usize = 4 << 20;

/// The guest's port, and the server's address and port.
pub(crate) type Key = (u16, IpAddr, u16);

/// What is to be done with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on: the connection is not one of these, or what it says so far means nothing to a server.
    Pass,
    /// It cannot be understood yet: a part is missing before it, or it differs from what was sent before, or follows a FIN.
    Drop,
    /// The client has sent data: the host name in it, if there is one.
    Named(Option<String>),
    /// The protocol has no names that are known here: it goes on.
    Unnamed,
    /// It is malformed, or too long.
    Malformed,
    /// The guest has reset the connection, but some receivers would ignore its segment. A bare reset with this sequence number is sent in
    /// its place.
    Reset(u32),
}

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    beginnings: HashMap<Key, Beginning>,
    /// How many bytes they have together.
    held: usize,
}

#[derive(Debug)]
struct Beginning {
    /// The sequence number of the first byte.
    first: u32,
    bytes: Vec<u8>,
    /// The bytes tell the name, or that there is none.
    is_judged: bool,
    /// The sequence number after the last byte that has passed.
    next: u32,
    /// A FIN has passed after that byte.
    has_ended: bool,
}

impl Beginning {
    /// How far after the first byte a segment begins; `None` if it begins before it.
    fn offset(&self, segment: &Segment<'_>) -> Option<usize> {
        let offset = segment.sequence.wrapping_sub(self.first);
        is_after(segment.sequence, self.first).then_some(offset as usize)
    }

    /// The sequence number after the bytes.
    fn end(&self) -> u32 {
        self.first.wrapping_add(self.bytes.len() as u32)
    }
}

/// Whether a sequence number is that of `other` or one after it: half of all numbers are.
fn is_after(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) <= u32::MAX / 2
}

impl Openings {
    /// Expects the first bytes of a connection whose SYN has this sequence number. False if there are too many, or if there is one
    /// between the same ports: passt goes on with its numbers, so they are the ones to read.
    pub(crate) fn expect(&mut self, key: Key, syn: u32) -> bool {
        let first = syn.wrapping_add(1);
        match self.beginnings.get(&key) {
            Some(beginning) => beginning.first == first,
            None if self.beginnings.len() >= MAX_CONNECTIONS => false,
            None => {
                let bytes = Vec::new();
                self.beginnings
                    .insert(key, Beginning { first, bytes, is_judged: false, next: first, has_ended: false });
                true
            }
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.beginnings.is_empty()
    }

    /// The connection is over, or needs no look any more.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.held -= self.beginnings.remove(key).map_or(0, |beginning| beginning.bytes.len());
    }

    /// All connections are over.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The server's side has acknowledged what comes before this sequence number. A connection whose judged bytes or whose FIN it
    /// has is not to be looked at any more.
    pub(crate) fn acknowledge(&mut self, key: &Key, number: u32) {
        let Some(beginning) = self.beginnings.get(key) else { return };
        let has_bytes = beginning.is_judged && is_after(number, beginning.end());
        if has_bytes || (beginning.has_ended && is_after(number, beginning.next.wrapping_add(1))) {
            self.forget(key);
        }
    }

    /// Takes a segment of the guest's. If the caller resets the connection itself, it calls [`Self::forget`].
    pub(crate) fn take(&mut self, key: &Key, segment: &Segment<'_>) -> Outcome {
        let Some(beginning) = self.beginnings.get_mut(key) else { return Outcome::Pass };
        let payload = segment.payload;
        let after = segment.sequence.wrapping_sub(beginning.next);
        if segment.flags & RST != 0 {
            // passt ends a connection at any reset. Other receivers ignore a reset with data or with a wrong sequence number. The gate and
            // the receiver must agree, or the table keeps connections that have ended. A reset may follow a FIN, which has a number.
            let is_bare = payload.is_empty() && segment.flags & (SYN | FIN) == 0;
            let is_next = after <= u32::from(beginning.is_judged || beginning.has_ended);
            let number = beginning.next.wrapping_add(u32::from(beginning.has_ended));
            self.forget(key);
            return if is_bare && is_next { Outcome::Pass } else { Outcome::Reset(number) };
        }
        if payload.is_empty() {
            if segment.flags & FIN != 0 && after == 0 {
                beginning.has_ended = true;
            }
            return Outcome::Pass;
        }
        let Some(offset) = beginning.offset(segment) else { return Outcome::Drop };
        let had = beginning.bytes.get(offset..).unwrap_or_default();
        let repeated = had.len().min(payload.len());
        if payload[..repeated] != had[..repeated] {
            return Outcome::Drop;
        }
        if beginning.is_judged {
            let end = segment.sequence.wrapping_add(payload.len() as u32);
            if is_after(end, beginning.next) {
                beginning.next = end;
            }
            return Outcome::Pass;
        }
        if beginning.has_ended {
            // passt sends on what it reads together with a FIN, also if it comes after that.
            return if repeated == payload.len() { Outcome::Pass } else { Outcome::Drop };
        }
        if offset > beginning.bytes.len() {
            return Outcome::Drop;
        }
        let room = (MAX_OPENING - beginning.bytes.len()).min(MAX_HELD - self.held);
        let new = &payload[repeated..];
        let kept = &new[..new.len().min(room)];
        beginning.bytes.extend(kept);
        beginning.next = beginning.next.wrapping_add(new.len() as u32);
        self.held += kept.len();
        let outcome = match tls::opening(&beginning.bytes) {
            Opening::Other => http::opening(&beginning.bytes),
            other => other,
        };
        let is_last = kept.len() < new.len() || segment.flags & FIN != 0;
        let outcome = match outcome {
            Opening::Incomplete if is_last => Outcome::Malformed,
            Opening::Incomplete => return Outcome::Pass,
            Opening::Other => Outcome::Unnamed,
            Opening::Name(name) => Outcome::Named(name),
            Opening::Malformed => Outcome::Malformed,
        };
        beginning.is_judged = true;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ACK;

    /// The sequence number of the SYN.
    const SYN_NUMBER: u32 = u32::MAX - 2;

    fn key(port: u16) -> Key {
        (port, "203.0.113.9".parse().unwrap(), 80)
    }

    /// Takes segments: each has an offset from the first byte.
    fn take(segments: &[(u32, u8, &[u8])]) -> Vec<Outcome> {
        let mut openings = Openings::default();
        assert!(openings.expect(key(1), SYN_NUMBER));
        let take = |&(offset, flags, payload): &(u32, u8, &[u8])| {
            let sequence = SYN_NUMBER.wrapping_add(1).wrapping_add(offset);
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
        let more = [tail, b"and more"].concat();
        let long = [b"GET / HTTP/1.1\r\nx: ", vec![b'x'; MAX_OPENING].as_slice()].concat();
        let much = [b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", vec![b'x'; 2 * MAX_OPENING].as_slice()].concat();
        let after_long = MAX_OPENING as u32 - 2;
        use Outcome::{Drop, Malformed, Pass, Reset, Unnamed};
        let first = SYN_NUMBER.wrapping_add(1);
        for (what, segments, expected) in [
            ("at once", &[(0, ACK, whole.as_slice())][..], vec![named("a.test")]),
            ("a hello", &[(0, ACK, &hello)], vec![named("a.test")]),
            ("in two parts", &[(0, ACK, b""), (0, ACK, head), (18, ACK, tail)], vec![Pass, Pass, named("a.test")]),
            ("once more", &[(0, ACK, head), (0, ACK, head), (0, ACK, &whole)], vec![Pass, Pass, named("a.test")]),
            ("with a gap", &[(18, ACK, tail), (0, ACK, head)], vec![Drop, Pass]),
            ("before the first byte", &[(u32::MAX, ACK, &whole)], vec![Drop]),
            ("changed", &[(0, ACK, head), (0, ACK, b"GET /x")], vec![Pass, Drop]),
            ("of another protocol", &[(0, ACK, b"SSH-2.0-x\r\n"), (11, ACK, &whole)], vec![Unnamed, Pass]),
            // Until it is acknowledged, what was judged can be sent again, and nothing in its place.
            ("repeated", &[(0, ACK, &whole), (0, ACK, &whole), (18, ACK, tail)], vec![named("a.test"), Pass, Pass]),
            ("replaced", &[(0, ACK, &whole), (0, ACK, b"GET /x")], vec![named("a.test"), Drop]),
            ("replaced in part", &[(0, ACK, &whole), (18, ACK, b"st: b.test\r\n\r\n")], vec![named("a.test"), Drop]),
            ("replaced from before", &[(0, ACK, &whole), (u32::MAX, ACK, &whole)], vec![named("a.test"), Drop]),
            ("banner replaced", &[(0, ACK, b"SSH-2.0-x\r\n"), (0, ACK, b"GET /x HTTP")], vec![Unnamed, Drop]),
            ("with more after it", &[(0, ACK, &whole), (18, ACK, &more)], vec![named("a.test"), Pass]),
            ("with much after it", &[(0, ACK, &much), (9, ACK, &much[9..])], vec![named("a.test"), Pass]),
            (
                "too long in the end",
                &[(0, ACK, &long[..after_long as usize]), (after_long, ACK, b"xxx")],
                vec![Pass, Malformed],
            ),
            ("too long", &[(0, ACK, &long)], vec![Malformed]),
            ("cut short", &[(0, ACK | FIN, head)], vec![Malformed]),
            ("ended", &[(0, ACK | FIN, b""), (0, ACK, b"GET /x")], vec![Pass, Drop]),
            (
                "ended within it",
                &[(0, ACK, head), (18, ACK | FIN, b""), (0, ACK, head), (18, ACK, tail)],
                vec![Pass, Pass, Pass, Drop],
            ),
            ("reset", &[(0, RST, b""), (0, ACK, &whole)], vec![Pass, Pass]),
            ("reset elsewhere", &[(9, RST, b""), (0, ACK, &whole)], vec![Reset(first), Pass]),
            ("reset behind it", &[(1, RST, b""), (0, ACK, &whole)], vec![Reset(first), Pass]),
            ("reset before it", &[(u32::MAX, RST, b""), (0, ACK, &whole)], vec![Reset(first), Pass]),
            ("reset with data", &[(0, RST | ACK, &whole), (0, ACK, &whole)], vec![Reset(first), Pass]),
            ("reset with a SYN", &[(0, RST | ACK | SYN, b""), (0, ACK, &whole)], vec![Reset(first), Pass]),
            ("reset with a FIN", &[(0, RST | FIN, b""), (0, ACK, &whole)], vec![Reset(first), Pass]),
            ("reset within it", &[(0, ACK, head), (0, RST, b"")], vec![Pass, Reset(first.wrapping_add(18))]),
            ("reset after it has ended", &[(0, FIN, b""), (0, RST, b"")], vec![Pass, Pass]),
            ("reset behind its end", &[(0, FIN, b""), (1, RST, b"")], vec![Pass, Pass]),
            ("reset far behind its end", &[(0, FIN, b""), (2, RST, b"")], vec![Pass, Reset(first.wrapping_add(1))]),
        ] {
            assert_eq!(take(segments), expected, "{what}");
        }
    }

    /// Whether a connection that has sent a request, and then more, is still looked at after this.
    fn is_kept(after: impl FnOnce(&mut Openings, &dyn Fn(u32, u8, &'static [u8]) -> Segment<'static>)) -> bool {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
        let mut openings = Openings::default();
        let segment = |offset: u32, flags, payload| {
            let sequence = SYN_NUMBER.wrapping_add(1).wrapping_add(offset);
            Segment { source: 1, destination: 80, sequence, acknowledgment: 0, flags, window: 0, payload }
        };
        assert!(openings.expect(key(1), SYN_NUMBER));
        assert_eq!(openings.take(&key(1), &segment(0, ACK, REQUEST)), Outcome::Named(Some("a.test".into())));
        assert_eq!(openings.take(&key(1), &segment(REQUEST.len() as u32, ACK, b"body")), Outcome::Pass);
        // An older one comes again.
        assert_eq!(openings.take(&key(1), &segment(REQUEST.len() as u32, ACK, b"bo")), Outcome::Pass);
        after(&mut openings, &segment);
        assert_eq!(openings.held, if openings.is_empty() { 0 } else { REQUEST.len() });
        !openings.is_empty()
    }

    #[test]
    fn a_connection_is_forgotten_once_its_name_is_acknowledged() {
        let (first, end) = (SYN_NUMBER.wrapping_add(1), SYN_NUMBER.wrapping_add(1 + 32));
        for (number, expected) in [
            (first, true),
            (end.wrapping_sub(1), true),
            (end, false),
            (end.wrapping_add(4), false),
            (end.wrapping_add(1 << 31), true),
        ] {
            assert_eq!(is_kept(|openings, _| openings.acknowledge(&key(1), number)), expected, "{number}");
        }
        assert!(is_kept(|openings, _| openings.acknowledge(&key(2), end)), "of another connection");
        // Before it has spoken there is nothing to acknowledge.
        let mut openings = Openings::default();
        assert!(openings.expect(key(1), SYN_NUMBER));
        openings.acknowledge(&key(1), first);
        assert!(!openings.is_empty());
        // If it ends without a name, its FIN is.
        let payload: &[u8] = b"";
        let fin =
            Segment { source: 1, destination: 80, sequence: first, acknowledgment: 0, flags: FIN, window: 0, payload };
        assert_eq!(openings.take(&key(1), &fin), Outcome::Pass);
        openings.acknowledge(&key(1), first);
        assert!(!openings.is_empty());
        openings.acknowledge(&key(1), first.wrapping_add(1));
        assert!(openings.is_empty());
        // The next byte would be 36, and a FIN takes that number.
        let next = first.wrapping_add(36);
        for (offset, flags, outcome, kept) in [
            (36, RST, Outcome::Pass, false),
            (37, RST, Outcome::Pass, false),
            (38, RST, Outcome::Reset(next), false),
            (35, RST, Outcome::Reset(next), false),
            (32, RST, Outcome::Reset(next), false),
            (36, FIN, Outcome::Pass, true),
        ] {
            let take = |openings: &mut Openings, segment: &dyn Fn(u32, u8, &'static [u8]) -> Segment<'static>| {
                assert_eq!(openings.take(&key(1), &segment(offset, flags, b"")), outcome, "{offset}");
            };
            assert_eq!(is_kept(take), kept, "{offset} {flags}");
        }
        assert!(!is_kept(|openings, _| openings.clear()));
    }

    #[test]
    fn their_bytes_are_bounded() {
        let mut openings = Openings::default();
        let payload = [b"GET / HTTP/1.1\r\nx: ", vec![b'x'; MAX_OPENING - 19].as_slice()].concat();
        let segment = Segment {
            source: 1,
            destination: 80,
            sequence: 2,
            acknowledgment: 0,
            flags: ACK,
            window: 0,
            payload: &payload,
        };
        let count = (MAX_HELD / MAX_OPENING) as u16;
        for port in 0..count {
            assert!(openings.expect(key(port), 1));
            assert_eq!(openings.take(&key(port), &segment), Outcome::Pass);
        }
        assert!(openings.expect(key(count), 1) && openings.held == MAX_HELD);
        assert_eq!(openings.take(&key(count), &segment), Outcome::Malformed);
        openings.forget(&key(count));
        openings.forget(&key(0));
        assert!(openings.expect(key(count), 1));
        assert_eq!(openings.take(&key(count), &segment), Outcome::Pass);
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
