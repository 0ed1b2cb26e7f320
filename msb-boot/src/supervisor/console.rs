//! The output of a VM: the guest's console, which is written to kernel.log, and the stderr of its processes.
//!
//! The guest can write any amount of any bytes to both, so their sizes and rates are bounded, and control characters are replaced before
//! they reach a terminal.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::rate_limit::RateLimit;
use super::verdict::Verdict;
use crate::config::now;
use crate::log;
use crate::rotated::Rotated;

/// The size at which kernel.log is rotated, in bytes.
const MAX_LOG: usize = 4 << 20;

/// How fast kernel.log may grow, in bytes per second, after as many bytes as it holds.
const LOG_RATE: u64 = 1 << 20;
/// How fast the stderr of a process of the VM may fill supervisor.log, in bytes per second, and what is written at any speed before.
const STDERR_RATE: u64 = 16 << 10;
const STDERR_BURST: u64 = 128 << 10;
/// What a line takes in supervisor.log besides its text, in bytes.
const LINE_COST: usize = 40;

/// How many lines are kept for an error message.
const MAX_LINES: usize = 10;
/// How much of a line is kept, in bytes.
const MAX_LINE: usize = 400;
/// How long a message of the kernel counts as the reason of an end that follows. A halt counts until the VMM is killed.
const FRESH: Duration = Duration::from_secs(5);

/// The last lines of a stream.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    /// The line that has not ended yet.
    partial: Vec<u8>,
}

impl Tail {
    fn feed(&mut self, bytes: &[u8], mut on_line: impl FnMut(&[u8])) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.partial.len() < MAX_LINE {
                    self.partial.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.partial);
            on_line(&line);
            if self.lines.len() == MAX_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }

    fn lines(&self) -> Vec<String> {
        let partial = Some(&self.partial).filter(|line| !line.is_empty());
        let lines = self.lines.iter().chain(partial).map(|line| printable(line));
        lines.filter(|line| !line.is_empty()).collect()
    }
}

/// A line with its control characters replaced.
fn printable(line: &[u8]) -> String {
    msb::tool::exit::printable(String::from_utf8_lossy(line).trim_end())
}

/// A pipe from the VM's processes, which is read without blocking.
struct Source(PipeReader);

impl Source {
    fn new(pipe: PipeReader) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Self(pipe))
    }

    /// Passes what has arrived to `take`. False: the pipe has ended.
    fn drain(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        let mut buffer = [0u8; 16 << 10];
        // Bounded, so that a guest that writes all the time does not block the supervisor.
        for _ in 0..16 {
            match self.0.read(&mut buffer) {
                Ok(0) => return false,
                Ok(got) => take(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// The guest's console.
pub(super) struct Console {
    source: Source,
    log: Rotated,
    rate: RateLimit,
    tail: Tail,
    open: bool,
    verdict: Option<Verdict>,
    /// When the last line arrived.
    last_line: Instant,
}

impl Console {
    /// Copies a pipe to a new log.
    ///
    /// # Errors
    /// A log that cannot be created.
    pub(super) fn new(pipe: PipeReader, log: &Path) -> io::Result<Self> {
        Ok(Self::with_log(Source::new(pipe)?, Rotated::begin(log, MAX_LOG)?))
    }

    /// Copies a pipe to the log of an earlier start of the VM.
    ///
    /// # Errors
    /// A log that cannot be opened.
    pub(super) fn resume(pipe: PipeReader, log: &Path) -> io::Result<Self> {
        Ok(Self::with_log(Source::new(pipe)?, Rotated::resume(log, MAX_LOG)?))
    }

    fn with_log(source: Source, log: Rotated) -> Self {
        let rate = RateLimit::new(LOG_RATE, MAX_LOG as u64, now());
        Self { source, log, rate, tail: Tail::default(), open: true, verdict: None, last_line: Instant::now() }
    }

    /// Reads what has arrived.
    pub(super) fn drain(&mut self) {
        let Self { source, log, rate, tail, open, verdict, last_line } = self;
        *open = source.drain(|bytes| {
            if let Some(dropped) = rate.admit(bytes.len(), now()) {
                if dropped > 0 {
                    log.add(format!("\n[msb: {dropped} bytes came too fast and are left out]\n").as_bytes());
                }
                log.add(bytes);
            }
            // The machine has gone on for longer than FRESH, so the message did not mean its end.
            *verdict = verdict.filter(|_| last_line.elapsed() < FRESH);
            tail.feed(bytes, |line| *verdict = Verdict::after(*verdict, line));
            *last_line = Instant::now();
        });
    }

    /// Whether more can arrive.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// The kernel's last message about the machine's end.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.filter(|&verdict| verdict == Verdict::Halted || self.last_line.elapsed() < FRESH)
    }

    /// Drops that message, because the machine goes on.
    pub(super) fn dismiss_verdict(&mut self) {
        self.verdict = None;
    }

    /// Whether nothing was written yet.
    pub(super) fn is_empty(&self) -> bool {
        self.tail.lines().is_empty()
    }

    /// A message, with the last lines after it.
    pub(super) fn quoted_after(&self, mut message: String) -> String {
        for line in self.tail.lines() {
            message.push_str("\n  guest: ");
            message.push_str(&line);
        }
        message
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }
}

/// The stderr of processes of the VM, which is copied to supervisor.log.
pub(super) struct Stderr {
    source: Source,
    rate: RateLimit,
    tail: Tail,
    /// The prefix of its lines in the log.
    name: &'static str,
    open: bool,
}

impl Stderr {
    /// Reads from a pipe.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub(super) fn new(pipe: PipeReader, name: &'static str) -> io::Result<Self> {
        let rate = RateLimit::new(STDERR_RATE, STDERR_BURST, now());
        Ok(Self { source: Source::new(pipe)?, rate, tail: Tail::default(), name, open: true })
    }

    /// Reads what has arrived.
    pub(super) fn drain(&mut self) {
        let Self { source, rate, tail, name, open } = self;
        let mut on_line = |line: &[u8]| {
            let Some(dropped) = rate.admit(line.len() + LINE_COST, now()) else { return };
            if dropped > 0 {
                log::note(format_args!("{name}: {dropped} bytes came too fast and are left out"));
            }
            log::note(format_args!("{name}: {}", printable(line)));
        };
        *open = source.drain(|bytes| tail.feed(bytes, &mut on_line));
    }

    /// Whether more can arrive.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// A message, with the last lines after it, if there are any.
    pub(super) fn quoted_after(&self, message: &str) -> String {
        let lines = self.tail.lines();
        if lines.is_empty() { message.to_owned() } else { format!("{message}: {}", lines.join("; ")) }
    }
}

impl AsFd for Stderr {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.feed(format!("line {number}\n").as_bytes(), |_| {});
        }
        tail.feed(&[b'x'; 100_000], |_| {});
        let lines = tail.lines();
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!(lines[MAX_LINES - 1], "line 99");
        assert_eq!(lines[MAX_LINES].len(), MAX_LINE);
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable(b"a\x1b[2Jb\r"), "a\u{fffd}[2Jb");
    }
}
