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
    assert_eq!(outcome.question, Some((0, one)));
    client.receive(&outcome.back.unwrap());
    assert_eq!(client.send(ACK, &both[30..]).question, None);
    // An answer of more than one segment: each is sent when the last one is acknowledged, or before.
    let answer = vec![7; 700];
    let frame = client.streams.answer(0, 1, &answer).unwrap();
    let mut received = client.receive(&frame).0;
    assert_eq!(received.len(), LEAST_SEGMENT);
    let outcome = client.send(ACK, b"");
    received.extend(client.receive(&outcome.back.unwrap()).0);
    assert_eq!(received, framed(&answer));
    assert_eq!(outcome.question, None);
    assert!([1, 2].into_iter().all(|id| client.streams.answer(0, id, b"again").is_none()));
    assert_eq!(client.send(ACK, b"").question, Some((0, two)));
    // An answer to another question, such as one of an earlier connection, is not taken.
    assert_eq!(client.streams.answer(0, 1, b"late"), None);
    // The guest ends before the answer, which it gets all the same.
    let outcome = client.send(ACK | FIN, b"");
    assert_eq!(client.receive(&outcome.back.unwrap()), (Vec::new(), false));
    let frame = client.streams.answer(0, 2, b"no").unwrap();
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
    let frame = client.streams.answer(0, 1, b"answer").unwrap();
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
    let frame = client.streams.answer(0, 1, b"answer").unwrap();
    assert_eq!(client.receive(&frame).0, framed(b"answer")[..3]);
    let rest = client.send(ACK, b"").back.unwrap();
    assert_eq!(client.receive(&rest).0, framed(b"answer")[3..]);
}

#[test]
fn a_segment_outside_a_connection_is_reset() {
    for (what, offset, flags, acknowledged, payload, expected) in [
        ("data", 0, ACK, 0, vec![0], Some(ACK)),
        ("a reset", 0, RST, 0, vec![], None),
        ("a reset that acknowledges", 0, RST | ACK, 0, vec![], None),
        ("a SYN that acknowledges", 0, SYN | ACK, 0, vec![], Some(RST)),
        ("no acknowledgment", 0, 0, 0, vec![1], Some(RST)),
        ("an acknowledgment of what was not sent", 0, ACK, 1, vec![], Some(RST)),
        ("one of more", 0, ACK, 2, vec![], Some(RST)),
        ("one of half of all numbers", 0, ACK, u32::MAX / 2, vec![], Some(RST)),
        ("the oldest acknowledgment", 0, ACK, u32::MAX / 2 + 1, vec![], None),
        ("an old acknowledgment", 0, ACK, u32::MAX, vec![], None),
        ("as much as there is room for", 0, ACK, 0, vec![255; MAX_INPUT], Some(ACK)),
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
            matches!(what, "a reset" | "a reset that acknowledges") || expected == Some(RST),
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
fn an_answer_of_any_length_arrives() {
    let mut client = Client::connect(Streams::default(), 4000);
    client.send(ACK, &framed(&query(1, "a.test")));
    assert_eq!(client.streams.answer(0, 1, &vec![0; 65536]), None);
    let answer = vec![7; 65535];
    let mut frame = client.streams.answer(0, 1, &answer);
    let mut received = Vec::new();
    while let Some(segment) = frame {
        received.extend(client.receive(&segment).0);
        frame = client.send(ACK, b"").back;
    }
    assert_eq!(received, framed(&answer));
}
