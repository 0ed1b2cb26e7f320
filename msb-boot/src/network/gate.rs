//! The process between the guest's network card and passt: it moves frames, and [`msb_gate::Gate`] decides about each. Its jail is
//! empty, and has no network.
//!
//! It is one thread. A direction whose receiver does not take more is not read, so nothing is buffered without bound, and one
//! direction does not wait for the other.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use msb_gate::frame::MAX_FRAME;
use msb_gate::{Config, Gate, Log, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::OpenOptionsExt;

use crate::jail::Jail;

/// The process's name in messages.
pub(crate) const NAME: &str = "gate";

/// How much is read at once, in bytes.
const BUFFER: usize = 1 << 20;
/// The length of a frame, before it: four bytes, big-endian. QEMU, libkrun and passt have the same framing.
const LENGTH: usize = 4;
/// How many bytes of the gate's own replies may wait for their receiver. Others are dropped.
const MAX_REPLIES: usize = 256 << 10;
/// How often counts are logged that are due.
const LOG_INTERVAL: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What the process is told, as JSON. The guest's frames are on its stdin, and passt's on its stdout.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    pub jail: Jail,
    pub config: Config,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The file to which denials are appended.
    pub log: PathBuf,
}

/// The main of the process.
pub(crate) fn run(description: &str) -> ExitCode {
    match Pump::prepare(description).and_then(|mut pump| pump.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the log.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// A side of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Guest,
    Host,
}

/// A connection with what was read from it and what waits to be written to it.
struct Port {
    input: Vec<u8>,
    /// Where the next frame begins in `input`, and where the bytes end that were read.
    start: usize,
    end: usize,
    /// How many bytes are still to come of a frame that is too long.
    skip: usize,
    output: Vec<u8>,
    /// How much of `output` is written.
    written: usize,
    is_open: bool,
}

impl Port {
    fn new() -> Self {
        Self { input: vec![0; BUFFER], start: 0, end: 0, skip: 0, output: Vec::new(), written: 0, is_open: true }
    }

    /// Whether everything is written that was to be.
    fn is_drained(&self) -> bool {
        self.written == self.output.len()
    }

    /// Writes what waits, as far as the receiver takes it.
    fn drain(&mut self, fd: BorrowedFd<'_>) {
        while self.is_open && !self.is_drained() {
            match rustix::io::write(fd, &self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.is_open = false,
            }
        }
        self.output.clear();
        self.written = 0;
    }

    /// Writes bytes, or keeps what the receiver does not take.
    fn write(&mut self, fd: BorrowedFd<'_>, mut bytes: &[u8]) {
        while self.is_open && self.is_drained() && !bytes.is_empty() {
            match rustix::io::write(fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.is_open = false,
            }
        }
        if self.is_open {
            self.output.extend(bytes);
        }
    }

    /// Writes a frame of the gate's own.
    fn write_frame(&mut self, fd: BorrowedFd<'_>, frame: &[u8]) {
        if self.output.len() - self.written > MAX_REPLIES {
            return;
        }
        let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        self.write(fd, &[&length, frame].concat());
    }

    /// Reads once. False at the end.
    fn read(&mut self, fd: BorrowedFd<'_>) -> bool {
        if self.input.len() - self.end < LENGTH + MAX_FRAME {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match rustix::io::read(fd, &mut self.input[self.end..]) {
            Ok(0) => false,
            Ok(count) => {
                self.end += count;
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }
}

/// The process.
struct Pump {
    gate: Gate,
    log: Log,
    file: File,
    guest: Port,
    host: Port,
}

fn fd_of(side: Side) -> BorrowedFd<'static> {
    match side {
        Side::Guest => rustix::stdio::stdin(),
        Side::Host => rustix::stdio::stdout(),
    }
}

fn time(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Pump {
    /// Opens the log and enters the jail.
    fn prepare(description: &str) -> anyhow::Result<Self> {
        let Description { jail, config, mac, log } =
            serde_json::from_str(description).context("description of the gate")?;
        let file = open_log(&log).with_context(|| format!("{log:?}"))?;
        jail.enter().context("jail")?;
        for side in [Side::Guest, Side::Host] {
            let flags = rustix::fs::fcntl_getfl(fd_of(side))?;
            rustix::fs::fcntl_setfl(fd_of(side), flags | OFlags::NONBLOCK)?;
        }
        let mut host = Port::new();
        // A server in the guest is reached although the guest has sent nothing. With IPv6 alone, no frame need have this address.
        let address = config.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED);
        host.write_frame(fd_of(Side::Host), &msb_gate::announcement(mac, address));
        Ok(Self { gate: Gate::new(config), log: Log::default(), file, guest: Port::new(), host })
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
            let mut fds = vec![PollFd::from_borrowed_fd(fd_of(Side::Guest), guest)];
            if self.host.is_open {
                fds.push(PollFd::from_borrowed_fd(fd_of(Side::Host), host));
            }
            let timeout = self.log.has_counts().then_some(LOG_INTERVAL);
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let (guest, host) = (fds[0].revents(), fds.get(1).map_or(PollFlags::empty(), PollFd::revents));
            self.handle(Side::Guest, guest);
            self.handle(Side::Host, host);
            self.write_log();
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
            self.port(side).drain(fd_of(side));
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            let is_open = self.port(side).read(fd_of(side));
            self.decide(side);
            if !is_open {
                let port = self.port(side);
                port.is_open = false;
                port.output.clear();
                port.written = 0;
            }
        }
    }

    /// Decides about all whole frames that a side has sent, and writes runs of those that pass.
    fn decide(&mut self, from: Side) {
        let now = time(ClockId::Monotonic);
        let (port, other, back, onward) = match from {
            Side::Guest => (&mut self.guest, &mut self.host, fd_of(Side::Guest), fd_of(Side::Host)),
            Side::Host => (&mut self.host, &mut self.guest, fd_of(Side::Host), fd_of(Side::Guest)),
        };
        let input = std::mem::take(&mut port.input);
        let end = port.end;
        let skipped = port.skip.min(end - port.start);
        port.skip -= skipped;
        let mut at = port.start + skipped;
        // Where the run begins of frames that pass.
        let mut run = at;
        while let Some(head) = input[at..end].first_chunk::<LENGTH>() {
            let length = u32::from_be_bytes(*head) as usize;
            if length > MAX_FRAME {
                other.write(onward, &input[run..at]);
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
            if verdict != Verdict::Pass {
                other.write(onward, &input[run..at]);
                run = at + LENGTH + length;
            }
            match verdict {
                Verdict::Pass | Verdict::Drop => {}
                Verdict::Reply(frame) => port.write_frame(back, &frame),
                Verdict::Replace(frame) => other.write_frame(onward, &frame),
                Verdict::Both { back: reply, onward: frame } => {
                    port.write_frame(back, &reply);
                    other.write_frame(onward, &frame);
                }
            }
            at += LENGTH + length;
        }
        other.write(onward, &input[run..at]);
        port.input = input;
        (port.start, port.end) = if at == end { (0, 0) } else { (at, end) };
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
