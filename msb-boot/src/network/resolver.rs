//! The process that asks name servers for the guest. The gate sends it the questions that may leave the host, and judges the
//! answers. It runs as the VM's user in a jail without files, with the host's network and without capabilities.
//!
//! It is one thread, which waits for all servers at once. Only so many questions are under way, or have an answer that the gate
//! has yet to take. Others wait in the socket, which holds a few hundred; the gate answers the rest with a failure.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use msb::jail::Jail;
use msb::tool::exit;
use msb_gate::{Lookup, MAX_QUERY, Reply, Servers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::exchange::{Exchange, Progress};
use super::message;

/// The process's name in messages.
pub(crate) const NAME: &str = "resolver";

/// How many questions are under way at once, with those whose answers wait for the gate.
const MAX_LOOKUPS: usize = 128;
/// How long a server has for an answer in a datagram, and over TCP.
const DATAGRAM: Duration = Duration::from_secs(3);
const STREAM: Duration = Duration::from_secs(5);
/// How long the guest waits for all servers together.
const LOOKUP: Duration = Duration::from_secs(20);
/// The size of a question's number, which is before each message on the socket of the gate: four bytes, big-endian.
const TOKEN: usize = 4;

/// What the process is told, as JSON. Its stdin is the control socket, on which it gets the gate's socket and the name servers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    pub jail: Jail,
}

/// A message on the control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Message {
    /// The servers, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
}

/// The process's main function.
pub(crate) fn run(description: &str) -> ExitCode {
    let result = Resolver::prepare(description).and_then(|mut resolver| resolver.run());
    exit::report(NAME, exit::FAILED, result.map(|()| 0))
}

/// Sends a message with the number of its question.
///
/// # Errors
/// Those of `send(2)`: `EAGAIN` if the receiver has to read others first.
pub(super) fn send(link: BorrowedFd<'_>, token: u32, message: &[u8]) -> rustix::io::Result<()> {
    let packet = [&token.to_be_bytes(), message].concat();
    rustix::net::send(link, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Takes the next message and the number of its question, with the help of a buffer. `None` if there is none.
///
/// # Errors
/// The sender's end, as the end of a file.
pub(super) fn receive<'b>(link: BorrowedFd<'_>, buffer: &'b mut [u8]) -> io::Result<Option<(u32, &'b [u8])>> {
    match rustix::net::recv(link, &mut *buffer, RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        // A sender that has ended before it had read everything resets the connection.
        Err(Errno::CONNRESET) | Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error.into()),
        Ok((length, _)) => {
            let packet = buffer[..length].split_first_chunk::<TOKEN>();
            Ok(packet.map(|(token, message)| (u32::from_be_bytes(*token), message)))
        }
    }
}

/// The size of the largest packet with a message of `length` bytes.
pub(super) const fn packet_size(length: usize) -> usize {
    TOKEN + length
}

/// A question that is under way.
struct Active {
    token: u32,
    lookup: Lookup,
    exchange: Exchange,
    /// Until when this server has time, and the lookup.
    until: Duration,
    end: Duration,
}

struct Resolver {
    link: OwnedFd,
    servers: Servers,
    active: Vec<Active>,
    /// The answers that the gate has yet to take.
    answers: VecDeque<(u32, Vec<u8>)>,
    /// For one datagram.
    buffer: Vec<u8>,
}

fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// An identifier that nobody can guess.
fn random_id() -> u16 {
    let mut id = [0; 2];
    // With so few bytes it fails only where the kernel has no random numbers, and the source port is one too.
    let _ = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
    u16::from_ne_bytes(id)
}

impl Resolver {
    fn prepare(description: &str) -> anyhow::Result<Self> {
        let Description { jail } = serde_json::from_str(description).context("description of the resolver")?;
        jail.enter().context("jail")?;
        // The supervisor has sent it before it started this process.
        let first = message::receive::<Message>(rustix::stdio::stdin()).context("control socket")?;
        let Some((Message { servers }, fds)) = first else { bail!("no message on the control socket") };
        let Ok([link]) = <[OwnedFd; 1]>::try_from(fds) else { bail!("one socket is expected") };
        Ok(Self::new(link, servers))
    }

    fn new(link: OwnedFd, servers: Vec<SocketAddr>) -> Self {
        let buffer = vec![0; usize::from(u16::MAX)];
        Self { link, servers: Servers::new(servers), active: Vec::new(), answers: VecDeque::new(), buffer }
    }

    /// Answers questions until the gate or the supervisor closes its end.
    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::IN, self.has_room());
            interest.set(PollFlags::OUT, !self.answers.is_empty());
            let mut fds = vec![
                PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.link.as_fd(), interest),
            ];
            fds.extend(self.active.iter().map(|active| active.exchange.poll_fd()));
            let until = self.active.iter().map(|active| active.until).min();
            let timeout = until.map(|until| Timespec::try_from(until.saturating_sub(now()))).transpose()?;
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            if !events[0].is_empty()
                && let Some((Message { servers }, _)) =
                    message::receive(rustix::stdio::stdin()).context("control socket")?
            {
                self.servers = Servers::new(servers);
            }
            self.advance(&events[2..]);
            if events[1].contains(PollFlags::OUT) {
                self.send_answers();
            }
            let has_gate_ended = events[1].intersects(PollFlags::HUP | PollFlags::ERR);
            if has_gate_ended || (events[1].contains(PollFlags::IN) && !self.take_questions()?) {
                return Ok(());
            }
        }
    }

    /// Whether another question can be taken.
    fn has_room(&self) -> bool {
        self.active.len() + self.answers.len() < MAX_LOOKUPS
    }

    /// Takes questions as far as there is room. False if the gate has ended.
    fn take_questions(&mut self) -> anyhow::Result<bool> {
        let mut packet = [0; packet_size(MAX_QUERY)];
        while self.has_room() {
            let (token, message) = match receive(self.link.as_fd(), &mut packet) {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error).context("the gate's socket"),
            };
            // The gate lets nothing else pass.
            let Some(lookup) = Lookup::new(message.to_vec(), random_id()) else { continue };
            let now = now();
            self.ask_next(token, lookup, now, now + LOOKUP);
        }
        Ok(true)
    }

    /// Asks the next server, or answers that all have failed.
    fn ask_next(&mut self, token: u32, mut lookup: Lookup, now: Duration, end: Duration) {
        while now < end
            && let Some(server) = lookup.next_server(&self.servers)
        {
            // A server without a route fails at once.
            if let Ok(exchange) = Exchange::datagram(server, lookup.query()) {
                self.active.push(Active { token, lookup, exchange, until: end.min(now + DATAGRAM), end });
                return;
            }
        }
        self.answer(token, lookup.into_failure());
    }

    fn answer(&mut self, token: u32, message: Vec<u8>) {
        self.answers.push_back((token, message));
        self.send_answers();
    }

    /// Sends the answers as far as the gate takes them: it takes none while the guest does not read its frames.
    fn send_answers(&mut self) {
        while let Some((token, message)) = self.answers.front()
            // The end of the gate is seen by poll(2).
            && send(self.link.as_fd(), *token, message) != Err(Errno::AGAIN)
        {
            self.answers.pop_front();
        }
    }

    /// Reads what has arrived, and goes on where a server has failed or has taken too long.
    fn advance(&mut self, events: &[PollFlags]) {
        let now = now();
        let active = std::mem::take(&mut self.active);
        for (mut active, events) in active.into_iter().zip(events) {
            let progress = match events.is_empty() {
                true => Progress::Waiting,
                false => active.exchange.advance(&mut self.buffer),
            };
            let reply = match progress {
                Progress::Waiting => Reply::Foreign,
                Progress::Message(message) => active.lookup.judge(&message, active.exchange.is_stream()),
                Progress::Failed => Reply::Failed,
            };
            match reply {
                Reply::Foreign if active.until > now => self.active.push(active),
                Reply::Answer(answer) => {
                    self.servers.prefer(active.exchange.server());
                    self.answer(active.token, answer);
                }
                Reply::Truncated => self.ask_over_tcp(active, now),
                Reply::Foreign | Reply::Failed => self.ask_next(active.token, active.lookup, now, active.end),
            }
        }
    }

    fn ask_over_tcp(&mut self, active: Active, now: Duration) {
        match active.exchange.as_stream(active.lookup.query()) {
            Ok(exchange) => self.active.push(Active { exchange, until: active.end.min(now + STREAM), ..active }),
            Err(_) => self.ask_next(active.token, active.lookup, now, active.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_wait_until_the_gate_takes_them() {
        let (gate, link) = message::packet_sockets().unwrap();
        let mut resolver = Resolver::new(link, Vec::new());
        let answer = |token: u32| vec![token.to_be_bytes()[3]; 65535];
        let all = 0..MAX_LOOKUPS as u32;
        all.clone().for_each(|token| resolver.answer(token, answer(token)));
        assert!(!resolver.answers.is_empty());
        let mut buffer = vec![0; packet_size(65535)];
        for expected in all {
            resolver.send_answers();
            let (token, message) = receive(gate.as_fd(), &mut buffer).unwrap().unwrap();
            assert_eq!((token, message), (expected, answer(expected).as_slice()));
        }
        assert!(resolver.answers.is_empty() && receive(gate.as_fd(), &mut buffer).unwrap().is_none());
        // Those of a gate that has ended do not stay.
        drop(gate);
        resolver.answer(1, answer(1));
        assert!(resolver.answers.is_empty());
    }

    #[test]
    fn answers_that_wait_take_the_room_of_questions() {
        let (gate, link) = message::packet_sockets().unwrap();
        let mut resolver = Resolver::new(link, Vec::new());
        while resolver.answers.len() < MAX_LOOKUPS {
            resolver.answer(0, vec![0; 65535]);
        }
        send(gate.as_fd(), 7, b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01").unwrap();
        assert!(resolver.take_questions().unwrap());
        assert_eq!(resolver.answers.len(), MAX_LOOKUPS);
        resolver.answers.clear();
        // Without a server it fails at once.
        while receive(gate.as_fd(), &mut vec![0; packet_size(65535)]).unwrap().is_some() {}
        assert!(resolver.take_questions().unwrap());
        let mut buffer = [0; 100];
        let (token, message) = receive(gate.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!((token, &message[..4]), (7, &[0, 1, 0x81, 0x82][..]));
    }
}
