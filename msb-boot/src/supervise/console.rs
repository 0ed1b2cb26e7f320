//! What the VM says: the guest's console, which becomes kernel.log, and the stderr of the processes that serve it.
//!
//! Both are the guest's to fill, so both are bounded, and neither reaches a terminal with its control characters.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::log;
use super::rotated::Rotated;
use super::verdict::Verdict;

/// The most bytes that kernel.log has; then it becomes kernel.log.1, and a new one begins.
const MAX_LOG: usize = 4 << 20;

/// The lines that are kept for an error's message.
const KEPT_LINES: usize = 10;
/// How long the kernel's word of a machine's end is the reason for that end. A halted one stays until its VMM is ended.
const FRESH: Duration = Duration::from_secs(5);
/// The most bytes of a line that are kept.
const KEPT_LINE: usize = 400;

/// The last lines of a stream.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    open: Vec<u8>,
}

impl Tail {
    fn feed(&mut self, bytes: &[u8], mut on_line: impl FnMut(&[u8])) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.open.len() < KEPT_LINE {
                    self.open.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.open);
            on_line(&line);
            if self.lines.len() == KEPT_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }

    fn words(&self) -> Vec<String> {
        let open = Some(&self.open).filter(|line| !line.is_empty());
        let lines = self.lines.iter().chain(open).map(|line| printable(line));
        lines.filter(|line| !line.is_empty()).collect()
    }
}

/// A line without what would command a terminal.
fn printable(line: &[u8]) -> String {
    msb::tool::exit::printable(String::from_utf8_lossy(line).trim_end())
}

/// A pipe from the VM's processes, read without waiting.
struct Source(PipeReader);

impl Source {
    fn new(pipe: PipeReader) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Self(pipe))
    }

    /// Gives what is there to `take`. False: there will be no more.
    fn drain(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        let mut buffer = [0u8; 16 << 10];
        // A guest that never stops talking must not keep the supervisor from everything else.
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
    tail: Tail,
    open: bool,
    verdict: Option<Verdict>,
    /// When there was a line last.
    last_line: Instant,
}

impl Console {
    /// From a pipe into a new file.
    pub(super) fn new(pipe: PipeReader, log: &Path) -> io::Result<Self> {
        Ok(Self::with_log(Source::new(pipe)?, Rotated::begin(log, MAX_LOG)?))
    }

    /// The same, behind what an earlier start of the VM has left in the file.
    pub(super) fn resume(pipe: PipeReader, log: &Path) -> io::Result<Self> {
        Ok(Self::with_log(Source::new(pipe)?, Rotated::resume(log, MAX_LOG)?))
    }

    fn with_log(source: Source, log: Rotated) -> Self {
        Self { source, log, tail: Tail::default(), open: true, verdict: None, last_line: Instant::now() }
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self) {
        let Self { source, log, tail, open, verdict, last_line } = self;
        *open = source.drain(|bytes| {
            log.add(bytes);
            // A machine that goes on for so long did not end then.
            *verdict = verdict.filter(|_| last_line.elapsed() < FRESH);
            tail.feed(bytes, |line| *verdict = Verdict::after(*verdict, line));
            *last_line = Instant::now();
        });
    }

    /// Whether more can come.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// What the kernel said last of the machine's end.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.filter(|&verdict| verdict == Verdict::Halted || self.last_line.elapsed() < FRESH)
    }

    /// Forgets it: the machine goes on.
    pub(super) fn dismiss(&mut self) {
        self.verdict = None;
    }

    /// The last lines.
    pub(super) fn words(&self) -> Vec<String> {
        self.tail.words()
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }
}

/// The stderr of processes of the VM. It goes to the supervisor's log.
pub(super) struct Words {
    source: Source,
    tail: Tail,
    whose: &'static str,
    open: bool,
}

impl Words {
    /// From a pipe.
    pub(super) fn new(pipe: PipeReader, whose: &'static str) -> io::Result<Self> {
        Ok(Self { source: Source::new(pipe)?, tail: Tail::default(), whose, open: true })
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self) {
        let Self { source, tail, whose, open } = self;
        *open = source.drain(|bytes| tail.feed(bytes, |line| log::note(format_args!("{whose}: {}", printable(line)))));
    }

    /// Whether more can come.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// The last lines.
    pub(super) fn words(&self) -> Vec<String> {
        self.tail.words()
    }
}

impl AsFd for Words {
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
        let words = tail.words();
        assert_eq!(words.len(), KEPT_LINES + 1);
        assert_eq!(words[KEPT_LINES - 1], "line 99");
        assert_eq!(words[KEPT_LINES].len(), KEPT_LINE);
    }

    #[test]
    fn nothing_that_commands_a_terminal_gets_into_words() {
        assert_eq!(printable(b"a\x1b[2Jb\r"), "a\u{fffd}[2Jb");
    }
}
