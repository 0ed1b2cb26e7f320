//! DNS over TCP, RFC 7766. The gate is the server: passt of 2023 forwards UDP only, and what passes here is read like any other
//! question. A question goes on in a datagram, from a port of the gate's own, and its answer comes back on the connection.
//!
//! Nothing is lost between the gate and the guest's kernel, so there is no timer: one segment is sent at a time, and again when the
//! guest repeats itself.

use std::net::IpAddr;
use std::time::Duration;

use crate::dns::Question;
use crate::frame::{ACK, FIN, Packet, RST, SYN, Segment, be16};
use crate::reply;

/// How many connections there may be at once.
const MAX_STREAMS: usize = 32;
/// The first port of the gate's own. The guest's kernel does not choose these (`net.ipv4.ip_local_port_range`).
const FIRST_PORT: u16 = 61000;
/// The most bytes of questions that wait. A question has 300 at most.
const MAX_INPUT: usize = 2048;
/// What an answer may have in a datagram: what the guest's MTU and most name servers allow.
const UDP_SIZE: u16 = 4096;
/// How long a connection may be idle before another takes its place.
const IDLE: Duration = Duration::from_secs(30);
/// What a segment carries if the guest does not say, RFC 9293.
const LEAST_SEGMENT: usize = 536;
const TCP: usize = 20;
const OPTION_SEGMENT: u8 = 2;
const TYPE_OPT: u16 = 41;

/// What a segment leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// A frame for the guest.
    pub back: Option<Vec<u8>>,
    /// A question, to be judged and sent from this port.
    pub question: Option<(u16, Vec<u8>)>,
}

/// The guest's address and port, and the resolver's address.
type Key = (IpAddr, u16, IpAddr);

/// A frame for the guest, and a question.
type Step = (Option<Vec<u8>>, Option<Vec<u8>>);

/// The connections. Each has a place, and the port of that number.
#[derive(Debug, Default)]
pub(crate) struct Streams(Vec<Option<Stream>>);

#[derive(Debug)]
struct Stream {
    key: Key,
    /// The resolver's port.
    port: u16,
    /// The Ethernet addresses of a frame to the guest.
    ethernet: [u8; 12],
    /// The number of the byte that the guest sends next.
    expected: u32,
    /// The number of the first byte that the guest has not acknowledged, and how many from there on were sent.
    acknowledged: u32,
    sent: u32,
    /// The guest's window and largest segment.
    window: usize,
    largest: usize,
    input: Vec<u8>,
    /// What the guest has not acknowledged, from `acknowledged` on.
    output: Vec<u8>,
    is_open: bool,
    is_asking: bool,
    /// The guest has ended its side, and the gate its own.
    has_ended: bool,
    is_end_sent: bool,
    used: Duration,
}

impl Streams {
    /// Takes a segment to the resolver.
    pub(crate) fn take(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Outcome {
        let key = (packet.source, segment.source, packet.destination);
        let found = self.0.iter().position(|stream| stream.as_ref().is_some_and(|stream| stream.key == key));
        let refused = || Outcome { back: reply::reset_back(packet, segment), question: None };
        if segment.opens() {
            let Some(index) = found.or_else(|| self.free_place(now)) else { return refused() };
            let stream = match self.0[index].take() {
                Some(stream) if stream.key == key && stream.repeats(segment) => stream,
                _ => Stream::open(packet, segment, key, now),
            };
            let back = stream.frame(SYN | ACK, stream.acknowledged, &[]);
            self.0[index] = Some(stream);
            return Outcome { back, question: None };
        }
        let is_reset = segment.flags & RST != 0;
        let place = found.and_then(|index| Some((index, self.0[index].as_mut()?)));
        let Some((index, stream)) = place else {
            return if is_reset { Outcome::default() } else { refused() };
        };
        let Some((back, question)) = stream.take(segment, now) else {
            self.0[index] = None;
            return if is_reset { Outcome::default() } else { refused() };
        };
        if stream.is_over() {
            self.0[index] = None;
        }
        let port = FIRST_PORT.saturating_add(u16::try_from(index).unwrap_or(u16::MAX));
        Outcome { back, question: question.map(|question| (port, question)) }
    }

    /// A place that is free, or whose connection is idle.
    fn free_place(&mut self, now: Duration) -> Option<usize> {
        let is_free =
            |stream: &Option<Stream>| stream.as_ref().is_none_or(|stream| now.saturating_sub(stream.used) >= IDLE);
        let free = self.0.iter().position(is_free);
        if free.is_none() && self.0.len() < MAX_STREAMS {
            self.0.push(None);
            return Some(self.0.len() - 1);
        }
        free
    }

    fn asking(&mut self, port: u16) -> Option<&mut Stream> {
        let index = usize::from(port.checked_sub(FIRST_PORT)?);
        self.0.get_mut(index)?.as_mut().filter(|stream| stream.is_asking)
    }

    /// Whether a question was sent from this port.
    pub(crate) fn is_asking(&mut self, port: u16) -> bool {
        self.asking(port).is_some()
    }

    /// Ends the connection whose question was to be sent from this port.
    pub(crate) fn forget(&mut self, port: u16) {
        let index = usize::from(port.saturating_sub(FIRST_PORT));
        if let Some(stream) = self.0.get_mut(index) {
            *stream = None;
        }
    }

    /// Takes the answer to the question that was sent from this port. Returns the frame for the guest.
    pub(crate) fn answer(&mut self, port: u16, message: &[u8]) -> Option<Vec<u8>> {
        let stream = self.asking(port)?;
        stream.is_asking = false;
        // A datagram is shorter.
        stream.output.extend(u16::try_from(message.len()).ok()?.to_be_bytes());
        stream.output.extend(message);
        stream.next_frame()
    }
}

impl Stream {
    fn open(packet: &Packet<'_>, segment: &Segment<'_>, key: Key, now: Duration) -> Self {
        Self {
            key,
            port: segment.destination,
            ethernet: reply::back(packet.frame),
            expected: segment.sequence.wrapping_add(1),
            // The guest is the only one to guess it, and the other end.
            acknowledged: now.as_micros() as u32,
            sent: 1,
            window: 0,
            largest: largest_segment(packet.body()).unwrap_or(LEAST_SEGMENT),
            input: Vec::new(),
            output: Vec::new(),
            is_open: false,
            is_asking: false,
            has_ended: false,
            is_end_sent: false,
            used: now,
        }
    }

    /// Whether a SYN is the one that has opened this connection.
    fn repeats(&self, syn: &Segment<'_>) -> bool {
        !self.is_open && self.expected == syn.sequence.wrapping_add(1)
    }

    /// Takes a segment. Returns a frame for the guest and a question; `None` if it ends the connection at once.
    fn take(&mut self, segment: &Segment<'_>, now: Duration) -> Option<Step> {
        if segment.flags & (RST | SYN | ACK) != ACK {
            return None;
        }
        self.used = now;
        // The gate has offered no scaling.
        self.window = usize::from(segment.window);
        let advance = segment.acknowledgment.wrapping_sub(self.acknowledged);
        if advance > self.sent || (!self.is_open && advance == 0) {
            // An old acknowledgment is no harm.
            return self.is_open.then_some((None, None)).filter(|_| advance > u32::MAX / 2);
        }
        (self.acknowledged, self.sent) = (segment.acknowledgment, self.sent - advance);
        // A SYN and an end have a number, and no byte.
        let bytes = advance as usize - usize::from(!self.is_open);
        self.output.drain(..bytes.min(self.output.len()));
        self.is_open = true;
        let has_content = !segment.payload.is_empty() || segment.flags & FIN != 0;
        if has_content && segment.sequence != self.expected {
            return Some((self.repeat(), None));
        }
        if has_content {
            if self.has_ended || self.input.len() + segment.payload.len() > MAX_INPUT {
                return None;
            }
            self.input.extend(segment.payload);
            self.has_ended = segment.flags & FIN != 0;
            let numbers = segment.payload.len() as u32 + u32::from(self.has_ended);
            self.expected = self.expected.wrapping_add(numbers);
        }
        let question = self.next_question();
        let back = self.next_frame().or_else(|| has_content.then(|| self.acknowledge()).flatten());
        Some((back, question))
    }

    /// The next whole question, once the answer to the last one has arrived.
    fn next_question(&mut self) -> Option<Vec<u8>> {
        if self.is_asking || !self.output.is_empty() {
            return None;
        }
        let length = usize::from(be16(self.input.get(..2)?, 0));
        let message = self.input.get(2..2 + length)?.to_vec();
        self.input.drain(..2 + length);
        self.is_asking = true;
        Some(message)
    }

    /// What can be sent now: a part of an answer, or the end.
    fn next_frame(&mut self) -> Option<Vec<u8>> {
        let sent = self.sent as usize;
        let rest = self.output.get(sent..).unwrap_or_default();
        let length = rest.len().min(self.largest).min(self.window.saturating_sub(sent));
        let sequence = self.acknowledged.wrapping_add(self.sent);
        if length > 0 {
            let frame = self.frame(ACK, sequence, &rest[..length]);
            self.sent += length as u32;
            return frame;
        }
        let is_done = self.has_ended && !self.is_asking && self.output.is_empty();
        if is_done && !self.is_end_sent {
            (self.is_end_sent, self.sent) = (true, 1);
            return self.frame(FIN | ACK, sequence, &[]);
        }
        None
    }

    /// The first segment that the guest has not acknowledged: it has missed something, since it repeats itself.
    fn repeat(&self) -> Option<Vec<u8>> {
        let length = self.output.len().min(self.largest).min(self.sent as usize);
        let flags = if self.is_end_sent { FIN | ACK } else { ACK };
        self.frame(flags, self.acknowledged, &self.output[..length])
    }

    fn acknowledge(&self) -> Option<Vec<u8>> {
        self.frame(ACK, self.acknowledged.wrapping_add(self.sent), &[])
    }

    /// Whether both sides have ended.
    fn is_over(&self) -> bool {
        self.is_end_sent && self.sent == 0
    }

    fn frame(&self, flags: u8, sequence: u32, payload: &[u8]) -> Option<Vec<u8>> {
        let (guest, port, resolver) = self.key;
        let numbers = (sequence, self.expected);
        reply::segment(&self.ethernet, (resolver, guest), (self.port, port), numbers, flags, payload)
    }
}

/// The option of a SYN with the largest segment that its sender takes.
fn largest_segment(header: &[u8]) -> Option<usize> {
    let mut options = header.get(TCP..usize::from(*header.get(12)? >> 4) * 4)?;
    loop {
        match *options.first()? {
            0 => return None,
            1 => options = &options[1..],
            kind => {
                let length = usize::from(*options.get(1)?);
                let option = options.get(..length).filter(|option| option.len() >= 2)?;
                if kind == OPTION_SEGMENT && length == 4 {
                    return Some(usize::from(be16(option, 2)).max(LEAST_SEGMENT));
                }
                options = &options[length..];
            }
        }
    }
}

/// A query that allows an answer of [`UDP_SIZE`] in a datagram, RFC 6891.
pub(crate) fn with_udp_size(mut query: Vec<u8>, question: &Question) -> Vec<u8> {
    let [high, low] = UDP_SIZE.to_be_bytes();
    let end = question.end;
    match (be16(&query, 10), query.len() - end) {
        (0, 0) => {
            let [kind_high, kind_low] = TYPE_OPT.to_be_bytes();
            query.extend([0, kind_high, kind_low, high, low, 0, 0, 0, 0, 0, 0]);
            query[11] = 1;
        }
        (1, 11..) if query[end] == 0 && be16(&query, end + 1) == TYPE_OPT => {
            query[end + 3..end + 5].copy_from_slice(&[high, low]);
        }
        _ => {}
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::tests::query;
    use crate::frame::tests as make;

    const GUEST: &str = "10.0.2.15";
    const RESOLVER: &str = "10.0.2.3";
    const NOW: Duration = Duration::from_secs(1000);

    /// A guest's end of a connection.
    struct Client {
        streams: Streams,
        port: u16,
        sequence: u32,
        acknowledgment: u32,
    }

    impl Client {
        fn connect(mut streams: Streams, port: u16) -> Self {
            let frame = make::tcp((GUEST, port), (RESOLVER, 53), 9, SYN, b"");
            let packet = Packet::parse(&frame).unwrap();
            let outcome = streams.take(&packet, &packet.tcp().unwrap(), NOW);
            let (flags, first, acknowledgment, _) = parts(&outcome.back.unwrap());
            assert_eq!((flags, acknowledgment), (SYN | ACK, 10));
            let mut client = Self { streams, port, sequence: 10, acknowledgment: first.wrapping_add(1) };
            assert_eq!(client.send(ACK, b""), Outcome::default());
            client
        }

        /// Sends a segment, which acknowledges all that was received.
        fn send(&mut self, flags: u8, payload: &[u8]) -> Outcome {
            let outcome = self.send_at(self.sequence, flags, payload);
            self.sequence = self.sequence.wrapping_add(payload.len() as u32 + u32::from(flags & FIN != 0));
            outcome
        }

        fn send_at(&mut self, sequence: u32, flags: u8, payload: &[u8]) -> Outcome {
            let mut frame = make::tcp((GUEST, self.port), (RESOLVER, 53), sequence, flags, payload);
            frame[42..46].copy_from_slice(&self.acknowledgment.to_be_bytes());
            let packet = Packet::parse(&frame).unwrap();
            self.streams.take(&packet, &packet.tcp().unwrap(), NOW)
        }

        /// Receives a frame: its payload, and whether it ends the connection.
        fn receive(&mut self, frame: &[u8]) -> (Vec<u8>, bool) {
            let (flags, sequence, acknowledgment, payload) = parts(frame);
            assert_eq!((flags & ACK, sequence, acknowledgment), (ACK, self.acknowledgment, self.sequence));
            let is_end = flags & FIN != 0;
            self.acknowledgment = sequence.wrapping_add(payload.len() as u32 + u32::from(is_end));
            (payload, is_end)
        }
    }

    fn parts(frame: &[u8]) -> (u8, u32, u32, Vec<u8>) {
        let segment = Packet::parse(frame).unwrap().tcp().unwrap();
        assert_eq!(segment.source, 53);
        (segment.flags, segment.sequence, segment.acknowledgment, segment.payload.to_vec())
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u16).to_be_bytes()[..], message].concat()
    }

    #[test]
    fn questions_are_answered_one_after_another() {
        let (one, two) = (query(1, "a.test"), query(2, "b.test"));
        let mut client = Client::connect(Streams::default(), 4000);
        let both = [framed(&one), framed(&two)].concat();
        // In parts, the second of which ends in the middle of a question.
        let outcome = client.send(ACK, &both[..1]);
        assert_eq!((client.receive(&outcome.back.unwrap()).0.len(), outcome.question), (0, None));
        let outcome = client.send(ACK, &both[1..30]);
        assert_eq!(outcome.question, Some((FIRST_PORT, one)));
        client.receive(&outcome.back.unwrap());
        assert_eq!(client.send(ACK, &both[30..]).question, None);
        // An answer of more than one segment: each is sent when the last one is acknowledged, or before.
        let answer = vec![7; 700];
        let frame = client.streams.answer(FIRST_PORT, &answer).unwrap();
        let mut received = client.receive(&frame).0;
        assert_eq!(received.len(), LEAST_SEGMENT);
        let outcome = client.send(ACK, b"");
        received.extend(client.receive(&outcome.back.unwrap()).0);
        assert_eq!(received, framed(&answer));
        assert_eq!(outcome.question, None);
        assert!(!client.streams.is_asking(FIRST_PORT));
        assert_eq!(client.send(ACK, b"").question, Some((FIRST_PORT, two)));
        // The guest ends before the answer, which it gets all the same.
        let outcome = client.send(ACK | FIN, b"");
        assert_eq!(client.receive(&outcome.back.unwrap()), (Vec::new(), false));
        let frame = client.streams.answer(FIRST_PORT, b"no").unwrap();
        assert_eq!(client.receive(&frame), (framed(b"no"), false));
        let outcome = client.send(ACK, b"");
        assert!(client.receive(&outcome.back.unwrap()).1);
        assert_eq!(client.send(ACK, b""), Outcome::default());
        assert!(client.streams.0[0].is_none());
    }

    #[test]
    fn a_guest_that_repeats_itself_gets_the_same_again() {
        let question = framed(&query(1, "a.test"));
        let mut client = Client::connect(Streams::default(), 4000);
        client.send(ACK, &question);
        let frame = client.streams.answer(FIRST_PORT, b"answer").unwrap();
        let again = client.send_at(10, ACK, &question);
        assert_eq!((again.back, again.question), (Some(frame.clone()), None));
        assert_eq!(client.receive(&frame).0, framed(b"answer"));
        let end = client.send(ACK | FIN, b"").back.unwrap();
        let repeated = client.send_at(client.sequence - 1, ACK | FIN, b"").back;
        assert_eq!(repeated, Some(end));
        // A SYN as well, until the connection is open.
        let mut streams = Streams::default();
        let frame = make::tcp((GUEST, 1), (RESOLVER, 53), 9, SYN, b"");
        let packet = Packet::parse(&frame).unwrap();
        let mut take = |seconds| streams.take(&packet, &packet.tcp().unwrap(), NOW + Duration::from_secs(seconds));
        assert_eq!(take(0), take(1));
        // Another SYN of the same ports is another connection.
        let frame = make::tcp((GUEST, 1), (RESOLVER, 53), 19, SYN, b"");
        let packet = Packet::parse(&frame).unwrap();
        let back = streams.take(&packet, &packet.tcp().unwrap(), NOW).back.unwrap();
        assert_eq!(parts(&back).2, 20);
    }

    #[test]
    fn a_window_is_respected() {
        let mut client = Client::connect(Streams::default(), 4000);
        client.send(ACK, &framed(&query(1, "a.test")));
        client.streams.0[0].as_mut().unwrap().window = 3;
        let frame = client.streams.answer(FIRST_PORT, b"answer").unwrap();
        assert_eq!(client.receive(&frame).0, framed(b"answer")[..3]);
        let rest = client.send(ACK, b"").back.unwrap();
        assert_eq!(client.receive(&rest).0, framed(b"answer")[3..]);
    }

    #[test]
    fn what_is_no_part_of_a_connection_is_reset() {
        for (what, offset, flags, acknowledged, payload, expected) in [
            ("data", 0, ACK, 0, vec![0], Some(ACK)),
            ("a reset", 0, RST, 0, vec![], None),
            ("no acknowledgment", 0, 0, 0, vec![1], Some(RST)),
            ("an acknowledgment of what was not sent", 0, ACK, 1, vec![], Some(RST)),
            ("an old acknowledgment", 0, ACK, u32::MAX, vec![], None),
            ("too much", 0, ACK, 0, vec![255; MAX_INPUT + 1], Some(RST)),
            ("out of order", 1, ACK, 0, vec![1], Some(ACK)),
        ] {
            let mut client = Client::connect(Streams::default(), 4000);
            client.acknowledgment = client.acknowledgment.wrapping_add(acknowledged);
            let outcome = client.send_at(10 + offset, flags, &payload);
            assert_eq!(
                outcome.back.map(|frame| parts(&frame).0 & (RST | ACK) & !(ACK * u8::from(expected == Some(RST)))),
                expected,
                "{what}"
            );
            assert_eq!(outcome.question, None, "{what}");
            assert_eq!(
                client.streams.0[0].is_none(),
                matches!(what, "a reset" | "too much") || expected == Some(RST),
                "{what}"
            );
        }
        let mut client = Client::connect(Streams::default(), 4000);
        client.port = 4001;
        assert_eq!(parts(&client.send_at(10, ACK, b"x").back.unwrap()).0, RST | ACK);
        assert_eq!(client.send_at(10, RST, b""), Outcome::default());
    }

    #[test]
    fn there_are_only_so_many() {
        let mut streams = Streams::default();
        for port in 0..MAX_STREAMS as u16 {
            streams = Client::connect(streams, port + 1).streams;
        }
        let frame = make::tcp((GUEST, 4000), (RESOLVER, 53), 9, SYN, b"");
        let packet = Packet::parse(&frame).unwrap();
        let mut flags = |now| parts(&streams.take(&packet, &packet.tcp().unwrap(), now).back.unwrap()).0;
        assert_eq!(flags(NOW + IDLE - Duration::from_secs(1)), RST | ACK);
        assert_eq!(flags(NOW + IDLE), SYN | ACK);
        assert_eq!(streams.0.len(), MAX_STREAMS);
    }

    #[test]
    fn the_largest_segment_is_an_option() {
        for (options, expected) in [
            (&[][..], None),
            (&[2, 4, 0x3f, 0xd8], Some(16344)),
            (&[1, 1, 2, 4, 5, 180, 0, 0], Some(1460)),
            (&[3, 3, 7, 2, 4, 5, 180, 0], Some(1460)),
            (&[4, 2, 2, 4, 5, 180, 0, 0], Some(1460)),
            (&[2, 4, 0, 1], Some(LEAST_SEGMENT)),
            (&[0, 0, 0, 0, 2, 4, 5, 180], None),
            (&[2, 3, 0, 1], None),
            (&[3, 0, 0, 0], None),
            (&[3, 9, 0, 0], None),
            (&[1, 1, 1, 2], None),
        ] {
            let offset = ((TCP + options.len()) as u8 / 4) << 4;
            let header = [&[0; 12][..], &[offset], &[0; 7], options].concat();
            assert_eq!(largest_segment(&header), expected, "{options:?}");
        }
        assert_eq!(largest_segment(&[0; 12]), None);
    }

    #[test]
    fn a_question_allows_a_long_answer() {
        let plain = query(1, "a.test");
        let question = Question::parse_query(&plain).unwrap();
        let sized = with_udp_size(plain.clone(), &question);
        assert_eq!(sized[plain.len()..], [0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sized[..12], [&plain[..11], &[1]].concat());
        let mut small = sized.clone();
        small[plain.len() + 3] = 2;
        assert_eq!(with_udp_size(small, &question), sized);
        // Records that are not understood stay as they are.
        for (at, byte) in [(0, 1), (2, 42)] {
            let mut other = sized.clone();
            (other[plain.len() + at], other[plain.len() + 3]) = (byte, 2);
            assert_eq!(with_udp_size(other.clone(), &question), other);
        }
    }
}
