//! The process between the guest's network card and passt: it moves frames, and [`msb_gate::Gate`] decides about each. Questions
//! about names go to the resolver instead. Its jail is empty, and has no network.
//!
//! It is one thread. A direction whose receiver does not take more is not read, so nothing is buffered without bound, and one
//! direction does not wait for the other.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use msb::jail::Jail;
use msb::tool::exit;
use msb::vm::rundir::Traffic;
use msb_gate::frame::MAX_FRAME;
use msb_gate::{Config, Gate, Log, Query, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::control::{Socket, ToGate};
use super::port::{LENGTH, Port};
use super::{message, resolver};
use crate::krun::ffi::schedule_in_batches;

/// The process's name in messages.
pub(crate) const NAME: &str = "gate";

/// From how many bytes on a read is followed by another one, and how many follow one another at most.
const MUCH: usize = 8 << 10;
const MAX_READS: usize = 16;

/// How often counts are logged that are due.
const LOG_INTERVAL: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How often the counts of what has passed are written.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
const SECOND: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What the process is told, as JSON. Its stdin is the control socket, on which it gets the sockets and the host's addresses.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    pub jail: Jail,
    pub config: Config,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The file to which denials are appended.
    pub log: PathBuf,
    /// The file that says what has passed.
    pub traffic: PathBuf,
}

/// The process's main function.
pub(crate) fn run(description: &str) -> ExitCode {
    let result = Pump::prepare(description).and_then(|mut pump| pump.run());
    exit::report(NAME, exit::FAILED, result.map(|()| 0))
}

/// Opens the log.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// Counts what has passed, for other processes.
struct Counter {
    file: File,
    traffic: Traffic,
    /// What the file says, and since when.
    written: Traffic,
    at: Duration,
}

impl Counter {
    fn new(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut counter = Self { file, traffic: Traffic::default(), written: Traffic::default(), at: Duration::ZERO };
        counter.write();
        Ok(counter)
    }

    /// Counts a run of frames from a side, with the length before each.
    fn count(&mut self, from: Side, frames: u64, bytes: usize) {
        let bytes = bytes as u64 - frames * LENGTH as u64;
        let (total_frames, total_bytes) = match from {
            Side::Guest => (&mut self.traffic.sent_frames, &mut self.traffic.sent_bytes),
            Side::Host => (&mut self.traffic.received_frames, &mut self.traffic.received_bytes),
        };
        *total_frames += frames;
        *total_bytes += bytes;
    }

    fn is_due(&self) -> bool {
        self.written != self.traffic
    }

    fn write(&mut self) {
        let _ = self.file.write_all_at(self.traffic.to_text().as_bytes(), 0);
        self.written = self.traffic;
    }

    /// Writes a change, once a second at most.
    fn write_if_due(&mut self) {
        let now = time(ClockId::Monotonic);
        if self.is_due() && now.saturating_sub(self.at) >= COUNT_INTERVAL {
            self.at = now;
            self.write();
        }
    }
}

/// A side of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Guest,
    Host,
}

/// The process.
struct Pump {
    gate: Gate,
    log: Log,
    file: File,
    counter: Counter,
    guest: Port,
    host: Port,
    /// The socket of the resolver, unless that has ended.
    resolver: Option<OwnedFd>,
    /// The first frame for a passt.
    announcement: Vec<u8>,
    /// For one answer of the resolver's.
    packet: Vec<u8>,
}

fn time(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Pump {
    /// Opens the log and enters the jail.
    fn prepare(description: &str) -> anyhow::Result<Self> {
        let Description { jail, config, mac, log, traffic } =
            serde_json::from_str(description).context("description of the gate")?;
        let file = open_log(&log).with_context(|| format!("{log:?}"))?;
        let counter = Counter::new(&traffic).with_context(|| format!("{traffic:?}"))?;
        // On a single processor the gate would preempt the sender for nearly every frame. An error is ignored: the gate is only slower.
        let _ = schedule_in_batches();
        jail.enter().context("jail")?;
        // The supervisor has sent it before it started this process.
        let first = message::receive(rustix::stdio::stdin()).context("control socket")?;
        let Some((ToGate { host: addresses, sockets }, fds)) = first else { bail!("no message on the control socket") };
        let Ok([guest, host, resolver]) = <[OwnedFd; 3]>::try_from(fds) else { bail!("three sockets are expected") };
        if sockets != [Socket::Guest, Socket::Passt, Socket::Resolver] {
            bail!("the sockets have another order: {sockets:?}");
        }
        // A server in the guest is reached although the guest has sent nothing. With IPv6 alone, no frame need have this address.
        let announcement = msb_gate::announcement(mac, config.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let mut gate = Gate::new(config);
        gate.set_host(addresses.addresses, addresses.networks);
        let (guest, host) = (Port::new(guest)?, Port::new(host)?);
        let packet = vec![0; resolver::packet_size(usize::from(u16::MAX))];
        let mut pump = Self {
            gate,
            log: Log::default(),
            file,
            counter,
            guest,
            host,
            resolver: Some(resolver),
            announcement,
            packet,
        };
        pump.host.write_frame(&pump.announcement);
        Ok(pump)
    }

    /// Takes a message of the supervisor's.
    fn read_control(&mut self) -> anyhow::Result<()> {
        let Some((ToGate { host, sockets }, fds)) = message::receive(rustix::stdio::stdin())? else { return Ok(()) };
        self.gate.set_host(host.addresses, host.networks);
        for (socket, fd) in sockets.into_iter().zip(fds) {
            match socket {
                Socket::Guest => bail!("another socket of the guest"),
                Socket::Passt => {
                    self.host = Port::new(fd)?;
                    self.gate.forget_connections();
                    self.host.write_frame(&self.announcement);
                }
                Socket::Resolver => self.resolver = Some(fd),
            }
        }
        Ok(())
    }

    /// Sends a question to the resolver. If that has ended, or has no room for the question, the guest is told.
    fn ask(&mut self, query: &Query) {
        let link = self.resolver.as_ref();
        let is_sent = link.is_some_and(|link| resolver::send(link.as_fd(), query.token, &query.message).is_ok());
        if !is_sent && let Some(frame) = self.gate.fail(query.token, time(ClockId::Monotonic)) {
            self.guest.write_reply(&frame);
        }
    }

    /// Takes the resolver's answers as long as the guest takes them.
    fn read_answers(&mut self) {
        while let Some(link) = &self.resolver
            && self.guest.is_drained()
        {
            match resolver::receive(link.as_fd(), &mut self.packet) {
                Ok(Some((token, message))) => {
                    if let Some(frame) = self.gate.answer(token, message, time(ClockId::Monotonic)) {
                        self.guest.write_frame(&frame);
                        self.counter.count(Side::Host, 1, LENGTH + frame.len());
                    }
                }
                Ok(None) => return,
                Err(_) => self.resolver = None,
            }
        }
    }

    /// Moves frames until the VMM closes its end. Without passt it goes on, and drops what the guest sends.
    fn run(&mut self) -> anyhow::Result<()> {
        while self.guest.is_open {
            let interest = |own: &Port, other: &Port| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, other.is_drained());
                flags.set(PollFlags::OUT, !own.is_drained());
                flags
            };
            let (guest, host) = (interest(&self.guest, &self.host), interest(&self.host, &self.guest));
            let control = rustix::stdio::stdin();
            let mut fds = vec![
                PollFd::from_borrowed_fd(control, PollFlags::IN),
                PollFd::from_borrowed_fd(self.guest.fd.as_fd(), guest),
            ];
            let has_host = self.host.is_open;
            if has_host {
                fds.push(PollFd::from_borrowed_fd(self.host.fd.as_fd(), host));
            }
            if let Some(link) = self.resolver.as_ref().filter(|_| self.guest.is_drained()) {
                fds.push(PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN));
            }
            let timeout = self.log.has_counts().then_some(LOG_INTERVAL);
            let timeout = if self.counter.is_due() { Some(SECOND) } else { timeout };
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let (message, guest) = (fds[0].revents(), fds[1].revents());
            let host = fds.get(2).filter(|_| has_host).map_or(PollFlags::empty(), PollFd::revents);
            let answers = fds.get(2 + usize::from(has_host)).map_or(PollFlags::empty(), PollFd::revents);
            // First, so that no frame passes that it closes.
            if !message.is_empty() {
                self.read_control().context("control socket")?;
            }
            self.handle(Side::Guest, guest);
            self.handle(Side::Host, host);
            if !answers.is_empty() {
                self.read_answers();
            }
            self.write_log();
            self.counter.write_if_due();
        }
        Ok(())
    }

    fn port(&mut self, side: Side) -> &mut Port {
        match side {
            Side::Guest => &mut self.guest,
            Side::Host => &mut self.host,
        }
    }

    fn handle(&mut self, side: Side, events: PollFlags) {
        if events.contains(PollFlags::OUT) {
            self.port(side).drain();
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read(side);
        }
    }

    /// Moves what a side has sent. A read that gets much is followed by another before poll(2): more has most likely arrived.
    fn read(&mut self, side: Side) {
        for _ in 0..MAX_READS {
            let count = self.port(side).read();
            self.decide(side);
            let (port, other) = match side {
                Side::Guest => (&mut self.guest, &self.host),
                Side::Host => (&mut self.host, &self.guest),
            };
            if count.is_none() {
                port.is_open = false;
                port.output.clear();
                port.written = 0;
            }
            if count.is_none_or(|count| count < MUCH) || !other.is_drained() {
                return;
            }
        }
    }

    /// Decides about all whole frames that a side has sent, and writes runs of those that pass.
    fn decide(&mut self, from: Side) {
        let now = time(ClockId::Monotonic);
        let (port, other) = match from {
            Side::Guest => (&mut self.guest, &mut self.host),
            Side::Host => (&mut self.host, &mut self.guest),
        };
        let input = std::mem::take(&mut port.input);
        let end = port.end;
        let skipped = port.skip.min(end - port.start);
        port.skip -= skipped;
        let mut at = port.start + skipped;
        // Where the run begins of frames that pass, and how many it has.
        let (mut run, mut frames) = (at, 0);
        let mut queries = Vec::new();
        while let Some(head) = input[at..end].first_chunk::<LENGTH>() {
            let length = u32::from_be_bytes(*head) as usize;
            if length > MAX_FRAME {
                other.write(&input[run..at]);
                self.counter.count(from, std::mem::take(&mut frames), at - run);
                let there = (LENGTH + length).min(end - at);
                port.skip = LENGTH + length - there;
                at += there;
                run = at;
                continue;
            }
            let Some(frame) = input[at..end].get(LENGTH..LENGTH + length) else { break };
            let verdict = match from {
                Side::Guest => self.gate.from_guest(frame, now),
                Side::Host => self.gate.to_guest(frame, now),
            };
            if verdict == Verdict::Pass {
                frames += 1;
            } else {
                other.write(&input[run..at]);
                self.counter.count(from, std::mem::take(&mut frames), at - run);
                run = at + LENGTH + length;
            }
            match verdict {
                Verdict::Pass | Verdict::Drop => {}
                Verdict::Reply(frame) => port.write_reply(&frame),
                Verdict::Replace(frame) => {
                    other.write_frame(&frame);
                    self.counter.count(from, 1, LENGTH + frame.len());
                }
                Verdict::Ask { query, back } => {
                    if let Some(reply) = back {
                        port.write_reply(&reply);
                    }
                    queries.push(query);
                }
                Verdict::Both { back: reply, onward: frame } => {
                    port.write_reply(&reply);
                    // passt must not miss a reset, so this goes on, however much waits: it stands for a frame of the sender's.
                    other.write_frame(&frame);
                    self.counter.count(from, 1, LENGTH + frame.len());
                }
            }
            at += LENGTH + length;
        }
        other.write(&input[run..at]);
        self.counter.count(from, frames, at - run);
        port.input = input;
        (port.start, port.end) = if at == end { (0, 0) } else { (at, end) };
        queries.iter().for_each(|query| self.ask(query));
    }

    fn write_log(&mut self) {
        let now = time(ClockId::Realtime);
        let mut lines = Vec::new();
        for denial in self.gate.take_denials() {
            lines.extend(self.log.add(denial, now));
        }
        lines.extend(self.log.flush(now));
        if !lines.is_empty() {
            // Where the disk is full, lines are lost.
            let _ = self.file.write_all(&lines);
        }
    }
}
