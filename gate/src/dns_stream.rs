//! DNS over TCP, RFC 7766. The gate is the server: a question on a connection is judged like any other, and goes to the resolver
//! as the others do. Its answer comes back on the connection.
//!
//! Nothing is lost between the gate and the guest's kernel, so there is no timer: one segment is sent at a time, and again when
//! the guest repeats itself.

use std::net::IpAddr;
use std::time::Duration;

use crate::frame::{ACK, FIN, Packet, RST, SYN, Segment, be16};
use crate::reply;

/// How many connections there may be at once.
const MAX_STREAMS: usize = 32;
/// The most bytes of questions that wait.
const MAX_INPUT: usize = 2048;
/// How long a connection may be idle before another takes its place.
const IDLE: Duration = Duration::from_secs(30);
/// The largest payload of a segment if the guest does not announce one, RFC 9293.
const LEAST_SEGMENT: usize = 536;
const TCP: usize = 20;
const OPTION_SEGMENT: u8 = 2;

/// What a segment leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// A frame for the guest.
    pub back: Option<Vec<u8>>,
    /// A question to be judged, and the number of its connection.
    pub question: Option<(usize, Vec<u8>)>,
}

/// The guest's address and port, and the resolver's address.
type Key = (IpAddr, u16, IpAddr);

/// A frame for the guest, and a question.
type Step = (Option<Vec<u8>>, Option<Vec<u8>>);

/// The connections, each of which has a number.
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
    /// The identifier of the question that has no answer yet.
    asked: Option<u16>,
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
        Outcome { back, question: question.map(|question| (index, question)) }
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

    /// The connection of this number, if its question has this identifier. A late answer to a question of an earlier connection
    /// has another.
    fn asking(&mut self, number: usize, id: u16) -> Option<&mut Stream> {
        self.0.get_mut(number)?.as_mut().filter(|stream| stream.asked == Some(id))
    }

    /// Ends the connection of this number.
    pub(crate) fn forget(&mut self, number: usize) {
        if let Some(stream) = self.0.get_mut(number) {
            *stream = None;
        }
    }

    /// Takes the answer to the question with this identifier on the connection of this number. Returns the frame for the guest.
    pub(crate) fn answer(&mut self, number: usize, id: u16, message: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(message.len()).ok()?.to_be_bytes();
        let stream = self.asking(number, id)?;
        stream.asked = None;
        stream.output.extend(length);
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
            // It may be guessed: only the guest, which is the other end, can send segments here.
            acknowledged: now.as_micros() as u32,
            sent: 1,
            window: 0,
            largest: largest_segment(packet.body()).unwrap_or(LEAST_SEGMENT),
            input: Vec::new(),
            output: Vec::new(),
            is_open: false,
            asked: None,
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
            // An old acknowledgment is harmless.
            return self.is_open.then_some((None, None)).filter(|_| advance > u32::MAX / 2);
        }
        (self.acknowledged, self.sent) = (segment.acknowledgment, self.sent - advance);
        // A SYN and an end have a number and no byte, and the output is empty then.
        self.output.drain(..self.output.len().min(advance as usize));
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
        if self.asked.is_some() || !self.output.is_empty() {
            return None;
        }
        let length = usize::from(be16(self.input.get(..2)?, 0));
        let message = self.input.get(2..2 + length)?.to_vec();
        self.input.drain(..2 + length);
        // A message without an identifier is not a question, and the caller ends the connection.
        self.asked = Some(message.get(..2).map_or(0, |id| be16(id, 0)));
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
        let is_done = self.has_ended && self.asked.is_none() && self.output.is_empty();
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

#[cfg(test)]
mod tests;
